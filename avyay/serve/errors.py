"""Errors as problem+json (RFC 9457): the one place that maps them to HTTP."""

from __future__ import annotations

from typing import Any

from avyay.errors import AuthError, AvyayError, DependencyError, PolicyError, UnreachableError, UsageError

__all__ = ["problem", "status_of"]

_NOT_FOUND = frozenset({"no_source", "no_document", "no_answer", "no_job", "no_rule"})
_CONFLICT = frozenset({"no_index", "index_busy", "embedder_changed"})


def status_of(error: AvyayError) -> int:
    """The HTTP status that says what the exit code says."""
    if error.code in _NOT_FOUND:
        return 404
    if error.code in _CONFLICT:
        return 409
    match error:
        case UsageError():
            return 400
        case AuthError():
            return 401
        case PolicyError():
            return 403
        case UnreachableError():
            return 503
        case DependencyError():
            return 503
    return 500


def problem(error: AvyayError) -> dict[str, Any]:
    """The body."""
    status = status_of(error)
    return {"type": "about:blank", "status": status, "title": error.message, "code": error.code, "hint": error.hint}
