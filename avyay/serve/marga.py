"""The router as a daemon: joins the gateway with the pages every daemon has."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from fastapi import Query, Response

from avyay.errors import UsageError
from avyay.marga.alarms import AlarmWatch
from avyay.marga.asgi import MargaApp
from avyay.marga.gateway import Gateway
from avyay.marga.knowledge import ClassKnowledge
from avyay.marga.shadow import ShadowPlan
from avyay.marga.shadowing import Shadowing
from avyay.marga.shared_state import StateMember, StateOwner
from avyay.marga.store import SqliteStore, WriterStore
from avyay.marga.verdicts import VerdictStore
from avyay.marga.watch import Watch
from avyay.money import parse_usd
from avyay.serve.app import Kit, Report, daemon_key
from avyay.serve.launch import Launch, launch, trace
from avyay.serve.marga_contract import add_wire_endpoints
from avyay.serve.marga_report import RouterReport, worker_counters
from avyay.serve.run import App, Stopping, bind, serve
from avyay.serve.workers import supervise, worker_command
from avyay.telemetry import flush_tracing
from avyay.wiring import Services

__all__ = ["DEFAULT_PORT", "build_app", "serve_marga", "serve_worker"]

DEFAULT_PORT = 8081


def serve_marga(
    services: Services, how: Launch | None = None, *, workers: int = 1, arguments: Sequence[str] = ()
) -> None:
    """Run the daemon until it is told to end.

    Args:
        workers: Processes that serve; with more than one, breakers are shared through this one.
        arguments: Of the command line, for the workers.

    Raises:
        UsageError: the port is taken, or the variable that the configuration names is not set.
        PolicyError: others could reach it, and it has no key.
    """
    how = how or Launch()

    def key(services: Services) -> str | None:
        host, _ = how.place(services, DEFAULT_PORT)
        risk = "The router would answer anyone who reaches {host}, at your cost."
        variable = services.settings.marga.api_key_env
        return daemon_key(services, "marga", host, variable, risk, knows_users=False)  # the hot path has keys only

    if workers == 1:
        launch(
            services,
            "marga",
            lambda services, stopping: build_app(services, key=key(services), stopping=stopping),
            how,
            port=DEFAULT_PORT,
        )
        return
    key(services)
    host, port = how.place(services, DEFAULT_PORT)
    listener = bind(host, port, name="marga")
    how.bound(f"http://{host}:{listener.getsockname()[1]}")
    _serve_with(services, listener, workers, arguments)


def _serve_with(services: Services, listener: socket.socket, workers: int, arguments: Sequence[str]) -> None:
    """Be the owner of several workers."""
    store = WriterStore(services.paths.component("marga") / "marga.db")  # for its probes
    router = services.router_with(lambda: store)
    watch = Watch(router, events=services.events, near=services.settings.events.budget_share)
    verdicts = services.verdicts
    owner = StateOwner(router)
    folder = Path(tempfile.mkdtemp(prefix="avyay-"))  # short: the path of a Unix socket holds about 100 characters

    async def started() -> None:
        await router.__aenter__()
        await owner.serve(folder / "state")
        watch.start()
        watch.run_beside(_alarms(services, verdicts))

    async def stopped() -> None:
        await watch.stop()
        await owner.close()
        await router.__aexit__()
        await asyncio.to_thread(store.close)
        services.close()
        shutil.rmtree(folder, ignore_errors=True)

    listener.set_inheritable(True)
    options = ("--worker-of", str(folder / "state"), "--listen-fd", str(listener.fileno()), "--quiet")
    supervise(worker_command("marga", *arguments, *options), workers, listener, started=started, stopped=stopped)


def serve_worker(services: Services, *, owner: Path, listen_fd: int) -> None:
    """Be one of several workers: serve on an inherited socket, with the breakers of the owner at a Unix socket."""
    trace(services, "marga")
    stopping = Stopping()
    key = daemon_key(services, "marga", "127.0.0.1", services.settings.marga.api_key_env, "")
    app = build_app(services, key=key, owner=owner, stopping=stopping)
    serve(app, socket.socket(fileno=listen_fd), stopping=stopping)


def build_app(
    services: Services, *, key: str | None = None, owner: Path | None = None, stopping: Stopping | None = None
) -> App:
    """The ASGI application.

    Args:
        key: What callers must present.
        owner: The Unix socket of the process that keeps the breakers, when this is one of several workers.
    """
    path = services.paths.component("marga") / "marga.db"
    store = WriterStore(path)
    router = services.router_with(lambda: store)
    cache = services.answer_cache()
    gateway = Gateway(router, cache=cache)
    verdicts = VerdictStore(services.paths.component("marga") / "verdicts.db", clock=services.clock)
    _shadow(services, gateway, verdicts)
    knowledge = ClassKnowledge(verdicts, router)
    knowledge.refresh()
    watch = Watch(router, events=services.events, near=services.settings.events.budget_share)
    member = StateMember(router, counters=lambda: worker_counters(gateway), lost=_end_worker)
    report = RouterReport(services, gateway, store, member, knowledge)

    kit = Kit(services, "marga", Report(report.health, report.ready, report.metrics), key=key, stopping=stopping)
    _add_pages(kit, report)
    life = AsyncExitStack()

    async def started() -> None:
        await life.enter_async_context(kit.running())
        await router.__aenter__()
        if owner is None:
            watch.start()
            watch.run_beside(_alarms(services, verdicts))
        else:
            await member.start(owner)
            watch.start_member()
        watch.run_beside(knowledge.follow())

    async def stopped() -> None:
        await watch.stop()
        if gateway.shadowing is not None:
            await gateway.shadowing.close()
        verdicts.close()
        if cache is not None:
            await cache.close()
        if owner is not None:
            await member.stop()
        await router.__aexit__()
        await asyncio.to_thread(store.close)
        await asyncio.to_thread(flush_tracing)
        await life.aclose()

    settings = services.settings.marga
    return MargaApp(
        gateway,
        kit.app,
        key=key,
        principals=kit.principals,
        max_body=settings.max_body,
        started=started,
        stopped=stopped,
    )


def _add_pages(kit: Kit, report: RouterReport) -> None:
    """What the router shows of itself; and into the contract what `MargaApp` answers before anything gets here."""
    app = kit.app

    async def answer(page: Callable[[str, Mapping[str, str]], Any], rest: str, query: Mapping[str, str]) -> Response:
        try:
            found = await asyncio.to_thread(page, rest, query)
        except UsageError as error:
            raise UsageError(error.message, hint=error.hint, code="not_here") from error
        return Response(orjson.dumps(found, default=str), media_type="application/json")

    @app.get("/marga/providers", dependencies=[kit.authorised])
    async def providers() -> Response:
        """The live state of the providers."""
        return await answer(report.providers, "", {})

    @app.get("/marga/decisions", dependencies=[kit.authorised])
    async def decisions(limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> Response:
        """The newest decisions."""
        return await answer(report.decisions, "", {"limit": str(limit)})

    @app.get("/marga/decisions/{identity}", dependencies=[kit.authorised])
    async def decision(identity: str) -> Response:
        """One decision: why this model, and what became of it."""
        return await answer(report.decisions, identity, {})

    @app.get("/marga/stats", dependencies=[kit.authorised])
    async def stats(by: str = "model") -> Response:
        """Totals by group."""
        return await answer(report.stats, "", {"by": by})

    @app.get("/marga/bill", dependencies=[kit.authorised])
    async def bill(
        name: str, by: Literal["customer", "service", "session", "key"] = "customer", since: float = 0.0
    ) -> Response:
        """What one customer, service, session or key was charged since a time (seconds since 1970)."""
        return await answer(report.bill, "", {"name": name, "by": by, "since": repr(since)})

    @app.get("/marga/budgets", dependencies=[kit.authorised])
    async def budgets(prefix: str = "") -> Response:
        """What is spent and reserved of every cap."""
        return await answer(report.budgets, prefix, {})

    @app.get("/marga/usage", dependencies=[kit.authorised])
    async def usage(since: Annotated[int, Query(ge=0, le=10**11)] = 0, key: str | None = None) -> Response:
        """Calls, tokens and cost by day and key since a time (Unix seconds); `cost` is in picodollars."""
        return await answer(report.usage, key or "", {"since": str(since)})

    @app.get("/marga/spend", dependencies=[kit.authorised])
    async def spend(since: Annotated[int, Query(ge=0, le=10**11)] = 0) -> Response:
        """Calls and cost by day since a time, and what the dearest configured model alone would have cost."""
        return await answer(report.spend, "", {"since": str(since)})

    @app.get("/marga/cache", dependencies=[kit.authorised])
    async def cache() -> Response:
        """How the cache of answers does."""
        return await answer(report.cache, "", {})

    made = app.openapi
    app.openapi = lambda: add_wire_endpoints(made())  # type: ignore[method-assign]


def _shadow(services: Services, gateway: Gateway, store: VerdictStore) -> None:
    """Set up shadow evaluation where it is wanted; what was learned of the classes holds in any case."""
    settings = services.settings.marga.shadow
    if settings.enabled:
        plan = ShadowPlan(share=settings.share, daily_budget=int(parse_usd(settings.daily_budget)))
        embedder = (lambda: services.embedder) if settings.embedding else None
        gateway.shadowing = Shadowing(gateway, store, plan, embedder=embedder, judge=settings.judge)


async def _alarms(services: Services, store: VerdictStore) -> None:
    """Look for anomalies until cancelled, where that is wanted."""
    settings = services.settings.marga.anomalies
    if settings.enabled:
        path = services.paths.component("marga") / "marga.db"
        await AlarmWatch(settings, lambda: SqliteStore(path), store, services.clock).run()


def _end_worker() -> None:
    """The owner is gone: a worker alone would keep the port and share nothing."""
    os.kill(os.getpid(), signal.SIGTERM)
