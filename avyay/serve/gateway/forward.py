"""A request that may pass: is there room for it; then it goes to its component, with what the gateway has to say."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AvyayError
from avyay.principal import PRINCIPAL_HEADER
from avyay.serve.gateway.auth import Identity, address_of
from avyay.serve.gateway.heads import header_text, length_of, trace_of
from avyay.serve.gateway.limits import Claim, Limiter, Rule, Verdict, claims_for, estimated, limit_headers
from avyay.serve.gateway.record import Record
from avyay.serve.gateway.relay import (
    BodyTooLargeError,
    CallerGoneError,
    Passage,
    Upstream,
    request_head,
    response_headers,
)
from avyay.serve.gateway.replies import Refusal, refusal_of
from avyay.serve.gateway.routes import Route
from avyay.serve.gateway.settle import TokenSettler

__all__ = ["CutError", "Forwarder", "Options", "Request"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

_NO_LIMITS = Verdict()
_SWEEP = 1.0
_MOST_CLAIMS = 10_000


@dataclass(frozen=True, slots=True)
class Options:
    """What the configuration says of every request."""

    rules: tuple[Rule, ...] = ()
    proxies: tuple[str, ...] = ()
    origins: frozenset[bytes] = frozenset()
    max_body: int = 32_000_000
    max_push_body: int = 2_000_000
    failed_attempts: int = 20
    body_timeout: float = 30.0
    send_timeout: float = 120.0
    check_interval: float = 5.0
    keep_requests: float = 3_024_000.0


@dataclass(slots=True)
class Request:
    """A request whose caller is known.

    Attributes:
        record: Its row, which the answer passes.
        extra: Headers of every answer to it.
        span: Of the trace, where traces are wanted.
    """

    scope: Scope
    receive: Receive
    record: Record
    route: Route
    identity: Identity | None
    id: str
    extra: tuple[Header, ...] = ()
    span: Any = None


class CutError(Exception):
    """An answer that broke off after it had begun; nothing more can be said."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Forwarder:
    """Passes requests on.

    Args:
        limited: Told the unit of a limit that refused.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        limiter: Limiter,
        options: Options,
        *,
        settler: TokenSettler | None = None,
        limited: Callable[[str], None] = lambda unit: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.passages: set[Passage] = set()
        self._upstreams = upstreams
        self._limiter = limiter
        self._options = options
        self._settler = settler
        self._limited = limited
        self._clock = clock
        self._claims: dict[tuple[str, str | None, str], tuple[Claim, ...]] = {}
        self._leases = 0

    async def forward(self, request: Request) -> int:
        """Pass a request on, and its answer back; the answer's status.

        Raises:
            Refusal: it does not pass, or there is no answer.
            CutError: the answer ended before its end.
        """
        length = length_of(request.scope["headers"])
        most = self._most(request)
        if length is not None and int(length) > most:
            raise _too_large(most)
        if request.identity is None:
            return await self._stranger(request, length)
        claims, verdict, lease, taken = await self._acquire(request, request.identity, length)
        try:
            request.record.passes()
            return await self._pass(request, length, verdict, taken)
        finally:
            if lease:
                await self._limiter.release(claims, lease)
            if claims and self._settler is not None:
                self._settler.settle(claims, taken, request.record.decision)

    async def _stranger(self, request: Request, length: bytes | None) -> int:
        """Pass on what needs no key, because its component checks a signature: as slowly as guesses of a key."""
        address = address_of(request.scope, self._options.proxies)
        attempt = Claim(f"failures|push|{address}", "failures", "requests", self._options.failed_attempts)
        taken = self._clock.now()
        try:
            # Taken before the look and given back when it was good: a row of guesses cannot race past the limit.
            verdict = await self._limiter.acquire((attempt,), "")
        except AvyayError as error:
            raise refusal_of(error, 503, (b"retry-after", b"1")) from None
        if verdict.refused is not None:
            self._limited("requests")
            raise Refusal(
                429,
                "Too much that was refused came from this address.",
                code="too_many_failures",
                hint="Wait a minute.",
                headers=((b"retry-after", b"60"),),
            )
        status = 499  # who hangs up has tried
        try:
            status = await self._pass(request, length, _NO_LIMITS, taken)
        except Refusal as refusal:
            status = refusal.status
            raise
        finally:
            if not 400 <= status < 500:
                await self._limiter.settle(attempt, -1, taken)
        return status

    async def sweep(self) -> None:
        """End what has not moved for too long: a body that does not come, a caller that does not read."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_SWEEP)
            now = clock()
            for passage in list(self.passages):
                quiet = now - passage.progress
                if passage.waiting_for_body and not passage.started and quiet > self._options.body_timeout:
                    passage.stop("body")
                elif passage.sending and quiet > self._options.send_timeout:
                    passage.stop("send")

    async def _pass(self, request: Request, length: bytes | None, verdict: Verdict, taken: float) -> int:
        route, identity = request.route, request.identity
        upstream = self._upstreams[route.component]
        own: list[Header] = [(b"x-request-id", request.id.encode()), *request.extra]
        if verdict.standings:
            own += limit_headers(verdict, anthropic=route.dialect == "anthropic", now=taken)

        def decorate(status: int, raw: list[Header]) -> list[Header]:
            request.record.decision = passage.decision
            return response_headers(raw, own, limits=bool(verdict.standings))

        headers: list[Header] = request.scope["headers"]
        if upstream.signer is None and identity is not None and identity.customer is not None:
            headers = [header for header in headers if header[0] != b"x-avyay-customer"]  # the key says whose it is
        method, query = request.scope["method"], request.scope["query_string"]
        head = request_head(method, route.target, query, headers, self._added(request, upstream))
        now = asyncio.get_running_loop().time()
        most = self._most(request)
        passage = Passage(request.receive, request.record.send, body_limit=most, now=now)
        self.passages.add(passage)
        try:
            await passage.run(upstream, head, length, decorate)
        except BodyTooLargeError:
            raise _too_large(most) from None
        except CallerGoneError:
            if passage.abort == "body" and not passage.started:
                raise Refusal(
                    408, "The body did not come in time.", code="body_timeout", headers=((b"connection", b"close"),)
                ) from None
            raise CutError(499) from None
        except Refusal as refusal:
            if not passage.started:
                raise
            await _say_cut(request.record.send, refusal, route)
            raise CutError(502) from None
        finally:
            self.passages.discard(passage)
        return passage.status

    async def _acquire(
        self, request: Request, identity: Identity, length: bytes | None
    ) -> tuple[tuple[Claim, ...], Verdict, str, float]:
        """What the request takes of its caller's limits: the claims, how they stand, what to give back, since when."""
        route = request.route
        claims = self._claims_of(route, identity)
        if not claims:
            return (), _NO_LIMITS, "", 0.0
        if any(claim.unit == "tokens" for claim in claims):
            size = int(length or b"4096")
            claims = tuple(estimated(claim, size) if claim.unit == "tokens" else claim for claim in claims)
        self._leases += 1
        lease, taken = f"{self._leases}-{secrets.token_hex(4)}", self._clock.now()
        try:
            verdict = await self._limiter.acquire(claims, lease)
        except AvyayError as error:
            raise refusal_of(error, 503, (b"retry-after", b"1")) from None
        if (refused := verdict.refused) is not None:
            self._limited(refused.unit)
            what = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrent": "answers at once"}
            raise Refusal(
                429,
                f"The limit of {refused.limit} {what[refused.unit]} is reached.",
                code="rate_limit_exceeded",
                hint="Wait as long as Retry-After says.",
                headers=tuple(limit_headers(verdict, anthropic=route.dialect == "anthropic", now=taken)),
            )
        return claims, verdict, lease if verdict.lease is not None else "", taken

    def _claims_of(self, route: Route, identity: Identity) -> tuple[Claim, ...]:
        known = (identity.key, identity.tier, route.scope)
        claims = self._claims.get(known)
        if claims is None:
            key, tier = identity.key, identity.tier
            claims = claims_for(self._options.rules, key=key, tier=tier, component=route.component, scope=route.scope)
            if len(self._claims) > _MOST_CLAIMS:
                self._claims.clear()
            self._claims[known] = claims
        return claims

    def _added(self, request: Request, upstream: Upstream) -> bytes:
        """The headers that are the gateway's to say."""
        scope, identity = request.scope, request.identity
        lines = [upstream.host, b"x-request-id: ", request.id.encode(), b"\r\n"]
        if identity is not None:  # a stranger is lent no key, and nobody vouches for him
            lines.append(upstream.authorization)
            if upstream.signer is not None:
                signed = upstream.signer.sign(identity.principal, request.route.component)
                lines += [PRINCIPAL_HEADER.encode(), b": ", signed.encode(), b"\r\n"]
            elif identity.customer is not None:
                lines += [b"x-avyay-customer: ", header_text(identity.customer), b"\r\n"]
        client = scope.get("client")
        if client:
            lines += [b"x-forwarded-for: ", str(client[0]).encode("latin-1", "replace"), b"\r\n"]
        trace = trace_of(scope)
        if request.span is not None:
            lines += [b"traceparent: ", request.span.traceparent.encode(), b"\r\n"]
        elif trace is not None:
            lines += [b"traceparent: ", trace, b"\r\n"]
        if trace is not None:
            state = [value for name, value in scope["headers"] if name == b"tracestate"]
            if state and sum(map(len, state)) <= 512:
                lines += [b"tracestate: ", b",".join(state), b"\r\n"]
        return b"".join(lines)

    def _most(self, request: Request) -> int:
        """Bytes its body may have."""
        return self._options.max_body if request.identity is not None else self._options.max_push_body


def _too_large(most: int) -> Refusal:
    return Refusal(
        413,
        f"The body is larger than {most} bytes.",
        code="request_too_large",
        hint="The limit is gateway.max_body; of a webhook's, gateway.max_push_body.",
        headers=((b"connection", b"close"),),
    )


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
