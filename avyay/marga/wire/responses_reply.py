"""Answers of the OpenAI Responses API, whole and streamed."""

from __future__ import annotations

from typing import Any

import orjson

from avyay.marga.wire.context import ReplyContext
from avyay.marga.wire.failure import Failure, parse_error_object, truncated
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

__all__ = [
    "StreamParser",
    "StreamRenderer",
    "failed_event",
    "parse_reply",
    "parse_stop",
    "parse_usage",
    "render_reply",
    "reply_failure",
]

_INCOMPLETE: dict[StopReason, str] = {
    "max_tokens": "max_output_tokens",
    "context_window": "max_output_tokens",
    "refusal": "content_filter",
}
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "previous_response_id",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "store",
    "temperature",
    "text",
    "top_p",
    "truncation",
    "user",
)


def parse_stop(response: JsonObject) -> StopReason:
    calls = any(
        isinstance(i, dict) and i.get("type") in ("function_call", "custom_tool_call")
        for i in response.get("output") or ()
    )
    if response.get("status") == "incomplete":
        reason = (response.get("incomplete_details") or {}).get("reason")
        return "refusal" if reason == "content_filter" else "max_tokens"
    return "tool_use" if calls else "end"


def reply_failure(response: JsonObject) -> Failure | None:
    """The failure inside an answer that HTTP called a success."""
    if response.get("status") not in ("failed", "cancelled") and not response.get("error"):
        return None
    return parse_error_object(response.get("error") or f"The response was {response.get('status')}.")


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def parse_usage(raw: Any) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    given = raw.get("input_tokens_details") or {}
    written = raw.get("output_tokens_details") or {}
    total = _count(raw.get("input_tokens"))
    read = min(_count(given.get("cached_tokens")), total)
    return Usage(
        input=total,
        output=_count(raw.get("output_tokens")),
        cache_read=read,
        cache_write=min(_count(given.get("cache_write_tokens")), total - read),
        reasoning=_count(written.get("reasoning_tokens")),
    )


def render_usage(usage: Usage | None) -> JsonObject:
    usage = usage or Usage()
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }


def _thought(item: JsonObject) -> str:
    for key in ("summary", "content"):
        texts = [p.get("text") or "" for p in item.get(key) or () if isinstance(p, dict)]
        if any(texts):
            return "\n\n".join(texts)
    return ""


def _carry(item: JsonObject) -> Carry | None:
    token = item.get("encrypted_content")
    return open_carry("openai_responses", token, item.get("id")) if isinstance(token, str) else None


def parse_reply(body: JsonObject, exchange_id: str) -> Reply:
    blocks: list[ReplyBlock] = []
    tools = 0
    for item in body.get("output") or ():
        kind = item.get("type")
        if kind == "reasoning":
            thought, carry = _thought(item), _carry(item)
            if thought or carry is not None:
                blocks.append(ReplyBlock("thinking", thought, carry=carry))
        elif kind == "message":
            for part in item.get("content") or ():
                if part.get("type") == "output_text" and part.get("text"):
                    blocks.append(ReplyBlock("text", part["text"]))
                elif part.get("type") == "refusal" and part.get("refusal"):
                    blocks.append(ReplyBlock("refusal", part["refusal"]))
        elif kind in ("function_call", "custom_tool_call"):
            call_id = item.get("call_id") or tool_id(exchange_id, tools)
            text = item.get("arguments" if kind == "function_call" else "input") or ""
            if kind == "function_call" and not text.strip():
                text = "{}"
            tools += 1
            blocks.append(ReplyBlock("tool_use", text, call_id, item.get("name") or ""))
    created = body.get("created_at")
    return Reply(
        id=str(body.get("id") or ""),
        model=str(body.get("model") or ""),
        blocks=tuple(blocks),
        stop=parse_stop(body),
        usage=parse_usage(body.get("usage")),
        created=int(created) if isinstance(created, int | float) else None,
    )


class StreamParser:
    """Reads a Responses stream. What deltas left out is taken from the done events, down to the final response."""

    def __init__(self, exchange_id: str) -> None:
        self._sse = SseDecoder()
        self._out = Sequencer(exchange_id)
        self._sent: dict[tuple[int, str, int], int] = {}  # (item, part kind, part): characters sent
        self._part: tuple[int, str, int] | None = None
        self._done: set[int] = set()

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
        if self._out.ended or payload.startswith(b"[DONE]"):
            return
        try:
            body = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self._out.fail(truncated("the provider sent an event that is no JSON"))
            return
        if not isinstance(body, dict):
            return
        kind = body.get("type") or event
        item = body.get("output_index")
        item = item if isinstance(item, int) else 0
        if kind.endswith(".delta"):
            self._delta(kind, item, body)
        elif kind.endswith(".done"):
            self._finished(kind, item, body)
        elif kind == "response.output_item.added":
            self._added(item, body.get("item") or {})
        elif kind == "response.created":
            self._begin(body.get("response") or {})
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
            self._end(body.get("response") or {})
        elif kind == "error":
            self._out.fail(parse_error_object(body.get("error") or body))

    def _begin(self, response: JsonObject) -> None:
        created = response.get("created_at")
        stamp = int(created) if isinstance(created, int | float) else None
        self._out.begin(str(response.get("id") or ""), str(response.get("model") or ""), stamp)

    def _added(self, number: int, item: JsonObject) -> None:
        self._out.begin("", "")
        kind = item.get("type")
        if kind in ("function_call", "custom_tool_call"):
            free = kind == "custom_tool_call"
            key = f"o{number}"
            self._out.tool(key, item.get("call_id") or "", item.get("name") or "", "", free_text=free)

    def _delta(self, kind: str, number: int, body: JsonObject) -> None:
        self._out.begin("", "")
        text = body.get("delta")
        if not isinstance(text, str) or not text:
            return
        if kind == "response.output_text.delta":
            self._piece("text", number, body.get("content_index") or 0, text)
        elif kind == "response.function_call_arguments.delta":
            self._out.tool(f"o{number}", "", "", text)
        elif kind == "response.custom_tool_call_input.delta":
            self._out.tool(f"o{number}", "", "", text, free_text=True)
        elif kind == "response.reasoning_summary_text.delta":
            self._piece("summary", number, body.get("summary_index") or 0, text)
        elif kind == "response.reasoning_text.delta":
            self._piece("thinking", number, body.get("content_index") or 0, text)
        elif kind == "response.refusal.delta":
            self._piece("refusal", number, body.get("content_index") or 0, text)

    def _piece(self, kind: str, item: int, part: int, text: str) -> None:
        key = (item, kind, part)
        block = "thinking" if kind == "summary" else kind
        if key != self._part:
            before = self._part
            same_thought = before is not None and before[:2] == key[:2] and block == "thinking"
            if same_thought:
                self._out.piece("thinking", "\n\n")
            elif before is not None:
                self._out.settle()
            self._part = key
        self._sent[key] = self._sent.get(key, 0) + len(text)
        self._out.piece(block, text)  # type: ignore[arg-type]

    def _rest(self, kind: str, item: int, part: int, text: Any) -> None:
        """What the deltas of a part did not send."""
        if isinstance(text, str):
            rest = text[self._sent.get((item, kind, part), 0) :]
            if rest:
                self._piece(kind, item, part, rest)

    def _finished(self, kind: str, number: int, body: JsonObject) -> None:
        self._out.begin("", "")
        part = body.get("content_index") or 0
        if kind == "response.output_text.done":
            self._rest("text", number, part, body.get("text"))
        elif kind == "response.refusal.done":
            self._rest("refusal", number, part, body.get("refusal"))
        elif kind == "response.reasoning_summary_text.done":
            self._rest("summary", number, body.get("summary_index") or 0, body.get("text"))
        elif kind == "response.reasoning_text.done":
            self._rest("thinking", number, part, body.get("text"))
        elif kind == "response.function_call_arguments.done":
            self._out.tool_done(f"o{number}", "", body.get("name") or "", body.get("arguments") or "")
        elif kind == "response.custom_tool_call_input.done":
            self._out.tool_done(f"o{number}", "", "", body.get("input") or "", free_text=True)
        elif kind == "response.output_item.done":
            self._item(number, body.get("item") or {})

    def _item(self, number: int, item: JsonObject) -> None:
        if number in self._done:
            return
        self._done.add(number)
        kind = item.get("type")
        if kind == "message":
            for i, part in enumerate(item.get("content") or ()):
                name = "refusal" if part.get("type") == "refusal" else "text"
                self._rest(name, number, i, part.get(name))
        elif kind == "reasoning":
            self._reasoning(number, item)
        elif kind in ("function_call", "custom_tool_call"):
            free = kind == "custom_tool_call"
            text = item.get("input" if free else "arguments") or ""
            call, name = item.get("call_id") or "", item.get("name") or ""
            self._out.tool_done(f"o{number}", call, name, text, free_text=free)

    def _reasoning(self, number: int, item: JsonObject) -> None:
        shown = any(key[0] == number for key in self._sent)
        for name, key in (("summary", "summary"), ("thinking", "content")):
            others = any(k[0] == number and k[1] != name for k in self._sent)
            for i, part in enumerate(item.get(key) or ()):
                if not others and isinstance(part, dict):
                    self._rest(name, number, i, part.get("text"))
        shown = shown or any(key[0] == number for key in self._sent)
        carry = _carry(item)
        if carry is not None:
            if not shown:
                self._out.settle()
            self._out.sign(carry)
        elif shown:
            self._out.settle()
        self._part = None

    def _end(self, response: JsonObject) -> None:
        self._begin(response)
        failure = reply_failure(response)
        if failure is not None:
            self._out.fail(failure)
            return
        for number, item in enumerate(response.get("output") or ()):
            if isinstance(item, dict):
                self._item(number, item)
        usage = parse_usage(response.get("usage"))
        if usage is not None:
            self._out.report(usage)
        stop = parse_stop(response)
        self._out.finish("tool_use" if stop == "end" and self._out.has_tools else stop)


def _item_of(number: int, block: ReplyBlock, context: ReplyContext, status: str = "completed") -> JsonObject:
    """One output item; `number` is its place, which its id is made of."""
    own = f"{context.exchange_id}_{number}"
    if block.kind == "tool_use":
        ref = context.names.restore(block.name)
        space = {"namespace": ref.namespace} if ref.namespace else {}
        if ref.kind == "custom":
            text = ref.unwrap(block.text) if status == "completed" else ""
            item = {"type": "custom_tool_call", "id": f"ctc_{own}", "call_id": block.id, "name": ref.name}
            return {**item, "input": text, **space}
        item = {"type": "function_call", "id": f"fc_{own}", "call_id": block.id, "name": ref.name}
        return {**item, "arguments": block.text, "status": status, **space}
    if block.kind in ("thinking", "redacted_thinking"):
        summary = [{"type": "summary_text", "text": block.text}] if block.text else []
        # The prefix tells these apart from items a provider stored under its own ids.
        out: JsonObject = {"type": "reasoning", "id": f"rs_avyay_{own}", "summary": summary}
        if block.carry is not None and status == "completed":
            out["encrypted_content"] = seal_carry("openai_responses", block.carry)
        return out
    content = [_part_of(block.kind, block.text)] if status == "completed" else []
    return {"type": "message", "id": f"msg_{own}", "role": "assistant", "status": status, "content": content}


def _part_of(kind: str, text: str) -> JsonObject:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response(context: ReplyContext, model: str, status: str, output: list[JsonObject]) -> JsonObject:
    caller = context.caller
    echoed = {key: caller[key] for key in _ECHOED if key in caller}
    return {
        "id": reply_id("openai_responses", context.exchange_id),
        "object": "response",
        "created_at": context.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        **echoed,
        "store": False,
        "model": model,
        "output": output,
        "parallel_tool_calls": caller.get("parallel_tool_calls", True) is not False,
        "tool_choice": caller.get("tool_choice") or "auto",
        "tools": caller.get("tools") or [],
        "usage": None,
    }


def _finish(response: JsonObject, stop: StopReason, usage: Usage | None) -> JsonObject:
    reason = _INCOMPLETE.get(stop)
    if reason is not None:
        response["status"] = "incomplete"
        response["incomplete_details"] = {"reason": reason}
    else:
        response["status"] = "completed"
    response["usage"] = render_usage(usage)
    return response


def render_reply(reply: Reply, context: ReplyContext) -> JsonObject:
    output = [_item_of(i, block, context) for i, block in enumerate(reply.blocks)]
    response = _response(context, context.model or reply.model, "completed", output)
    return _finish(response, reply.stop, reply.usage)


class StreamRenderer:
    """Writes a Responses stream: named events, counted by `sequence_number`, with every item whole at its end."""

    def __init__(self, context: ReplyContext) -> None:
        self._context = context
        self._number = 0
        self._model = ""
        self._started = False
        self._output: list[JsonObject] = []
        self._block = ReplyBlock("text")
        self._held: list[str] = []
        self._carry: Carry | None = None
        self._usage: Usage | None = None
        self._stop: StopReason = "end"

    def render(self, events: list[Event]) -> bytes:
        return b"".join(map(self._render, events))

    def _render(self, event: Event) -> bytes:
        match event:
            case BlockDelta(_, text):
                return self._delta(text)
            case StreamStart():
                return self._start(event)
            case BlockStart(_, kind, call, name):
                self._block = ReplyBlock(kind, "", call, name)
                return self._open()
            case BlockSignature(_, carry):
                self._carry = carry
            case BlockStop():
                return self._close()
            case UsageUpdate(usage):
                self._usage = usage
            case Stop(reason, _):
                self._stop = reason
            case StreamEnd():
                response = _response(self._context, self._model, "completed", self._output)
                response = _finish(response, self._stop, self._usage)
                return self._send(f"response.{response['status']}", {"response": response})
            case StreamFailure(failure):
                return self.failure(failure)
        return b""

    def failure(self, failure: Failure) -> bytes:
        """The event that ends a broken stream."""
        response = _response(self._context, self._model, "failed", self._output) if self._started else None
        return failed_event(failure, self._number, response)

    def _send(self, kind: str, payload: JsonObject) -> bytes:
        out = sse_event(kind, {"type": kind, "sequence_number": self._number, **payload})
        self._number += 1
        return out

    def _start(self, event: StreamStart) -> bytes:
        self._started = True
        self._model = self._context.model or event.model
        self._usage = event.usage
        response = _response(self._context, self._model, "in_progress", [])
        return self._send("response.created", {"response": response}) + self._send(
            "response.in_progress", {"response": response}
        )

    @property
    def _place(self) -> JsonObject:
        item = _item_of(len(self._output), self._block, self._context, "in_progress")
        return {"item_id": item["id"], "output_index": len(self._output)}

    def _open(self) -> bytes:
        self._held = []
        self._carry = None
        number = len(self._output)
        item = _item_of(number, self._block, self._context, "in_progress")
        out = self._send("response.output_item.added", {"output_index": number, "item": item})
        if self._block.kind in ("text", "refusal"):
            part = _part_of(self._block.kind, "")
            out += self._send("response.content_part.added", {**self._place, "content_index": 0, "part": part})
        return out

    def _delta(self, text: str) -> bytes:
        out = b""
        kind = self._block.kind
        if kind == "thinking" and not self._held:
            part = {"type": "summary_text", "text": ""}
            out = self._send("response.reasoning_summary_part.added", {**self._place, "summary_index": 0, "part": part})
        self._held.append(text)
        if kind == "text":
            piece = {**self._place, "content_index": 0, "delta": text, "logprobs": []}
            return self._send("response.output_text.delta", piece)
        if kind == "tool_use":
            ref = self._context.names.restore(self._block.name)
            if ref.wrapped:
                return b""  # the free text can only be read out of the whole arguments
            name = "custom_tool_call_input" if ref.kind == "custom" else "function_call_arguments"
            return self._send(f"response.{name}.delta", {**self._place, "delta": text})
        if kind == "thinking":
            piece = {**self._place, "summary_index": 0, "delta": text}
            return out + self._send("response.reasoning_summary_text.delta", piece)
        return self._send("response.refusal.delta", {**self._place, "content_index": 0, "delta": text})

    def _close(self) -> bytes:
        text = "".join(self._held)
        block = ReplyBlock(self._block.kind, text, self._block.id, self._block.name, self._carry)
        number = len(self._output)
        item = _item_of(number, block, self._context)
        place = self._place
        out = b""
        if block.kind in ("text", "refusal"):
            at = {**place, "content_index": 0}
            if block.kind == "text":
                out += self._send("response.output_text.done", {**at, "text": text, "logprobs": []})
            else:
                out += self._send("response.refusal.done", {**at, "refusal": text})
            out += self._send("response.content_part.done", {**at, "part": _part_of(block.kind, text)})
        elif block.kind == "thinking" and text:
            at = {**place, "summary_index": 0}
            out += self._send("response.reasoning_summary_text.done", {**at, "text": text})
            part = {"type": "summary_text", "text": text}
            out += self._send("response.reasoning_summary_part.done", {**at, "part": part})
        elif item["type"] == "custom_tool_call":
            if self._context.names.restore(block.name).wrapped and item["input"]:
                out += self._send("response.custom_tool_call_input.delta", {**place, "delta": item["input"]})
            out += self._send("response.custom_tool_call_input.done", {**place, "input": item["input"]})
        elif item["type"] == "function_call":
            done = {**place, "name": item["name"], "arguments": text}
            out += self._send("response.function_call_arguments.done", done)
        out += self._send("response.output_item.done", {"output_index": number, "item": item})
        self._output.append(item)
        return out


def failed_event(failure: Failure, sequence_number: int, response: JsonObject | None) -> bytes:
    """The end of a broken stream: about the response it began, or a bare error when it never began."""
    if response is None:
        kind = "error"
        payload: JsonObject = {"code": failure.code, "message": failure.message, "param": failure.param}
    else:
        kind = "response.failed"
        error = {"code": _error_code(failure), "message": failure.message, "type": failure.code}
        payload = {"response": {**response, "status": "failed", "error": error}}
    return sse_event(kind, {"type": kind, "sequence_number": sequence_number, **payload})


def _error_code(failure: Failure) -> str:
    if failure.kind in ("rate_limit", "quota"):
        return "insufficient_quota" if failure.kind == "quota" else "rate_limit_exceeded"
    if failure.kind == "context_length":
        return "context_length_exceeded"
    # Not `server_is_overloaded`: clients give up on that, where they would try again after a server error.
    return "invalid_prompt" if failure.kind in ("invalid_request", "content_filter") else "server_error"
