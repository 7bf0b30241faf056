"""Masked values put back into a streamed answer, in the caller's dialect, where a placeholder may be cut by events."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import orjson

from avyay.marga.masking import AnswerMasker, Masker, StreamMasker, Unmasker
from avyay.marga.types import Dialect

__all__ = ["StreamRestorer"]

Channel: TypeAlias = tuple[Any, ...]
_Put: TypeAlias = Callable[[str], None]


class _Channel:
    """One text of a stream: values restored first, then what the model added masked."""

    def __init__(self, masker: Masker | None, guard: AnswerMasker | None, *, in_json: bool) -> None:
        self._unmask = Unmasker(masker, in_json=in_json) if masker is not None else None
        self._mask = StreamMasker(guard, in_json=in_json) if guard is not None else None

    def feed(self, piece: str) -> str:
        if self._unmask is not None:
            piece = self._unmask.feed(piece)
        return self._mask.feed(piece) if self._mask is not None else piece

    def end(self) -> str:
        rest = self._unmask.end() if self._unmask is not None else ""
        return self._mask.feed(rest) + self._mask.end() if self._mask is not None else rest


class StreamRestorer:
    """Takes the bytes of a stream, gives them back with the values restored. Whole events only; the rest waits.

    Args:
        masker: Knows what was masked in the request; None when nothing was.
        guard: Judges what the model writes; None when it may write anything.
    """

    def __init__(self, dialect: Dialect, masker: Masker | None, guard: AnswerMasker | None = None) -> None:
        self._dialect = dialect
        self._masker = masker
        self._guard = guard
        self._end = b"\n" if dialect.startswith("ollama") else b"\n\n"
        self._buffer = b""
        self._channels: dict[Channel, _Channel] = {}
        self._last: dict[Channel, tuple[bytes, dict[str, Any]]] = {}

    def feed(self, data: bytes) -> bytes:
        """The complete events so far."""
        self._buffer += data.replace(b"\r\n", b"\n")
        *frames, self._buffer = self._buffer.split(self._end)
        return b"".join(self._frame(frame) + self._end for frame in frames)

    def close(self) -> bytes:
        """What was still held back."""
        rest, self._buffer = self._buffer, b""
        return self._flush() + (self._frame(rest) if rest else b"")

    def _frame(self, frame: bytes) -> bytes:
        head, mark, data = (b"", b"", frame) if self._end == b"\n" else _split(frame)
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return (self._flush() if data.strip() == b"[DONE]" else b"") + frame
        if not isinstance(event, dict):
            return frame
        places = _places(self._dialect, event)
        if not places:
            restored = event if self._masker is None else self._masker.unmask_body(event)
            if self._guard is not None:
                restored = self._guard.mask_body(restored)
            shown = frame if restored is event else head + mark + orjson.dumps(restored)
            return self._flush() + shown if _ends(self._dialect, event) else shown
        for channel, text, put, in_json in places:
            self._last[channel] = (head + mark, event)
            if channel not in self._channels:
                self._channels[channel] = _Channel(self._masker, self._guard, in_json=in_json)
            put(self._channels[channel].feed(text))
        before = b""
        if _ends(self._dialect, event):  # the last text comes in the event that ends it (Ollama)
            before = self._flush(but=places[0][0])
            channel, text, put, _ = _places(self._dialect, event)[0]
            put(text + self._channels.pop(channel).end())
        return before + head + mark + orjson.dumps(event)

    def _flush(self, but: Channel | None = None) -> bytes:
        """One more event for each channel that still holds text."""
        out = b""
        for channel in [c for c in self._channels if c != but]:
            rest = self._channels.pop(channel).end()
            if not rest:
                continue
            lead, event = self._last[channel]
            event = copy.deepcopy(event)
            for place, _, put, _ in _places(self._dialect, event):
                put(rest if place == channel else "")
            out += lead + orjson.dumps(event) + self._end
        return out


def _split(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """(lines before the data, `data: `, the data) of an SSE frame."""
    head, mark, data = b"", b"", b""
    for line in frame.split(b"\n"):
        if line.startswith(b"data:"):
            mark, data = b"data: ", data + line[5:].lstrip()
        else:
            head += line + b"\n"
    return head, mark, data


def _ends(dialect: Dialect, event: dict[str, Any]) -> bool:
    """Whether what was streaming ends with this event."""
    if dialect == "openai_chat":
        return any(choice.get("finish_reason") for choice in event.get("choices") or ())
    if dialect.startswith("ollama"):
        return event.get("done") is True
    return str(event.get("type", "")).endswith(("_stop", ".done", ".completed", ".failed", ".incomplete"))


def _places(dialect: Dialect, event: dict[str, Any]) -> list[tuple[Channel, str, _Put, bool]]:
    """Pieces of text in an event: (channel, text, how to replace it, whether it is JSON text)."""
    found: list[tuple[Channel, str, _Put, bool]] = []

    def add(channel: Channel, holder: Any, key: str, in_json: bool = False) -> None:
        if isinstance(holder, dict) and isinstance(text := holder.get(key), str):

            def put(value: str) -> None:
                holder[key] = value

            found.append((channel, text, put, in_json))

    if dialect == "openai_chat":
        for choice in event.get("choices") or ():
            delta, index = choice.get("delta"), choice.get("index")
            for key in ("content", "reasoning_content", "reasoning", "refusal"):
                add((index, key), delta, key)
            for call in (delta or {}).get("tool_calls") or ():
                add((index, "tool", call.get("index")), call.get("function"), "arguments", True)
    elif dialect == "anthropic_messages":
        if event.get("type") == "content_block_delta":
            for key in ("text", "thinking", "partial_json"):
                add((event.get("index"), key), event.get("delta"), key, key == "partial_json")
    elif dialect == "openai_responses":
        kind = str(event.get("type", ""))
        if kind.endswith(".delta"):
            place = (kind, event.get("output_index"), event.get("content_index"), event.get("summary_index"))
            add(place, event, "delta", "arguments" in kind)
    elif dialect == "ollama_generate":
        add(("response",), event, "response")
        add(("thinking",), event, "thinking")
    else:
        add(("content",), event.get("message"), "content")
        add(("thinking",), event.get("message"), "thinking")
    return found
