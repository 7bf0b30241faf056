"""Answers of the Anthropic Messages API, whole and streamed."""

from __future__ import annotations

from typing import Any

import orjson

from avyay.marga.wire.context import ReplyContext
from avyay.marga.wire.failure import Failure, error_object, parse_error_object, truncated
from avyay.marga.wire.fields import load_arguments
from avyay.marga.wire.framing import SseDecoder, sse_event
from avyay.marga.wire.ids import open_carry, reply_id, seal_carry, tool_id
from avyay.marga.wire.model import (
    BlockDelta,
    BlockSignature,
    BlockStart,
    BlockStop,
    Carry,
    Event,
    JsonObject,
    Reply,
    ReplyBlock,
    Stop,
    StopReason,
    StreamEnd,
    StreamFailure,
    StreamStart,
    Usage,
    UsageUpdate,
)
from avyay.marga.wire.sequence import Sequencer

__all__ = ["StreamParser", "StreamRenderer", "failed_event", "parse_reply", "parse_stop", "parse_usage", "render_reply"]

_STOPS: dict[str, StopReason] = {
    "end_turn": "end",
    "stop_sequence": "stop_sequence",
    "max_tokens": "max_tokens",
    "tool_use": "tool_use",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_window",
}
_STOP_WORDS: dict[StopReason, str] = {neutral: word for word, neutral in _STOPS.items()}


def parse_stop(word: Any) -> StopReason:
    return _STOPS.get(word, "end") if isinstance(word, str) else "end"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def parse_usage(raw: Any) -> Usage | None:
    """Neutral totals. The wire counts plain input, cache reads and cache writes apart; output is cumulative."""
    if not isinstance(raw, dict):
        return None
    read = _count(raw.get("cache_read_input_tokens"))
    write = _count(raw.get("cache_creation_input_tokens"))
    creation = raw.get("cache_creation")
    hour = _count(creation.get("ephemeral_1h_input_tokens")) if isinstance(creation, dict) else 0
    if isinstance(creation, dict) and not write:
        write = hour + _count(creation.get("ephemeral_5m_input_tokens"))
    details = raw.get("output_tokens_details")
    return Usage(
        input=_count(raw.get("input_tokens")) + read + write,
        output=_count(raw.get("output_tokens")),
        cache_read=read,
        cache_write=write,
        cache_write_1h=min(hour, write),
        reasoning=_count(details.get("thinking_tokens")) if isinstance(details, dict) else 0,
        tier=tier if isinstance(tier := raw.get("service_tier"), str) else None,
    )


def render_usage(usage: Usage | None) -> JsonObject:
    usage = usage or Usage()
    out: JsonObject = {
        "input_tokens": usage.uncached_input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
    }
    if usage.cache_write_1h:
        out["cache_creation"] = {
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
            "ephemeral_5m_input_tokens": usage.cache_write - usage.cache_write_1h,
        }
    if usage.reasoning:
        out["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return out


def parse_reply(body: JsonObject, exchange_id: str) -> Reply:
    blocks: list[ReplyBlock] = []
    for block in body.get("content") or []:
        kind = block.get("type")
        if kind == "text":
            blocks.append(ReplyBlock("text", block.get("text") or ""))
        elif kind == "thinking":
            carry = open_carry("anthropic_messages", block.get("signature"))
            blocks.append(ReplyBlock("thinking", block.get("thinking") or "", carry=carry))
        elif kind == "redacted_thinking":
            carry = open_carry("anthropic_messages", block.get("data"))
            blocks.append(ReplyBlock("redacted_thinking", carry=carry))
        elif kind == "tool_use":
            arguments = orjson.dumps(block.get("input") or {}).decode()
            call = block.get("id") or tool_id(exchange_id, len(blocks))
            blocks.append(ReplyBlock("tool_use", arguments, call, block.get("name") or ""))
    return Reply(
        id=str(body.get("id") or ""),
        model=str(body.get("model") or ""),
        blocks=tuple(blocks),
        stop=parse_stop(body.get("stop_reason")),
        usage=parse_usage(body.get("usage")),
        stop_sequence=body.get("stop_sequence"),
    )


class StreamParser:
    """Reads a Messages stream; every block is announced, so order needs no guessing."""

    def __init__(self, exchange_id: str) -> None:
        self._sse = SseDecoder()
        self._out = Sequencer(exchange_id)
        self._usage: JsonObject = {}
        self._current = -1  # the upstream's index of the open block
        self._skip = False
        self._stop: StopReason | None = None
        self._sequence: str | None = None

    def feed(self, data: bytes) -> list[Event]:
        for event, payload in self._sse.feed(data):
            self._event(event, payload)
        return self._out.take()

    def close(self) -> list[Event]:
        for event, payload in self._sse.flush():
            self._event(event, payload)
        if not self._out.ended:
            self._out.fail(truncated())
        return self._out.take()

    def _event(self, event: str, payload: bytes) -> None:
        if self._out.ended or event == "ping":
            return
        try:
            body = orjson.loads(payload)
        except orjson.JSONDecodeError:
            if payload.strip() != b"[DONE]":
                self._out.fail(truncated("the provider sent an event that is no JSON"))
            return
        kind = body.get("type") or event
        if kind == "content_block_delta":
            self._delta(body)
        elif kind == "content_block_start":
            self._start(body)
        elif kind == "content_block_stop":
            if not self._skip:
                self._out.close()
            self._skip = False
        elif kind == "message_start":
            message = body.get("message") or {}
            self._usage.update(message.get("usage") or {})
            usage = parse_usage(message.get("usage"))
            self._out.begin(str(message.get("id") or ""), str(message.get("model") or ""), usage=usage)
        elif kind == "message_delta":
            delta = body.get("delta") or {}
            if delta.get("stop_reason"):
                self._stop = parse_stop(delta["stop_reason"])
                self._sequence = delta.get("stop_sequence")
            # Cumulative, but only what changed: counts left out keep their value of message_start.
            self._usage.update({k: v for k, v in (body.get("usage") or {}).items() if v is not None})
            usage = parse_usage(self._usage)
            if usage is not None:
                self._out.report(usage)
        elif kind == "message_stop":
            self._out.begin("", "")
            self._out.finish(self._stop or ("tool_use" if self._out.has_tools else "end"), self._sequence)
        elif kind == "error":
            self._out.fail(parse_error_object(body.get("error")))

    def _start(self, body: JsonObject) -> None:
        self._out.begin("", "")
        block = body.get("content_block") or {}
        kind = block.get("type")
        self._skip = False
        if kind == "tool_use":
            self._out.open("tool_use", block.get("id") or "", block.get("name") or "", f"b{body.get('index')}")
            if block.get("input"):
                self._tool(body, orjson.dumps(block["input"]).decode())
        elif kind in ("text", "thinking"):
            self._out.open(kind)
            self._out.piece(kind, block.get(kind) or "")
            if kind == "thinking" and block.get("signature"):
                self._sign(block["signature"])
        elif kind == "redacted_thinking":
            self._out.redacted(open_carry("anthropic_messages", block.get("data")) or Carry(None, ""))
            self._skip = True
        else:
            self._skip = True

    def _delta(self, body: JsonObject) -> None:
        if self._skip:
            return
        delta = body.get("delta") or {}
        kind = delta.get("type")
        if kind == "text_delta":
            self._out.piece("text", delta.get("text") or "")
        elif kind == "input_json_delta":
            self._tool(body, delta.get("partial_json") or "")
        elif kind == "thinking_delta":
            self._out.piece("thinking", delta.get("thinking") or "")
        elif kind == "signature_delta":
            self._sign(delta.get("signature") or "")

    def _tool(self, body: JsonObject, text: str) -> None:
        self._out.tool(f"b{body.get('index')}", "", "", text)

    def _sign(self, signature: str) -> None:
        carry = open_carry("anthropic_messages", signature)
        if carry is not None:
            self._out.sign(carry)
            self._skip = True  # signing ends a thinking block; its announced end adds nothing


def render_reply(reply: Reply, context: ReplyContext) -> JsonObject:
    return {
        "id": reply_id("anthropic_messages", context.exchange_id),
        "type": "message",
        "role": "assistant",
        "model": context.model or reply.model,
        "content": [_block(b, context) for b in reply.blocks],
        "stop_reason": _stop_word(reply),
        "stop_sequence": reply.stop_sequence if reply.stop == "stop_sequence" else None,
        "usage": render_usage(reply.usage),
    }


def _stop_word(reply: Reply) -> str:
    if reply.stop == "end" and any(b.kind == "refusal" for b in reply.blocks):
        return "refusal"
    return _STOP_WORDS[reply.stop]


def _block(block: ReplyBlock, context: ReplyContext) -> JsonObject:
    if block.kind == "tool_use":
        ref = context.names.restore(block.name)
        return {"type": "tool_use", "id": block.id, "name": ref.name, "input": _input(block.text)}
    if block.kind == "thinking":
        signature = seal_carry("anthropic_messages", block.carry)
        return {"type": "thinking", "thinking": block.text, "signature": signature}
    if block.kind == "redacted_thinking":
        return {"type": "redacted_thinking", "data": seal_carry("anthropic_messages", block.carry)}
    return {"type": "text", "text": block.text}


def _input(arguments: str) -> JsonObject:
    parsed = load_arguments(arguments)
    return parsed if parsed is not None else {"input": arguments}


def failed_event(failure: Failure) -> bytes:
    """The error event that ends a broken stream."""
    return sse_event("error", {"type": "error", "error": error_object("anthropic_messages", failure)})


class StreamRenderer:
    """Writes a Messages stream, `event:` lines included."""

    def __init__(self, context: ReplyContext) -> None:
        self._context = context
        self._usage: Usage | None = None
        self._kind = ""
        self._refused = False

    def render(self, events: list[Event]) -> bytes:
        return b"".join(map(self._render, events))

    def _render(self, event: Event) -> bytes:
        match event:
            case BlockDelta(index, text):
                return self._delta(index, text)
            case StreamStart():
                return self._start(event)
            case BlockStart(index, kind, call, name):
                return self._block_start(index, kind, call, name)
            case BlockStop(index):
                return sse_event("content_block_stop", {"type": "content_block_stop", "index": index})
            case BlockSignature(index, carry):
                if self._kind == "redacted_thinking":
                    return self._open(index, {"type": "redacted_thinking", "data": self._seal(carry)})
                return self._send(index, {"type": "signature_delta", "signature": self._seal(carry)})
            case UsageUpdate(usage):
                self._usage = usage
                return b""
            case Stop(reason, sequence):
                if reason == "end" and self._refused:
                    reason = "refusal"
                delta = {"stop_reason": _STOP_WORDS[reason], "stop_sequence": None}
                if reason == "stop_sequence":
                    delta["stop_sequence"] = sequence
                payload = {"type": "message_delta", "delta": delta, "usage": render_usage(self._usage)}
                return sse_event("message_delta", payload)
            case StreamEnd():
                return sse_event("message_stop", {"type": "message_stop"})
            case StreamFailure(failure):
                return self.failure(failure)
        return b""

    def failure(self, failure: Failure) -> bytes:
        """The error event that ends a broken stream."""
        return failed_event(failure)

    def _seal(self, carry: Carry) -> str:
        return seal_carry("anthropic_messages", carry)

    def _start(self, event: StreamStart) -> bytes:
        self._usage = event.usage
        message: JsonObject = {
            "id": reply_id("anthropic_messages", self._context.exchange_id),
            "type": "message",
            "role": "assistant",
            "model": self._context.model or event.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": render_usage(event.usage),
        }
        return sse_event("message_start", {"type": "message_start", "message": message})

    def _open(self, index: int, block: JsonObject) -> bytes:
        payload = {"type": "content_block_start", "index": index, "content_block": block}
        return sse_event("content_block_start", payload)

    def _send(self, index: int, delta: JsonObject) -> bytes:
        payload = {"type": "content_block_delta", "index": index, "delta": delta}
        return sse_event("content_block_delta", payload)

    def _block_start(self, index: int, kind: str, call: str, name: str) -> bytes:
        self._kind = kind
        if kind == "tool_use":
            ref = self._context.names.restore(name)
            return self._open(index, {"type": "tool_use", "id": call, "name": ref.name, "input": {}})
        if kind == "thinking":
            return self._open(index, {"type": "thinking", "thinking": "", "signature": ""})
        if kind == "redacted_thinking":
            return b""  # its data comes with the signature, and belongs into the start
        if kind == "refusal":
            self._refused = True
        return self._open(index, {"type": "text", "text": ""})

    def _delta(self, index: int, text: str) -> bytes:
        if self._kind == "tool_use":
            return self._send(index, {"type": "input_json_delta", "partial_json": text})
        if self._kind == "thinking":
            return self._send(index, {"type": "thinking_delta", "thinking": text})
        return self._send(index, {"type": "text_delta", "text": text})
