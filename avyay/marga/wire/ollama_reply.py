"""Answers of the native Ollama API, whole and streamed; chat and generate differ only in where the text stands."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

from avyay.marga.wire.context import ReplyContext
from avyay.marga.wire.failure import Failure, parse_error_object, truncated
from avyay.marga.wire.fields import load_arguments
from avyay.marga.wire.framing import LineDecoder
from avyay.marga.wire.ids import tool_id
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

__all__ = ["StreamParser", "StreamRenderer", "failed_line", "parse_reply", "parse_stop", "parse_usage", "render_reply"]

_STOP_WORDS: dict[StopReason, str] = {"max_tokens": "length", "context_window": "length"}


def parse_stop(word: Any, has_tools: bool) -> StopReason:
    """Ollama says `stop` for tool calls too."""
    if word == "length":
        return "max_tokens"
    return "tool_use" if has_tools else "end"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def parse_usage(body: JsonObject) -> Usage | None:
    """Prompt tokens that the runtime had cached are left out of its count, and there is no telling how many."""
    if "prompt_eval_count" not in body and "eval_count" not in body:
        return None
    return Usage(input=_count(body.get("prompt_eval_count")), output=_count(body.get("eval_count")))


def _texts(body: JsonObject) -> tuple[str, str, list[JsonObject]]:
    """Thinking, text and tool calls of one line of either endpoint."""
    message = body.get("message")
    if isinstance(message, dict):
        calls = message.get("tool_calls")
        return message.get("thinking") or "", message.get("content") or "", calls if isinstance(calls, list) else []
    return body.get("thinking") or "", body.get("response") or "", []


def _call(call: JsonObject) -> tuple[str, str, str]:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
    return call.get("id") or "", function.get("name") or "", text or "{}"


def parse_reply(body: JsonObject, exchange_id: str) -> Reply:
    thought, text, calls = _texts(body)
    blocks: list[ReplyBlock] = []
    if thought:
        blocks.append(ReplyBlock("thinking", thought))
    if text:
        blocks.append(ReplyBlock("text", text))
    seen: set[str] = set()
    for number, raw in enumerate(calls):
        call_id, name, arguments = _call(raw)
        if not call_id or call_id in seen:
            call_id = tool_id(exchange_id, number)
        seen.add(call_id)
        blocks.append(ReplyBlock("tool_use", arguments, call_id, name))
    return Reply(
        id="",
        model=str(body.get("model") or ""),
        blocks=tuple(blocks),
        stop=parse_stop(body.get("done_reason"), bool(calls)),
        usage=parse_usage(body),
    )


class StreamParser:
    """Reads newline-delimited answers; tool calls come whole, several may share a line."""

    def __init__(self, exchange_id: str) -> None:
        self._lines = LineDecoder()
        self._out = Sequencer(exchange_id)
        self._calls = 0

    def feed(self, data: bytes) -> list[Event]:
        for line in self._lines.feed(data):
            self._line(line)
        return self._out.take()

    def close(self) -> list[Event]:
        for line in self._lines.flush():
            self._line(line)
        if not self._out.ended:
            self._out.fail(truncated())
        return self._out.take()

    def _line(self, line: bytes) -> None:
        if self._out.ended:
            return
        try:
            body = orjson.loads(line)
        except orjson.JSONDecodeError:
            self._out.fail(truncated("the provider sent a line that is no JSON"))
            return
        if not isinstance(body, dict):
            return
        if body.get("error"):
            self._out.fail(parse_error_object(body["error"]))
            return
        self._out.begin("", str(body.get("model") or ""))
        thought, text, calls = _texts(body)
        self._out.piece("thinking", thought)
        self._out.piece("text", text)
        for raw in calls:
            call_id, name, arguments = _call(raw)
            key = f"t{self._calls}"
            self._calls += 1
            self._out.tool_done(key, call_id, name, arguments)
        if body.get("done"):
            usage = parse_usage(body)
            if usage is not None:
                self._out.report(usage)
            self._out.finish(parse_stop(body.get("done_reason"), self._out.has_tools))


def _stamp(created: int) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _counts(usage: Usage | None) -> JsonObject:
    """Durations are left out: we did not measure what a runtime would have."""
    usage = usage or Usage()
    return {"prompt_eval_count": usage.input, "eval_count": usage.output}


def _tool_call(number: int, call_id: str, name: str, arguments: str) -> JsonObject:
    parsed = load_arguments(arguments)
    function = {"index": number, "name": name, "arguments": parsed if parsed is not None else {"input": arguments}}
    return {"id": call_id, "function": function}


def render_reply(reply: Reply, context: ReplyContext, *, generate: bool = False) -> JsonObject:
    text = "".join(b.text for b in reply.blocks if b.kind in ("text", "refusal"))
    thought = "".join(b.text for b in reply.blocks if b.kind == "thinking")
    out: JsonObject = {"model": context.model or reply.model, "created_at": _stamp(context.created)}
    if generate:
        out["response"] = text
        if thought:
            out["thinking"] = thought
    else:
        message: JsonObject = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        calls = [b for b in reply.blocks if b.kind == "tool_use"]
        if calls:
            message["tool_calls"] = [
                _tool_call(i, b.id, context.names.restore(b.name).name, b.text) for i, b in enumerate(calls)
            ]
        out["message"] = message
    return {**out, "done": True, "done_reason": _STOP_WORDS.get(reply.stop, "stop"), **_counts(reply.usage)}


def failed_line(failure: Failure) -> bytes:
    """The line that ends a broken stream."""
    return orjson.dumps({"error": failure.message, "code": failure.code}) + b"\n"


class StreamRenderer:
    """Writes newline-delimited answers. A tool call is held until its arguments are whole."""

    def __init__(self, context: ReplyContext, *, generate: bool = False) -> None:
        self._context = context
        self._generate = generate
        self._head: JsonObject = {}
        self._kind = ""
        self._call = ("", "")
        self._held: list[str] = []
        self._tools = 0
        self._usage: Usage | None = None
        self._reason = "stop"

    def render(self, events: list[Event]) -> bytes:
        return b"".join(map(self._render, events))

    def _render(self, event: Event) -> bytes:
        match event:
            case BlockDelta(_, text):
                if self._kind == "tool_use":
                    self._held.append(text)
                    return b""
                key = "thinking" if self._kind == "thinking" else "response" if self._generate else "content"
                return self._line({key: text})
            case StreamStart():
                self._usage = event.usage
                self._head = {
                    "model": self._context.model or event.model,
                    "created_at": _stamp(self._context.created),
                }
            case BlockStart(_, kind, call_id, name):
                self._kind = kind
                self._call = (call_id, self._context.names.restore(name).name)
                self._held = []
            case BlockStop():
                if self._kind == "tool_use" and not self._generate:
                    call = _tool_call(self._tools, *self._call, "".join(self._held))
                    self._tools += 1
                    self._kind = ""
                    return self._line({"tool_calls": [call]})
            case UsageUpdate(usage):
                self._usage = usage
            case Stop(reason, _):
                self._reason = _STOP_WORDS.get(reason, "stop")
            case StreamEnd():
                return self._line({}, {"done": True, "done_reason": self._reason, **_counts(self._usage)})
            case StreamFailure(failure):
                return self.failure(failure)
        return b""

    def failure(self, failure: Failure) -> bytes:
        """The line that ends a broken stream."""
        return failed_line(failure)

    def _line(self, piece: JsonObject, end: JsonObject | None = None) -> bytes:
        if self._generate:
            body: JsonObject = {**self._head, "response": "", **piece}
        else:
            body = {**self._head, "message": {"role": "assistant", "content": "", **piece}}
        return orjson.dumps({**body, **(end or {"done": False})}) + b"\n"
