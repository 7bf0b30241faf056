"""What the gateway reads in the head of a request, and says about it: pure, but for the answer to a preflight."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from avyay.serve.gateway.replies import Refusal
from avyay.serve.gateway.routes import ErrorDialect, Route
from avyay.serve.run import is_loopback

__all__ = [
    "allows",
    "answer_preflight",
    "check_local",
    "cors_headers",
    "dialect_of",
    "header_text",
    "length_of",
    "path_for_log",
    "request_id_of",
    "trace_of",
]

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")
_LENGTH = re.compile(rb"[0-9]{1,15}\Z")
_CORS_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"


def request_id_of(headers: list[Header]) -> str:
    """The caller's own id where it is plain, else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode() if _REQUEST_ID.match(value) else f"req_{secrets.token_hex(8)}"
    return f"req_{secrets.token_hex(8)}"


def length_of(headers: list[Header]) -> bytes | None:
    """The announced length of the body.

    Raises:
        Refusal: it is announced twice, or is no length.
    """
    found = [value for name, value in headers if name == b"content-length"]
    if not found:
        return None
    if len(found) > 1 or _LENGTH.match(found[0]) is None:
        raise Refusal(400, "The body's length is not clear.", code="bad_length")
    return found[0]


def trace_of(scope: Scope) -> bytes | None:
    """The caller's `traceparent`, when it is one."""
    found = [value for name, value in scope["headers"] if name == b"traceparent"]
    return found[0] if len(found) == 1 and _TRACE.match(found[0]) else None


def dialect_of(route: Route, headers: list[Header]) -> ErrorDialect:
    """How an error is told to this caller."""
    if route.area == "models" and any(name == b"anthropic-version" for name, _ in headers):
        return "anthropic"
    return route.dialect


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


def cors_headers(headers: list[Header], origins: frozenset[bytes]) -> tuple[Header, ...]:
    """What an answer says to a browser's page."""
    if not origins:
        return ()
    origin = next((value for name, value in headers if name == b"origin"), None)
    if origin is None or origin not in origins:
        return ((b"vary", b"origin"),)
    exposed = b"x-request-id, x-avyay-decision-id, retry-after, ratelimit, ratelimit-policy"
    return (
        (b"access-control-allow-origin", origin),
        (b"vary", b"origin"),
        (b"access-control-expose-headers", exposed),
    )


def allows(found: tuple[Header, ...]) -> bool:
    """Whether `cors_headers` let the page in."""
    return len(found) > 1


async def answer_preflight(send: Send, headers: list[Header], extra: tuple[Header, ...]) -> int:
    """Tell a browser what a page may send; the status."""
    asked = next((value for name, value in headers if name == b"access-control-request-headers"), b"")
    names = [part.strip().lower() for part in asked.split(b",")]
    allowed = b", ".join(name for name in names if re.fullmatch(rb"[a-z0-9-]{1,64}", name))
    found = [*extra, (b"access-control-allow-methods", _CORS_METHODS), (b"access-control-max-age", b"600")]
    if allowed:
        found.append((b"access-control-allow-headers", allowed))
    await send({"type": "http.response.start", "status": 204, "headers": found})
    await send({"type": "http.response.body", "body": b""})
    return 204


def header_text(text: str) -> bytes:
    """A text as a header's value."""
    return "".join(char if char.isprintable() else "?" for char in text).encode("utf-8")


def path_for_log(raw: bytes) -> str:
    """A path for the log: one line, no control characters, not endless."""
    return raw[:200].decode("latin-1").encode("unicode_escape").decode("ascii")
