"""Answers of the OpenAI Chat Completions API, whole and streamed."""

from __future__ import annotations

from typing import Any

import orjson

from avyay.marga.wire.context import ReplyContext
from avyay.marga.wire.failure import Failure, error_object, parse_error_object, truncated
from avyay.marga.wire.framing import SseDecoder, sse_data
from avyay.marga.wire.ids import reply_id, tool_id
from avyay.marga.wire.model import (
    BlockDelta,
    BlockStart,
    BlockStop,
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
from avyay.marga.wire.tools import ToolRef

__all__ = [
    "DONE",
    "StreamParser",
    "StreamRenderer",
    "failed_event",
    "parse_reply",
    "parse_stop",
    "parse_usage",
    "render_reply",
]

DONE = b"data: [DONE]\n\n"
_STOPS: dict[str, StopReason] = {
    "stop": "end",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_STOP_WORDS: dict[StopReason, str] = {
    "end": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "pause": "stop",
    "context_window": "length",
}


def parse_stop(word: Any, has_tools: bool) -> StopReason:
    """Many servers say `stop` although tools are called, and some `tool_calls` although none are."""
    reason = _STOPS.get(word, "end") if isinstance(word, str) else "end"
    if reason == "end" and has_tools:
        return "tool_use"
    if reason == "tool_use" and not has_tools:
        return "end"
    return reason


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def parse_usage(raw: Any, tier: Any = None) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    prompt = raw.get("prompt_tokens_details") or {}
    completion = raw.get("completion_tokens_details") or {}
    read = _count(prompt.get("cached_tokens")) or _count(raw.get("prompt_cache_hit_tokens"))
    total = _count(raw.get("prompt_tokens"))
    return Usage(
        input=total,
        output=_count(raw.get("completion_tokens")),
        cache_read=min(read, total),
        cache_write=min(_count(prompt.get("cache_write_tokens")), max(0, total - read)),
        reasoning=_count(completion.get("reasoning_tokens")),
        tier=tier if isinstance(tier, str) else None,
    )


def render_usage(usage: Usage | None) -> JsonObject:
    usage = usage or Usage()
    details: JsonObject = {"cached_tokens": usage.cache_read}
    if usage.cache_write:
        details["cache_write_tokens"] = usage.cache_write
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _first_choice(body: JsonObject) -> JsonObject | None:
    for choice in body.get("choices") or []:
        if isinstance(choice, dict) and not choice.get("index"):
            return choice
    return None


def _thought(message: JsonObject) -> str:
    value = message.get("reasoning_content") or message.get("reasoning")
    return value if isinstance(value, str) else ""


def _plain(content: Any) -> str:
    """Content as text; some servers answer with a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(p.get("text") or "" for p in content if isinstance(p, dict))
    return ""


def parse_reply(body: JsonObject, exchange_id: str) -> Reply:
    choice = _first_choice(body) or {}
    message = choice.get("message") or {}
    blocks: list[ReplyBlock] = []
    if _thought(message):
        blocks.append(ReplyBlock("thinking", _thought(message)))
    if text := _plain(message.get("content")):
        blocks.append(ReplyBlock("text", text))
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        blocks.append(ReplyBlock("refusal", message["refusal"]))
    seen: set[str] = set()
    calls = list(message.get("tool_calls") or [])
    if isinstance(message.get("function_call"), dict):
        calls.append({"function": message["function_call"]})
    for number, call in enumerate(calls):
        inner = call.get("function") or call.get("custom") or {}
        call_id = call.get("id") or ""
        if not call_id or call_id in seen:
            call_id = tool_id(exchange_id, number)
        seen.add(call_id)
        arguments = inner.get("input") if "custom" in call else inner.get("arguments")
        if isinstance(arguments, dict):
            arguments = orjson.dumps(arguments).decode()
        if "custom" not in call and not (arguments or "").strip():
            arguments = "{}"
        blocks.append(ReplyBlock("tool_use", arguments or "", call_id, inner.get("name") or ""))
    return Reply(
        id=str(body.get("id") or ""),
        model=str(body.get("model") or ""),
        blocks=tuple(blocks),
        stop=parse_stop(choice.get("finish_reason"), bool(calls)),
        usage=parse_usage(body.get("usage"), body.get("service_tier")),
        created=body.get("created"),
    )


class StreamParser:
    """Reads a stream of completion chunks, also from servers that bend the format."""

    def __init__(self, exchange_id: str) -> None:
        self._sse = SseDecoder()
        self._out = Sequencer(exchange_id)
        self._finish: str | None = None
        self._keys: dict[int, tuple[str, str]] = {}  # index: current key, call id
        self._last = 0

    def feed(self, data: bytes) -> list[Event]:
        for event, payload in self._sse.feed(data):
            self._event(event, payload)
        return self._out.take()

    def close(self) -> list[Event]:
        for event, payload in self._sse.flush():
            self._event(event, payload)
        if not self._out.ended:
            if self._finish is not None:
                self._end()  # some servers never send [DONE]
            else:
                self._out.fail(truncated())
        return self._out.take()

    def _end(self) -> None:
        self._out.begin("", "")
        self._out.finish(parse_stop(self._finish, self._out.has_tools))

    def _event(self, event: str, payload: bytes) -> None:
        if self._out.ended:
            return
        if payload.startswith(b"[DONE]"):
            if self._finish is None and not self._out.started:
                self._out.fail(truncated("the provider sent an empty stream"))
            else:
                self._end()
            return
        try:
            body = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self._out.fail(truncated("the provider sent an event that is no JSON"))
            return
        if not isinstance(body, dict):
            return
        if body.get("error") is not None or event == "error":
            self._out.fail(parse_error_object(body.get("error") or body))
            return
        choice = _first_choice(body)
        if choice is not None:
            self._out.begin(str(body.get("id") or ""), str(body.get("model") or ""), body.get("created"))
            self._delta(choice.get("delta") or choice.get("message") or {})
            if choice.get("finish_reason"):
                self._finish = choice["finish_reason"]
        usage = parse_usage(body.get("usage"), body.get("service_tier"))
        if usage is not None:
            self._out.begin(str(body.get("id") or ""), str(body.get("model") or ""), body.get("created"))
            self._out.report(usage)

    def _delta(self, delta: JsonObject) -> None:
        thought = _thought(delta)
        if thought:
            self._out.piece("thinking", thought)
        content = delta.get("content")
        if content:
            self._out.piece("text", _plain(content))
        refusal = delta.get("refusal")
        if isinstance(refusal, str) and refusal:
            self._out.piece("refusal", refusal)
        for call in delta.get("tool_calls") or ():
            self._call(call)
        legacy = delta.get("function_call")
        if isinstance(legacy, dict):
            self._out.tool("legacy", "", legacy.get("name") or "", legacy.get("arguments") or "")

    def _call(self, call: JsonObject) -> None:
        custom = call.get("custom")
        inner = custom if isinstance(custom, dict) else call.get("function") or {}
        call_id, name = call.get("id") or "", inner.get("name") or ""
        index = call.get("index")
        if not isinstance(index, int):  # no index: the id tells, or else it continues the last call
            index = next((i for i, (_, known) in self._keys.items() if call_id and known == call_id), -1)
            if index < 0:
                index = self._last if not call_id and self._keys else len(self._keys)
        key, known = self._keys.get(index, ("", ""))
        if not key or (call_id and name and known and call_id != known):  # the same index for another call
            key = f"{index}.{len(self._keys)}.{call_id}"
            self._keys[index] = (key, call_id)
        elif call_id and not known:
            self._keys[index] = (key, call_id)
        self._last = index
        arguments = inner.get("input") if custom is not None else inner.get("arguments")
        if isinstance(arguments, dict):
            arguments = orjson.dumps(arguments).decode()
        self._out.tool(key, call_id, name, arguments or "", free_text=custom is not None)


def render_reply(reply: Reply, context: ReplyContext) -> JsonObject:
    text = "".join(b.text for b in reply.blocks if b.kind == "text")
    message: JsonObject = {"role": "assistant", "content": text or None, "refusal": None}
    thought = "".join(b.text for b in reply.blocks if b.kind == "thinking")
    if thought:
        message["reasoning_content"] = thought
    refusal = "".join(b.text for b in reply.blocks if b.kind == "refusal")
    if refusal:
        message["refusal"] = refusal
    calls = [_call(b, context) for b in reply.blocks if b.kind == "tool_use"]
    word = _STOP_WORDS[reply.stop]
    if calls and context.request.legacy_functions:
        message["function_call"] = calls[0]["function"]
        word = "function_call" if word == "tool_calls" else word
    elif calls:
        message["tool_calls"] = calls
    elif not text and not refusal:
        message["content"] = ""
    return {
        "id": reply_id("openai_chat", context.exchange_id),
        "object": "chat.completion",
        "created": context.created,
        "model": context.model or reply.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": word}],
        "usage": render_usage(reply.usage),
    }


def _call(block: ReplyBlock, context: ReplyContext) -> JsonObject:
    ref = context.names.restore(block.name)
    if ref.kind == "custom":
        return {"id": block.id, "type": "custom", "custom": {"name": ref.name, "input": ref.unwrap(block.text)}}
    return {"id": block.id, "type": "function", "function": {"name": ref.name, "arguments": block.text}}


def failed_event(failure: Failure) -> bytes:
    """The error that ends a broken stream. No `[DONE]` follows: the answer is not done."""
    return sse_data({"error": error_object("openai_chat", failure)})


class StreamRenderer:
    """Writes completion chunks. Tool calls are counted on their own, whatever blocks stand between them."""

    def __init__(self, context: ReplyContext) -> None:
        self._context = context
        self._head: JsonObject = {}
        self._usage: Usage | None = None
        self._kind = ""
        self._tool = -1
        self._ref: ToolRef | None = None
        self._held: list[str] = []
        self._reason = "stop"

    def render(self, events: list[Event]) -> bytes:
        return b"".join(map(self._render, events))

    def _render(self, event: Event) -> bytes:
        match event:
            case BlockDelta(_, text):
                return self._delta(text)
            case StreamStart():
                return self._start(event)
            case BlockStart(_, kind, call, name):
                return self._block_start(kind, call, name)
            case BlockStop():
                return self._block_stop()
            case UsageUpdate(usage):
                self._usage = usage
            case Stop(reason, _):
                self._reason = _STOP_WORDS[reason]
                if self._reason == "tool_calls" and self._context.request.legacy_functions:
                    self._reason = "function_call"
            case StreamEnd():
                return self._end()
            case StreamFailure(failure):
                return self.failure(failure)
        return b""

    def failure(self, failure: Failure) -> bytes:
        """The event that ends a broken stream."""
        return failed_event(failure)

    def _start(self, event: StreamStart) -> bytes:
        self._usage = event.usage
        self._head = {
            "id": reply_id("openai_chat", self._context.exchange_id),
            "object": "chat.completion.chunk",
            "created": self._context.created,
            "model": self._context.model or event.model,
        }
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _chunk(self, delta: JsonObject, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse_data({**self._head, "choices": [choice]})

    def _call_delta(self, call: JsonObject) -> bytes:
        if self._context.request.legacy_functions:
            return self._chunk({"function_call": call["function"]}) if self._tool == 0 else b""
        return self._chunk({"tool_calls": [{"index": self._tool, **call}]})

    def _block_start(self, kind: str, call: str, name: str) -> bytes:
        self._kind = kind
        self._ref = None
        if kind != "tool_use":
            return b""
        self._tool += 1
        self._held = []
        self._ref = ref = self._context.names.restore(name)
        if ref.kind == "custom":
            return self._call_delta({"id": call, "type": "custom", "custom": {"name": ref.name, "input": ""}})
        return self._call_delta({"id": call, "type": "function", "function": {"name": ref.name, "arguments": ""}})

    def _delta(self, text: str) -> bytes:
        if self._kind == "text":
            return self._chunk({"content": text})
        if self._ref is not None:
            if self._ref.wrapped:
                self._held.append(text)  # the free text can only be read out of the whole arguments
                return b""
            if self._ref.kind == "custom":
                return self._call_delta({"custom": {"input": text}})
            return self._call_delta({"function": {"arguments": text}})
        if self._kind == "thinking":
            return self._chunk({"reasoning_content": text})
        return self._chunk({"refusal": text})

    def _block_stop(self) -> bytes:
        if self._ref is not None and self._ref.wrapped:
            return self._call_delta({"custom": {"input": self._ref.unwrap("".join(self._held))}})
        return b""

    def _end(self) -> bytes:
        out = self._chunk({}, self._reason)
        if self._context.request.include_usage:
            out += sse_data({**self._head, "choices": [], "usage": render_usage(self._usage)})
        return out + DONE
