"""The gateway's own pages: how it does, what its callers used, what it offers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl

from avyay.clock import Clock
from avyay.errors import UsageError
from avyay.marga.transport import TransportError
from avyay.resilience.breaker import BreakerState
from avyay.serve.gateway.app import GatewayApp
from avyay.serve.gateway.auth import Identity
from avyay.serve.gateway.limits import LimitReport
from avyay.serve.gateway.openapi import openapi_document
from avyay.serve.gateway.reconcile import RemoteLedger, compare
from avyay.serve.gateway.replies import send_json
from avyay.serve.gateway.stream import EventsPage, events_state
from avyay.serve.gateway.usage import UsageReader
from avyay.serve.house import Metric, render_metrics, total
from avyay.serve.siblings import Siblings, Source

if TYPE_CHECKING:
    from avyay.serve.console.pages import Console

__all__ = ["add_pages"]

Scope: TypeAlias = MutableMapping[str, Any]
_PATIENCE = 10.0  # seconds the router may take for one question
_EVENTS = b"/v1/events"
_STATES = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 1.0, BreakerState.OPEN: 2.0}


class _Pages:
    def __init__(self, app: GatewayApp, usage: UsageReader, clock: Clock, siblings: Siblings) -> None:
        self._app = app
        self._usage = usage
        self._clock = clock
        self._siblings = siblings

    # ------------------------------------------------------------ how it does

    async def state(self) -> dict[str, Any]:
        """The state of the gateway, of all its workers together, and of each component."""
        (counted, _), limits = await asyncio.gather(self._siblings.ask(), self._app.limiter.report())
        now = self._clock.monotonic()
        app = self._app
        components = {
            name: {"state": upstream.breaker.state(now).value, "problem": upstream.problem}
            for name, upstream in app.upstreams.items()
        }
        healthy = not total(counted, "gateway_usage_failing")
        fine = healthy and not limits.lost and not components["marga"]["problem"]
        return {
            "status": "ok" if fine else "degraded",
            "components": components,
            "usage": {
                "healthy": healthy,
                "backlog": total(counted, "gateway_usage_backlog"),
                "refused": total(counted, "gateway_usage_refused_total"),
                "unspooled": total(counted, "gateway_usage_unspooled_total"),
            },
            "limits": "lost" if limits.lost else "ok",
            "authentication": "none" if app.authenticator.open else "required",
            "active": total(counted, "gateway_active"),
            **self._siblings.worker,
            **({"events": events_state(counted)} if isinstance(app.pages.get(_EVENTS), EventsPage) else {}),
        }

    async def health(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, await self.state(), request_id)

    async def ready(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, {"ready": True}, request_id)

    async def root(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, {"name": "avyay gateway", "openapi": "/openapi.json"}, request_id)

    async def openapi(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        return await self._json(scope, send, 200, openapi_document(), request_id)

    async def metrics(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        (counted, _), limits = await asyncio.gather(self._siblings.ask(), self._app.limiter.report())
        return await self._json(scope, send, 200, render_metrics([*counted, *self._states(limits)]), request_id)

    def facts(self) -> None:
        """There is nothing that only one worker knows."""

    def news(self) -> None:
        """There is nothing to look at."""

    def counts(self) -> Iterable[Metric]:
        """What this process has counted."""
        app = self._app
        finished = [
            ({"component": component, "status": status}, float(count))
            for name, count in sorted(app.counts.finished.items())
            for component, _, status in [name.partition(" ")]
        ]
        limited = [({"unit": unit}, float(count)) for unit, count in sorted(app.counts.limited.items())]
        yield "gateway_requests_total", "counter", "Requests by component and status (499: the caller went).", finished
        yield "gateway_limited_total", "counter", "Requests refused by a limit.", limited
        failures = [({"reason": name}, float(count)) for name, count in app.authenticator.failures.items()]
        yield "gateway_authentication_failures_total", "counter", "Credentials not believed.", failures
        yield "gateway_active", "gauge", "Requests under way.", [({}, float(len(app.passages)))]
        journal = app.journal.state()
        yield "gateway_usage_backlog", "gauge", "Rows not yet on disk.", [({}, float(journal.backlog))]
        failing = float(not journal.healthy)
        yield "gateway_usage_failing", "gauge", "Processes whose rows do not get onto disk.", [({}, failing)]
        refused = float(app.journal.refused)
        yield "gateway_usage_refused_total", "counter", "Rows given up, because none fitted any more.", [({}, refused)]
        yield "gateway_usage_rows_total", "counter", "Rows on disk.", [({}, float(journal.committed))]
        yield (
            "gateway_usage_unspooled_total",
            "counter",
            "Rows a kill could lose.",
            [({}, float(app.journal.unspooled))],
        )
        yield "gateway_tasks", "gauge", "Tasks of the event loop.", [({}, float(len(asyncio.all_tasks())))]
        if isinstance(events := app.pages.get(_EVENTS), EventsPage):
            yield from events.metrics()

    def _states(self, limits: LimitReport) -> Iterable[Metric]:
        """What is one for all processes."""
        app = self._app
        now = self._clock.monotonic()
        states = [({"component": name}, _STATES[one.breaker.state(now)]) for name, one in app.upstreams.items()]
        yield "gateway_breaker_state", "gauge", "0 closed, 1 half open, 2 open.", states
        held = float(limits.held)
        yield "gateway_concurrent_held", "gauge", "Places among answers at once that are taken.", [({}, held)]
        if limits.fallbacks is not None:
            count = float(limits.fallbacks)
            yield "gateway_limits_fallback_total", "counter", "Requests limited without Redis.", [({}, count)]
            yield "gateway_redis_lost", "gauge", "Whether Redis is not there.", [({}, float(limits.lost))]

    # ------------------------------------------------------------ what was used

    async def usage(self, scope: Scope, receive: Any, send: Any, identity: Identity | None, request_id: str) -> int:
        assert identity is not None
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        days = _days(query.get("days", "7"))
        everybody = "admin" in identity.scopes
        key = query.get("key") if everybody else identity.key
        if not everybody and query.get("key", identity.key) != identity.key:
            raise UsageError("A key sees its own usage; `admin` sees everybody's.", code="not_yours")
        loop = asyncio.get_running_loop()
        router = self._app.upstreams["marga"]

        def get(target: str) -> tuple[int, bytes]:
            asked = asyncio.run_coroutine_threadsafe(router.get(target, patience=_PATIENCE), loop)
            try:
                return asked.result()
            except TransportError as error:
                raise OSError(str(error)) from error

        found = await asyncio.to_thread(
            compare,
            self._usage,
            RemoteLedger(get),
            days=days,
            until=self._clock.now(),
            key=key,
            kept=self._app.options.keep_requests,
            known=router.signer is not None,
        )
        return await self._json(scope, send, 200, found.data(), request_id)

    async def _json(self, scope: Scope, send: Any, status: int, data: Any, request_id: str) -> int:
        await send_json(send, status, data, request_id, head=scope["method"] == "HEAD")
        return status


def add_pages(
    app: GatewayApp,
    usage: UsageReader,
    clock: Clock,
    *,
    siblings: Siblings | None = None,
    console: Callable[..., Console] | None = None,
) -> Source:
    """Give the gateway its pages; returns what it counts.

    Args:
        siblings: What this process shares with other workers.
        console: Makes what browsers get.
    """
    pages = _Pages(app, usage, clock, siblings or Siblings())
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
    return pages


def _days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 3_660:
        raise UsageError("`days` is a number from 1 to 3660.", code="bad_days")
    return int(text)
