"""One request to a component and its answer back: bytes both ways as they come, never a whole body in between.

What goes on and what stays here is a list: hop-by-hop headers (RFC 9110 7.6.1) and those `Connection` names end at
each hop, credentials end at the gateway, and nothing a caller writes can pass for what the gateway or a proxy says.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.log import get_logger
from avyay.marga.transport import Deadline, Endpoint, Transport, TransportError
from avyay.principal import PRINCIPAL_HEADER, Principal, PrincipalSigner
from avyay.resilience.backoff import Backoff
from avyay.resilience.breaker import Breaker, BreakerPolicy, Outcome, Transition
from avyay.serve.gateway.replies import Refusal

__all__ = ["BodyTooLargeError", "CallerGoneError", "Passage", "Upstream", "request_head", "response_headers"]

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

_HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
    )
)  # fmt: skip
# Of requests: ours to say, or a secret that ends here.
_OURS = frozenset(
    (
        b"host", b"content-length", b"expect", b"authorization", b"x-api-key", b"cookie", b"forwarded", b"via",
        b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-prefix",
        b"x-real-ip", b"x-request-id", b"traceparent", b"tracestate", b"x-avyay-principal", b"x-original-url",
        b"x-rewrite-url", b"x-http-method-override", b"accept-encoding", b"origin", b"referer",
    )
)  # fmt: skip
_NOT_ON = _HOP_BY_HOP | _OURS
_NOT_ON_PREFIXES = (b"tailscale-", b"sec-")  # who the tailnet says it is, and what a browser says: judged here
_NOT_BACK = _HOP_BY_HOP | {b"date", b"server", b"x-request-id", b"set-cookie", b"www-authenticate"}
_LIMIT_FIELDS = (b"x-ratelimit-", b"anthropic-ratelimit-", b"ratelimit", b"retry-after")
_SMALL_BODY = 65_536  # bytes that are gathered, so that a slow caller holds no connection of a component
_GRACE = 0.05  # seconds an answer may take before somebody looks whether its caller is still there
_CONNECTS = Backoff(base=0.05, cap=0.4, attempts=4)  # a component that restarts is back within a second


class CallerGoneError(Exception):
    """The caller hung up."""


class BodyTooLargeError(Exception):
    """The body grew beyond the limit while it passed."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, to the first byte of an answer, between two of its bytes."""

    connect: float = 2.0
    first_byte: float = 600.0
    idle: float = 300.0


class Upstream:
    """A component: where it is, how it does, and the connections to it.

    Its breaker counts what says that nobody is there: no connection, no answer in time, an answer that breaks off. An
    error it answers with is an answer.

    Args:
        key: What the component asks callers for.
        signer: Signs who calls, with a secret that the component shares; None where it shares none.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        key: str | None = None,
        signer: PrincipalSigner | None = None,
        timeouts: Timeouts | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = name
        self.url = url
        self.timeouts = timeouts or Timeouts()
        self.endpoint = Endpoint("GET", url, {})
        host = url.partition("://")[2]
        self.host = b"host: " + host.encode() + b"\r\n"
        self.authorization = b"" if key is None else b"authorization: Bearer " + key.encode() + b"\r\n"
        self.signer = signer
        self.breaker = Breaker(BreakerPolicy(recovery_timeout=5.0))
        self.reporter: Callable[[Outcome], None] | None = None  # who keeps the breaker, when another process does
        self.news: Callable[[Transition | None], None] | None = None  # told after each look, and of each change
        self.transport = Transport(
            connect_timeout=self.timeouts.connect, idle_timeout=self.timeouts.idle, inflate=False
        )
        self.problem: str | None = None  # what the last check of its health said
        self.checked_at: float | None = None
        self._clock = clock
        self._log = get_logger("gateway")

    def admit(self) -> int:
        """The breaker's generation, for `report`.

        Raises:
            Refusal: nobody is there just now.
        """
        if not self.breaker.allow():
            wait = max(1, round(self.breaker.retry_in(self._clock.monotonic())))
            raise Refusal(
                503,
                f"{self.name} does not answer ({self.breaker.reason}).",
                code="component_unavailable",
                hint=f"Is it running? avyay serve {self.name}",
                headers=((b"retry-after", b"%d" % wait),),
            )
        return self.breaker.generation

    def report(self, outcome: Outcome, generation: int) -> None:
        """How a call ended."""
        if self.reporter is None:
            self.count(outcome, generation)
        elif generation == self.breaker.generation:
            self.reporter(outcome)

    def count(self, outcome: Outcome, generation: int | None = None) -> None:
        """Count a call that ended, here or in another process."""
        change = self.breaker.record(outcome, self._clock.monotonic(), generation)
        if change is not None:
            self._log.warning("component_given_up", name=self.name, reason=change.reason)
            if self.news is not None:
                self.news(change)

    def mirror(self, *, is_open: bool, reason: str) -> None:
        """The breaker that another process keeps has changed, or was prolonged."""
        now = self._clock.monotonic()
        self.breaker.reset(now, reason)
        if is_open:
            self.breaker.trip(now, reason)

    def own_word(self) -> dict[str, str]:
        """Headers that name the gateway itself, for questions of its own."""
        found = {}
        if self.authorization:
            name, _, value = self.authorization.decode().strip().partition(": ")
            found[name] = value
        if self.signer is not None:
            found[PRINCIPAL_HEADER] = self.signer.sign(Principal("gateway"), self.name)
        return found

    async def get(self, target: str, *, patience: float) -> tuple[int, bytes]:
        """Ask the component something on the gateway's own behalf.

        Raises:
            TransportError: there is no answer in `patience` seconds.
        """
        deadline = Deadline()
        deadline.start(patience)
        head = f"GET {target} HTTP/1.1\r\n".encode("ascii") + self.host
        for name, value in self.own_word().items():
            head += f"{name}: {value}\r\n".encode()
        try:
            reply = await self.transport.exchange(self.endpoint, head + b"\r\n", deadline)
            return reply.status, await reply.read()
        finally:
            deadline.cancel()

    async def check(self) -> None:
        """Ask for its health, and close an open breaker when it is there again."""
        ticket = self.breaker.take_probe(self._clock.monotonic())
        outcome, problem, change = Outcome.SUCCESS, None, None
        try:
            status, _ = await self.get("/health", patience=2.0)
            if status >= 400:
                problem = f"HTTP {status}"
        except TransportError as error:
            outcome, problem = Outcome.FAILURE, f"{error.fault}: {error}"
        self.problem, self.checked_at = problem, self._clock.now()
        if ticket is not None:
            change = self.breaker.record_probe(ticket, outcome, self._clock.monotonic())
            if change is not None and outcome is Outcome.SUCCESS:
                self._log.warning("component_back", name=self.name)
        if self.news is not None:
            self.news(change)

    async def watch(self, interval: float) -> None:
        """Look at it again and again, every second while its breaker is open."""
        while True:
            await self.check()
            await asyncio.sleep(1.0 if not self.breaker.allow() else interval)

    async def close(self) -> None:
        """Close its connections."""
        await self.transport.aclose()


def request_head(method: str, target: bytes, query: bytes, headers: list[Header], added: bytes) -> bytes:
    """The head of the request to a component, without its last empty line.

    Names with an underscore are left out: some servers read them as if it were a hyphen.
    """
    named: frozenset[bytes] | None = None
    lines = [b"%b %b%b%b HTTP/1.1\r\n" % (method.encode(), target, b"?" if query else b"", query), added]
    for name, value in headers:
        if name in _NOT_ON or b"_" in name or name.startswith(_NOT_ON_PREFIXES):
            if name == b"connection":
                named = frozenset(token.strip().lower() for token in value.split(b",")) | (named or frozenset())
            continue
        lines.append(b"%b: %b\r\n" % (name, value))
    if named is not None and not named <= {b"keep-alive", b"close"}:
        lines[2:] = [line for line in lines[2:] if line.partition(b":")[0] not in named]
    return b"".join(lines)


def response_headers(raw: list[Header], own: list[Header], *, limits: bool) -> list[Header]:
    """The headers of an answer as its caller gets them.

    Args:
        own: What the gateway adds.
        limits: Whether they hold the caller's own limits: a provider's would contradict them.
    """
    found: list[Header] = []
    named: frozenset[bytes] = frozenset()
    for name, value in raw:
        key = name.lower()
        if key in _NOT_BACK or key.startswith(b"access-control-"):
            if key == b"connection":
                named |= {token.strip().lower() for token in value.split(b",")}
            continue
        if limits and key.startswith(_LIMIT_FIELDS) and key != b"retry-after":
            continue
        found.append((key, value))
    if named:
        found = [header for header in found if header[0] not in named]
    return found + own


class Passage:
    """One request on its way through. `status` is 499 until an answer has begun; `progress` is when anything moved."""

    __slots__ = (
        "_body_limit", "_done", "_gone", "_receive", "_send", "_task", "_timer", "_watcher", "abort", "decision",
        "pieces", "progress", "sending", "started", "status", "waiting_for_body",
    )  # fmt: skip

    def __init__(self, receive: Receive, send: Send, *, body_limit: int, now: float) -> None:
        self._receive = receive
        self._send = send
        self._body_limit = body_limit
        self._done = False
        self._gone = False
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.abort: str | None = None  # why somebody else ended it
        self.decision: str | None = None
        self.pieces = 0
        self.progress = now
        self.sending = False  # whether the caller's own reading is waited for
        self.started = False
        self.status = 499
        self.waiting_for_body = True

    async def run(
        self,
        upstream: Upstream,
        head: bytes,
        length: bytes | None,
        decorate: Callable[[int, list[Header]], list[Header]],
    ) -> None:
        """Pass the request on and the answer back.

        Args:
            head: From `request_head`.
            length: The request's Content-Length, as it came.
            decorate: Makes the answer's headers of its status and the component's.

        Raises:
            Refusal: there is no answer; nothing was sent to the caller yet.
            CallerGoneError: nobody listens any more.
            BodyTooLargeError: the request's body is larger than allowed.
        """
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        generation = upstream.admit()
        deadline = Deadline()
        deadline.start(upstream.timeouts.first_byte)
        pump: asyncio.Task[None] | None = None
        reply: Any = None
        try:
            first = await self._first(length)
            if len(first.get("body", b"")) > self._body_limit:
                raise BodyTooLargeError
            if first.get("more_body", False):
                # A body in several pieces passes piece by piece, over a connection of its own.
                head += (
                    b"transfer-encoding: chunked\r\n\r\n" if length is None else b"content-length: %b\r\n\r\n" % length
                )
                reply = await self._connected(lambda: upstream.transport.begin(upstream.endpoint, head, deadline))
                pump = loop.create_task(self._pump(reply, first.get("body", b""), chunked=length is None))
                pump.add_done_callback(self._pumped)
                await self._headed(reply, pump)
            else:
                body = first.get("body", b"")
                if body or length is not None:
                    head += b"content-length: %d\r\n\r\n%b" % (len(body), body)
                else:
                    head += b"\r\n"
                self.waiting_for_body = False
                self._timer = loop.call_later(_GRACE, self._look)
                reply = await self._connected(lambda: upstream.transport.exchange(upstream.endpoint, head, deadline))
            piece = await reply.piece()
            deadline.cancel()
            upstream.report(Outcome.SUCCESS, generation)
            await self._answer(reply, piece, decorate)
            reply = None
        except asyncio.CancelledError:
            if self._gone or self.abort is not None:
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()  # we cancelled ourselves, because nobody is listening any more
                raise CallerGoneError from None
            raise
        except TransportError as error:
            upstream.report(Outcome.FAILURE, generation)
            if self.started:
                raise _cut(upstream, error) from error
            raise _no_answer(upstream, error) from error
        finally:
            self._done = True
            deadline.cancel()
            if self._timer is not None:
                self._timer.cancel()
            if self._watcher is not None:
                self._watcher.cancel()
            if pump is not None and not pump.done():
                pump.cancel()
            if reply is not None:
                reply.close()
            self._task = self._timer = self._watcher = None

    def stop(self, why: str) -> None:
        """End it from outside: it has not moved for too long."""
        if not self._done and self._task is not None and self.abort is None:
            self.abort = why
            self._task.cancel()

    async def _answer(self, reply: Any, piece: bytes, decorate: Callable[[int, list[Header]], list[Header]]) -> None:
        send = self._send
        self.status = reply.status
        self.decision = reply.headers.get("x-avyay-decision-id")
        headers = decorate(reply.status, reply.raw)
        self.started = True
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if reply.ended or not piece:  # all of it is here, as it is of most answers that are no stream
            await send({"type": "http.response.body", "body": piece})
            return
        if not self.waiting_for_body:
            self._look()
        clock = asyncio.get_running_loop().time
        while piece:
            self.sending = True
            last = reply.ended  # then it is said with the piece: an announced length ends with its last byte
            await send({"type": "http.response.body", "body": piece, "more_body": not last})
            self.sending = False
            self.pieces += 1
            if last:
                return
            piece = await reply.piece()
            self.progress = clock()
        await send({"type": "http.response.body", "body": b""})

    async def _connected(self, connect: Callable[[], Awaitable[Any]]) -> Any:
        """Try again while nobody listens: nothing of the request has been sent yet."""
        failures = 0
        while True:
            try:
                return await connect()
            except TransportError as error:
                failures += 1
                if error.fault != "connect" or failures >= _CONNECTS.attempts:
                    raise
                await asyncio.sleep(_CONNECTS.delay(failures, random.random) or 0.0)

    async def _headed(self, reply: Any, pump: asyncio.Task[None]) -> None:
        """Wait for the answer's head while the body goes up; the answer may come before its end."""
        head = asyncio.ensure_future(reply.head())
        try:
            await asyncio.wait({head, pump}, return_when=asyncio.FIRST_COMPLETED)
            error = pump.exception() if pump.done() and not head.done() else None
            # A component that refuses a body may stop reading it: what it says then is still to come.
            if error is not None and not isinstance(error, TransportError):
                raise error
            await head
        finally:
            if not head.done():
                head.cancel()

    async def _pump(self, reply: Any, piece: bytes, *, chunked: bool) -> None:
        size = 0
        clock = asyncio.get_running_loop().time
        more = True
        while True:
            size += len(piece)
            if size > self._body_limit:
                raise BodyTooLargeError
            if piece:
                await reply.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if not more:
                break
            self.progress = clock()
            message = await self._next()
            piece, more = message.get("body", b""), message.get("more_body", False)
        if chunked:
            await reply.write(b"0\r\n\r\n")
        self.waiting_for_body = False
        self.progress = clock()
        self._look()

    def _pumped(self, pump: asyncio.Task[None]) -> None:
        if not pump.cancelled() and isinstance(pump.exception(), CallerGoneError) and self._task is not None:
            self._gone = True
            self._task.cancel()

    async def _first(self, length: bytes | None) -> MutableMapping[str, Any]:
        """The body's beginning; all of it where it says that it is small, whatever pieces it comes in."""
        message = await self._next()
        if length is not None and message.get("more_body", False) and int(length) <= _SMALL_BODY:
            body = message.get("body", b"")
            while message.get("more_body", False):
                message = await self._next()
                body += message.get("body", b"")
            return {"body": body}
        return message

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise CallerGoneError
        return message

    def _look(self) -> None:
        """Begin to look whether the caller is still there."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._done and self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._done and self._task is not None:
            self._gone = True
            self._task.cancel()


def _no_answer(upstream: Upstream, error: TransportError) -> Refusal:
    if error.fault == "timeout":
        return Refusal(504, f"{upstream.name} did not answer in time.", code="component_timeout")
    if error.fault == "connect":
        return Refusal(
            503,
            f"{upstream.name} cannot be reached ({error}).",
            code="component_unavailable",
            hint=f"Is it running? avyay serve {upstream.name}",
            headers=((b"retry-after", b"1"),),
        )
    return Refusal(502, f"{upstream.name} broke off before it answered.", code="component_broke_off")


def _cut(upstream: Upstream, error: TransportError) -> Refusal:
    return Refusal(502, f"{upstream.name} broke off in the middle of its answer ({error}).", code="answer_cut")
