"""What a strict client makes of an answer: its content, and every breach of the dialect's protocol.

Independent of the router's own parsers on purpose.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from avyay.marga.conformance.scripted import Tokens
from avyay.marga.wire.model import Dialect

__all__ = ["Observed", "read_stream", "read_whole"]


@dataclass(slots=True)
class Observed:
    """An answer as a client sees it.

    Attributes:
        tools: Id, name and parsed arguments of each call; arguments that are no JSON stay text.
        stop: The dialect's own word.
        violations: Breaches of the protocol, in words.
    """

    text: str = ""
    thinking: str = ""
    signature: str = ""
    tools: list[tuple[str, str, Any]] = field(default_factory=list)
    stop: str | None = None
    tokens: Tokens | None = None
    model: str = ""
    id: str = ""
    error: dict[str, Any] | None = None
    violations: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.violations.append(otherwise)


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_whole(dialect: Dialect, raw: bytes) -> Observed:
    """An answer that was not streamed."""
    body = json.loads(raw)
    out = Observed(model=str(body.get("model")), id=str(body.get("id", "")))
    if dialect == "openai_chat":
        _chat_message(body, out)
    elif dialect == "anthropic_messages":
        _message(body, out)
    elif dialect == "openai_responses":
        _response(body, out)
    else:
        _ollama(body, out, final=True)
    return out


def read_stream(dialect: Dialect, raw: bytes) -> Observed:
    """A complete stream."""
    out = Observed()
    if dialect == "openai_chat":
        _chat_stream(_events(raw, out, named=False), out)
    elif dialect == "anthropic_messages":
        _messages_stream(_events(raw, out, named=True), out)
    elif dialect == "openai_responses":
        _responses_stream(_events(raw, out, named=True), out)
    else:
        _ollama_stream(raw, out)
    return out


def _events(raw: bytes, out: Observed, *, named: bool) -> list[Any]:
    events: list[Any] = []
    text = raw.decode()
    out.expect(text.endswith("\n\n"), "the stream does not end with a blank line")
    for frame in text.split("\n\n"):
        if not frame.strip():
            continue
        name, data = "", []
        for line in frame.split("\n"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
            elif not line.startswith(":"):
                out.violations.append(f"a line that is neither event nor data: {line[:40]}")
        if not data and not name:
            continue  # a comment, which keeps connections alive
        payload = "\n".join(data)
        if payload == "[DONE]":
            events.append("[DONE]")
            continue
        body = json.loads(payload)
        if named:
            out.expect(name == body.get("type"), f"event line {name!r} does not match type {body.get('type')!r}")
        else:
            out.expect(not name, "an event line where the dialect has none")
        events.append(body)
    return events


# --- Chat Completions --------------------------------------------------------------------------------------------


def _chat_tokens(usage: dict[str, Any] | None) -> Tokens | None:
    if usage is None:
        return None
    given = usage.get("prompt_tokens_details") or {}
    read, write = given.get("cached_tokens") or 0, given.get("cache_write_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return Tokens(usage["prompt_tokens"] - read - write, read, write, usage["completion_tokens"], reasoning)


def _chat_message(body: dict[str, Any], out: Observed) -> None:
    out.expect(body.get("object") == "chat.completion", "object is not chat.completion")
    choice = body["choices"][0]
    message = choice["message"]
    out.text = message.get("content") or ""
    out.thinking = message.get("reasoning_content") or ""
    for call in message.get("tool_calls") or ():
        out.tools.append((call["id"], call["function"]["name"], _arguments(call["function"]["arguments"])))
    out.stop = choice["finish_reason"]
    out.tokens = _chat_tokens(body.get("usage"))


def _chat_stream(events: list[Any], out: Observed) -> None:
    out.expect(events[-1:] == ["[DONE]"] and events.count("[DONE]") == 1, "no single [DONE] at the end")
    calls: list[list[str]] = []
    ids: set[str] = set()
    finishes = 0
    for number, body in enumerate(e for e in events if e != "[DONE]"):
        if body.get("error"):
            out.error = body["error"]
            continue
        ids.add(body["id"])
        out.model, out.id = body["model"], body["id"]
        out.expect(body.get("object") == "chat.completion.chunk", "object is not chat.completion.chunk")
        if body.get("usage"):
            out.tokens = _chat_tokens(body["usage"])
        for choice in body["choices"]:
            out.expect(not finishes, "a chunk with a choice after the finish reason")
            delta = choice["delta"]
            if not number:
                out.expect(delta.get("role") == "assistant", "the first delta names no role")
            else:
                out.expect("role" not in delta, "a role in a later delta")
            out.text += delta.get("content") or ""
            out.thinking += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or ():
                _chat_call(call, calls, out)
            if choice.get("finish_reason"):
                finishes += 1
                out.stop = choice["finish_reason"]
    out.expect(finishes == 1, f"{finishes} finish reasons")
    out.expect(len(ids) == 1, "the id changes within the stream")
    out.tools = [(call_id, name, _arguments(text)) for call_id, name, text in calls]


def _chat_call(call: dict[str, Any], calls: list[list[str]], out: Observed) -> None:
    index = call["index"]
    if index == len(calls):
        out.expect(bool(call.get("id") and call["function"].get("name")), "a tool call opens without id or name")
        calls.append([call.get("id") or "", call["function"].get("name") or "", ""])
    elif not 0 <= index < len(calls):
        out.violations.append(f"tool call index {index} does not count tools")
        return
    else:
        out.expect(not call.get("id"), "a tool call's id is sent twice")
    calls[index][2] += call["function"].get("arguments") or ""


# --- Messages ----------------------------------------------------------------------------------------------------


def _message_tokens(usage: dict[str, Any]) -> Tokens:
    return Tokens(
        usage.get("input_tokens") or 0,
        usage.get("cache_read_input_tokens") or 0,
        usage.get("cache_creation_input_tokens") or 0,
        usage.get("output_tokens") or 0,
        (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
    )


def _message(body: dict[str, Any], out: Observed) -> None:
    out.expect(body.get("type") == "message" and body.get("role") == "assistant", "not an assistant's message")
    for block in body["content"]:
        _finished_block(block, out)
    out.stop = body["stop_reason"]
    out.tokens = _message_tokens(body["usage"])


def _finished_block(block: dict[str, Any], out: Observed) -> None:
    if block["type"] == "text":
        out.text += block["text"]
    elif block["type"] == "thinking":
        out.thinking += block["thinking"]
        out.signature += block["signature"]
    elif block["type"] == "tool_use":
        out.expect(isinstance(block["input"], dict), "a tool's input is no object")
        out.tools.append((block["id"], block["name"], block["input"]))


def _messages_stream(events: list[Any], out: Observed) -> None:
    kinds = [e["type"] for e in events if e != "[DONE]"]
    out.expect("[DONE]" not in events, "[DONE] does not belong here")
    out.expect(kinds[:1] == ["message_start"] and kinds.count("message_start") == 1, "no single message_start first")
    if "error" not in kinds:
        out.expect(kinds[-1:] == ["message_stop"] and kinds.count("message_stop") == 1, "no single message_stop last")
        out.expect(kinds.count("message_delta") == 1, "not exactly one message_delta")
    usage: dict[str, Any] = {}
    block: dict[str, Any] | None = None
    arguments = ""
    count = 0
    for event in (e for e in events if e != "[DONE]"):
        kind = event["type"]
        if kind == "message_start":
            out.model, out.id = event["message"]["model"], event["message"]["id"]
            usage.update(event["message"]["usage"])
        elif kind == "content_block_start":
            out.expect(block is None, "a block starts before the last one stopped")
            out.expect(event["index"] == count, f"block index {event['index']} instead of {count}")
            block, arguments = dict(event["content_block"]), ""
        elif kind == "content_block_delta":
            out.expect(block is not None and event["index"] == count, "a delta outside its block")
            arguments += _apply(event["delta"], block or {}, out)
        elif kind == "content_block_stop":
            out.expect(block is not None and event["index"] == count, "a stop outside its block")
            if block is not None:
                if block["type"] == "tool_use":
                    block["input"] = _arguments(arguments or "{}")
                _finished_block(block, out)
            block, count = None, count + 1
        elif kind == "message_delta":
            out.expect(block is None, "message_delta inside a block")
            out.stop = event["delta"]["stop_reason"]
            usage.update(event["usage"])
        elif kind == "error":
            out.error = event["error"]
    if block is not None and block["type"] == "text":
        out.text += block["text"]  # broken off in the middle
    out.tokens = _message_tokens(usage)


def _apply(delta: dict[str, Any], block: dict[str, Any], out: Observed) -> str:
    fields = {
        "text_delta": ("text", "text"),
        "thinking_delta": ("thinking", "thinking"),
        "signature_delta": ("thinking", "signature"),
    }
    if delta["type"] == "input_json_delta":
        out.expect(block.get("type") == "tool_use", "input_json_delta outside a tool_use block")
        return str(delta["partial_json"])
    kind, name = fields[delta["type"]]
    out.expect(block.get("type") == kind, f"{delta['type']} in a {block.get('type')} block")
    block[name] = block.get(name, "") + delta[name]
    return ""


# --- Responses ---------------------------------------------------------------------------------------------------


def _response(body: dict[str, Any], out: Observed) -> None:
    out.expect(body.get("object") == "response", "object is not response")
    for item in body["output"]:
        if item["type"] == "message":
            out.text += "".join(p.get("text") or p.get("refusal") or "" for p in item["content"])
        elif item["type"] == "reasoning":
            out.thinking += "\n\n".join(p["text"] for p in item["summary"])
            out.signature += item.get("encrypted_content") or ""
        elif item["type"] == "function_call":
            out.tools.append((item["call_id"], item["name"], _arguments(item["arguments"])))
        elif item["type"] == "custom_tool_call":
            out.tools.append((item["call_id"], item["name"], item["input"]))
    reason = (body.get("incomplete_details") or {}).get("reason")
    out.stop = f"incomplete:{reason}" if body["status"] == "incomplete" else body["status"]
    usage = body.get("usage")
    if usage:
        given, made = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
        out.expect("cached_tokens" in given and "reasoning_tokens" in made, "usage without its details")
        read, write = given.get("cached_tokens") or 0, given.get("cache_write_tokens") or 0
        reasoning = made.get("reasoning_tokens") or 0
        out.tokens = Tokens(usage["input_tokens"] - read - write, read, write, usage["output_tokens"], reasoning)


_PART_EVENTS = {
    "response.output_text.delta",
    "response.refusal.delta",
    "response.function_call_arguments.delta",
    "response.custom_tool_call_input.delta",
    "response.reasoning_summary_text.delta",
}


def _responses_stream(events: list[Any], out: Observed) -> None:
    out.expect("[DONE]" not in events, "[DONE] does not belong here")
    events = [event for event in events if event != "[DONE]"]
    numbers = [e.get("sequence_number") for e in events]
    out.expect(numbers == list(range(len(events))), "sequence_number does not count the events")
    kinds = [e["type"] for e in events]
    out.expect(kinds[:1] == ["response.created"], "response.created is not first")
    last = kinds[-1] if kinds else ""
    out.expect(
        last in ("response.completed", "response.incomplete", "response.failed", "error"), f"the last event is {last}"
    )
    open_items: dict[int, str] = {}
    written: dict[int, str] = {}
    done: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"]
        index = event.get("output_index", -1)
        if kind == "response.output_item.added":
            out.expect(index == len(written), f"output_index {index} instead of {len(written)}")
            open_items[index], written[index] = event["item"]["id"], ""
        elif kind in _PART_EVENTS:
            out.expect(open_items.get(index) == event["item_id"], "a delta for an item that is not open")
            written[index] += event["delta"]
        elif kind == "response.output_item.done":
            out.expect(open_items.pop(index, None) == event["item"]["id"], "an item ends that is not open")
            out.expect(_written(event["item"]) == written.get(index), "deltas and the finished item differ")
            done.append(event["item"])
        elif kind == "error":
            out.error = event
        elif kind in ("response.completed", "response.incomplete", "response.failed"):
            body = event["response"]
            out.model, out.id = body["model"], body["id"]
            if kind != "response.failed":
                out.expect(not open_items, "items are still open at the end")
                out.expect(body["output"] == done, "the final output differs from the items sent")
            _response(body, out)
            if kind == "response.failed":
                out.error = body["error"]
    if out.error is not None:
        out.text = "".join(written[i] for i in sorted(written))


def _written(item: dict[str, Any]) -> str:
    if item["type"] == "message":
        return "".join(p.get("text") or p.get("refusal") or "" for p in item["content"])
    if item["type"] == "reasoning":
        return "".join(p["text"] for p in item["summary"])
    return str(item.get("arguments") if item["type"] == "function_call" else item.get("input"))


# --- Ollama ------------------------------------------------------------------------------------------------------


def _ollama(body: dict[str, Any], out: Observed, *, final: bool) -> None:
    out.model = body["model"]
    message = body.get("message")
    if message is not None:
        out.text += message.get("content") or ""
        out.thinking += message.get("thinking") or ""
        for call in message.get("tool_calls") or ():
            function = call["function"]
            out.expect(isinstance(function["arguments"], dict), "a tool's arguments are no object")
            out.tools.append((call.get("id") or "", function["name"], function["arguments"]))
    else:
        out.text += body.get("response") or ""
        out.thinking += body.get("thinking") or ""
    out.expect(body.get("done") is final, f"done is {body.get('done')}")
    if final:
        out.stop = body["done_reason"]
        out.tokens = Tokens(plain=body["prompt_eval_count"], output=body["eval_count"])


def _ollama_stream(raw: bytes, out: Observed) -> None:
    lines = raw.decode().split("\n")
    out.expect(lines.pop() == "", "the last line does not end")
    for number, line in enumerate(lines):
        body = json.loads(line)
        if "error" in body:
            out.error = {"message": body["error"], "code": body.get("code")}
        else:
            _ollama(body, out, final=number == len(lines) - 1)
