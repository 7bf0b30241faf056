"""Errors as problem+json (RFC 9457): the one place that maps them to HTTP."""

from __future__ import annotations

from typing import Any

from avyay.errors import AuthError, AvyayError, DependencyError, PolicyError, UnreachableError, UsageError

__all__ = ["problem", "problem_data", "status_of"]

_NOT_FOUND = frozenset(
    {"no_source", "no_document", "no_answer", "no_job", "no_rule", "no_task", "no_hypothesis", "no_record"}
)
_BY_CODE = {"too_many_jobs": 429, "draining": 503, "key_reused": 422, "too_large": 413, "not_here": 404}
_CONFLICT = frozenset({"no_index", "index_busy", "embedder_changed"})


def status_of(error: AvyayError) -> int:
    """The HTTP status that says what the exit code says."""
    if (status := _BY_CODE.get(error.code)) is not None:
        return status
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
    return problem_data(status, error.message, error.code, error.hint)


def problem_data(status: int, title: str, code: str, hint: str | None = None) -> dict[str, Any]:
    """The body of a problem that is no `AvyayError`."""
    return {"type": "about:blank", "status": status, "title": title, "code": code, "hint": hint}
