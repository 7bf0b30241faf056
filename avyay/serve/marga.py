"""The router as a daemon: joins the gateway with the pages every daemon has."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from fastapi import Query, Response

from avyay.errors import UsageError
from avyay.marga.alarms import AlarmWatch
from avyay.marga.asgi import MargaApp
from avyay.marga.call_journal import JournalStore
from avyay.marga.gateway import Gateway
from avyay.marga.knowledge import ClassKnowledge
from avyay.marga.shadow import ShadowPlan
from avyay.marga.shadowing import Shadowing
from avyay.marga.shared_state import StateMember, StateOwner
from avyay.marga.store import SqliteStore
from avyay.marga.verdicts import VerdictStore
from avyay.marga.watch import Watch
from avyay.money import parse_usd
from avyay.serve.app import Kit, Report, daemon_key
from avyay.serve.launch import Daemon, Launch, Site, launch
from avyay.serve.marga_contract import add_wire_endpoints
from avyay.serve.marga_report import RouterReport
from avyay.serve.run import App, Stopping
from avyay.serve.siblings import Siblings
from avyay.telemetry import flush_tracing
from avyay.wiring import Services

__all__ = ["DEFAULT_PORT", "build_app", "marga_daemon", "serve_marga"]

DEFAULT_PORT = 8081
_PAGE_CACHE = 256  # KiB of the ledger; each stretch of it is read once, from end to end


def serve_marga(services: Services, how: Launch | None = None) -> int:
    """Run the daemon until it is told to end; returns the exit code. With several workers, breakers are the parent's.

    Raises:
        UsageError: the port is taken, or the variable that the configuration names is not set.
        PolicyError: others could reach it, and it has no key.
    """
    return launch(services, marga_daemon(), how or Launch())


def marga_daemon() -> Daemon:
    """What `avyay serve marga` runs."""

    def build(services: Services, site: Site) -> App:
        key = _key(services, site.host)
        return build_app(services, key=key, owner=site.owner, stopping=site.stopping, siblings=site.siblings)

    return Daemon("marga", "MARGA", "health: /health", DEFAULT_PORT, _key, build, owner=_owning)


def _key(services: Services, host: str) -> str | None:
    risk = "The router would answer anyone who reaches {host}, at your cost."
    variable = services.settings.marga.api_key_env
    return daemon_key(services, "marga", host, variable, risk, knows_users=False)  # the hot path has keys only


@asynccontextmanager
async def _owning(services: Services, path: Path) -> AsyncIterator[Callable[[], int]]:
    """Be the owner of several workers: breakers, probes and alarms are one for all of them."""
    store = JournalStore(services.paths.component("marga") / "marga.db", services.clock)  # for its probes
    router = services.router_with(lambda: store)
    watch = Watch(router, events=services.events, near=services.settings.events.budget_share)
    verdicts = services.verdicts
    owner = StateOwner(router)
    await router.__aenter__()
    try:
        await owner.serve(path)
        watch.start()
        watch.run_beside(_alarms(services, verdicts))
        yield lambda: owner.members
    finally:
        await watch.stop()
        await owner.close()
        await router.__aexit__()
        await asyncio.to_thread(store.close)


def build_app(
    services: Services,
    *,
    key: str | None = None,
    owner: Path | None = None,
    stopping: Stopping | None = None,
    siblings: Siblings | None = None,
) -> App:
    """The ASGI application.

    Args:
        key: What callers must present.
        owner: The Unix socket of the process that keeps the breakers, when this is one of several workers.
        stopping: Told when the daemon drains.
        siblings: What this process shares with other workers.
    """
    path = services.paths.component("marga") / "marga.db"
    store = JournalStore(path, services.clock)
    router = services.router_with(lambda: store)
    cache = services.answer_cache()
    gateway = Gateway(router, cache=cache)
    verdicts = VerdictStore(services.paths.component("marga") / "verdicts.db", clock=services.clock)
    _shadow(services, gateway, verdicts)
    knowledge = ClassKnowledge(verdicts, router)
    knowledge.refresh()
    watch = Watch(router, events=services.events, near=services.settings.events.budget_share)
    member = StateMember(router, lost=_end_worker)
    report = RouterReport(services, gateway, store, member, knowledge)

    told = Report(report.health, report.ready, report.metrics, counts=report.counts)
    kit = Kit(services, "marga", told, key=key, stopping=stopping, siblings=siblings)
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

    @app.get("/marga/usage/decisions", dependencies=[kit.authorised])
    async def usage_decisions(
        since: Annotated[float, Query(ge=0, le=10**11)],
        until: Annotated[float, Query(ge=0, le=10**11)],
        key: str | None = None,
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=50_000)] = 20_000,
    ) -> Response:
        """The decisions that usage is made of, page by page, to be compared with others' records one by one."""
        query = {"since": repr(since), "until": repr(until), "after": after, "limit": str(limit)}
        return await answer(report.usage_decisions, key or "", query)

    @app.get("/marga/spend", dependencies=[kit.authorised])
    async def spend(since: Annotated[int, Query(ge=0, le=10**11)] = 0) -> Response:
        """Calls and cost by day since a time, and what the dearest configured model alone would have cost."""
        return await answer(report.spend, "", {"since": str(since)})

    @app.get("/marga/cache", dependencies=[kit.authorised])
    async def cache() -> Response:
        """How the cache of answers does."""
        counted, _ = await kit.siblings.ask()
        return await answer(partial(report.cache, counted), "", {})

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
        await AlarmWatch(settings, lambda: SqliteStore(path, page_cache=_PAGE_CACHE), store, services.clock).run()


def _end_worker() -> None:
    """The owner is gone: a worker alone would keep the port and share nothing."""
    os.kill(os.getpid(), signal.SIGTERM)
