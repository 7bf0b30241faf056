"""The router as a daemon: joins the gateway with the pages every daemon has."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import Query, Response

from avyay.errors import UsageError
from avyay.marga.asgi import MargaApp
from avyay.marga.gateway import Gateway
from avyay.marga.router import Router
from avyay.marga.shadow import ShadowPlan
from avyay.marga.shadowing import Shadowing
from avyay.marga.shared_health import HealthMember, HealthOwner
from avyay.marga.store import SqliteStore, WriterStore
from avyay.marga.verdicts import VerdictStore
from avyay.marga.watch import Watch
from avyay.money import parse_usd, usd_string
from avyay.resilience.breaker import BreakerState
from avyay.serve.app import Kit, Report, daemon_key
from avyay.serve.house import Metric
from avyay.serve.run import App, Stopping, bind, serve
from avyay.serve.workers import supervise, worker_command
from avyay.telemetry import enable_tracing, flush_tracing
from avyay.wiring import Services

__all__ = ["DEFAULT_PORT", "build_app", "serve_marga", "serve_worker"]

DEFAULT_PORT = 8081


def serve_marga(
    services: Services,
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int = 1,
    arguments: Sequence[str] = (),
) -> None:
    """Run the daemon until it is told to end.

    Args:
        workers: Processes that serve; with more than one, breakers are shared through this one.
        arguments: Of the command line, for the workers.

    Raises:
        UsageError: the port is taken.
        PolicyError: others could reach it, and it has no key.
    """
    settings = services.settings
    host = host or settings.serve.host
    port = DEFAULT_PORT if (found := port if port is not None else settings.serve.port) is None else found
    risk = "The router would answer anyone who reaches {host}, at your cost."
    key = daemon_key(services, "marga", host, settings.marga.api_key_env, risk)
    listener = bind(host, port, name="marga")
    if workers == 1:
        _trace(services)
        stopping = Stopping()
        serve(build_app(services, key=key, stopping=stopping), listener, stopping=stopping)
    else:
        _serve_with(services, listener, workers, arguments)


def _trace(services: Services) -> None:
    if (endpoint := services.settings.telemetry.otlp_endpoint) is not None:
        enable_tracing(endpoint, service="marga-router")


def _serve_with(services: Services, listener: socket.socket, workers: int, arguments: Sequence[str]) -> None:
    """Be the owner of several workers."""
    router = services.router
    watch = Watch(router, events=services.events)
    owner = HealthOwner(router.health)
    folder = Path(tempfile.mkdtemp(prefix="avyay-"))  # short: the path of a Unix socket holds about 100 characters

    async def started() -> None:
        await router.__aenter__()
        await owner.serve(folder / "health")
        watch.start()

    async def stopped() -> None:
        await watch.stop()
        await owner.close()
        await router.__aexit__()
        services.close()
        shutil.rmtree(folder, ignore_errors=True)

    listener.set_inheritable(True)
    options = ("--worker-of", str(folder / "health"), "--listen-fd", str(listener.fileno()), "--quiet")
    supervise(worker_command("marga", *arguments, *options), workers, listener, started=started, stopped=stopped)


def serve_worker(services: Services, *, owner: Path, listen_fd: int) -> None:
    """Be one of several workers: serve on an inherited socket, with the breakers of the owner at a Unix socket."""
    _trace(services)
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
    verdicts = _shadow(services, gateway)
    watch = Watch(router, events=services.events)
    member = HealthMember(router.health, counters=lambda: _counters(gateway), lost=_end_worker)
    report = _Report(services, gateway, store, member)

    kit = Kit(services, "marga", Report(report.health, report.ready, report.metrics), key=key, stopping=stopping)
    _add_pages(kit, report)
    life = AsyncExitStack()

    async def started() -> None:
        await life.enter_async_context(kit.running())
        await router.__aenter__()
        if owner is None:
            watch.start()
        else:
            await member.start(owner)
            watch.start_member()

    async def stopped() -> None:
        await watch.stop()
        if gateway.shadowing is not None:
            await gateway.shadowing.close()
        if verdicts is not None:
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


_EXCHANGES = {
    "/v1/chat/completions": "A completion, as OpenAI's chat completions.",
    "/v1/responses": "A completion, as OpenAI's responses.",
    "/v1/messages": "A completion, as Anthropic's messages.",
    "/v1/messages/count_tokens": "Tokens of a request, as Anthropic counts them.",
    "/v1/embeddings": "Vectors, as OpenAI's embeddings.",
    "/api/chat": "A completion, as Ollama's chat.",
}
_LISTS = {
    "/v1/models": "Models, as OpenAI or (with the header anthropic-version) Anthropic lists them.",
    "/api/tags": "Models, as Ollama lists them.",
}


def _add_pages(kit: Kit, report: _Report) -> None:
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

    @app.get("/marga/budgets", dependencies=[kit.authorised])
    async def budgets(prefix: str = "") -> Response:
        """What is spent and reserved of every cap."""
        return await answer(report.budgets, prefix, {})

    @app.get("/marga/usage", dependencies=[kit.authorised])
    async def usage(since: Annotated[int, Query(ge=0, le=10**11)] = 0, key: str | None = None) -> Response:
        """Calls, tokens and cost by day and key since a time (Unix seconds); `cost` is in picodollars."""
        return await answer(report.usage, key or "", {"since": str(since)})

    @app.get("/marga/cache", dependencies=[kit.authorised])
    async def cache() -> Response:
        """How the cache of answers does."""
        return await answer(report.cache, "", {})

    made = app.openapi

    def contract() -> dict[str, Any]:
        document = made()
        answers = {"200": {"description": "In the dialect of the path."}}
        for path, summary in _EXCHANGES.items():
            body = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
            document["paths"].setdefault(
                path, {"post": {"summary": summary, "requestBody": body, "responses": answers}}
            )
        for path, summary in _LISTS.items():
            document["paths"].setdefault(path, {"get": {"summary": summary, "responses": answers}})
        return document

    app.openapi = contract  # type: ignore[method-assign]


def _shadow(services: Services, gateway: Gateway) -> VerdictStore | None:
    """Set up shadow evaluation where it is wanted; what was learned of the classes holds in any case."""
    settings = services.settings.marga.shadow
    path = services.paths.component("marga") / "verdicts.db"
    if not settings.enabled and not path.exists():
        return None
    store = VerdictStore(path)
    if settings.enabled:
        plan = ShadowPlan(share=settings.share, daily_budget=int(parse_usd(settings.daily_budget)))
        embedder = (lambda: services.embedder) if settings.embedding else None
        gateway.shadowing = Shadowing(gateway, store, plan, embedder=embedder, judge=settings.judge)
    else:
        gateway.router.floors.update({name: state.floor for name, state in store.states().items()})
    return store


def _end_worker() -> None:
    """The owner is gone: a worker alone would keep the port and share nothing."""
    os.kill(os.getpid(), signal.SIGTERM)


_CACHE = "cache_"


def _counters(gateway: Gateway) -> dict[str, int]:
    """What workers tell one another of: requests by how they ended, and by what the cache had for them."""
    cache = gateway.cache
    counts = {} if cache is None else {f"{_CACHE}{name}": count for name, count in cache.counts.items()}
    return {**gateway.finished, **counts}


class _Report:
    """What a router says of itself."""

    def __init__(self, services: Services, gateway: Gateway, store: WriterStore, member: HealthMember) -> None:
        self._member = member
        self._services = services
        self._gateway = gateway
        self._store = store

    @property
    def _router(self) -> Router:
        return self._gateway.router

    def health(self) -> Mapping[str, Any]:
        """The state of the router, its providers and its ledger."""
        providers = {row["name"]: row["state"] for row in self.providers("", {})["providers"]}
        ledger = self._store.state()
        fine = ledger.healthy and not self._router.health.disturbed and bool(self._router.usable())
        return {
            "status": "ok" if fine else "degraded",
            "providers": providers,
            "ledger": {
                "healthy": ledger.healthy,
                "error": ledger.error.message if ledger.error else None,
                "backlog": ledger.backlog,
            },
            "active": self._gateway.active,
        }

    def ready(self) -> bool:
        """Whether it can serve: some provider is not given up."""
        return any(h.breaker.allow() for h in self._router.health.providers.values())

    def metrics(self) -> Iterable[Metric]:
        """For Prometheus."""
        totals = dict(self._member.others)
        for status, count in _counters(self._gateway).items():
            totals[status] = totals.get(status, 0) + count
        answered = {name.removeprefix(_CACHE): totals.pop(name) for name in list(totals) if name.startswith(_CACHE)}
        finished = [({"status": status}, count) for status, count in totals.items()]
        yield "marga_requests_total", "counter", "Requests by how they ended.", finished
        yield "marga_active", "gauge", "Requests under way.", [({}, self._gateway.active)]
        states = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 1.0, BreakerState.OPEN: 2.0}
        health = self._router.health
        yield (
            "marga_breaker_state",
            "gauge",
            "0 closed, 1 half open, 2 open.",
            [({"provider": name}, states[health.state(name)]) for name in health.providers],
        )
        if answered:
            asked = [({"result": name}, count) for name, count in answered.items()]
            yield "marga_cache_requests_total", "counter", "Requests by what the cache had for them.", asked
        ledger = self._store.state()
        yield "marga_ledger_backlog", "gauge", "Rows not yet on disk.", [({}, ledger.backlog)]
        yield "marga_ledger_rows_total", "counter", "Rows on disk.", [({}, ledger.committed)]

    def providers(self, rest: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The live state of the providers."""
        router = self._router
        now = router.clock.monotonic()
        rows = []
        for provider in router.providers.values():
            row: dict[str, Any] = {
                "name": provider.name,
                "kind": provider.kind,
                "endpoint": provider.endpoint,
                "region": provider.region,
                "priority": provider.priority,
                "state": provider.problem or "closed",
                "models": [{"name": model.name, "tier": model.tier} for model in provider.models],
            }
            if (health := router.health.providers.get(provider.name)) is not None:
                failed, calls = health.breaker.error_rate(now)
                row |= {
                    "state": health.breaker.state(now).value,
                    "reason": health.breaker.reason or None,
                    "retry_in": round(health.breaker.retry_in(now), 1),
                    "failed": failed,
                    "calls": calls,
                    "ramp": health.ramp.share(now) if health.ramp.active else None,
                    "checked_at": health.checked_at,
                    "check_problem": health.check_problem,
                }
            rows.append(row)
        return {"providers": rows}

    def decisions(self, rest: str, query: Mapping[str, str]) -> Any:
        """One decision by id, or the newest ones."""
        if rest:
            if (call := self._store.recent(rest)) is not None:
                call = replace(call)
                return {
                    "id": rest,
                    "status": call.status,
                    "provider": call.provider,
                    "model": call.model,
                    "tier": call.tier,
                    "reasons": call.decision.reasons,
                    "attempts": call.attempts,
                    "input": call.input,
                    "output": call.output,
                    "cached": call.cached,
                    "cache_written": call.cache_written,
                    "reasoning": call.reasoning,
                    "estimated": call.estimated,
                    "cost_usd": usd_string(call.cost) if call.priced else None,
                    "seconds": call.seconds,
                }
            from avyay.money import Picodollars

            row = self._read().call(rest)
            return {**row, "cost_usd": usd_string(Picodollars(row["cost"])) if row["priced"] else None}
        limit = min(1000, int(query.get("limit", "20"))) if query.get("limit", "20").isdigit() else 20
        return {"decisions": list(self._read().calls(limit=limit))}

    def stats(self, rest: str, query: Mapping[str, str]) -> Any:
        """Totals by group."""
        return {"groups": self._read().stats(query.get("by", "model"))}

    def budgets(self, rest: str, query: Mapping[str, str]) -> Any:
        """What is spent and reserved of every cap."""
        budgets = self._router.budgets
        return {"budgets": [] if budgets is None else budgets.rows(rest)}

    def usage(self, rest: str, query: Mapping[str, str]) -> Any:
        """Calls, tokens and cost by day and key since a time; `cost` is in picodollars."""
        rows = self._read().usage(since=float(query["since"]), key=rest or None)
        return {"usage": [asdict(row) for row in rows]}

    def cache(self, rest: str, query: Mapping[str, str]) -> Any:
        """What is kept to be given again, here, and how often it was."""
        cache = self._gateway.cache
        if cache is None:
            return {"enabled": False}
        size = cache.store.size()
        return {"enabled": True, "entries": size.entries, "bytes": size.size, "requests": cache.counts}

    def _read(self) -> SqliteStore:
        return self._services.calls
