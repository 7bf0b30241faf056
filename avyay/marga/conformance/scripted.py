"""A provider's answer as a script, written in each dialect as that provider would send it.

Written from the providers' documentation and on purpose without the router's own renderers, so that a mistake there
cannot hide itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from avyay.marga.wire.model import Dialect

__all__ = ["Call", "Script", "Tokens", "stream", "whole"]


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the provider bills. `plain` is input that was neither read from a cache nor written to one."""

    plain: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def input(self) -> int:
        return self.plain + self.cache_read + self.cache_write


@dataclass(frozen=True, slots=True)
class Script:
    """Thinking, then text, then calls: the order every dialect can express.

    Attributes:
        stop: end, max_tokens or refusal; calls make it tool_use unless the answer was cut.
        piece: Characters in each streamed delta.
    """

    text: str = ""
    thinking: str = ""
    signature: str = ""
    calls: tuple[Call, ...] = ()
    stop: str = "end"
    tokens: Tokens = Tokens()
    model: str = "scripted-1"
    piece: int = 4

    @property
    def reason(self) -> str:
        return "tool_use" if self.calls and self.stop == "end" else self.stop


def _pieces(text: str, size: int) -> Iterator[str]:
    for at in range(0, len(text), size):
        yield text[at : at + size]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _data(value: Any) -> bytes:
    return f"data: {_dump(value)}\n\n".encode()


def _named(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\ndata: {_dump(value)}\n\n".encode()


def whole(dialect: Dialect, script: Script) -> bytes:
    """The answer to a request that did not ask for a stream."""
    if dialect == "openai_chat":
        return _dump(_chat(script)).encode()
    if dialect == "anthropic_messages":
        return _dump(_messages(script)).encode()
    if dialect == "openai_responses":
        return _dump(_response(script)).encode()
    return _dump(_ollama(script, generate=dialect == "ollama_generate")).encode()


def stream(dialect: Dialect, script: Script, *, usage: bool = True) -> bytes:
    """All bytes of the streamed answer. `usage`: Chat only, whether the usage chunk was asked for."""
    if dialect == "openai_chat":
        return b"".join(_chat_stream(script, usage=usage))
    if dialect == "anthropic_messages":
        return b"".join(_messages_stream(script))
    if dialect == "openai_responses":
        return b"".join(_responses_stream(script))
    return b"".join(_ollama_stream(script, generate=dialect == "ollama_generate"))


# --- Chat Completions --------------------------------------------------------------------------------------------

_CHAT_STOP = {"end": "stop", "tool_use": "tool_calls", "max_tokens": "length", "refusal": "content_filter"}


def _chat_usage(tokens: Tokens) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": {
            "cached_tokens": tokens.cache_read,
            "cache_write_tokens": tokens.cache_write,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning, "audio_tokens": 0},
    }


def _chat(script: Script) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": script.text or None,
        "refusal": None,
        "annotations": [],
    }
    if script.thinking:
        message["reasoning_content"] = script.thinking
    if script.calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": _dump(c.arguments)}}
            for c in script.calls
        ]
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": script.model,
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": _CHAT_STOP[script.reason]},
        ],
        "usage": _chat_usage(script.tokens),
        "service_tier": "default",
        "system_fingerprint": "fp_scripted",
    }


def _chat_stream(script: Script, *, usage: bool) -> Iterator[bytes]:
    head: dict[str, Any] = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": script.model,
        "service_tier": "default",
        "system_fingerprint": "fp_scripted",
    }
    silent = {"usage": None} if usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _data({**head, "choices": [choice], **silent})

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    for piece in _pieces(script.thinking, script.piece):
        yield chunk({"reasoning_content": piece})
    for piece in _pieces(script.text, script.piece):
        yield chunk({"content": piece})
    for index, call in enumerate(script.calls):
        function = {"name": call.name, "arguments": ""}
        yield chunk({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]})
        for piece in _pieces(_dump(call.arguments), script.piece):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, _CHAT_STOP[script.reason])
    if usage:
        yield _data({**head, "choices": [], "usage": _chat_usage(script.tokens)})
    yield b"data: [DONE]\n\n"


# --- Messages ----------------------------------------------------------------------------------------------------

_MESSAGES_STOP = {"end": "end_turn", "tool_use": "tool_use", "max_tokens": "max_tokens", "refusal": "refusal"}


def _messages_usage(tokens: Tokens, output: int) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "input_tokens": tokens.plain,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cache_read,
        "cache_creation": {"ephemeral_5m_input_tokens": tokens.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    }
    if tokens.reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": tokens.reasoning}
    return usage


def _messages(script: Script) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if script.thinking or script.signature:
        content.append({"type": "thinking", "thinking": script.thinking, "signature": script.signature or "sig"})
    if script.text:
        content.append({"type": "text", "text": script.text})
    content += [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in script.calls]
    return {
        "id": "msg_scripted",
        "type": "message",
        "role": "assistant",
        "model": script.model,
        "content": content,
        "stop_reason": _MESSAGES_STOP[script.reason],
        "stop_sequence": None,
        "usage": _messages_usage(script.tokens, script.tokens.output),
    }


def _messages_stream(script: Script) -> Iterator[bytes]:
    message = {**_messages(script), "content": [], "stop_reason": None}
    message["usage"] = _messages_usage(script.tokens, min(1, script.tokens.output))
    message["usage"].pop("output_tokens_details", None)
    yield _named({"type": "message_start", "message": message})
    index = 0

    def block(start: dict[str, Any], deltas: list[dict[str, Any]]) -> Iterator[bytes]:
        yield _named({"type": "content_block_start", "index": index, "content_block": start})
        yield _named({"type": "ping"})
        for delta in deltas:
            yield _named({"type": "content_block_delta", "index": index, "delta": delta})
        yield _named({"type": "content_block_stop", "index": index})

    if script.thinking or script.signature:
        deltas = [{"type": "thinking_delta", "thinking": p} for p in _pieces(script.thinking, script.piece)]
        deltas.append({"type": "signature_delta", "signature": script.signature or "sig"})
        yield from block({"type": "thinking", "thinking": "", "signature": ""}, deltas)
        index += 1
    if script.text:
        deltas = [{"type": "text_delta", "text": p} for p in _pieces(script.text, script.piece)]
        yield from block({"type": "text", "text": ""}, deltas)
        index += 1
    for call in script.calls:
        deltas = [{"type": "input_json_delta", "partial_json": ""}]
        if call.arguments:
            pieces = _pieces(_dump(call.arguments), script.piece)
            deltas += [{"type": "input_json_delta", "partial_json": p} for p in pieces]
        yield from block({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, deltas)
        index += 1
    usage: dict[str, Any] = {"output_tokens": script.tokens.output}  # cumulative, and only what changed
    if script.tokens.reasoning:
        usage["output_tokens_details"] = {"thinking_tokens": script.tokens.reasoning}
    delta = {"stop_reason": _MESSAGES_STOP[script.reason], "stop_sequence": None}
    yield _named({"type": "message_delta", "delta": delta, "usage": usage})
    yield _named({"type": "message_stop"})


# --- Responses ---------------------------------------------------------------------------------------------------


def _items(script: Script) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if script.thinking or script.signature:
        summary = [{"type": "summary_text", "text": script.thinking}] if script.thinking else []
        item: dict[str, Any] = {"id": "rs_scripted", "type": "reasoning", "summary": summary}
        if script.signature:
            item["encrypted_content"] = script.signature
        items.append(item)
    if script.text:
        part = {"type": "output_text", "text": script.text, "annotations": [], "logprobs": []}
        status = "incomplete" if script.stop == "max_tokens" else "completed"
        items.append(
            {"id": "msg_scripted", "type": "message", "status": status, "role": "assistant", "content": [part]}
        )
    for number, call in enumerate(script.calls):
        items.append(
            {
                "id": f"fc_scripted_{number}",
                "type": "function_call",
                "status": "completed",
                "call_id": call.id,
                "name": call.name,
                "arguments": _dump(call.arguments),
            }
        )
    return items


def _response(script: Script) -> dict[str, Any]:
    incomplete = {"max_tokens": "max_output_tokens", "refusal": "content_filter"}.get(script.stop)
    tokens = script.tokens
    return {
        "id": "resp_scripted",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": "incomplete" if incomplete else "completed",
        "error": None,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "instructions": None,
        "max_output_tokens": None,
        "model": script.model,
        "output": _items(script),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": tokens.input,
            "input_tokens_details": {"cached_tokens": tokens.cache_read, "cache_write_tokens": tokens.cache_write},
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
            "total_tokens": tokens.input + tokens.output,
        },
        "metadata": {},
    }


def _responses_stream(script: Script) -> Iterator[bytes]:
    number = 0

    def send(kind: str, **fields: Any) -> bytes:
        nonlocal number
        out = _named({"type": kind, **fields, "sequence_number": number})
        number += 1
        return out

    final = _response(script)
    opening = {**final, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield send("response.created", response=opening)
    yield send("response.in_progress", response=opening)
    for index, item in enumerate(final["output"]):
        at = {"item_id": item["id"], "output_index": index}
        if item["type"] == "reasoning":
            bare = {"id": item["id"], "type": "reasoning", "summary": []}
            yield send("response.output_item.added", output_index=index, item=bare)
            if item["summary"]:
                part = {"type": "summary_text", "text": ""}
                yield send("response.reasoning_summary_part.added", **at, summary_index=0, part=part)
                for piece in _pieces(script.thinking, script.piece):
                    yield send("response.reasoning_summary_text.delta", **at, summary_index=0, delta=piece)
                yield send("response.reasoning_summary_text.done", **at, summary_index=0, text=script.thinking)
                part = {"type": "summary_text", "text": script.thinking}
                yield send("response.reasoning_summary_part.done", **at, summary_index=0, part=part)
        elif item["type"] == "message":
            yield send(
                "response.output_item.added",
                output_index=index,
                item={**item, "status": "in_progress", "content": []},
            )
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield send("response.content_part.added", **at, content_index=0, part=empty)
            for piece in _pieces(script.text, script.piece):
                yield send("response.output_text.delta", **at, content_index=0, delta=piece, logprobs=[])
            yield send("response.output_text.done", **at, content_index=0, text=script.text, logprobs=[])
            yield send("response.content_part.done", **at, content_index=0, part=item["content"][0])
        else:
            yield send(
                "response.output_item.added",
                output_index=index,
                item={**item, "status": "in_progress", "arguments": ""},
            )
            for piece in _pieces(item["arguments"], script.piece):
                yield send("response.function_call_arguments.delta", **at, delta=piece)
            yield send("response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"])
        yield send("response.output_item.done", output_index=index, item=item)
    yield send(f"response.{final['status']}", response=final)


# --- Ollama ------------------------------------------------------------------------------------------------------

_DATE = "2026-11-21T12:00:00.000000Z"


def _ollama_end(script: Script) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": "length" if script.stop == "max_tokens" else "stop",
        "total_duration": 174_560_334,
        "load_duration": 101_397_084,
        "prompt_eval_count": script.tokens.input,
        "prompt_eval_duration": 13_074_791,
        "eval_count": script.tokens.output,
        "eval_duration": 52_479_709,
    }


def _ollama_call(number: int, call: Call) -> dict[str, Any]:
    return {"id": call.id, "function": {"index": number, "name": call.name, "arguments": call.arguments}}


def _ollama(script: Script, *, generate: bool) -> dict[str, Any]:
    head: dict[str, Any] = {"model": script.model, "created_at": _DATE}
    if generate:
        head["response"] = script.text
        if script.thinking:
            head["thinking"] = script.thinking
        return {**head, **_ollama_end(script)}
    message: dict[str, Any] = {"role": "assistant", "content": script.text}
    if script.thinking:
        message["thinking"] = script.thinking
    if script.calls:
        message["tool_calls"] = [_ollama_call(i, c) for i, c in enumerate(script.calls)]
    return {**head, "message": message, **_ollama_end(script)}


def _ollama_stream(script: Script, *, generate: bool) -> Iterator[bytes]:
    head: dict[str, Any] = {"model": script.model, "created_at": _DATE}

    def line(piece: dict[str, Any], end: dict[str, Any] | None = None) -> bytes:
        if generate:
            renamed = {"response" if k == "content" else k: v for k, v in piece.items()}
            body = {**head, "response": "", **renamed}
        else:
            body = {**head, "message": {"role": "assistant", "content": "", **piece}}
        return (_dump({**body, **(end or {"done": False})}) + "\n").encode()

    for piece in _pieces(script.thinking, script.piece):
        yield line({"thinking": piece})
    for piece in _pieces(script.text, script.piece):
        yield line({"content": piece})
    if not generate:
        for number, call in enumerate(script.calls):
            yield line({"tool_calls": [_ollama_call(number, call)]})
    yield line({}, _ollama_end(script))
