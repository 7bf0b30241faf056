"""Reading requests of the OpenAI Responses API."""

from __future__ import annotations

from typing import Any

from avyay.marga.wire.data_urls import parse_data_url
from avyay.marga.wire.fields import (
    as_list,
    as_object,
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
    Audio,
    CacheMark,
    Document,
    Image,
    JsonObject,
    Message,
    Opaque,
    Part,
    Reasoning,
    Refusal,
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
from avyay.marga.wire.notes import MalformedError, Notes, UntranslatableError

__all__ = ["parse_request"]

_KNOWN = {
    "model",
    "input",
    "instructions",
    "stream",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "text",
    "user",
    "safety_identifier",
    "metadata",
    "service_tier",
    "prompt_cache_key",
    "store",
    "include",
    "truncation",
    "stream_options",
    "client_metadata",
    "previous_response_id",
    "conversation",
    "background",
    "prompt",
}
_STORED = {
    "previous_response_id": "continues an answer that its provider keeps",
    "conversation": "names a conversation that its provider keeps",
    "prompt": "names a prompt that its provider keeps",
    "background": "asks the provider to keep working after the call",
}


def parse_request(body: JsonObject, notes: Notes) -> Request:
    """The neutral request. Fields without a neutral meaning are noted as dropped.

    Raises:
        MalformedError: The body is not a Responses request.
        UntranslatableError: It leans on what a Responses provider stores.
    """
    _refuse(body, notes)
    reasoning = opt_object(body, "reasoning")
    effort = opt_str(reasoning, "effort")
    text = opt_object(body, "text")
    for field in body:
        if field not in _KNOWN:
            notes.add(field, "dropped", "not known in another dialect")
    return Request(
        model=required_str(body, "model", ""),
        messages=_messages(body, notes),
        stream=bool(opt_bool(body, "stream")),
        max_tokens=opt_int(body, "max_output_tokens"),
        tools=_tools(body),
        tool_choice=_tool_choice(body.get("tool_choice")),
        parallel_tools=opt_bool(body, "parallel_tool_calls"),
        sampling=Sampling(temperature=opt_float(body, "temperature"), top_p=opt_float(body, "top_p")),
        reasoning=Reasoning(
            mode="off" if effort == "none" else "on" if effort else None,
            effort=effort,  # type: ignore[arg-type]
            summary=opt_str(reasoning, "summary"),
        ),
        format=_format(text.get("format")),
        verbosity=opt_str(text, "verbosity"),
        user=opt_str(body, "safety_identifier") or opt_str(body, "user"),
        metadata=opt_object(body, "metadata") or None,
        service_tier=opt_str(body, "service_tier"),
        cache_key=opt_str(body, "prompt_cache_key"),
    )


def _refuse(body: JsonObject, notes: Notes) -> None:
    for field, what in _STORED.items():
        if body.get(field):
            raise UntranslatableError(
                f"`{field}` {what}; the chosen provider keeps nothing.",
                field=field,
                code="unsupported_state",
                hint="Send the whole conversation as `input`, or choose a model served through the Responses API.",
            )
    if body.get("store") is True:
        raise UntranslatableError(
            "`store: true` asks the provider to keep the answer; the chosen provider keeps nothing.",
            field="store",
            code="unsupported_state",
            hint="Set `store` to false, or choose a model served through the Responses API.",
        )
    if "store" not in body:
        notes.add("store", "defaulted", "the answer is not stored by its provider")
    if body.get("top_logprobs"):
        raise UntranslatableError(
            "Log probabilities cannot be given by the chosen provider.", field="top_logprobs", hint="Leave it out."
        )
    if body.get("truncation") == "auto":
        notes.add("truncation", "dropped", "no other API shortens a conversation by itself")
    for wanted in opt_list(body, "include"):
        if wanted != "reasoning.encrypted_content":
            notes.add("include", "dropped", "asks for parts only a Responses provider returns")


def _cache(part: JsonObject) -> CacheMark | None:
    for key in ("prompt_cache_breakpoint", "cache_control"):
        mark = part.get(key)
        if isinstance(mark, dict):
            ttl = mark.get("ttl")
            return CacheMark(ttl if isinstance(ttl, str) else None)
    return None


def _messages(body: JsonObject, notes: Notes) -> tuple[Message, ...]:
    """Items regrouped into turns: what the assistant thought, said and called in a row is one message."""
    out: list[tuple[Role, list[Part]]] = []

    def add(role: Role, parts: tuple[Part, ...] | list[Part], *, join: bool) -> None:
        if join and out and out[-1][0] == role:
            out[-1][1].extend(parts)
        else:
            out.append((role, list(parts)))

    instructions = opt_str(body, "instructions")
    if instructions:
        add("system", [Text(instructions)], join=False)
    source = body.get("input")
    if source is None:
        raise MalformedError("`input` is required.", field="input", code="missing_field")
    if isinstance(source, str):
        add("user", [Text(source)], join=False)
        return tuple(Message(role, tuple(parts)) for role, parts in out)
    results = False  # whether the last message gathers tool results
    for number, raw in enumerate(as_list(source, "input")):
        path = f"input.{number}"
        item = as_object(raw, path)
        kind = item.get("type") or "message"
        gathered, results = results, False
        if kind == "message":
            role = required_str(item, "role", path)
            parts = _parts(item.get("content"), f"{path}.content")
            if role not in ("user", "assistant", "system", "developer"):
                raise MalformedError(f"`{path}.role` is not known.", field=f"{path}.role")
            add(role, parts, join=role == "assistant")  # type: ignore[arg-type]
        elif kind in ("function_call", "custom_tool_call"):
            add("assistant", [_call(item, path, custom=kind == "custom_tool_call")], join=True)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            add("user", [_output(item, path, custom=kind == "custom_tool_call_output")], join=gathered)
            results = True
        elif kind == "reasoning":
            add("assistant", [_thought(item)], join=True)
        elif kind in ("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"):
            notes.add(f"input.{kind}", "dropped", "a record of what the provider's own tool did")
            results = gathered
        else:
            raise UntranslatableError(
                f"An input item of type `{kind}` is only understood by a Responses provider.",
                field=path,
                hint="Choose a model served through the Responses API.",
            )
    return tuple(Message(role, tuple(parts)) for role, parts in out)


def _parts(content: Any, path: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),) if content else ()
    return tuple(_part(as_object(p, f"{path}.{i}"), f"{path}.{i}") for i, p in enumerate(as_list(content, path)))


def _part(part: JsonObject, path: str) -> Part:
    kind = required_str(part, "type", path)
    if kind in ("input_text", "output_text", "text"):
        return Text(required_str(part, "text", path), _cache(part))
    if kind == "refusal":
        return Refusal(required_str(part, "refusal", path))
    if kind == "input_image":
        detail, cache = opt_str(part, "detail"), _cache(part)
        url = opt_str(part, "image_url")
        if url is None:
            return Image(file_id=required_str(part, "file_id", path), detail=detail, cache=cache)
        inline = parse_data_url(url)
        if inline is not None:
            return Image(data=inline[1], media_type=inline[0], detail=detail, cache=cache)
        return Image(url=url, detail=detail, cache=cache)
    if kind == "input_file":
        return _file(part, path)
    if kind == "input_audio":
        audio = as_object(part.get("input_audio"), f"{path}.input_audio")
        return Audio(
            required_str(audio, "data", f"{path}.input_audio"), required_str(audio, "format", f"{path}.input_audio")
        )
    return Opaque("openai_responses", part)


def _file(part: JsonObject, path: str) -> Part:
    title, cache = opt_str(part, "filename"), _cache(part)
    url, data = opt_str(part, "file_url"), opt_str(part, "file_data")
    if url is not None:
        return Document(url=url, title=title, cache=cache)
    if data is None:
        return Document(file_id=required_str(part, "file_id", path), title=title, cache=cache)
    inline = parse_data_url(data)
    if inline is None:
        return Document(data=data, media_type="application/pdf", title=title, cache=cache)
    return Document(data=inline[1], media_type=inline[0], title=title, cache=cache)


def _call(item: JsonObject, path: str, *, custom: bool) -> ToolUse:
    call_id, name = required_str(item, "call_id", path), required_str(item, "name", path)
    namespace = opt_str(item, "namespace")
    if custom:
        return ToolUse(call_id, name, opt_str(item, "input") or "", "custom", namespace)
    return ToolUse(call_id, name, opt_str(item, "arguments") or "", "function", namespace)


def _output(item: JsonObject, path: str, *, custom: bool) -> ToolResult:
    output = item.get("output")
    content = _parts(output, f"{path}.output") if output is not None else ()
    call_id = required_str(item, "call_id", path)
    return ToolResult(call_id, content, name=opt_str(item, "name"), kind="custom" if custom else "function")


def _thought(item: JsonObject) -> Thinking:
    texts = [
        p["text"]
        for key in ("summary", "content")
        for p in item.get(key) or ()
        if isinstance(p, dict) and isinstance(p.get("text"), str)
    ]
    carry = open_carry("openai_responses", opt_str(item, "encrypted_content"), opt_str(item, "id"))
    return Thinking("\n\n".join(texts), carry)


def _tools(body: JsonObject) -> tuple[ToolSpec, ...]:
    out: list[ToolSpec] = []
    for i, raw in enumerate(opt_list(body, "tools")):
        tool = as_object(raw, f"tools.{i}")
        if tool.get("type") == "namespace":
            space = required_str(tool, "name", f"tools.{i}")
            for j, inner in enumerate(opt_list(tool, "tools")):
                out.append(_tool(as_object(inner, f"tools.{i}.tools.{j}"), f"tools.{i}.tools.{j}", space))
        else:
            out.append(_tool(tool, f"tools.{i}", None))
    return tuple(out)


def _tool(tool: JsonObject, path: str, namespace: str | None) -> ToolSpec:
    kind = tool.get("type")
    if kind == "function":
        return ToolSpec(
            required_str(tool, "name", path),
            opt_str(tool, "description"),
            opt_object(tool, "parameters") or None,
            opt_bool(tool, "strict"),
            namespace=namespace,
            cache=_cache(tool),
        )
    if kind == "custom":
        return ToolSpec(
            required_str(tool, "name", path),
            opt_str(tool, "description"),
            kind="custom",
            grammar=opt_object(tool, "format") or None,
            namespace=namespace,
        )
    return ToolSpec(opt_str(tool, "name") or str(kind), provider=Opaque("openai_responses", tool))


def _tool_choice(choice: Any) -> ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice in ("auto", "none", "required"):
            return ToolChoice(choice)  # type: ignore[arg-type]
        raise MalformedError("`tool_choice` must be auto, none, required or an object.", field="tool_choice")
    choice = as_object(choice, "tool_choice")
    kind = choice.get("type")
    if kind == "allowed_tools":
        names = tuple(t["name"] for t in opt_list(choice, "tools") if isinstance(t, dict) and t.get("name"))
        return ToolChoice("required" if choice.get("mode") == "required" else "auto", allowed=names)
    if kind in ("function", "custom"):
        return ToolChoice("tool", required_str(choice, "name", "tool_choice"))
    return ToolChoice("tool", str(kind))  # a provider's own tool, by its type


def _format(raw: Any) -> ResponseFormat | None:
    if raw is None:
        return None
    raw = as_object(raw, "text.format")
    kind = raw.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat("json")
    if kind == "json_schema":
        return ResponseFormat(
            "schema",
            opt_object(raw, "schema") or None,
            opt_str(raw, "name"),
            opt_str(raw, "description"),
            opt_bool(raw, "strict"),
        )
    raise MalformedError("`text.format.type` must be text, json_object or json_schema.", field="text.format")
