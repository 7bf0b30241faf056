"""Cutting byte streams into events: server-sent events and newline-delimited JSON, tolerant of any split.

Decoders keep bytes, not text, so a character split over two packets is never decoded by halves.
"""

from __future__ import annotations

from typing import Any

import orjson

__all__ = ["MISSHAPEN", "FrameTooLargeError", "LineDecoder", "SseDecoder", "sse_data", "sse_event"]

# What reading a provider's JSON raises when a value is not of the type its dialect prescribes. Answers are read without
# checking every field, which would double the cost of a stream; whoever starts the reading turns these into one error.
MISSHAPEN = (AttributeError, TypeError, KeyError, IndexError, ValueError)
_LIMIT = 64 * 1024 * 1024  # one event larger than this is no event


class FrameTooLargeError(ValueError):
    """The other side sends without ever ending an event."""


class LineDecoder:
    """Newline-delimited JSON: `feed` returns the finished lines, `flush` what is left at the end."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes]:
        if b"\n" not in data:
            self._tail += data
            if len(self._tail) > _LIMIT:
                raise FrameTooLargeError("a line exceeds 64 MiB")
            return []
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        return [line for line in lines if line.strip()]

    def flush(self) -> list[bytes]:
        tail, self._tail = self._tail, b""
        return [tail] if tail.strip() else []


class SseDecoder:
    """Server-sent events: `feed` returns `(event name, data)` pairs; comments, ids and retries are dropped.

    Lines may end in LF, CR or CRLF, with or without a space after the colon; several data lines are joined.
    An event at the very end without its blank line is returned by `flush`.
    """

    __slots__ = ("_data", "_event", "_pending_lf", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._event = ""
        self._data: list[bytes] = []
        self._pending_lf = False

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        if self._pending_lf and data:  # the packet before ended between CR and LF
            if data[:1] == b"\n":
                data = data[1:]
            self._pending_lf = False
        if b"\r" in data:
            if data.endswith(b"\r"):
                self._pending_lf = True
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            self._tail += data
            if len(self._tail) > _LIMIT:
                raise FrameTooLargeError("an event exceeds 64 MiB")
            return []
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        out: list[tuple[str, bytes]] = []
        for line in lines:
            if line:
                self._line(line)
            elif self._data or self._event:
                out.append(self._take())
        return out

    def flush(self) -> list[tuple[str, bytes]]:
        if self._tail:
            self._line(self._tail)
            self._tail = b""
        return [self._take()] if self._data or self._event else []

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line.startswith(b"event:"):
            self._event = line[6:].strip().decode("utf-8", "replace")

    def _take(self) -> tuple[str, bytes]:
        data = self._data
        pair = (self._event, data[0] if len(data) == 1 else b"\n".join(data))
        self._event, self._data = "", []
        return pair


def sse_data(payload: Any) -> bytes:
    """One unnamed event, as Chat Completions streams them."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def sse_event(name: str, payload: Any) -> bytes:
    """One named event, as Messages and Responses stream them."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(payload) + b"\n\n"
