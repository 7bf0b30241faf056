"""Writing answers of the OpenAI Responses API, whole and streamed."""

from __future__ import annotations

from avyay.marga.wire.context import ReplyContext
from avyay.marga.wire.failure import Failure
from avyay.marga.wire.framing import sse_event
from avyay.marga.wire.ids import reply_id, seal_carry
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

__all__ = ["StreamRenderer", "failed_event", "render_reply"]

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


def render_usage(usage: Usage | None) -> JsonObject:
    usage = usage or Usage()
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }


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
