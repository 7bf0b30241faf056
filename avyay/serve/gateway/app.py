"""The gateway as a raw ASGI application: who is it, may he, is there room; then the bytes pass, and a row says so."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AuthError, AvyayError, PolicyError
from avyay.log import get_logger
from avyay.principal import PRINCIPAL_HEADER, PrincipalSigner
from avyay.serve.gateway.auth import ANYBODY, Authenticator, Identity, address_of, credential_of
from avyay.serve.gateway.limits import Claim, Limiter, Rule, Verdict, claims_for, estimated, limit_headers
from avyay.serve.gateway.relay import (
    BodyTooLargeError,
    CallerGoneError,
    Passage,
    Upstream,
    request_head,
    response_headers,
)
from avyay.serve.gateway.replies import Refusal, refusal_of, send_refusal
from avyay.serve.gateway.routes import FORMS, ErrorDialect, PathError, Route, find_route, scope_allows
from avyay.serve.gateway.settle import TokenSettler
from avyay.serve.gateway.usage import UsageJournal
from avyay.serve.run import is_loopback
from avyay.telemetry import open_span, tracing_enabled

__all__ = ["GatewayApp", "Options", "Page", "check_local"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]
Page: TypeAlias = Callable[[Scope, Receive, Send, Identity | None, str], Awaitable[int]]
"""One of the gateway's own pages: writes its answer and returns the status; the last argument is the request's id."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_SPAN = "avyay.span"  # its place in the scope
_LENGTH = re.compile(rb"[0-9]{1,15}\Z")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_CORS_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_NO_LIMITS = Verdict()
_SWEEP = 1.0
_REFRESH = 0.5  # seconds after which a revoked key is noticed


@dataclass(frozen=True, slots=True)
class Options:
    """What the configuration says of every request."""

    rules: tuple[Rule, ...] = ()
    proxies: tuple[str, ...] = ()
    origins: frozenset[bytes] = frozenset()
    max_body: int = 32_000_000
    body_timeout: float = 30.0
    send_timeout: float = 120.0
    check_interval: float = 5.0


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    finished: dict[str, float] = field(default_factory=dict)
    limited: dict[str, float] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """By a name that others can add up."""
        return {f"finished {name}": value for name, value in self.finished.items()} | {
            f"limited {name}": value for name, value in self.limited.items()
        }


class GatewayApp:
    """The ASGI application.

    Args:
        upstreams: By component.
        pages: The gateway's own, by path; those of house routes are public.
        started, stopped: Run with the server's lifespan.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        authenticator: Authenticator,
        limiter: Limiter,
        signer: PrincipalSigner,
        journal: UsageJournal,
        options: Options,
        *,
        pages: Mapping[bytes, Page] | None = None,
        settler: TokenSettler | None = None,
        started: Callable[[], Awaitable[None]] | None = None,
        stopped: Callable[[], Awaitable[None]] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.upstreams = upstreams
        self.authenticator = authenticator
        self.limiter = limiter
        self.journal = journal
        self.options = options
        self.counts = Counts()
        self.pages = dict(pages or {})
        self.passages: set[Passage] = set()
        self._signer = signer
        self._settler = settler
        self._started = started
        self._stopped = stopped
        self._clock = clock
        self._log = get_logger("gateway")
        self._tasks: list[asyncio.Task[None]] = []
        self._claims: dict[tuple[str, str | None, str], tuple[Claim, ...]] = {}
        self._leases = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    # ------------------------------------------------------------ a request

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = self._clock.now()
        headers: list[Header] = scope["headers"]
        request_id = _request_id(headers)
        dialect: ErrorDialect = "problem"
        identity: Identity | None = None
        endpoint, status, decision = "gateway:unknown", 499, None
        extra: tuple[Header, ...] = ()
        try:
            route = self._route(scope)
            dialect, endpoint = _dialect(route, headers), route.scope
            extra = self._cors(headers)
            if scope["method"] == "OPTIONS" and extra:
                status = await _preflight(send, headers, extra)
                return
            self._check_method(scope, route)
            if route.component != "gateway" and tracing_enabled():
                trace = _trace_of(scope)
                parent = trace.decode() if trace is not None else None
                scope[_SPAN] = open_span(f"gateway {endpoint}", started=began, parent=parent)
            if not route.public:
                identity = await self._identify(scope, headers)
                if not scope_allows(identity.scopes, route):
                    raise _forbidden(route)
            if route.component == "gateway":
                status = await self._page(scope, receive, send, route, identity, request_id)
                return
            status, decision = await self._pass(scope, receive, send, route, identity, request_id, extra)
        except Refusal as refusal:
            status = refusal.status
            await send_refusal(send, refusal, dialect, request_id, extra)
        except CallerGoneError:
            status = 499
        except _Cut as cut:
            status, decision = cut.status, cut.decision
        except Exception:  # noqa: BLE001 - a bug of ours is an answer too, and the daemon goes on
            self._log.exception("request_failed", request_id=request_id, endpoint=endpoint)
            status = 500
            bug = Refusal(500, "The gateway failed on this request; its log says why.", code="internal")
            await send_refusal(send, bug, dialect, request_id, extra)
        finally:
            self._finish(began, endpoint, identity, status, decision, request_id, scope)

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

    async def _page(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        route: Route,
        identity: Identity | None,
        request_id: str,
    ) -> int:
        page = self.pages.get(route.target)
        if page is None:
            raise Refusal(404, "There is nothing at this path.", code="no_route", hint="See /openapi.json.")
        try:
            return await page(scope, receive, send, identity, request_id)
        except AvyayError as error:
            from avyay.serve.errors import status_of

            raise refusal_of(error, status_of(error)) from None

    async def _pass(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        route: Route,
        identity: Identity | None,
        request_id: str,
        extra: tuple[Header, ...],
    ) -> tuple[int, str | None]:
        """Pass a request on. Returns the status and the router's decision."""
        headers: list[Header] = scope["headers"]
        length = _length(headers)
        if length is not None and int(length) > self.options.max_body:
            raise self._too_large()
        upstream = self.upstreams[route.component]
        claims: tuple[Claim, ...] = ()
        verdict, lease, taken = _NO_LIMITS, "", 0.0
        if self.options.rules and identity is not None:
            claims, verdict, lease, taken = await self._acquire(route, identity, headers, length)
        passage = Passage(receive, send, body_limit=self.options.max_body, now=asyncio.get_running_loop().time())
        own: list[Header] = [(b"x-request-id", request_id.encode()), *extra]
        if verdict.standings:
            own += limit_headers(verdict, anthropic=route.dialect == "anthropic", now=taken)

        def decorate(status: int, raw: list[Header]) -> list[Header]:
            return response_headers(raw, own, limits=bool(verdict.standings))

        if upstream.authorization and identity is not None and identity.customer is not None:
            headers = [header for header in headers if header[0] != b"x-avyay-customer"]  # the key says whose it is
        head = request_head(
            scope["method"],
            route.target,
            scope["query_string"],
            headers,
            self._added(scope, route, identity, request_id),
        )
        self.passages.add(passage)
        try:
            await passage.run(upstream, head, length, decorate)
        except BodyTooLargeError:
            raise self._too_large() from None
        except CallerGoneError:
            if passage.abort == "body" and not passage.started:
                raise Refusal(
                    408, "The body did not come in time.", code="body_timeout", headers=((b"connection", b"close"),)
                ) from None
            raise _Cut(499, passage.decision) from None
        except Refusal as refusal:
            if not passage.started:
                raise
            await _say_cut(send, refusal, route)
            raise _Cut(502, passage.decision) from None
        finally:
            self.passages.discard(passage)
            if lease:
                await self.limiter.release(claims, lease)
            if claims and self._settler is not None:
                self._settler.settle(claims, taken, passage.decision)
        return passage.status, passage.decision

    async def _acquire(
        self, route: Route, identity: Identity, headers: list[Header], length: bytes | None
    ) -> tuple[tuple[Claim, ...], Verdict, str, float]:
        known = (identity.key, identity.tier, route.scope)
        claims = self._claims.get(known)
        if claims is None:
            claims = claims_for(
                self.options.rules,
                key=identity.key,
                tier=identity.tier,
                component=route.component,
                scope=route.scope,
            )
            if len(self._claims) > 10_000:
                self._claims.clear()
            self._claims[known] = claims
        if not claims:
            return (), _NO_LIMITS, "", 0.0
        if any(claim.unit == "tokens" for claim in claims):
            size = int(length or b"4096")
            claims = tuple(estimated(claim, size) if claim.unit == "tokens" else claim for claim in claims)
        self._leases += 1
        lease, taken = f"{self._leases}-{secrets.token_hex(4)}", self._clock.now()
        try:
            verdict = await self.limiter.acquire(claims, lease)
        except AvyayError as error:
            raise refusal_of(error, 503, (b"retry-after", b"1")) from None
        if (refused := verdict.refused) is not None:
            self.counts.limited[refused.unit] = self.counts.limited.get(refused.unit, 0) + 1
            what = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrent": "answers at once"}
            raise Refusal(
                429,
                f"The limit of {refused.limit} {what[refused.unit]} is reached.",
                code="rate_limit_exceeded",
                hint="Wait as long as Retry-After says.",
                headers=tuple(limit_headers(verdict, anthropic=route.dialect == "anthropic", now=taken)),
            )
        return claims, verdict, lease if verdict.lease is not None else "", taken

    def _added(self, scope: Scope, route: Route, identity: Identity | None, request_id: str) -> bytes:
        """The headers that are the gateway's to say."""
        upstream = self.upstreams[route.component]
        lines = [upstream.host, b"x-request-id: ", request_id.encode(), b"\r\n"]
        if upstream.authorization:  # it shares no secret with us: our word would be refused, its key is not
            lines.append(upstream.authorization)
            if identity is not None and identity.customer is not None:
                lines += [b"x-avyay-customer: ", _header_text(identity.customer), b"\r\n"]
        elif identity is not None:
            signed = self._signer.sign(identity.principal, route.component)
            lines += [PRINCIPAL_HEADER.encode(), b": ", signed.encode(), b"\r\n"]
        client = scope.get("client")
        if client:
            lines += [b"x-forwarded-for: ", str(client[0]).encode("latin-1", "replace"), b"\r\n"]
        trace = _trace_of(scope)
        if (span := scope.get(_SPAN)) is not None:
            lines += [b"traceparent: ", span.traceparent.encode(), b"\r\n"]
        elif trace is not None:
            lines += [b"traceparent: ", trace, b"\r\n"]
        if trace is not None:
            state = [value for name, value in scope["headers"] if name == b"tracestate"]
            if state and sum(map(len, state)) <= 512:
                lines += [b"tracestate: ", b",".join(state), b"\r\n"]
        return b"".join(lines)

    def _cors(self, headers: list[Header]) -> tuple[Header, ...]:
        if not self.options.origins:
            return ()
        origin = next((value for name, value in headers if name == b"origin"), None)
        if origin is None or origin not in self.options.origins:
            return ((b"vary", b"origin"),) if origin is None else ()
        exposed = b"x-request-id, x-avyay-decision-id, retry-after, ratelimit, ratelimit-policy"
        return (
            (b"access-control-allow-origin", origin),
            (b"vary", b"origin"),
            (b"access-control-expose-headers", exposed),
        )

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            f"The body is larger than {self.options.max_body} bytes.",
            code="request_too_large",
            hint="The limit is gateway.max_body.",
            headers=((b"connection", b"close"),),
        )

    def _finish(
        self,
        began: float,
        endpoint: str,
        identity: Identity | None,
        status: int,
        decision: str | None,
        request_id: str,
        scope: Scope,
    ) -> None:
        component = endpoint.partition(":")[0]
        name = f"{component} {status}"
        self.counts.finished[name] = self.counts.finished.get(name, 0) + 1
        seconds = self._clock.now() - began
        if (span := scope.get(_SPAN)) is not None:
            span.end(
                ended=began + seconds,
                attributes={
                    "http.request.method": scope["method"],
                    "http.response.status_code": status,
                    "avyay.component": component,
                    "avyay.request_id": request_id,
                    **({"marga.decision_id": decision} if decision else {}),
                },
                error=f"HTTP {status}" if status >= 500 else None,
            )
        key = identity.key if identity is not None else "(nobody)"
        if identity is not None:  # strangers fill no disk: they are counted in the metrics
            self.journal.add(began, key, endpoint, status, decision, seconds)
        self._log.info(
            "request",
            request_id=request_id,
            caller=key,
            method=scope["method"],
            path=_shown(scope.get("raw_path") or b""),
            status=status,
            decision=decision,
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
                    asyncio.ensure_future(self._sweep()),
                    *(asyncio.ensure_future(self._watch(one)) for one in self.upstreams.values()),
                ]
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

    async def _sweep(self) -> None:
        """End what has not moved for too long: a body that does not come, a caller that does not read."""
        options, clock = self.options, asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_SWEEP)
            now = clock()
            for passage in list(self.passages):
                quiet = now - passage.progress
                if passage.waiting_for_body and not passage.started and quiet > options.body_timeout:
                    passage.stop("body")
                elif passage.sending and quiet > options.send_timeout:
                    passage.stop("send")

    async def _watch(self, upstream: Upstream) -> None:
        """Keep an eye on a component."""
        while True:
            await upstream.check()
            await asyncio.sleep(1.0 if not upstream.breaker.allow() else self.options.check_interval)


class _Cut(Exception):  # noqa: N818 - no error of the gateway: an answer that began and did not end
    """An answer that broke off after it had begun; nothing more can be said."""

    def __init__(self, status: int, decision: str | None) -> None:
        super().__init__(status)
        self.status = status
        self.decision = decision


async def _say_cut(send: Send, refusal: Refusal, route: Route) -> None:
    """Tell readers of an event stream that this is no end; the connection is then closed without one."""
    from avyay.marga.wire import Failure, render_error

    failure = Failure("truncated", refusal.message, code=refusal.code)
    if route.dialect == "anthropic":
        data = b"\n\nevent: error\ndata: " + render_error("anthropic_messages", failure) + b"\n\n"
    elif route.dialect == "openai":
        data = b"\n\ndata: " + render_error("openai_chat", failure) + b"\n\n"
    else:
        return
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _preflight(send: Send, headers: list[Header], extra: tuple[Header, ...]) -> int:
    asked = next((value for name, value in headers if name == b"access-control-request-headers"), b"")
    names = [part.strip().lower() for part in asked.split(b",")]
    allowed = b", ".join(name for name in names if re.fullmatch(rb"[a-z0-9-]{1,64}", name))
    found = [*extra, (b"access-control-allow-methods", _CORS_METHODS), (b"access-control-max-age", b"600")]
    if allowed:
        found.append((b"access-control-allow-headers", allowed))
    await send({"type": "http.response.start", "status": 204, "headers": found})
    await send({"type": "http.response.body", "body": b""})
    return 204


def check_local(headers: list[Header]) -> None:
    """Without keys everybody on this machine may call, but no web page that only runs in a browser on it.

    Raises:
        Refusal: the request came for another name (DNS rebinding), or from a page of another site.
    """
    for name, value in headers:
        if name == b"host" and not _local_host(value.decode("latin-1")):
            raise Refusal(403, "This gateway has no keys and answers this machine only.", code="foreign_host")
        if name == b"origin" and not _local_host(value.decode("latin-1").partition("://")[2]):
            raise Refusal(403, "Web pages may not call this gateway.", code="foreign_origin")
        if name == b"sec-fetch-site" and value == b"cross-site":
            raise Refusal(403, "Web pages may not call this gateway.", code="foreign_origin")


def _local_host(netloc: str) -> bool:
    host = netloc[1:].partition("]")[0] if netloc.startswith("[") else netloc.rpartition(":")[0] or netloc
    return is_loopback(host)


def _trace_of(scope: Scope) -> bytes | None:
    """The caller's `traceparent`, when it is one."""
    found = [value for name, value in scope["headers"] if name == b"traceparent"]
    return found[0] if len(found) == 1 and _TRACE.match(found[0]) else None


def _dialect(route: Route, headers: list[Header]) -> ErrorDialect:
    if route.area == "models" and any(name == b"anthropic-version" for name, _ in headers):
        return "anthropic"
    return route.dialect


def _request_id(headers: list[Header]) -> str:
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode() if _REQUEST_ID.match(value) else f"req_{secrets.token_hex(8)}"
    return f"req_{secrets.token_hex(8)}"


def _length(headers: list[Header]) -> bytes | None:
    found = [value for name, value in headers if name == b"content-length"]
    if not found:
        return None
    if len(found) > 1 or _LENGTH.match(found[0]) is None:
        raise Refusal(400, "The body's length is not clear.", code="bad_length")
    return found[0]


def _forbidden(route: Route) -> Refusal:
    return Refusal(
        403,
        f"This key has no scope for {route.scope}.",
        code="missing_scope",
        hint=f"Make one that has: avyay keys create NAME --scope {route.scope}",
    )


def _header_text(text: str) -> bytes:
    return "".join(char if char.isprintable() else "?" for char in text).encode("utf-8")


def _shown(raw: bytes) -> str:
    """A path for the log: one line, no control characters, not endless."""
    return raw[:200].decode("latin-1").encode("unicode_escape").decode("ascii")
