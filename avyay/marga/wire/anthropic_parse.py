"""Reading requests of the Anthropic Messages API."""

from __future__ import annotations

from typing import Any

import orjson

from avyay.marga.wire.fields import (
    as_list,
    as_object,
    as_str,
    opt_bool,
    opt_float,
    opt_int,
    opt_list,
    opt_object,
    opt_str,
    required_str,
)
from avyay.marga.wire.ids import open_carry
from avyay.marga.wire.model import (
    CacheMark,
    Document,
    Image,
    JsonObject,
    Message,
    Opaque,
    Part,
    Reasoning,
    Request,
    ResponseFormat,
    Role,
    Sampling,
    Text,
    Thinking,
    ToolChoice,
    ToolResult,
    ToolSpec,
    ToolUse,
)
from avyay.marga.wire.notes import MalformedError, Notes

__all__ = ["parse_request"]

_KNOWN = {
    "model",
    "messages",
    "max_tokens",
    "stream",
    "system",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "output_format",
    "metadata",
    "service_tier",
    "cache_control",
}
# Settings of the provider's own machinery; without them the answer is the same, only its cost or speed may differ.
_HARMLESS = {"context_management", "inference_geo", "speed", "diagnostics", "container", "betas", "user_profile_id"}


def parse_request(body: JsonObject, notes: Notes) -> Request:
    """The neutral request. Fields without a neutral meaning are noted as dropped.

    Raises:
        MalformedError: The body is not a Messages request.
    """
    messages: list[Message] = []
    system = body.get("system")
    if system is not None:
        parts = _parts(system, "system")
        if parts:
            messages.append(Message("system", parts))
    if "messages" not in body:
        raise MalformedError("`messages` is required.", field="messages", code="missing_field")
    for number, raw in enumerate(as_list(body["messages"], "messages")):
        path = f"messages.{number}"
        item = as_object(raw, path)
        role = required_str(item, "role", path)
        if role not in ("user", "assistant", "system"):
            raise MalformedError(f"`{path}.role` must be user, assistant or system.", field=f"{path}.role")
        name: Role = "user" if role == "user" else "assistant" if role == "assistant" else "system"
        messages.append(Message(name, _parts(item.get("content"), f"{path}.content")))
    choice, parallel = _tool_choice(body)
    config = opt_object(body, "output_config")
    for field in body:
        if field in _KNOWN:
            continue
        reason = "a setting of the provider" if field in _HARMLESS else "not known in another dialect"
        notes.add(field, "dropped", reason)
    metadata = opt_object(body, "metadata")
    return Request(
        model=required_str(body, "model", ""),
        messages=tuple(messages),
        stream=bool(opt_bool(body, "stream")),
        max_tokens=opt_int(body, "max_tokens"),
        tools=tuple(_tool(as_object(t, f"tools.{i}"), f"tools.{i}") for i, t in enumerate(opt_list(body, "tools"))),
        tool_choice=choice,
        parallel_tools=parallel,
        sampling=Sampling(
            temperature=opt_float(body, "temperature"),
            top_p=opt_float(body, "top_p"),
            top_k=opt_int(body, "top_k"),
            stop=tuple(as_str(s, "stop_sequences") for s in opt_list(body, "stop_sequences")),
        ),
        reasoning=_reasoning(opt_object(body, "thinking"), config),
        format=_format(config.get("format") or body.get("output_format")),
        user=opt_str(metadata, "user_id"),
        service_tier=opt_str(body, "service_tier"),
        cache=_cache(body),
    )


def _cache(block: JsonObject) -> CacheMark | None:
    mark = block.get("cache_control")
    if not isinstance(mark, dict):
        return None
    ttl = mark.get("ttl")
    return CacheMark(ttl if isinstance(ttl, str) else None)


def _parts(content: Any, path: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),) if content else ()
    if content is None:
        raise MalformedError(f"`{path}` is required.", field=path, code="missing_field")
    return tuple(_part(as_object(b, f"{path}.{i}"), f"{path}.{i}") for i, b in enumerate(as_list(content, path)))


def _part(block: JsonObject, path: str) -> Part:
    kind = required_str(block, "type", path)
    if kind == "text":
        return Text(required_str(block, "text", path), _cache(block))
    if kind == "image":
        return _image(block, path)
    if kind == "document":
        return _document(block, path)
    if kind == "thinking":
        return Thinking(block.get("thinking") or "", open_carry("anthropic_messages", opt_str(block, "signature")))
    if kind == "redacted_thinking":
        return Thinking("", open_carry("anthropic_messages", required_str(block, "data", path)), redacted=True)
    if kind == "tool_use":
        arguments = orjson.dumps(as_object(block.get("input") or {}, f"{path}.input")).decode()
        name = required_str(block, "name", path)
        return ToolUse(required_str(block, "id", path), name, arguments, cache=_cache(block))
    if kind == "tool_result":
        content = block.get("content")
        parts = _parts(content, f"{path}.content") if content is not None else ()
        call = required_str(block, "tool_use_id", path)
        return ToolResult(call, parts, bool(block.get("is_error")), cache=_cache(block))
    return Opaque("anthropic_messages", block)


def _image(block: JsonObject, path: str) -> Part:
    source = as_object(block.get("source"), f"{path}.source")
    kind = source.get("type")
    if kind == "base64":
        data = required_str(source, "data", f"{path}.source")
        return Image(data=data, media_type=opt_str(source, "media_type"), cache=_cache(block))
    if kind == "url":
        return Image(url=required_str(source, "url", f"{path}.source"), cache=_cache(block))
    if kind == "file":
        return Image(file_id=required_str(source, "file_id", f"{path}.source"), cache=_cache(block))
    raise MalformedError(f"`{path}.source.type` must be base64, url or file.", field=f"{path}.source.type")


def _document(block: JsonObject, path: str) -> Part:
    source = as_object(block.get("source"), f"{path}.source")
    kind = source.get("type")
    title, cache = opt_str(block, "title"), _cache(block)
    if kind == "base64":
        data = required_str(source, "data", f"{path}.source")
        return Document(data=data, media_type=opt_str(source, "media_type"), title=title, cache=cache)
    if kind == "text":
        text = required_str(source, "data", f"{path}.source")
        return Document(text=text, media_type="text/plain", title=title, cache=cache)
    if kind == "url":
        return Document(url=required_str(source, "url", f"{path}.source"), title=title, cache=cache)
    if kind == "file":
        return Document(file_id=required_str(source, "file_id", f"{path}.source"), title=title, cache=cache)
    return Opaque("anthropic_messages", block)


def _tool(tool: JsonObject, path: str) -> ToolSpec:
    name = opt_str(tool, "name") or ""
    if tool.get("type") not in (None, "custom"):
        return ToolSpec(name or str(tool["type"]), provider=Opaque("anthropic_messages", tool))
    schema = as_object(tool.get("input_schema"), f"{path}.input_schema")
    if not name:
        raise MalformedError(f"`{path}.name` is required.", field=f"{path}.name", code="missing_field")
    return ToolSpec(name, opt_str(tool, "description"), schema, opt_bool(tool, "strict"), cache=_cache(tool))


def _tool_choice(body: JsonObject) -> tuple[ToolChoice | None, bool | None]:
    choice = body.get("tool_choice")
    if choice is None:
        return None, None
    choice = as_object(choice, "tool_choice")
    kind = choice.get("type")
    parallel = None
    if "disable_parallel_tool_use" in choice:
        parallel = not opt_bool(choice, "disable_parallel_tool_use")
    if kind == "auto":
        return ToolChoice("auto"), parallel
    if kind == "any":
        return ToolChoice("required"), parallel
    if kind == "none":
        return ToolChoice("none"), parallel
    if kind == "tool":
        return ToolChoice("tool", required_str(choice, "name", "tool_choice")), parallel
    raise MalformedError("`tool_choice.type` must be auto, any, tool or none.", field="tool_choice.type")


def _reasoning(thinking: JsonObject, config: JsonObject) -> Reasoning:
    kind = thinking.get("type")
    effort = config.get("effort")
    return Reasoning(
        mode={"enabled": "on", "adaptive": "on", "between_tools": "on", "disabled": "off"}.get(kind or ""),  # type: ignore[arg-type]
        effort=effort if effort in ("low", "medium", "high", "xhigh", "max") else None,
        budget_tokens=opt_int(thinking, "budget_tokens"),
        adaptive=kind in ("adaptive", "between_tools"),
        display=opt_str(thinking, "display"),
    )


def _format(raw: Any) -> ResponseFormat | None:
    if raw is None:
        return None
    raw = as_object(raw, "output_config.format")
    if raw.get("type") != "json_schema":
        raise MalformedError("`output_config.format.type` must be json_schema.", field="output_config.format.type")
    return ResponseFormat("schema", as_object(raw.get("schema"), "output_config.format.schema"), strict=True)
