"""Same dialect in and out: the bytes pass untouched but for a written list of edits, and a tap reads what is billed.

Edits are cut into the raw body at the right place, so unknown fields, number formats and key order survive.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import orjson

from avyay.marga.wire import anthropic_reply, chat_reply, ollama_reply, responses_answer, responses_reply
from avyay.marga.wire.failure import Failure, parse_error_object, truncated
from avyay.marga.wire.framing import MISSHAPEN
from avyay.marga.wire.model import Dialect, JsonObject, StopReason, Usage

__all__ = ["Tap", "edit_body", "open_tap"]

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_TOKEN = re.compile(_STRING + rb"|[\[\]{}:,]", re.DOTALL)
_ESCAPED_NAME = re.compile(rb"\\u00[567]")  # a letter written as an escape, which could hide a key


@lru_cache(maxsize=32)
def _simple_field(key: str) -> re.Pattern[bytes]:
    """The key with a string, null or flat object as its value; inside a string its quotes would be escaped."""
    return re.compile(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*(' + _STRING + rb"|null|\{[^{}]*\})")


def _top_level_values(raw: bytes) -> dict[str, tuple[int, int]]:
    """Where each top-level value lies; of a key given twice the last, which is the one that counts."""
    spans: dict[str, tuple[int, int]] = {}
    depth = 0
    key: str | None = None
    start = -1
    last: bytes = b""
    for token in _TOKEN.finditer(raw):
        char = token[0]
        first = char[:1]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
            if depth == 0 and key is not None:
                spans[key] = (start, token.start())
        elif depth == 1:
            if first == b'"':
                last = char
            elif char == b":" and key is None:
                key = orjson.loads(last)
                start = token.end()
            elif char == b"," and key is not None:
                spans[key] = (start, token.start())
                key = None
    return spans


def _is_value(raw: bytes, value: Any) -> bool:
    try:
        return bool(orjson.loads(raw) == value)
    except orjson.JSONDecodeError:
        return False  # a brace inside a string ended the match too soon


def _find_value(raw: bytes, body: JsonObject, key: str) -> tuple[int, int]:
    """Where the value of a top-level key lies. Scanning a whole body is slow, so likely places are tried first."""
    if _ESCAPED_NAME.search(raw) is None:
        found = list(islice(_simple_field(key).finditer(raw), 5))
        if len(found) == 1 and isinstance(body[key], str | None):
            return found[0].span(1)
        same = [m for m in found if _is_value(m[1], body[key])]
        if len(same) == 1 and raw[: same[0].start()].strip() == b"{":
            return same[0].span(1)
        for match in same if len(found) < 5 else ():
            start, end = match.span(1)
            if orjson.loads(raw[:start] + b"[]" + raw[end:]).get(key) == []:
                return start, end
    return _top_level_values(raw)[key]


def edit_body(raw: bytes, body: JsonObject, changes: JsonObject) -> bytes:
    """`raw` with top-level fields set to new values and everything else left as it is.

    Args:
        raw: The body as received.
        body: The same, parsed.
        changes: New values by field.
    """
    edits: list[tuple[int, int, bytes]] = []
    for key, value in changes.items():
        if key not in body:
            brace = raw.index(b"{") + 1
            new = orjson.dumps(key) + b":" + orjson.dumps(value)
            edits.append((brace, brace, new + b"," if body or edits else new))
        elif body[key] != value:
            edits.append((*_find_value(raw, body, key), orjson.dumps(value)))
    for start, end, new in sorted(edits, reverse=True):
        raw = raw[:start] + new + raw[end:]
    return raw


class Tap(Protocol):
    """Watches a stream go by.

    Attributes:
        usage: Token counts so far, as the provider reports them.
        stop: Why the answer ended, once known.
        model: The model the provider says it used.
        failure: The error the stream carried or ended in.
        finished: Whether the stream came to its proper end.
        ended: Whether nothing follows for who goes by the dialect: its last event, or an error, has been seen.
        frames: Events seen; for an answer cut short, near the number of tokens written.
    """

    usage: Usage | None
    stop: StopReason | None
    model: str
    failure: Failure | None
    finished: bool
    frames: int

    @property
    def ended(self) -> bool: ...

    def feed(self, data: bytes) -> bytes:
        """The bytes to pass on now: whole events, as they came, unless one must be withheld."""

    def close(self) -> bytes:
        """To be called at the end of the upstream's bytes; what is left to send."""

    def broken(self, failure: Failure) -> bytes:
        """The dialect's own event for a stream that ends in an error."""


def _is_json(raw: bytes) -> bool:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


_FRAME_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')


class _SseTap:
    """Common to the three SSE dialects: finds complete events, parses only those with a marker of interest."""

    marker: re.Pattern[bytes]

    def __init__(self, *, hide_usage: bool = False) -> None:
        self.usage: Usage | None = None
        self.stop: StopReason | None = None
        self.model = ""
        self.failure: Failure | None = None
        self.finished = False
        self.frames = 0
        self._held: list[bytes] = []
        self._edge = b""  # the last bytes held, where an event's end may begin
        self._hide = hide_usage

    @property
    def ended(self) -> bool:
        return self.finished or self.failure is not None

    def feed(self, data: bytes) -> bytes:
        # Only whole events go on, so that an error event of ours can always follow what the caller has.
        if not self._held and data.endswith(b"\n\n"):
            self._passing(data)
            return self._scan(data)
        edge = self._edge + data
        at = edge.rfind(b"\n\n") + 2, edge.rfind(b"\r\n\r\n") + 4
        if at == (1, 3):  # neither found
            self._held.append(data)
            self._edge = edge[-3:]
            return b""
        end = max(at[0] if at[0] > 1 else 0, at[1] if at[1] > 3 else 0) - len(self._edge)
        whole = b"".join((*self._held, data[:end])) if self._held else data[:end] if end < len(data) else data
        rest = data[end:]
        self._held = [rest] if rest else []
        self._edge = rest[-3:]
        self._passing(whole)
        return self._scan(whole)

    def _passing(self, whole: bytes) -> None:
        """Called with the events that go on to the caller."""

    def close(self) -> bytes:
        tail = b"".join(self._held)
        self._held = []
        shown = self._scan(tail) if tail.strip() else tail
        if not self.finished and self.failure is None:
            self.failure = truncated()
            return b""  # half an event is of no use to anybody
        return shown

    def _scan(self, whole: bytes) -> bytes:
        """Reads complete events; the bytes of those that may be shown."""
        self.frames += whole.count(b"data:")
        if not self.model:
            self._learn_model(whole)
        if self._plain(whole) or self.marker.search(whole) is None:
            return whole
        shown: list[bytes] = []
        at = 0
        for end in [m.end() for m in _FRAME_END.finditer(whole)] + [len(whole)]:
            frame = whole[at:end]
            at = end
            if frame and (self.marker.search(frame) is None or self._frame(frame)):
                shown.append(frame)
        return b"".join(shown)

    def _plain(self, whole: bytes) -> bool:
        """A quick look, without patterns: True only when nothing of interest can be in there."""
        return False

    def _learn_model(self, whole: bytes) -> None:
        found = _MODEL.search(whole)
        if found is not None and _is_json(found[1]):
            self.model = orjson.loads(found[1])

    def _frame(self, frame: bytes) -> bool:
        lines = [line[5:].strip() for line in frame.splitlines() if line.startswith(b"data:")]
        payload = b"\n".join(lines)
        if payload.startswith(b"[DONE]"):
            return self._done()
        try:
            body = orjson.loads(payload)
            return self._body(body) if isinstance(body, dict) else True
        except MISSHAPEN:
            return True  # not ours to judge: the caller gets what the provider sent

    def _done(self) -> bool:
        return True

    def _body(self, body: JsonObject) -> bool:
        raise NotImplementedError


class _ChatTap(_SseTap):
    def _plain(self, whole: bytes) -> bool:
        return (
            b"[DONE]" not in whole
            and b'"error"' not in whole
            and (self._tools or b'"tool_calls"' not in whole)
            and whole.count(b'"finish_reason"') == whole.count(b'"finish_reason":null')
            and whole.count(b'"usage"') == whole.count(b'"usage":null')
        )

    def broken(self, failure: Failure) -> bytes:
        return chat_reply.failed_event(failure)

    marker = re.compile(
        rb'"(?:usage"\s*:\s*\{|finish_reason"\s*:\s*"|tool_calls"\s*:\s*\[|error"\s*:\s*[{"])|data: ?\[DONE\]'
    )

    def __init__(self, *, hide_usage: bool = False) -> None:
        super().__init__(hide_usage=hide_usage)
        self._tools = False
        self._finish: str | None = None
        self._over = False

    @property
    def ended(self) -> bool:
        return self._over or self.failure is not None  # what was used follows after `finish_reason`

    def _body(self, body: JsonObject) -> bool:
        if body.get("error") is not None:
            self.failure = parse_error_object(body["error"])
            return True
        choices = body.get("choices")
        for choice in choices or ():
            delta = choice.get("delta") or {}
            if delta.get("tool_calls"):
                self._tools = True
                self.marker = _ChatTap.quiet  # one call is enough to know; later ones need no parsing
            if choice.get("finish_reason"):
                self._finish = choice["finish_reason"]
        if self._finish is not None:
            self.stop = chat_reply.parse_stop(self._finish, self._tools)
            self.finished = True
        usage = chat_reply.parse_usage(body.get("usage"), body.get("service_tier"))
        if usage is not None:
            self.usage = usage
            return bool(choices) or not self._hide
        return True

    def _done(self) -> bool:
        self.finished = self._over = True
        return True

    quiet = re.compile(rb'"(?:usage"\s*:\s*\{|finish_reason"\s*:\s*"|error"\s*:\s*[{"])|data: ?\[DONE\]')


class _MessagesTap(_SseTap):
    def _plain(self, whole: bytes) -> bool:
        return b"message_" not in whole and b'"error"' not in whole

    def broken(self, failure: Failure) -> bytes:
        return anthropic_reply.failed_event(failure)

    marker = re.compile(rb'"type"\s*:\s*"(?:message_start|message_delta|message_stop|error)"')

    def __init__(self, *, hide_usage: bool = False) -> None:
        super().__init__(hide_usage=False)
        self._raw: JsonObject = {}

    def _body(self, body: JsonObject) -> bool:
        kind = body.get("type")
        if kind == "message_start":
            message = body.get("message") or {}
            self.model = str(message.get("model") or "")
            self._count(message.get("usage"))
        elif kind == "message_delta":
            reason = (body.get("delta") or {}).get("stop_reason")
            if reason:
                self.stop = anthropic_reply.parse_stop(reason)
            self._count(body.get("usage"))
        elif kind == "message_stop":
            self.finished = True
        elif kind == "error":
            self.failure = parse_error_object(body.get("error"))
        return True

    def _count(self, raw: Any) -> None:
        if isinstance(raw, dict):
            self._raw.update({k: v for k, v in raw.items() if v is not None})
            self.usage = anthropic_reply.parse_usage(self._raw)


class _ResponsesTap(_SseTap):
    marker = re.compile(rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed|created)|error)"')
    _sequence = re.compile(rb'"sequence_number"\s*:\s*(\d+)')

    def __init__(self, *, hide_usage: bool = False) -> None:
        super().__init__(hide_usage=False)
        self._opening: JsonObject | None = None
        self._last = b""

    def _plain(self, whole: bytes) -> bool:
        return not any(word in whole for word in (b"response.c", b"response.inc", b"response.f", b'"error"'))

    def _passing(self, whole: bytes) -> None:
        self._last = whole

    def broken(self, failure: Failure) -> bytes:
        """The event that ends this stream, numbered on from the last one and about the response it began."""
        numbers = self._sequence.findall(self._last)
        number = int(numbers[-1]) + 1 if numbers else 0
        return responses_answer.failed_event(failure, number, self._opening)

    def _body(self, body: JsonObject) -> bool:
        kind = body.get("type")
        if kind == "error":
            self.failure = parse_error_object(body.get("error") or body)
            return True
        response = body.get("response")
        if isinstance(response, dict):
            self.model = str(response.get("model") or self.model)
            if kind == "response.created":
                self._opening = response
            else:
                self.usage = (
                    responses_reply.parse_usage(response.get("usage"), response.get("service_tier")) or self.usage
                )
            if kind == "response.failed":
                self.failure = parse_error_object(response.get("error"))
            elif kind in ("response.completed", "response.incomplete"):
                self.stop = responses_reply.parse_stop(response)
                self.finished = True
        return True


class _OllamaTap:
    """Newline-delimited JSON: the last line has everything."""

    _marker = re.compile(rb'"(?:done"\s*:\s*true|error"\s*:\s*"|tool_calls"\s*:\s*\[)')

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.stop: StopReason | None = None
        self.model = ""
        self.failure: Failure | None = None
        self.finished = False
        self.frames = 0
        self._held: list[bytes] = []
        self._tools = False

    @property
    def ended(self) -> bool:
        return self.finished or self.failure is not None

    def feed(self, data: bytes) -> bytes:
        end = data.rfind(b"\n") + 1
        if not end:
            self._held.append(data)
            return b""
        whole = b"".join((*self._held, data[:end])) if self._held else data[:end]
        self._held = [data[end:]] if end < len(data) else []
        self._scan(whole)
        return whole

    def close(self) -> bytes:
        tail = b"".join(self._held)
        self._held = []
        if tail.strip():
            self._scan(tail)
        if not self.finished and self.failure is None:
            self.failure = truncated()
            return b""
        return tail

    def broken(self, failure: Failure) -> bytes:
        return ollama_reply.failed_line(failure)

    def _scan(self, whole: bytes) -> None:
        lines = [line for line in whole.split(b"\n") if line.strip()]
        self.frames += len(lines)
        if not self.model and lines:
            found = _MODEL.search(lines[0])
            self.model = orjson.loads(found[1]) if found and _is_json(found[1]) else ""
        if self._marker.search(whole) is None:
            return
        for line in lines:
            if self._marker.search(line) is None:
                continue
            try:
                self._line(orjson.loads(line))
            except MISSHAPEN:
                continue  # not ours to judge: the caller gets what the provider sent

    def _line(self, body: JsonObject) -> None:
        if "error" in body and "done" not in body:
            self.failure = parse_error_object(body["error"])
            return
        if (body.get("message") or {}).get("tool_calls"):
            self._tools = True
        if body.get("done"):
            self.finished = True
            self.usage = ollama_reply.parse_usage(body)
            self.stop = ollama_reply.parse_stop(body.get("done_reason"), self._tools)


def open_tap(dialect: Dialect, *, hide_usage: bool = False) -> Tap:
    """A tap for one stream.

    Args:
        dialect: The format of the stream.
        hide_usage: Chat only: withhold the usage chunk, which the caller did not ask for.
    """
    if dialect == "openai_chat":
        return _ChatTap(hide_usage=hide_usage)
    if dialect == "anthropic_messages":
        return _MessagesTap()
    if dialect == "openai_responses":
        return _ResponsesTap()
    return _OllamaTap()
