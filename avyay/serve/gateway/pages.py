"""The gateway's own pages: how it does, what its callers used, what it offers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl

import orjson

from avyay.clock import Clock
from avyay.errors import AvyayError, UnreachableError, UsageError
from avyay.marga.transport import TransportError
from avyay.money import Picodollars, usd_string
from avyay.resilience.breaker import BreakerState
from avyay.serve.gateway.app import GatewayApp
from avyay.serve.gateway.auth import Identity
from avyay.serve.gateway.limit_stores import LocalLimiter, RedisLimiter
from avyay.serve.gateway.openapi import openapi_document
from avyay.serve.gateway.relay import Upstream
from avyay.serve.gateway.replies import send_json
from avyay.serve.gateway.usage import Difference, UsageReader, UsageRow, decided_by_key, reconcile_counts
from avyay.serve.house import Metric, render_metrics

if TYPE_CHECKING:
    from avyay.serve.console.pages import Console

__all__ = ["add_pages", "usage_data"]

Scope: TypeAlias = MutableMapping[str, Any]
_DAY = 86_400.0
_STATES = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 1.0, BreakerState.OPEN: 2.0}


class _Pages:
    def __init__(
        self, app: GatewayApp, usage: UsageReader, clock: Clock, *, others: Callable[[], Mapping[str, float]]
    ) -> None:
        self._app = app
        self._usage = usage
        self._clock = clock
        self._others = others

    # ------------------------------------------------------------ how it does

    def state(self) -> dict[str, Any]:
        """The state of the gateway and of each component."""
        now = self._clock.monotonic()
        app = self._app
        components = {
            name: {"state": upstream.breaker.state(now).value, "problem": upstream.problem}
            for name, upstream in app.upstreams.items()
        }
        journal = app.journal.state()
        limits = app.limiter.state if isinstance(app.limiter, RedisLimiter) else "ok"
        fine = journal.healthy and limits == "ok" and not components["marga"]["problem"]
        return {
            "status": "ok" if fine else "degraded",
            "components": components,
            "usage": {
                "healthy": journal.healthy,
                "backlog": journal.backlog,
                "refused": app.journal.refused,
                "unspooled": app.journal.unspooled,
            },
            "limits": limits,
            "authentication": "none" if app.authenticator.open else "required",
            "active": len(app.passages),
        }

    async def health(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, self.state(), request_id)

    async def ready(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, {"ready": True}, request_id)

    async def root(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, {"name": "avyay gateway", "openapi": "/openapi.json"}, request_id)

    async def openapi(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, openapi_document(), request_id)

    async def metrics(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, render_metrics(self._metrics()), request_id)

    def _metrics(self) -> Iterable[Metric]:
        app = self._app
        totals = dict(self._others())
        for name, value in app.counts.flat().items():
            totals[name] = totals.get(name, 0) + value
        finished, limited = [], []
        for name, value in sorted(totals.items()):
            kind, *words = name.split(" ")
            if kind == "finished":
                finished.append(({"component": words[0], "status": words[1]}, value))
            else:
                limited.append(({"unit": words[0]}, value))
        yield "gateway_requests_total", "counter", "Requests by component and status (499: the caller went).", finished
        yield "gateway_limited_total", "counter", "Requests refused by a limit.", limited
        failures = [({"reason": name}, float(count)) for name, count in app.authenticator.failures.items()]
        yield "gateway_authentication_failures_total", "counter", "Credentials not believed.", failures
        yield "gateway_active", "gauge", "Requests under way in this process.", [({}, float(len(app.passages)))]
        now = self._clock.monotonic()
        states = [({"component": name}, _STATES[one.breaker.state(now)]) for name, one in app.upstreams.items()]
        yield "gateway_breaker_state", "gauge", "0 closed, 1 half open, 2 open.", states
        journal = app.journal.state()
        yield "gateway_usage_backlog", "gauge", "Rows not yet on disk.", [({}, float(journal.backlog))]
        yield "gateway_usage_rows_total", "counter", "Rows on disk.", [({}, float(journal.committed))]
        yield (
            "gateway_usage_unspooled_total",
            "counter",
            "Rows a kill could lose.",
            [({}, float(app.journal.unspooled))],
        )
        yield "gateway_tasks", "gauge", "Tasks of the event loop.", [({}, float(len(asyncio.all_tasks())))]
        if isinstance(app.limiter, LocalLimiter):
            held = float(app.limiter.counters.held)
            yield "gateway_concurrent_held", "gauge", "Places among answers at once that are taken.", [({}, held)]
        if isinstance(app.limiter, RedisLimiter):
            yield "gateway_redis_lost", "gauge", "Whether Redis is not there.", [({}, float(app.limiter.lost))]
            count = float(app.limiter.fallbacks)
            yield "gateway_limits_fallback_total", "counter", "Requests limited without Redis.", [({}, count)]

    # ------------------------------------------------------------ what was used

    async def usage(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        assert identity is not None
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        since = _since(query.get("days", "7"), self._clock.now())
        everybody = "admin" in identity.scopes
        key = query.get("key") if everybody else identity.key
        if not everybody and query.get("key", identity.key) != identity.key:
            raise UsageError("A key sees its own usage; `admin` sees everybody's.", code="not_yours")
        until = self._clock.now()
        rows = await asyncio.to_thread(self._usage.days, since=day_text(since), key=key)
        gone = await asyncio.to_thread(self._usage.gone, since=since, until=until)
        try:
            calls: list[dict[str, Any]] | None = await _calls(self._app.upstreams["marga"], since, key)
            problem = None
        except AvyayError as error:
            calls, problem = None, error.message
        differences = None
        if calls is not None:
            seen = decided_by_key(rows)
            counted: dict[str, int] = {}
            for row in calls:
                if row["key"] in seen:
                    counted[row["key"]] = counted.get(row["key"], 0) + row["calls"]
            differences = reconcile_counts(seen, counted, gone=gone)
        data = usage_data(since, rows, calls, differences, problem)
        return await self._json(scope, send, 200, data, request_id)

    async def _json(self, scope: Scope, send: Any, status: int, data: Any, request_id: str) -> int:
        await send_json(send, status, data, request_id, head=scope["method"] == "HEAD")
        return status


def add_pages(
    app: GatewayApp,
    usage: UsageReader,
    clock: Clock,
    *,
    others: Callable[[], Mapping[str, float]] = dict,
    console: Callable[..., Console] | None = None,
) -> None:
    """Give the gateway its pages.

    Args:
        others: The counters of the other workers.
        console: Makes what browsers get.
    """
    pages = _Pages(app, usage, clock, others=others)
    found: dict[bytes, Callable[..., Awaitable[int]]] = {
        b"/": pages.root,
        b"/health": pages.health,
        b"/ready": pages.ready,
        b"/openapi.json": pages.openapi,
        b"/metrics": pages.metrics,
        b"/v1/usage": pages.usage,
    }
    if console is not None:
        made = console(plain=pages.root)
        found |= {b"/": made.home, b"/console/sign-in": made.sign_in, b"/console/sign-out": made.sign_out}
    for path, page in found.items():
        app.pages.setdefault(path, page)


def usage_data(
    since: float,
    rows: Iterable[UsageRow],
    calls: Iterable[Mapping[str, Any]] | None,
    differences: Iterable[Difference] | None,
    problem: str | None,
) -> dict[str, Any]:
    """Usage as JSON: the gateway's counts, the router's tokens and money, and whether the two agree.

    Args:
        calls: The router's totals by day and key, `cost` in picodollars; None when it could not be asked.
    """
    router = None
    if calls is not None:
        router = [
            {
                **{name: value for name, value in row.items() if name not in ("cost", "estimated_cost")},
                "cost_usd": usd_string(Picodollars(row["cost"])),
                "estimated_cost_usd": usd_string(Picodollars(row["estimated_cost"])),
            }
            for row in calls
        ]
    reconciled = None
    if differences is not None:
        reconciled = [
            {
                "key": one.key,
                "gateway": one.gateway,
                "ledger": one.ledger,
                "missing_in_ledger": one.missing,
                "unseen_by_gateway": one.unseen,
                "ended_without_answer": one.gone,
                "agrees": one.agrees,
                "examples": list(one.examples),
            }
            for one in differences
        ]
    return {
        "since": day_text(since),
        "gateway": [
            {
                "day": row.day,
                "key": row.key,
                "endpoint": row.endpoint,
                "requests": row.requests,
                "errors": row.errors,
                "decided": row.decided,
            }
            for row in rows
        ],
        "router": router,
        "router_problem": problem,
        "reconciled": reconciled,
    }


def day_text(at: float) -> str:
    """A time's day, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def start_of(days: int, now: float) -> float:
    """The beginning of the first of so many days, today included."""
    return (now // _DAY - (days - 1)) * _DAY


def _since(days: str, now: float) -> float:
    if not days.isascii() or not days.isdigit() or not 1 <= int(days[:6]) <= 3_660:
        raise UsageError("`days` is a number from 1 to 3660.", code="bad_days")
    return start_of(int(days), now)


async def _calls(router: Upstream, since: float, key: str | None) -> list[dict[str, Any]]:
    """The router's totals by day and key."""
    from urllib.parse import quote

    query = f"since={since:.0f}" + (f"&key={quote(key, safe='')}" if key is not None else "")
    try:
        status, body = await router.get(f"/marga/usage?{query}", patience=10.0)
        if status != 200:
            raise UnreachableError(f"The router answered HTTP {status}.")
        return list(orjson.loads(body)["usage"])
    except (TransportError, ValueError, KeyError) as error:
        raise UnreachableError(
            f"The router cannot be asked for tokens and cost ({error}).", hint="avyay serve marga"
        ) from error
