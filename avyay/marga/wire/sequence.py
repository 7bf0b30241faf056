"""Puts the pieces of a streamed answer into order: one block open at a time, each started and stopped once.

Providers interleave parallel tool calls, repeat ids, send whole calls in one chunk or names after ids. Dialects on the
other side know none of that, so pieces for a later block wait here until the earlier one is complete.
"""

from __future__ import annotations

from avyay.marga.wire.failure import Failure, truncated
from avyay.marga.wire.fields import load_arguments
from avyay.marga.wire.ids import tool_id
from avyay.marga.wire.model import (
    BlockDelta,
    BlockKind,
    BlockSignature,
    BlockStart,
    BlockStop,
    Carry,
    Event,
    Stop,
    StopReason,
    StreamEnd,
    StreamFailure,
    StreamStart,
    Usage,
    UsageUpdate,
)

__all__ = ["Sequencer"]


class _Block:
    __slots__ = ("free_text", "id", "key", "kind", "name", "parts", "sealed")

    def __init__(self, kind: BlockKind, key: str, call_id: str = "", name: str = "", free_text: bool = False) -> None:
        self.kind = kind
        self.key = key
        self.id = call_id
        self.name = name
        self.free_text = free_text
        self.parts: list[str] = []
        self.sealed = False  # nothing may be added to it any more

    @property
    def closable(self) -> bool:
        """Whether nothing more is to be expected: any prose, and a call whose arguments are whole."""
        if self.kind != "tool_use" or self.free_text:
            return True
        text = "".join(self.parts)
        return bool(text.strip()) and load_arguments(text) is not None


class Sequencer:
    """Builds the neutral events of one reply; `take` hands over what is ready."""

    def __init__(self, exchange_id: str) -> None:
        self._exchange_id = exchange_id
        self._events: list[Event] = []
        self._open: _Block | None = None
        self._waiting: list[_Block] = []
        self._closed: set[str] = set()
        self._ids: set[str] = set()
        self._index = -1
        self._tools = 0
        self.started = False
        self.ended = False
        self.usage: Usage | None = None

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    @property
    def has_tools(self) -> bool:
        return self._tools > 0 or any(b.kind == "tool_use" for b in self._waiting)

    def begin(self, reply_id: str, model: str, created: int | None = None, usage: Usage | None = None) -> None:
        if not self.started:
            self.started = True
            self.usage = usage
            self._events.append(StreamStart(reply_id, model, created, usage))

    def piece(self, kind: BlockKind, text: str) -> None:
        """Some text, thinking or refusal. Continues the open block of its kind or starts the next."""
        if not text:
            return
        if not isinstance(text, str):
            raise TypeError("a piece of an answer is no text")
        block = self._open
        if block is not None and block.kind == kind and not self._waiting:
            self._events.append(BlockDelta(self._index, text))
            return
        if self._waiting and self._waiting[-1].kind == kind and not self._waiting[-1].sealed:
            self._waiting[-1].parts.append(text)
            return
        block = _Block(kind, "")
        block.parts.append(text)
        self._waiting.append(block)
        self._drain()

    def tool(self, key: str, call_id: str, name: str, text: str, *, free_text: bool = False) -> None:
        """A piece of the tool call known upstream as `key`; id and name may come late or again."""
        if not (isinstance(call_id, str) and isinstance(name, str) and isinstance(text, str)):
            raise TypeError("a tool call's id, name or arguments are no text")
        block = self._find(key)
        if block is None:
            if key in self._closed:
                if text.strip():
                    self.fail(truncated("the provider added arguments to a tool call it had finished"))
                return
            block = _Block("tool_use", key, call_id, name, free_text)
            self._waiting.append(block)
        elif block is self._open:
            if text:
                block.parts.append(text)
                self._events.append(BlockDelta(self._index, text))
                if self._waiting:
                    self._drain()
            return
        block.id = block.id or call_id
        block.name = block.name or name
        if text:
            block.parts.append(text)
        self._drain()

    def tool_done(self, key: str, call_id: str, name: str, arguments: str, *, free_text: bool = False) -> None:
        """The whole arguments of a call; sends what its deltas left out, which may be everything."""
        block = self._find(key)
        have = "".join(block.parts) if block is not None else ""
        if key in self._closed:
            return
        rest = arguments[len(have) :] if arguments.startswith(have) else ("" if have.strip() else arguments)
        self.tool(key, call_id, name, rest, free_text=free_text)
        if self._open is not None and self._open.key == key:
            self.close()

    def settle(self) -> None:
        """Ends an open block of prose, so that what follows is a block of its own."""
        if self._open is not None and self._open.kind != "tool_use":
            self.close()
        elif self._waiting and self._waiting[-1].kind != "tool_use":
            self._waiting[-1].sealed = True

    def sign(self, carry: Carry) -> None:
        """The proof of the reasoning just sent; without any, of reasoning the provider keeps to itself."""
        if self._open is None or self._open.kind != "thinking":
            self.close()
            self._start(_Block("thinking", ""))
        self._events.append(BlockSignature(self._index, carry))
        self.close()

    def redacted(self, carry: Carry) -> None:
        self.close()
        self._start(_Block("redacted_thinking", ""))
        self._events.append(BlockSignature(self._index, carry))
        self.close()

    def open(self, kind: BlockKind, call_id: str = "", name: str = "", key: str = "") -> None:
        """Starts a block at once, for providers that announce their blocks."""
        if not (isinstance(call_id, str) and isinstance(name, str)):
            raise TypeError("a tool call's id or name is no text")
        self.close()
        self._start(_Block(kind, key, call_id, name))

    def close(self) -> None:
        """Ends the open block, if any, and lets the next one begin."""
        block = self._open
        if block is not None:
            if block.kind == "tool_use" and not block.free_text and not "".join(block.parts).strip():
                self._events.append(BlockDelta(self._index, "{}"))  # no arguments is an empty object, not nothing
            self._events.append(BlockStop(self._index))
            if block.key:
                self._closed.add(block.key)
            self._open = None
        self._drain()

    def report(self, usage: Usage) -> None:
        if usage != self.usage:
            self.usage = usage
            self._events.append(UsageUpdate(usage))

    def finish(self, reason: StopReason, sequence: str | None = None) -> None:
        """Everything still waiting is sent, then the end."""
        if self.ended:
            return
        while self._open is not None or self._waiting:
            if self._open is None and self._waiting:
                block = self._waiting.pop(0)
                self._start(block)
            self.close()
        self.ended = True
        self._events.append(Stop(reason, sequence))
        self._events.append(StreamEnd())

    def fail(self, failure: Failure) -> None:
        if not self.ended:
            self.ended = True
            self._events.append(StreamFailure(failure))

    def _find(self, key: str) -> _Block | None:
        if self._open is not None and self._open.key == key and self._open.kind == "tool_use":
            return self._open
        return next((b for b in self._waiting if b.key == key and b.kind == "tool_use"), None)

    def _drain(self) -> None:
        while self._waiting and (self._open is None or self._open.closable):
            head = self._waiting[0]
            if head.kind == "tool_use" and not head.name:
                return
            if self._open is not None:
                self._events.append(BlockStop(self._index))
                if self._open.key:
                    self._closed.add(self._open.key)
                self._open = None
            self._waiting.pop(0)
            self._start(head)

    def _start(self, block: _Block) -> None:
        self._index += 1
        self._open = block
        if block.kind == "tool_use":
            if not block.id or block.id in self._ids:
                block.id = tool_id(self._exchange_id, self._tools)
            self._ids.add(block.id)
            self._tools += 1
        self._events.append(BlockStart(self._index, block.kind, block.id, block.name))
        text = "".join(block.parts)
        if text:
            self._events.append(BlockDelta(self._index, text))
            if block.kind != "tool_use":
                block.parts = []
