"""What a client asks, once for all dialects: written in each as that provider's own client would write it.

Written from the providers' documentation and on purpose without the router's own renderers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from avyay.marga.conformance.scripted import Call
from avyay.marga.wire.model import Dialect

__all__ = ["PIXEL", "Ask", "Picture", "Result", "Tool", "Turn", "request_body"]

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

Choice: TypeAlias = Literal["auto", "none", "required"]


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG as base64 `data`, or the `url` of one."""

    data: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool gave back."""

    call: Call
    text: str
    picture: Picture | None = None
    error: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. `blocks`: the texts are sent as a list of blocks where the dialect has lists."""

    role: Literal["system", "developer", "user", "assistant", "results"]
    texts: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    calls: tuple[Call, ...] = ()
    results: tuple[Result, ...] = ()
    thinking: str = ""
    signature: str = ""
    blocks: bool = False
    cached: bool = False  # the last text ends a prefix to cache


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `choice` is a mode or the name of a tool after `tool:`."""

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    choice: str | None = None
    parallel: bool | None = None
    max_tokens: int | None = 200
    temperature: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    effort: str | None = None
    budget: int | None = None
    schema: dict[str, Any] | None = None
    include_usage: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


def request_body(dialect: Dialect, model: str, ask: Ask, *, stream: bool) -> dict[str, Any]:
    """The request's body.

    Raises:
        ValueError: the dialect has no words for it.
    """
    body = _WRITERS[dialect](ask)
    if stream and dialect == "openai_chat" and ask.include_usage:
        body["stream_options"] = {"include_usage": True}
    if stream or dialect.startswith("ollama"):  # where streaming is the default
        body["stream"] = stream
    return {"model": model, **body, **ask.extra}


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _refuse(*given: Any) -> None:
    if any(value is not None and value not in ((), "") for value in given):
        raise ValueError("this dialect has no words for it")


def _drop_none(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None and value != []}


def _data_url(picture: Picture) -> str:
    return picture.url or f"data:image/png;base64,{picture.data}"


# --- Chat Completions --------------------------------------------------------------------------------------------


def _chat(ask: Ask) -> dict[str, Any]:
    _refuse(ask.top_k, ask.budget)
    choice: Any = ask.choice
    if choice is not None and choice.startswith("tool:"):
        choice = {"type": "function", "function": {"name": choice[5:]}}
    schema = ask.schema and {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": ask.schema, "strict": True},
    }
    return _drop_none(
        {
            "messages": [message for turn in ask.turns for message in _chat_turn(turn)],
            "tools": [
                {
                    "type": "function",
                    "function": {"name": t.name, "description": t.description, "parameters": t.schema},
                }
                for t in ask.tools
            ],
            "tool_choice": choice,
            "parallel_tool_calls": ask.parallel,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "stop": list(ask.stop),
            "reasoning_effort": ask.effort,
            "response_format": schema,
        }
    )


def _chat_turn(turn: Turn) -> list[dict[str, Any]]:
    _refuse(turn.thinking)
    if turn.role == "results":
        _refuse(*(r.picture for r in turn.results))
        return [{"role": "tool", "tool_call_id": r.call.id, "content": r.text} for r in turn.results]
    parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in turn.texts]
    if turn.cached:
        parts[-1]["cache_control"] = {"type": "ephemeral"}
    parts += [{"type": "image_url", "image_url": {"url": _data_url(p)}} for p in turn.pictures]
    plain = not (turn.blocks or turn.pictures or turn.cached)
    message: dict[str, Any] = {"role": turn.role, "content": "\n".join(turn.texts) if plain else parts}
    if turn.calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": _dump(c.arguments)}}
            for c in turn.calls
        ]
    return [message]


# --- Messages ----------------------------------------------------------------------------------------------------


def _messages(ask: Ask) -> dict[str, Any]:
    _refuse(ask.effort)
    turns = list(ask.turns)
    system = turns.pop(0) if turns[0].role == "system" else None
    _refuse(*(t.role for t in turns if t.role == "developer"))
    choice: dict[str, Any] | None = None
    if ask.choice is not None or ask.parallel is not None:
        named = {"required": "any"}.get(ask.choice or "auto", ask.choice or "auto")
        choice = {"type": "tool", "name": named[5:]} if named.startswith("tool:") else {"type": named}
        if ask.parallel is not None:
            choice["disable_parallel_tool_use"] = not ask.parallel
    body: dict[str, Any] = {
        "system": (_messages_content(system) if system.blocks or system.cached else "\n".join(system.texts))
        if system
        else None,
        "messages": [_messages_turn(turn) for turn in turns],
        "tools": [{"name": t.name, "description": t.description, "input_schema": t.schema} for t in ask.tools],
        "tool_choice": choice,
        "max_tokens": ask.max_tokens or 4096,
        "temperature": ask.temperature,
        "top_k": ask.top_k,
        "stop_sequences": list(ask.stop),
        "thinking": {"type": "enabled", "budget_tokens": ask.budget} if ask.budget else None,
        "output_config": {"format": {"type": "json_schema", "schema": ask.schema}} if ask.schema else None,
    }
    return _drop_none(body)


def _messages_turn(turn: Turn) -> dict[str, Any]:
    if turn.role == "results":
        return {"role": "user", "content": [_messages_result(r) for r in turn.results]}
    plain = len(turn.texts) == 1 and not (turn.blocks or turn.pictures or turn.calls or turn.thinking or turn.cached)
    return {"role": turn.role, "content": turn.texts[0] if plain else _messages_content(turn)}


def _messages_content(turn: Turn) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if turn.thinking:
        content.append({"type": "thinking", "thinking": turn.thinking, "signature": turn.signature})
    content += [{"type": "text", "text": text} for text in turn.texts]
    if turn.cached:
        content[-1]["cache_control"] = {"type": "ephemeral"}
    content += [_messages_picture(picture) for picture in turn.pictures]
    content += [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in turn.calls]
    return content


def _messages_picture(picture: Picture) -> dict[str, Any]:
    if picture.url:
        return {"type": "image", "source": {"type": "url", "url": picture.url}}
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture.data}}


def _messages_result(result: Result) -> dict[str, Any]:
    content: Any = result.text
    if result.picture is not None:
        content = [{"type": "text", "text": result.text}, _messages_picture(result.picture)]
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call.id, "content": content}
    if result.error:
        block["is_error"] = True
    return block


# --- Responses ---------------------------------------------------------------------------------------------------


def _responses(ask: Ask) -> dict[str, Any]:
    _refuse(ask.stop, ask.top_k, ask.budget)
    choice: Any = ask.choice
    if choice is not None and choice.startswith("tool:"):
        choice = {"type": "function", "name": choice[5:]}
    schema = ask.schema and {
        "format": {"type": "json_schema", "name": "answer", "schema": ask.schema, "strict": True},
    }
    return _drop_none(
        {
            "input": [item for turn in ask.turns for item in _responses_items(turn)],
            "tools": [
                {"type": "function", "name": t.name, "description": t.description, "parameters": t.schema}
                for t in ask.tools
            ],
            "tool_choice": choice,
            "parallel_tool_calls": ask.parallel,
            "max_output_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "reasoning": {"effort": ask.effort} if ask.effort else None,
            "text": schema,
            "store": False,
        }
    )


def _responses_items(turn: Turn) -> list[dict[str, Any]]:
    _refuse(turn.thinking, *(["cache"] if turn.cached else []))
    if turn.role == "results":
        return [
            {"type": "function_call_output", "call_id": r.call.id, "output": _responses_output(r)} for r in turn.results
        ]
    kind = "output_text" if turn.role == "assistant" else "input_text"
    parts: list[dict[str, Any]] = [{"type": kind, "text": text} for text in turn.texts]
    parts += [{"type": "input_image", "image_url": _data_url(p), "detail": "auto"} for p in turn.pictures]
    items: list[dict[str, Any]] = [{"type": "message", "role": turn.role, "content": parts}] if parts else []
    items += [
        {"type": "function_call", "call_id": c.id, "name": c.name, "arguments": _dump(c.arguments)} for c in turn.calls
    ]
    return items


def _responses_output(result: Result) -> Any:
    if result.picture is None:
        return result.text
    image = {"type": "input_image", "image_url": _data_url(result.picture)}
    return [{"type": "input_text", "text": result.text}, image]


# --- Ollama ------------------------------------------------------------------------------------------------------


def _ollama_shared(ask: Ask) -> dict[str, Any]:
    _refuse(ask.choice, ask.parallel, ask.budget)
    options = _drop_none(
        {
            "num_predict": ask.max_tokens,
            "temperature": ask.temperature,
            "top_k": ask.top_k,
            "stop": list(ask.stop),
        }
    )
    return _drop_none({"options": options or None, "think": ask.effort, "format": ask.schema})


def _ollama_chat(ask: Ask) -> dict[str, Any]:
    functions = [{"name": t.name, "description": t.description, "parameters": t.schema} for t in ask.tools]
    return {
        "messages": [message for turn in ask.turns for message in _ollama_turn(turn)],
        **({"tools": [{"type": "function", "function": f} for f in functions]} if functions else {}),
        **_ollama_shared(ask),
    }


def _ollama_turn(turn: Turn) -> list[dict[str, Any]]:
    _refuse(turn.thinking, *(p.url for p in turn.pictures), *(["cache"] if turn.cached else []))
    _refuse(*(["developer"] if turn.role == "developer" else []))
    if turn.role == "results":
        _refuse(*(r.picture for r in turn.results))
        return [
            {"role": "tool", "tool_name": r.call.name, "tool_call_id": r.call.id, "content": r.text}
            for r in turn.results
        ]
    message: dict[str, Any] = {"role": turn.role, "content": "\n".join(turn.texts)}
    if turn.pictures:
        message["images"] = [p.data for p in turn.pictures]
    if turn.calls:
        message["tool_calls"] = [
            {"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in turn.calls
        ]
    return [message]


def _ollama_generate(ask: Ask) -> dict[str, Any]:
    _refuse(ask.tools)
    turns = list(ask.turns)
    system = turns.pop(0) if turns[0].role == "system" else None
    if len(turns) != 1 or turns[0].role != "user" or turns[0].cached:
        raise ValueError("one prompt, not a conversation")
    _refuse(*(p.url for p in turns[0].pictures))
    body: dict[str, Any] = {"prompt": "\n".join(turns[0].texts), **_ollama_shared(ask)}
    if system:
        body["system"] = "\n".join(system.texts)
    if turns[0].pictures:
        body["images"] = [p.data for p in turns[0].pictures]
    return body


_WRITERS = {
    "openai_chat": _chat,
    "anthropic_messages": _messages,
    "openai_responses": _responses,
    "ollama_chat": _ollama_chat,
    "ollama_generate": _ollama_generate,
}
