"""SIDDHI as a daemon: hypotheses with their reasons, runs as jobs, money, a board; and apart from it the collector."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import orjson
from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.money import format_usd, usd_string
from avyay.ports import Progress
from avyay.serve.app import IdempotencyKey, Kit, Report, accepted, daemon_key
from avyay.serve.board import board, stages
from avyay.serve.house import Metric
from avyay.serve.jobs import Job, JobBoard, JobKind
from avyay.serve.launch import Daemon, Launch, Site, launch
from avyay.serve.lead import Lead
from avyay.serve.run import App, Stopping, serving_beside
from avyay.serve.siblings import Siblings
from avyay.siddhi.build import build_mailer, open_miners, query_jobs
from avyay.siddhi.collector import collector_app
from avyay.siddhi.machine import State
from avyay.siddhi.pipeline import LIVE_SWITCH, Siddhi, Spend, live

if TYPE_CHECKING:
    from avyay.siddhi.pipeline import Report as RunReport
    from avyay.wiring import Services

__all__ = ["COLLECTOR_PORT", "DEFAULT_PORT", "build_app", "build_collector", "serve_siddhi", "siddhi_daemon"]

DEFAULT_PORT = 8084
COLLECTOR_PORT = 8085


class RunBody(BaseModel):
    """One pass over everything."""

    mode: Literal["dry-run", "validate", "live"] = "dry-run"
    total: str | None = Field(None, max_length=40, description="For live: the total budget, typed in dollars.")


class DecideBody(BaseModel):
    """A person's decision, whatever the table of states says."""

    state: State
    reason: str = Field(min_length=1, max_length=1000, description="Why; kept in the history.")


class StopBody(BaseModel):
    """An end to all spending."""

    reason: str = Field("stopped over HTTP", min_length=1, max_length=500)


def serve_siddhi(services: Services, how: Launch | None = None, *, collector_port: int | None = None) -> int:
    """Run the daemon, and on a port of its own the collector, until it is told to end; returns the exit code.

    Args:
        collector_port: Where the collector listens, on the same address; None: it is not run.

    Raises:
        UsageError: a port is taken, or the variable that the configuration names is not set.
        PolicyError: others could reach it, and it has no key.
    """
    return launch(services, siddhi_daemon(collector_port), how or Launch())


def siddhi_daemon(collector_port: int | None = None) -> Daemon:
    """What `avyay serve siddhi` runs; see `serve_siddhi`."""

    def build(services: Services, site: Site) -> App:
        beside = [partial(_collecting, services, site, public) for public in site.sockets]
        key = _key(services, site.host)
        return build_app(services, key=key, stopping=site.stopping, siblings=site.siblings, beside=beside)

    public = f", collector: port {collector_port}" if collector_port is not None else ""
    further = () if collector_port is None else (collector_port,)
    about = f"health: /health, board: /{public}"
    return Daemon("siddhi", "SIDDHI", about, DEFAULT_PORT, _key, build, further=further)


def _key(services: Services, host: str) -> str | None:
    risk = "Anyone who reaches {host} could see and steer what you test."
    return daemon_key(services, "siddhi", host, services.settings.siddhi.api_key_env, risk)


@asynccontextmanager
async def _collecting(services: Services, site: Site, public: socket.socket) -> AsyncIterator[None]:
    """The collector, in one worker only: it limits strangers by what it remembers of them."""
    serving = partial(serving_beside, build_collector(services), public)
    if site.folder is None:
        async with serving():
            yield
        return
    lead = Lead(site.folder / "collector.lock", [serving], "siddhi")
    site.stopping.add(lead.resign)
    await lead.start()
    try:
        yield
    finally:
        await lead.stop()


def build_collector(services: Services) -> App:
    """The application for strangers. It knows the store of visitors and nothing else of the daemon."""
    settings = services.settings.siddhi
    app = collector_app(
        services.siddhi.visitors,
        mailer=build_mailer(settings, services.loaded.environment),
        public_url=settings.page.collector,
        contact=settings.page.contact,
        own=settings.page.own,
        proxies=settings.page.proxies,
    )
    return cast("App", app)


def build_app(
    services: Services,
    *,
    key: str | None = None,
    stopping: Stopping | None = None,
    siblings: Siblings | None = None,
    beside: Iterable[Callable[[], AbstractAsyncContextManager[Any]]] = (),
) -> FastAPI:
    """The ASGI application.

    Args:
        key: What callers must send as a bearer token; None: no key is asked for.
        stopping: Told when the daemon drains.
        siblings: What this process shares with other workers.
        beside: What runs as long as the daemon does.
    """
    siddhi = services.siddhi
    runner = Runner(services)
    kit = Kit(
        services,
        "siddhi",
        Report(partial(_health, siddhi), metrics=partial(_metrics, siddhi)),
        key=key,
        stopping=stopping,
        siblings=siblings,
        jobs=[JobKind("run", runner.work)],  # not again by itself: a run may spend
        at_once=1,
        beside=tuple(beside),
        duties=[runner.now_and_then],
        max_body=100_000,
    )
    runner.jobs = kit.jobs
    _add_hypotheses(kit, siddhi)
    _add_money(kit, siddhi)
    _add_runs(kit, services)
    _add_board(kit, siddhi)
    return kit.app


class Runner:
    """Runs, as jobs: one at a time in all processes of the home."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.jobs: JobBoard | None = None

    def work(self, arguments: Mapping[str, Any], payload: bytes | None, progress: Progress) -> Any:
        """Run, and say what happened."""
        progress(0, None, "running")
        report = asyncio.run(self._run(cast("Spend", arguments["mode"]), arguments.get("total")))
        return {"mined": [asdict(one) for one in report.mined], "lines": report.lines}

    async def _run(self, mode: Spend, total: str | None) -> RunReport:
        services = self._services
        if mode == "live":
            live(services.paths.config / LIVE_SWITCH, total, services.siddhi.governor.caps.total)
        settings = services.settings.siddhi
        queries = query_jobs(settings)
        miners, missing = open_miners([source for source, _ in queries], services.loaded.environment, services.clock)
        try:
            jobs = [(miners[source], query) for source, query in queries if source in miners]
            report = await services.siddhi.run(jobs, pages=settings.mine.pages, spend=mode)
        finally:
            for miner in miners.values():
                await miner.close()
        report.lines[:0] = missing
        return report

    @asynccontextmanager
    async def now_and_then(self) -> AsyncIterator[None]:
        """Dry runs at the configured interval."""
        interval = self._services.settings.siddhi.run_interval
        task = asyncio.create_task(self._keep_running(interval)) if interval else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _keep_running(self, interval: float) -> None:
        assert self.jobs is not None
        while True:
            try:
                await self.jobs.start("run", {"mode": "dry-run", "total": None}, once=True)
            except AvyayError as error:
                get_logger("siddhi").error("run_not_begun", error=error.message)
            await self._services.clock.sleep(interval)


def _json(data: Any) -> Response:
    return Response(orjson.dumps(data, default=str), media_type="application/json")


def _add_hypotheses(kit: Kit, siddhi: Siddhi) -> None:
    app = kit.app

    @app.get("/v1/siddhi/status", dependencies=[kit.authorised])
    async def status() -> Response:
        """Counts by state, complaints by source, whether spending is halted, alarms."""
        return _json(await asyncio.to_thread(siddhi.status))

    @app.get("/v1/siddhi/hypotheses", dependencies=[kit.authorised])
    async def hypotheses(state: State | None = None) -> Response:
        """Every hypothesis with its state, score and counts, best score first."""

        def rows() -> list[dict[str, Any]]:
            found = siddhi.store.hypotheses(*([state] if state is not None else []))
            return [{**asdict(one), **asdict(siddhi.counts(one.id))} for one in found]

        return _json({"hypotheses": await asyncio.to_thread(rows)})

    @app.get("/v1/siddhi/hypotheses/{identity}", dependencies=[kit.authorised])
    async def hypothesis(identity: str) -> Response:
        """A hypothesis with its complaints, score and test."""

        def row() -> dict[str, Any]:
            one = siddhi.store.hypothesis(identity)
            complaints = [asdict(complaint) for complaint in siddhi.store.complaints(identity)]
            return {**asdict(one), **asdict(siddhi.counts(identity)), "complaints": complaints}

        return _json(await asyncio.to_thread(row))

    @app.get("/v1/siddhi/hypotheses/{identity}/why", dependencies=[kit.authorised])
    async def why(identity: str) -> Response:
        """Its history: every change with its reason and numbers."""

        def events() -> list[dict[str, Any]]:
            siddhi.store.hypothesis(identity)
            return [asdict(event) for event in siddhi.store.history(identity)]

        return _json({"events": await asyncio.to_thread(events)})

    @app.post("/v1/siddhi/hypotheses/{identity}/decide", dependencies=[kit.authorised])
    async def decide(identity: str, body: DecideBody) -> Response:
        """Move a hypothesis by hand; recorded as such."""
        change = partial(siddhi.store.change, identity, body.state, body.reason, manual=True)
        return _json(asdict(await asyncio.to_thread(change)))


def _add_money(kit: Kit, siddhi: Siddhi) -> None:
    app = kit.app

    @app.get("/v1/siddhi/budget", dependencies=[kit.authorised])
    async def budget() -> Response:
        """What was spent and what is reserved, in every scope; US dollars as decimal text."""
        return _json(await asyncio.to_thread(_budget, siddhi))

    @app.post("/v1/siddhi/stop", dependencies=[kit.authorised])
    async def stop(body: StopBody) -> Response:
        """Pause every campaign at once; nothing starts until `resume`. Names what could not be paused."""
        failures = await asyncio.to_thread(siddhi.governor.stop_all, body.reason)
        return _json({"halted": True, "not_stopped": failures})

    @app.post("/v1/siddhi/resume", dependencies=[kit.authorised])
    async def resume() -> Response:
        """Let campaigns start again."""
        await asyncio.to_thread(siddhi.governor.resume)
        return _json({"halted": False})


def _budget(siddhi: Siddhi) -> dict[str, Any]:
    governor = siddhi.governor
    rows = [
        {
            "scope": balance.key,
            "spent": usd_string(balance.spent),
            "reserved": usd_string(balance.reserved),
            "cap": usd_string(balance.cap) if balance.cap is not None else None,
        }
        for balance in governor.ledger.balances()
    ]
    return {"scopes": rows, "alarms": [*governor.ledger.problems(), *governor.campaigns.alarms()]}


def _add_runs(kit: Kit, services: Services) -> None:
    jobs = kit.jobs
    assert jobs is not None

    @kit.app.post("/v1/siddhi/run", dependencies=[kit.authorised], status_code=202, response_model=Job)
    async def run(body: RunBody, key: IdempotencyKey = None) -> Response:
        """One pass over everything, as a job: mine, score, generate, test, decide. Spends nothing unless live."""
        if body.mode == "live":
            live(services.paths.config / LIVE_SWITCH, body.total, services.siddhi.governor.caps.total)
        return accepted(await jobs.start("run", {"mode": body.mode, "total": body.total}, key=key))


def _add_board(kit: Kit, siddhi: Siddhi) -> None:
    async def page() -> HTMLResponse:
        """The funnel, the money and every hypothesis, as a page."""
        return await asyncio.to_thread(_board, siddhi)

    for path in ("/", "/v1/siddhi/board"):
        kit.app.get(path, dependencies=[kit.reader], response_class=HTMLResponse)(page)


def _board(siddhi: Siddhi) -> HTMLResponse:
    state = siddhi.status()
    rows = []
    for one in siddhi.store.hypotheses()[:200]:
        counts = siddhi.counts(one.id)
        history = siddhi.store.history(one.id)
        rows.append(
            {
                "id": one.id,
                "state": one.state.value,
                "score": f"{one.score:.2f}" if one.score is not None else "–",
                "clicks": counts.clicks,
                "visits": counts.visits,
                "conversions": counts.conversions,
                "billed": f"${counts.billed:.2f}",
                "title": one.title,
                "reason": history[-1].reason if history else "",
            }
        )
    halted = [f"Spending is halted: {state['halted']} (lift it with: avyay siddhi resume)"] if state["halted"] else []
    money = [
        {
            "scope": balance.key,
            "spent": format_usd(balance.spent),
            "reserved": format_usd(balance.reserved),
            "cap": format_usd(balance.cap) if balance.cap is not None else None,
        }
        for balance in siddhi.governor.ledger.balances()
    ]
    complaints = sum(state["complaints"].values())
    return board(
        "siddhi.html",
        "SIDDHI",
        f"{complaints} complaints read",
        siddhi.clock.now(),
        [*halted, *state["alarms"]],
        stages=stages(state["states"]),
        budget=money,
        hypotheses=rows,
    )


def _health(siddhi: Siddhi) -> dict[str, Any]:
    state = siddhi.status()
    fine = not state["halted"] and not state["alarms"]
    platform = siddhi.terms.platform
    return {
        "status": "ok" if fine else "degraded",
        "halted": state["halted"],
        "alarms": len(state["alarms"]),
        "platform": platform or "none",
    }


def _metrics(siddhi: Siddhi) -> Iterable[Metric]:
    state = siddhi.status()
    rows: list[tuple[dict[str, str], float]] = [({"state": name}, count) for name, count in state["states"].items()]
    yield "siddhi_hypotheses", "gauge", "Hypotheses by state.", rows
    sources: list[tuple[dict[str, str], float]] = [({"source": name}, n) for name, n in state["complaints"].items()]
    yield "siddhi_complaints", "gauge", "Complaints by source.", sources
    yield "siddhi_halted", "gauge", "1 while spending is halted.", [({}, 1.0 if state["halted"] else 0.0)]
    yield "siddhi_alarms", "gauge", "Open alarms.", [({}, len(state["alarms"]))]
