"""The gateway as a raw ASGI application: who is it, may he, is there room; then the bytes pass, and a row says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AuthError, AvyayError, PolicyError
from avyay.log import get_logger
from avyay.serve.gateway.auth import ANYBODY, Authenticator, Identity, address_of, credential_of
from avyay.serve.gateway.forward import CutError, Forwarder, Options, Request
from avyay.serve.gateway.heads import (
    allows,
    answer_preflight,
    check_local,
    cors_headers,
    dialect_of,
    path_for_log,
    request_id_of,
    trace_of,
)
from avyay.serve.gateway.limits import Limiter
from avyay.serve.gateway.record import Record
from avyay.serve.gateway.relay import CallerGoneError, Upstream
from avyay.serve.gateway.replies import Refusal, refusal_of, send_refusal
from avyay.serve.gateway.routes import FORMS, ErrorDialect, PathError, Route, find_route, scope_allows
from avyay.serve.gateway.settle import TokenSettler
from avyay.serve.gateway.usage import UsageJournal
from avyay.telemetry import open_span, tracing_enabled

__all__ = ["GatewayApp", "Options", "Page"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]
Page: TypeAlias = Callable[[Scope, Receive, Send, Identity | None, str], Awaitable[int]]
"""One of the gateway's own pages: writes its answer and returns the status; the last argument is the request's id."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_UNKNOWN = Route("gateway", "unknown")
_REFRESH = 0.5  # seconds after which a revoked key is noticed


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    finished: dict[str, float] = field(default_factory=dict)
    limited: dict[str, float] = field(default_factory=dict)


class GatewayApp:
    """The ASGI application.

    Args:
        upstreams: By component.
        pages: The gateway's own, by path; those of house routes are public.
        started, stopped: Run with the server's lifespan.
        watching: Whether to look at the components' health; another process may do it for several workers.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        authenticator: Authenticator,
        limiter: Limiter,
        journal: UsageJournal,
        options: Options,
        *,
        pages: Mapping[bytes, Page] | None = None,
        settler: TokenSettler | None = None,
        started: Callable[[], Awaitable[None]] | None = None,
        stopped: Callable[[], Awaitable[None]] | None = None,
        watching: bool = True,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.upstreams = upstreams
        self.authenticator = authenticator
        self.limiter = limiter
        self.journal = journal
        self.options = options
        self.counts = Counts()
        self.pages = dict(pages or {})
        self._forwarder = Forwarder(upstreams, limiter, options, settler=settler, limited=self._limited, clock=clock)
        self.passages = self._forwarder.passages
        self._settler = settler
        self._started = started
        self._stopped = stopped
        self._clock = clock
        self._log = get_logger("gateway")
        self._tasks: list[asyncio.Task[None]] = []
        self._watching = watching

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    # ------------------------------------------------------------ a request

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = self._clock.now()
        headers: list[Header] = scope["headers"]
        record = Record(self.journal, self._clock, began, send)
        request = Request(scope, receive, record, _UNKNOWN, None, request_id_of(headers))
        dialect: ErrorDialect = "problem"
        status = 499
        try:
            request.route = route = self._route(scope)
            record.endpoint = route.scope
            dialect = dialect_of(route, headers)
            request.extra = cors_headers(headers, self.options.origins)
            if scope["method"] == "OPTIONS" and allows(request.extra):
                status = await answer_preflight(record.send, headers, request.extra)
                return
            self._check_method(scope, route)
            if route.component != "gateway" and tracing_enabled():
                trace = trace_of(scope)
                parent = trace.decode() if trace is not None else None
                request.span = open_span(f"gateway {route.scope}", started=began, parent=parent)
            if not route.public:
                request.identity = await self._identify(scope, headers)
                record.key = request.identity.key
                if not scope_allows(request.identity.scopes, route):
                    raise _forbidden(route)
            if route.component == "gateway":
                status = await self._page(request)
            else:
                status = await self._forwarder.forward(request)
        except Refusal as refusal:
            status = refusal.status
            await send_refusal(record.send, refusal, dialect, request.id, request.extra)
        except CallerGoneError:
            status = 499
        except CutError as cut:
            status = cut.status
        except Exception:  # noqa: BLE001 - a bug of ours is an answer too, and the daemon goes on
            self._log.exception("request_failed", request_id=request.id, endpoint=request.route.scope)
            status = 500
            bug = Refusal(500, "The gateway failed on this request; its log says why.", code="internal")
            if not record.started:
                await send_refusal(record.send, bug, dialect, request.id, request.extra)
        finally:
            record.end(status)
            self._finish(request, began)

    def _limited(self, unit: str) -> None:
        self.counts.limited[unit] = self.counts.limited.get(unit, 0) + 1

    def _route(self, scope: Scope) -> Route:
        raw: bytes = scope.get("raw_path") or b""
        try:
            route = find_route(raw)
        except PathError as error:
            raise Refusal(400, str(error), code="bad_path", hint="Write the path plainly.") from None
        if route is None:
            raise Refusal(404, "There is nothing at this path.", code="no_route", hint="See /openapi.json.")
        return route

    def _check_method(self, scope: Scope, route: Route) -> None:
        if scope["method"] not in _METHODS:
            raise Refusal(405, "This method is not served here.", code="method_not_allowed")
        if route.target in FORMS and scope["method"] == "POST":
            return
        if route.component == "gateway" and scope["method"] not in ("GET", "HEAD"):
            raise Refusal(405, "Use GET here.", code="method_not_allowed", headers=((b"allow", b"GET, HEAD"),))

    async def _identify(self, scope: Scope, headers: list[Header]) -> Identity:
        if self.authenticator.open:
            check_local(headers)
            return ANYBODY
        try:
            token = credential_of(headers)
            if not token:
                raise AuthError(
                    "This gateway asks for a key.",
                    hint="Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
                    code="missing_api_key",
                )
            known = self.authenticator.known(token)
            if known is not None:
                return known
            return await self.authenticator.identify(token, address_of(scope, self.options.proxies))
        except AuthError as error:
            raise refusal_of(error, 401) from None
        except PolicyError as error:
            raise refusal_of(error, 429, (b"retry-after", b"60")) from None
        except AvyayError as error:
            raise refusal_of(error, 503, (b"retry-after", b"5")) from None

    async def _page(self, request: Request) -> int:
        page = self.pages.get(request.route.target)
        if page is None:
            raise Refusal(404, "There is nothing at this path.", code="no_route", hint="See /openapi.json.")
        try:
            return await page(request.scope, request.receive, request.record.send, request.identity, request.id)
        except AvyayError as error:
            from avyay.serve.errors import status_of

            raise refusal_of(error, status_of(error)) from None

    def _finish(self, request: Request, began: float) -> None:
        """Say what became of it, where nobody waits for that."""
        scope, record = request.scope, request.record
        status, seconds = record.ended or 0, record.seconds
        component = request.route.component
        name = f"{component} {status}"
        self.counts.finished[name] = self.counts.finished.get(name, 0) + 1
        if request.span is not None:
            request.span.end(
                ended=began + seconds,
                attributes={
                    "http.request.method": scope["method"],
                    "http.response.status_code": status,
                    "avyay.component": component,
                    "avyay.request_id": request.id,
                    **({"marga.decision_id": record.decision} if record.decision else {}),
                },
                error=f"HTTP {status}" if status >= 500 else None,
            )
        self._log.info(
            "request",
            request_id=request.id,
            caller=record.key or "(nobody)",
            method=scope["method"],
            path=path_for_log(scope.get("raw_path") or b""),
            status=status,
            decision=record.decision,
            seconds=round(seconds, 4),
        )

    # ------------------------------------------------------------ beside the requests

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self._started is not None:
                    await self._started()
                self._tasks = [
                    asyncio.ensure_future(self._refresh()),
                    asyncio.ensure_future(self._forwarder.sweep()),
                ]
                if self._watching:
                    interval = self.options.check_interval
                    self._tasks += [asyncio.ensure_future(one.watch(interval)) for one in self.upstreams.values()]
                await send({"type": "lifespan.startup.complete"})
            else:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                if self._settler is not None:
                    await self._settler.close()
                for upstream in self.upstreams.values():
                    await upstream.close()
                await asyncio.to_thread(self.journal.close)
                if self._stopped is not None:
                    await self._stopped()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _refresh(self) -> None:
        """Notice changes of the keys."""
        while True:
            await asyncio.sleep(_REFRESH)
            try:
                self.authenticator.refresh()
            except AvyayError as error:
                self._log.error("keys_unreadable", error=error.message)


def _forbidden(route: Route) -> Refusal:
    return Refusal(
        403,
        f"This key has no scope for {route.scope}.",
        code="missing_scope",
        hint=f"Make one that has: avyay keys create NAME --scope {route.scope}",
    )
