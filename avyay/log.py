"""Logging: structlog to stderr, snake_case events with fields; text on a terminal, JSON elsewhere or when asked."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    import structlog

__all__ = ["configure_logging", "get_logger", "redact"]

Level = Literal["debug", "info", "warning", "error"]

# Key names whose values never belong in a log line, and the shapes of the keys the providers issue.
_SECRET_NAMES = re.compile(r"(?i)(api[_-]?key|authorization|token|secret|password|cookie|dsn)$")
_SECRET_SHAPES = re.compile(
    r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}|\bBearer\s+[A-Za-z0-9._~+/=-]{8,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{4,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|\bavy_[A-Za-z0-9_]{16,}"
)
REDACTED = "[redacted]"

# What `configure_logging` asked for before anything was logged. structlog costs as much to import as the whole of a
# short command, and most commands log nothing.
_pending: tuple[Level, bool, TextIO | None] | None = None


def redact(text: str) -> str:
    """`text` with anything that has the shape of a credential replaced."""
    return _SECRET_SHAPES.sub(REDACTED, text)


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = REDACTED if _SECRET_NAMES.search(key) and value else redact(value)
    return event


def _one_line(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What strangers write makes no line of its own on a terminal, and moves no cursor there."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return event


def configure_logging(level: Level = "warning", *, json: bool | None = None, stream: TextIO | None = None) -> None:
    """Set up logging for this process.

    Args:
        level: What is written at least.
        json: One JSON object a line; by default when the stream is no terminal.
        stream: By default stderr; results never go through here.
    """
    global _pending
    out = stream or sys.stderr
    _pending = (level, not out.isatty() if json is None else json, stream)
    if "structlog" in sys.modules:
        _configure()


def _configure() -> None:
    global _pending
    if _pending is None:
        return
    import structlog

    (level, as_json, out), _pending = _pending, None
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=False,
            exception_formatter=structlog.dev.plain_traceback,  # the rich one prints variables: prompts, keys
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_event,
            *(() if as_json else (_one_line,)),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # Standard error is looked up for each logger: who replaces it later (a test, a daemonising parent) means it.
        logger_factory=lambda *_: structlog.PrintLogger(_Unfailing(out or sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


class _Unfailing:
    """A stream whose disk may be full: a line that cannot be written is dropped, and the work goes on."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._out.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._out.flush()


def get_logger(component: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry `component`."""
    import structlog

    _configure()
    return structlog.get_logger(component=component)  # type: ignore[no-any-return]
