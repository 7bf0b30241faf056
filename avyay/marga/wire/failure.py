"""Errors on the wire: one neutral `Failure`, read from and written in every dialect's own envelope.

A failure has a stable `code` for programs and a `kind`, which decides the HTTP status and the dialect's error type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import orjson

from avyay.errors import AuthError, AvyayError, DependencyError, PolicyError, UnreachableError, UsageError
from avyay.marga.wire.model import Dialect

__all__ = [
    "Failure",
    "FailureKind",
    "failure_from_exception",
    "forwarded_headers",
    "parse_error",
    "parse_error_object",
    "render_error",
    "truncated",
]

FailureKind: TypeAlias = Literal[
    "invalid_request",
    "untranslatable",
    "context_length",
    "authentication",
    "billing",
    "permission",
    "not_found",
    "conflict",
    "too_large",
    "rate_limit",
    "quota",
    "policy",  # refused by this gateway's own budget, PII or residency rules
    "content_filter",
    "overloaded",
    "timeout",
    "server",
    "unavailable",  # no provider could be reached
    "truncated",  # the stream broke off in the middle
    "cancelled",
]

# kind: HTTP status, Messages type, OpenAI type, default code
_KINDS: dict[str, tuple[int, str, str, str]] = {
    "invalid_request": (400, "invalid_request_error", "invalid_request_error", "invalid_request"),
    "untranslatable": (400, "invalid_request_error", "invalid_request_error", "untranslatable"),
    "context_length": (400, "invalid_request_error", "invalid_request_error", "context_length_exceeded"),
    "authentication": (401, "authentication_error", "authentication_error", "invalid_api_key"),
    "billing": (402, "billing_error", "insufficient_quota", "billing"),
    "permission": (403, "permission_error", "permission_error", "permission_denied"),
    "not_found": (404, "not_found_error", "invalid_request_error", "not_found"),
    "conflict": (409, "conflict_error", "invalid_request_error", "conflict"),
    "too_large": (413, "request_too_large", "invalid_request_error", "request_too_large"),
    "rate_limit": (429, "rate_limit_error", "rate_limit_error", "rate_limit_exceeded"),
    "quota": (429, "rate_limit_error", "insufficient_quota", "insufficient_quota"),
    "policy": (403, "permission_error", "permission_error", "refused"),
    "content_filter": (400, "invalid_request_error", "invalid_request_error", "content_filter"),
    "overloaded": (529, "overloaded_error", "server_error", "overloaded"),
    "timeout": (504, "timeout_error", "server_error", "timeout"),
    "server": (500, "api_error", "server_error", "server_error"),
    "unavailable": (503, "api_error", "server_error", "unavailable"),
    "truncated": (502, "api_error", "server_error", "stream_truncated"),
    "cancelled": (499, "api_error", "server_error", "cancelled"),
}

_BY_STATUS: dict[int, FailureKind] = {
    400: "invalid_request",
    401: "authentication",
    402: "billing",
    403: "permission",
    404: "not_found",
    405: "invalid_request",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "invalid_request",
    422: "invalid_request",
    429: "rate_limit",
    499: "cancelled",
    500: "server",
    502: "unavailable",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}

_BY_TYPE: dict[str, FailureKind] = {
    "invalid_request_error": "invalid_request",
    "authentication_error": "authentication",
    "billing_error": "billing",
    "permission_error": "permission",
    "not_found_error": "not_found",
    "conflict_error": "conflict",
    "request_too_large": "too_large",
    "rate_limit_error": "rate_limit",
    "overloaded_error": "overloaded",
    "timeout_error": "timeout",
    "api_error": "server",
    "server_error": "server",
    "insufficient_quota": "quota",
    "rate_limit_exceeded": "rate_limit",
    "tokens": "rate_limit",
    "requests": "rate_limit",
}

_BY_CODE: dict[str, FailureKind] = {
    "previous_response_not_found": "not_found",  # it may be stored by another provider
    "context_length_exceeded": "context_length",
    "string_above_max_length": "context_length",
    "invalid_api_key": "authentication",
    "model_not_found": "not_found",
    "insufficient_quota": "quota",
    "rate_limit_exceeded": "rate_limit",
    "billing": "billing",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "server_error": "server",
    "server_is_overloaded": "overloaded",
    "slow_down": "overloaded",
    "overloaded": "overloaded",
    "timeout": "timeout",
    "stream_truncated": "truncated",
    "unavailable": "unavailable",
    "untranslatable": "untranslatable",
}

_TOO_LONG = ("prompt is too long", "maximum context length", "context window", "exceeds the context", "context length")

_RETRYABLE: frozenset[str] = frozenset({"rate_limit", "overloaded", "timeout", "server", "unavailable", "conflict"})


@dataclass(frozen=True, slots=True)
class Failure:
    """An error answer.

    Attributes:
        kind: What went wrong, independent of the dialect.
        message: For people; never with secrets.
        status: The HTTP status to send, or the one received.
        code: Stable, for programs.
        param: The offending field, when there is one.
        retry_after: Seconds the provider asked to wait, when it did.
        request_id: The provider's id for the call, when it named one.
    """

    kind: FailureKind
    message: str
    status: int = 0
    code: str = ""
    param: str | None = None
    retry_after: float | None = None
    request_id: str | None = None

    def __post_init__(self) -> None:
        defaults = _KINDS[self.kind]
        if not self.status:
            object.__setattr__(self, "status", defaults[0])
        if not self.code:
            object.__setattr__(self, "code", defaults[3])

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later or elsewhere."""
        return self.kind in _RETRYABLE


def truncated(detail: str = "the provider closed the connection before the answer was complete") -> Failure:
    """The failure of a stream that ended in the middle."""
    return Failure("truncated", f"The stream was cut off: {detail}.")


def failure_from_exception(error: AvyayError) -> Failure:
    """How one of our own errors looks on the wire, hint included."""
    kind: FailureKind
    if error.code == "untranslatable":
        kind = "untranslatable"
    elif isinstance(error, UsageError):
        kind = "invalid_request"
    elif isinstance(error, AuthError):
        kind = "authentication"
    elif isinstance(error, PolicyError):
        kind = "policy"
    elif isinstance(error, UnreachableError | DependencyError):
        kind = "unavailable"
    else:
        kind = "server"
    message = f"{error.message} {error.hint}" if error.hint else error.message
    return Failure(kind, message, code=error.code, param=getattr(error, "field", None))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, scale in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / scale
        except ValueError:
            continue  # an HTTP date: whoever holds a clock may read it from the forwarded header
        if 0 <= seconds < 1e7:
            return seconds
    return None


def parse_error_object(error: Any, status: int = 0) -> Failure:
    """A failure from the `error` value of any dialect: an object with type, code and message, or a bare string."""
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        error = {}
    code = error.get("code")
    code = str(code) if isinstance(code, str | int) and not isinstance(code, bool) else ""
    kind_of_type = error.get("type")
    message = error.get("message")
    message = message if isinstance(message, str) and message else "The provider gave no message."
    param = error.get("param")
    kind = _BY_CODE.get(code)
    if kind is None and isinstance(kind_of_type, str):
        kind = _BY_CODE.get(kind_of_type) or _BY_TYPE.get(kind_of_type)
    by_status = _BY_STATUS.get(status)
    if kind is None or (kind == "invalid_request" and by_status not in (None, "invalid_request")):
        kind = by_status or ("server" if not 400 <= status < 500 else "invalid_request")
    lowered = message.lower()
    if kind in ("invalid_request", "too_large", "server") and any(phrase in lowered for phrase in _TOO_LONG):
        kind = "context_length"
        code = "context_length_exceeded"
    if code.isdigit():
        code = ""
    return Failure(kind, message, status=status, code=code, param=param if isinstance(param, str) else None)


def parse_error(status: int, raw: bytes, headers: Mapping[str, str] | None = None) -> Failure:
    """A failure from a provider's error answer, whatever its dialect or shape (proxies answer in HTML).

    Args:
        status: The HTTP status received.
        raw: The body.
        headers: The answer's headers, names in lower case.
    """
    headers = headers or {}
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict):
        error = body.get("error") or body.get("detail") or body.get("message")
        if isinstance(error, str):  # Ollama's envelope, with the code we add to it
            error = {"message": error, "code": body.get("code")}
        failure = parse_error_object(error, status)
        request_id = body.get("request_id") or headers.get("request-id") or headers.get("x-request-id")
    else:
        failure = parse_error_object(f"The provider answered HTTP {status} without a readable error.", status)
        request_id = headers.get("request-id") or headers.get("x-request-id")
    return replace(
        failure,
        retry_after=_retry_after(headers),
        request_id=request_id if isinstance(request_id, str) else None,
    )


def error_object(dialect: Dialect, failure: Failure) -> dict[str, Any]:
    """The dialect's `error` value. `code` is an addition of ours where the dialect has none."""
    _, messages_type, openai_type, _ = _KINDS[failure.kind]
    message = failure.message
    if dialect == "anthropic_messages":
        # Clients recognise an overflow by this prefix and compact their conversation.
        if failure.kind == "context_length" and not message.lower().startswith("prompt is too long"):
            message = f"prompt is too long: {message}"
        return {"type": messages_type, "message": message, "code": failure.code}
    return {"message": message, "type": openai_type, "param": failure.param, "code": failure.code}


def render_error(dialect: Dialect, failure: Failure, request_id: str | None = None) -> bytes:
    """The body of an error answer before any byte of a reply; send it with `failure.status`."""
    if dialect == "anthropic_messages":
        body: dict[str, Any] = {"type": "error", "error": error_object(dialect, failure)}
        if request_id or failure.request_id:
            body["request_id"] = request_id or failure.request_id
        return orjson.dumps(body)
    if dialect in ("ollama_chat", "ollama_generate"):
        return orjson.dumps({"error": failure.message, "code": failure.code})
    return orjson.dumps({"error": error_object(dialect, failure)})


_FORWARDED = ("retry-after", "retry-after-ms", "x-should-retry", "request-id", "x-request-id", "openai-processing-ms")
_FORWARDED_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-", "ratelimit-", "anthropic-priority-", "anthropic-fast-")


def forwarded_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The provider's headers that a caller may rely on: retry-after, rate limits and request ids.

    Give it the headers of the attempt that serves the caller, never those of an attempt that was given up.

    Args:
        headers: Names in lower case.
    """
    return [(k, v) for k, v in headers.items() if k in _FORWARDED or k.startswith(_FORWARDED_PREFIXES)]
