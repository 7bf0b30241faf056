"""What the gateway says itself: errors in the dialect of the endpoint, and its own pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import orjson

from avyay.errors import AvyayError
from avyay.marga.wire import Dialect, Failure, FailureKind, render_error
from avyay.serve.gateway.routes import ErrorDialect

__all__ = ["Refusal", "refusal_of", "send_json", "send_refusal"]

Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

_DIALECTS: dict[ErrorDialect, Dialect] = {
    "openai": "openai_chat",
    "anthropic": "anthropic_messages",
    "ollama": "ollama_chat",
}
_KINDS: dict[int, FailureKind] = {
    400: "invalid_request",
    401: "authentication",
    403: "permission",
    404: "not_found",
    413: "too_large",
    429: "rate_limit",
    502: "server",
    503: "unavailable",
    504: "timeout",
}
_TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timeout",
    413: "Too large",
    429: "Too many requests",
    500: "Internal error",
    502: "The component broke off",
    503: "The component is not available",
    504: "The component did not answer in time",
}


class Refusal(Exception):  # noqa: N818 - an answer, not an accident
    """A request that ends here."""

    def __init__(
        self, status: int, message: str, *, code: str, hint: str | None = None, headers: tuple[Header, ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.hint = hint
        self.headers = headers


def refusal_of(error: AvyayError, status: int, *headers: Header) -> Refusal:
    """An error of ours as a refusal."""
    return Refusal(status, error.message, code=error.code, hint=error.hint, headers=headers)


async def send_refusal(
    send: Send, refusal: Refusal, dialect: ErrorDialect, request_id: str, extra: tuple[Header, ...] = ()
) -> None:
    """Answer with an error object of the dialect; problem+json (RFC 9457) where there is none."""
    status, headers = refusal.status, [*refusal.headers, *extra]
    if (known := _DIALECTS.get(dialect)) is not None:
        message = f"{refusal.message} {refusal.hint}" if refusal.hint else refusal.message
        failure = Failure(_KINDS.get(status, "server"), message, status=status, code=refusal.code)
        body, kind = render_error(known, failure, request_id), b"application/json"
        if dialect == "anthropic":
            headers.append((b"request-id", request_id.encode()))
    else:
        problem = {
            "type": "about:blank",
            "status": status,
            "title": _TITLES.get(status, "Error"),
            "detail": refusal.message,
            "hint": refusal.hint,
            "code": refusal.code,
            "request_id": request_id,
        }
        body, kind = orjson.dumps(problem), b"application/problem+json"
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="avyay"'))
    headers += [(b"x-request-id", request_id.encode()), (b"content-type", kind)]
    await _send(send, status, headers, body)


async def send_json(send: Send, status: int, data: Any, request_id: str, *extra: Header, head: bool = False) -> None:
    """Answer with a page; bytes go as plain text."""
    body = data if isinstance(data, bytes) else orjson.dumps(data, default=str)
    kind = b"text/plain; version=0.0.4; charset=utf-8" if isinstance(data, bytes) else b"application/json"
    headers = [(b"x-request-id", request_id.encode()), (b"content-type", kind), (b"cache-control", b"no-store"), *extra]
    await _send(send, status, headers, body, head=head)


async def _send(send: Send, status: int, headers: list[Header], body: bytes, *, head: bool = False) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
