"""The gateway over HTTP: a raw ASGI application, because every layer between costs more than the routing itself.

Endpoints: OpenAI chat completions, responses, embeddings and models; Anthropic messages and count_tokens; Ollama chat,
generate and tags. Everything else goes to `fallback` (health, metrics, administration).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, TypeAlias

from avyay.errors import AuthError
from avyay.log import get_logger
from avyay.marga.envelope import Inbound, Outbound, error_reply
from avyay.marga.gateway import Gateway
from avyay.marga.side_endpoints import count_tokens, embeddings, list_models, list_tags, show_model
from avyay.marga.types import Dialect
from avyay.marga.wire import Failure, failure_from_exception
from avyay.ports import Tier
from avyay.principal import PRINCIPAL_HEADER, Principal, PrincipalVerifier

__all__ = ["MargaApp"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_CONVERSATIONS: dict[str, Dialect] = {
    "/v1/chat/completions": "openai_chat",
    "/chat/completions": "openai_chat",
    "/v1/responses": "openai_responses",
    "/responses": "openai_responses",
    "/v1/messages": "anthropic_messages",
    "/api/chat": "ollama_chat",
    "/api/generate": "ollama_generate",
}
# What clients of the dialects ask for that is not served here; other paths are the daemon kit's.
_NOT_SERVED = (
    *("/v1/v1/", "/v1/completions", "/v1/chat/completions/", "/v1/responses/", "/v1/messages/batches", "/v1/complete"),
    *("/v1/images/", "/v1/audio/", "/v1/moderations", "/v1/files", "/v1/uploads", "/v1/batches", "/v1/fine_tuning/"),
    *("/v1/vector_stores", "/v1/assistants", "/v1/threads", "/v1/realtime"),
)
_WELCOME = b"""avyay marga

OpenAI clients: this address with /v1 as base_url. Anthropic and Ollama clients: this address as it is.
Model "auto" routes. What is served: /openapi.json; how it does: /health, /metrics.
"""
_GRACE = 0.05  # seconds an answer may take before somebody looks whether its caller is still there
_TIERS: Mapping[bytes, Tier] = {
    b"local": "local",
    b"medium": "medium",
    b"premium": "premium",
    b"simple": "local",
    b"complex": "premium",
}
_FORWARDED = {b"anthropic-beta": "anthropic-beta", b"openai-beta": "openai-beta"}
_KEYS = frozenset({b"authorization", b"x-api-key"})
_PRINCIPAL = PRINCIPAL_HEADER.encode()
_READ = _KEYS | {
    _PRINCIPAL,
    b"x-cost-tier",
    b"x-quality-min",
    b"x-latency-budget",
    b"x-request-class",
    b"x-data-residency",
    b"x-avyay-service",
    b"x-avyay-customer",
    b"x-avyay-session",
    b"x-session-id",
    b"traceparent",
    b"cache-control",
}
_SIGNED = _KEYS | {_PRINCIPAL, b"traceparent"}
_BAD_REQUEST = "invalid_hint"


class ClientGoneError(Exception):
    """The caller hung up before its request was complete."""


class MargaApp:
    """The ASGI application.

    Args:
        key: What callers must present as a bearer token or x-api-key; None asks for nothing.
        principals: Believes the gateway's word on who calls; such a caller needs no key. None believes nobody.
        max_body: Bytes of a request at most.
        started, stopped: Run with the server's lifespan.
    """

    def __init__(
        self,
        gateway: Gateway,
        fallback: App,
        *,
        key: str | None = None,
        principals: PrincipalVerifier | None = None,
        max_body: int = 32_000_000,
        started: Callable[[], Awaitable[None]] | None = None,
        stopped: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._gateway = gateway
        self._fallback = fallback
        self._key = key.encode() if key is not None else None
        self._principals = principals
        self._max_body = max_body
        self._log = get_logger("marga")
        self._started = started
        self._stopped = stopped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._lifespan(receive, send)
            return
        path = scope["path"]
        dialect = _CONVERSATIONS.get(path)
        try:
            if dialect is not None:
                await self._conversation(dialect, scope, receive, send)
            else:
                await self._other(path, scope, receive, send)
        except ClientGoneError:
            return

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self._started is not None:
                    await self._started()
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._stopped is not None:
                    await self._stopped()
                await send({"type": "lifespan.shutdown.complete"})
                return

    # ------------------------------------------------------------ conversations

    async def _conversation(self, dialect: Dialect, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            failure = Failure("invalid_request", "Use POST here.", status=405, code="method_not_allowed")
            await _send(send, error_reply(dialect, failure, [("allow", "POST")]))
            return
        raw = await self._body(scope, receive)
        inbound = self._inbound(dialect, scope, raw)
        if isinstance(inbound, Outbound):
            await _send(send, inbound)
            return
        task = asyncio.current_task()
        assert task is not None
        guard = _Guard(task, receive)
        try:
            outbound = await self._gateway.open(inbound)
            if outbound.body is not None:
                guard.done = guard.started = True
                await _send(send, outbound)
            else:
                guard.look()
                guard.started = True
                await self._stream(outbound, send)
        except asyncio.CancelledError:
            if not guard.gone:
                raise
            task.uncancel()  # we cancelled ourselves, because nobody is listening any more
        except Exception:
            if guard.started:
                raise
            # A bug of ours is an answer in the caller's dialect too, and the daemon goes on.
            self._log.exception("request_failed", dialect=dialect)
            guard.done = True
            failure = Failure("server", "The router failed on this request; its log says why.", code="internal")
            await _send(send, error_reply(dialect, failure))
        finally:
            guard.end()

    async def _stream(self, outbound: Outbound, send: Send) -> None:
        headers = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in outbound.headers]
        headers.append((b"cache-control", b"no-cache"))
        headers.append((b"x-accel-buffering", b"no"))
        chunks = outbound.chunks()
        try:
            await send({"type": "http.response.start", "status": outbound.status, "headers": headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b""})

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The request's body; None when it is too large."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            return body if len(body) <= self._max_body else None
        parts, size = [body], len(body)
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            size += len(message.get("body", b""))
            if size <= self._max_body:  # what is too long is read to its end, but not kept
                parts.append(message["body"])
        return b"".join(parts) if size <= self._max_body else None

    def _inbound(self, dialect: Dialect, scope: Scope, raw: bytes | None) -> Inbound | Outbound:
        """What came in, or the answer to what cannot be understood."""
        found: dict[bytes, bytes] = {}
        forward: dict[str, str] = {}
        for name, value in scope["headers"]:
            if name in _FORWARDED:
                forward[_FORWARDED[name]] = value.decode("latin-1")
            elif name in _READ:
                found[name] = value
        token = found.get(b"x-api-key") or found.get(b"authorization", b"").removeprefix(b"Bearer ")
        principal: Principal | None = None
        if _PRINCIPAL in found and self._principals is not None:
            try:
                principal = self._principals.verify(found[_PRINCIPAL])
            except AuthError as error:
                return error_reply(dialect, failure_from_exception(error))
        elif self._key is not None and not hmac.compare_digest(token, self._key):
            failure = Failure(
                "authentication", "This router asks for its key as `Authorization: Bearer …`.", code="invalid_api_key"
            )
            return error_reply(dialect, failure)
        if raw is None:
            failure = Failure("too_large", f"The request is larger than {self._max_body} bytes (marga.max_body).")
            return error_reply(dialect, failure)
        query = scope["query_string"].decode("latin-1")
        if principal is not None and found.keys() <= _SIGNED:
            return Inbound(
                *(dialect, raw),
                key=principal.key,
                service=principal.service,
                customer=principal.customer,
                forward=forward,
                query=query,
                traceparent=_text(found.get(b"traceparent")),
            )
        if not forward and found.keys() <= _KEYS:  # the usual case: nothing but the key
            return Inbound(dialect, raw, key=_label(token), query=query)
        try:
            quality = found.get(b"x-quality-min")
            latency = found.get(b"x-latency-budget")
            quality_min = float(quality) if quality else None
            if quality_min is not None and not 0 <= quality_min <= 1:
                raise ValueError("X-Quality-Min is a number from 0 to 1")
            return Inbound(
                dialect,
                raw,
                tier=_tier(found.get(b"x-cost-tier")),
                request_class=_class(found.get(b"x-request-class")),
                quality_min=quality_min,
                latency_budget_ms=max(1, int(float(latency))) if latency else None,
                residency=_text(found.get(b"x-data-residency")),
                key=principal.key if principal is not None else _label(token),
                service=(principal and principal.service) or _text(found.get(b"x-avyay-service")),
                customer=(principal and principal.customer) or _text(found.get(b"x-avyay-customer")),
                session=_text(found.get(b"x-avyay-session") or found.get(b"x-session-id")),
                forward=forward,
                query=query,
                traceparent=_text(found.get(b"traceparent")),
                cache_control=_text(found.get(b"cache-control")),
            )
        except (ValueError, OverflowError) as error:
            failure = Failure("invalid_request", f"A hint cannot be read: {error}.", code=_BAD_REQUEST)
            return error_reply(dialect, failure)

    # ------------------------------------------------------------ the rest

    async def _other(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        if path == "/" and method in ("HEAD", "GET"):
            await _send(send, Outbound(200, [("content-type", "text/plain")], _WELCOME * (method == "GET")))
        elif path == "/v1/models" and method == "GET":
            anthropic = any(name == b"anthropic-version" for name, _ in scope["headers"])
            await _send(send, list_models(self._gateway.router, anthropic=anthropic))
        elif path.startswith("/v1/models/") and method == "GET":
            await _send(send, show_model(self._gateway.router, path.removeprefix("/v1/models/")))
        elif path == "/api/tags" and method == "GET":
            await _send(send, list_tags(self._gateway.router))
        elif path in ("/v1/embeddings", "/v1/messages/count_tokens") and method == "POST":
            dialect: Dialect = "openai_chat" if path == "/v1/embeddings" else "anthropic_messages"
            inbound = self._inbound(dialect, scope, await self._body(scope, receive))
            if isinstance(inbound, Inbound):
                work = embeddings if path == "/v1/embeddings" else count_tokens
                inbound = await work(self._gateway, inbound)
            await _send(send, inbound)
        elif path.startswith(_NOT_SERVED):
            await _send(send, _not_served(path, scope))
        else:
            await self._fallback(scope, receive, send)


def _not_served(path: str, scope: Scope) -> Outbound:
    """In the caller's dialect: its SDK shows nothing of another error."""
    message = f"This router does not serve {path[:200]}. What it serves: /openapi.json."
    if path.startswith("/v1/v1/"):
        message = f"There is nothing at {path[:200]}: leave /v1 out of this client's base URL."
    anthropic = "/messages" in path or any(name == b"anthropic-version" for name, _ in scope["headers"])
    failure = Failure("not_found", message, code="not_served")
    return error_reply("anthropic_messages" if anthropic else "openai_chat", failure)


class _Guard:
    """Cancels a request's task when its caller hangs up. Costs a timer, and a task only for answers that take long."""

    __slots__ = ("_receive", "_task", "_timer", "_watcher", "done", "gone", "started")

    def __init__(self, task: asyncio.Task[Any], receive: Receive) -> None:
        self._task = task
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._timer = task.get_loop().call_later(_GRACE, self.look)
        self.done = False
        self.gone = False
        self.started = False  # whether anything of the answer was sent

    def look(self) -> None:
        """Begin to look."""
        self._timer.cancel()
        if not self.done and self._watcher is None:
            self._watcher = self._task.get_loop().create_task(self._wait())

    async def _wait(self) -> None:
        receive, task = self._receive, self._task
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self.done:
            self.gone = True
            task.cancel()

    def end(self) -> None:
        """The request is over."""
        self.done = True
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        # The task holds us as we hold it: let go, so that nothing has to wait for the collector.
        del self._task, self._receive, self._watcher


async def _send(send: Send, outbound: Outbound) -> None:
    body = outbound.body or b""
    headers = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in outbound.headers]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": outbound.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _text(value: bytes | None) -> str | None:
    return value.decode("utf-8", "replace").strip()[:200] or None if value else None


def _tier(value: bytes | None) -> Tier | None:
    name = (value or b"").strip().lower()
    if name and name not in _TIERS:
        raise ValueError("X-Cost-Tier is local, medium or premium")
    return _TIERS.get(name)


def _class(value: bytes | None) -> str | None:
    text = _text(value)
    if text is None:
        return None
    if not all(c.isascii() and (c.isalnum() or c in "_-") for c in text) or len(text) > 64 or text != text.lower():
        raise ValueError("X-Request-Class is made of a-z, 0-9, _ and -, at most 64")
    return text


@lru_cache(maxsize=4096)
def _label(token: bytes) -> str | None:
    """A name for a caller's key that gives nothing away."""
    return f"key-{hashlib.sha256(token).hexdigest()[:12]}" if token else None
