"""Reading requests of the OpenAI Chat Completions API, also as Azure and compatible servers take them."""

from __future__ import annotations

from typing import Any

from avyay.marga.wire.data_urls import parse_data_url
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
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "response_format",
    "reasoning_effort",
    "verbosity",
    "user",
    "safety_identifier",
    "metadata",
    "service_tier",
    "prompt_cache_key",
    "n",
    "logprobs",
    "top_logprobs",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "store",
    "cache_control",
}
# These promise something in the answer that no other dialect can give.
_REFUSED = {
    "logprobs": "log probabilities",
    "top_logprobs": "log probabilities",
    "audio": "spoken answers",
    "web_search_options": "the provider's web search",
}


def parse_request(body: JsonObject, notes: Notes) -> Request:
    """The neutral request. Fields without a neutral meaning are noted as dropped.

    Raises:
        MalformedError: The body is not a Chat Completions request.
        UntranslatableError: It asks for something only this dialect's providers can answer.
    """
    _refuse(body)
    legacy = bool(body.get("functions"))
    tools = [_tool(as_object(t, f"tools.{i}"), f"tools.{i}") for i, t in enumerate(opt_list(body, "tools"))]
    for i, raw in enumerate(opt_list(body, "functions")):
        tools.append(_function(as_object(raw, f"functions.{i}"), f"functions.{i}"))
    choice = _tool_choice(body.get("tool_choice") if not legacy else body.get("function_call"))
    stop = body.get("stop")
    for field in body:
        if field not in _KNOWN:
            notes.add(field, "dropped", "not known in another dialect")
    if body.get("prediction") is not None:
        notes.add("prediction", "dropped", "it only speeds up OpenAI's own models")
    if body.get("store"):
        notes.add("store", "dropped", "the answer is not stored by its provider")
    options = opt_object(body, "stream_options")
    limit = opt_int(body, "max_completion_tokens")
    effort = opt_str(body, "reasoning_effort")
    if "messages" not in body:
        raise MalformedError("`messages` is required.", field="messages", code="missing_field")
    return Request(
        model=required_str(body, "model", ""),
        messages=_messages(as_list(body["messages"], "messages")),
        stream=bool(opt_bool(body, "stream")),
        max_tokens=limit if limit is not None else opt_int(body, "max_tokens"),
        tools=tuple(tools),
        tool_choice=choice,
        parallel_tools=False if legacy else opt_bool(body, "parallel_tool_calls"),
        sampling=Sampling(
            temperature=opt_float(body, "temperature"),
            top_p=opt_float(body, "top_p"),
            top_k=opt_int(body, "top_k"),
            min_p=opt_float(body, "min_p"),
            seed=opt_int(body, "seed"),
            frequency_penalty=opt_float(body, "frequency_penalty"),
            presence_penalty=opt_float(body, "presence_penalty"),
            stop=(stop,) if isinstance(stop, str) else tuple(as_str(s, "stop") for s in opt_list(body, "stop")),
        ),
        reasoning=Reasoning(mode="off" if effort == "none" else None, effort=effort),  # type: ignore[arg-type]
        format=_format(body.get("response_format")),
        verbosity=opt_str(body, "verbosity"),
        user=opt_str(body, "safety_identifier") or opt_str(body, "user"),
        metadata=opt_object(body, "metadata") or None,
        service_tier=opt_str(body, "service_tier"),
        cache=_cache(body),
        cache_key=opt_str(body, "prompt_cache_key"),
        include_usage=bool(options.get("include_usage")),
        legacy_functions=legacy,
    )


def _refuse(body: JsonObject) -> None:
    n = body.get("n")
    if n is not None and n != 1:
        raise UntranslatableError(
            "More than one choice (`n`) can only be answered by an OpenAI-compatible provider.",
            field="n",
            hint="Ask for one choice, or send the request several times.",
        )
    for field, what in _REFUSED.items():
        if body.get(field):
            raise UntranslatableError(
                f"`{field}` asks for {what}, which the chosen provider cannot give.",
                field=field,
                hint="Leave it out, or choose an OpenAI-compatible model.",
            )
    if any(m != "text" for m in opt_list(body, "modalities")):
        raise UntranslatableError(
            "Only text can be answered by the chosen provider.", field="modalities", hint='Ask for ["text"].'
        )


def _cache(block: JsonObject) -> CacheMark | None:
    for key in ("cache_control", "prompt_cache_breakpoint"):
        mark = block.get(key)
        if isinstance(mark, dict):
            ttl = mark.get("ttl")
            return CacheMark(ttl if isinstance(ttl, str) else None)
    return None


def _messages(raw: list[Any]) -> tuple[Message, ...]:
    out: list[Message] = []
    results: list[Part] = []
    legacy_calls = 0
    for number, value in enumerate(raw):
        path = f"messages.{number}"
        item = as_object(value, path)
        role = required_str(item, "role", path)
        if role in ("tool", "function"):
            last = f"call_fn_{max(legacy_calls - 1, 0)}"  # the old way gives calls no ids
            call = required_str(item, "tool_call_id", path) if role == "tool" else last
            content = _parts(item.get("content"), f"{path}.content")
            results.append(ToolResult(call, content, name=opt_str(item, "name"), cache=_cache(item)))
            continue
        if results:
            out.append(Message("user", tuple(results)))
            results = []
        if role == "assistant":
            parts, legacy_calls = _assistant(item, path, legacy_calls)
            out.append(Message("assistant", parts))
        elif role in ("system", "developer", "user"):
            name: Role = "system" if role == "system" else "developer" if role == "developer" else "user"
            parts = _parts(item.get("content"), f"{path}.content")
            mark = _cache(item)
            if mark is not None and parts and isinstance(parts[-1], Text):
                parts = (*parts[:-1], Text(parts[-1].text, mark))
            out.append(Message(name, parts))
        else:
            raise MalformedError(
                f"`{path}.role` must be system, developer, user, assistant or tool.", field=f"{path}.role"
            )
    if results:
        out.append(Message("user", tuple(results)))
    return tuple(out)


def _assistant(item: JsonObject, path: str, legacy_calls: int) -> tuple[tuple[Part, ...], int]:
    parts: list[Part] = []
    thought = item.get("reasoning_content") or item.get("reasoning")
    if isinstance(thought, str) and thought:
        parts.append(Thinking(thought))
    parts.extend(_parts(item.get("content"), f"{path}.content"))
    if isinstance(item.get("refusal"), str):
        parts.append(Refusal(item["refusal"]))
    for i, raw in enumerate(opt_list(item, "tool_calls")):
        where = f"{path}.tool_calls.{i}"
        call = as_object(raw, where)
        call_id = required_str(call, "id", where)
        if call.get("type") == "custom":
            custom = as_object(call.get("custom"), f"{where}.custom")
            name = required_str(custom, "name", f"{where}.custom")
            parts.append(ToolUse(call_id, name, opt_str(custom, "input") or "", "custom"))
            continue
        function = as_object(call.get("function"), f"{where}.function")
        name = required_str(function, "name", f"{where}.function")
        parts.append(ToolUse(call_id, name, opt_str(function, "arguments") or "", cache=_cache(call)))
    legacy = item.get("function_call")
    if isinstance(legacy, dict):
        name = required_str(legacy, "name", f"{path}.function_call")
        parts.append(ToolUse(f"call_fn_{legacy_calls}", name, opt_str(legacy, "arguments") or ""))
        legacy_calls += 1
    mark = _cache(item)
    if mark is not None and parts and isinstance(parts[-1], Text):
        parts[-1] = Text(parts[-1].text, mark)
    return tuple(parts), legacy_calls


def _parts(content: Any, path: str) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (Text(content),) if content else ()
    return tuple(_part(as_object(p, f"{path}.{i}"), f"{path}.{i}") for i, p in enumerate(as_list(content, path)))


def _part(part: JsonObject, path: str) -> Part:
    kind = required_str(part, "type", path)
    if kind == "text":
        return Text(required_str(part, "text", path), _cache(part))
    if kind == "image_url":
        image = part.get("image_url")
        image = {"url": image} if isinstance(image, str) else as_object(image, f"{path}.image_url")
        url = required_str(image, "url", f"{path}.image_url")
        inline = parse_data_url(url)
        detail = opt_str(image, "detail")
        if inline is not None:
            return Image(data=inline[1], media_type=inline[0], detail=detail, cache=_cache(part))
        return Image(url=url, detail=detail, cache=_cache(part))
    if kind == "input_audio":
        audio = as_object(part.get("input_audio"), f"{path}.input_audio")
        return Audio(
            required_str(audio, "data", f"{path}.input_audio"), required_str(audio, "format", f"{path}.input_audio")
        )
    if kind == "file":
        return _file(as_object(part.get("file"), f"{path}.file"), _cache(part))
    if kind == "refusal":
        return Refusal(required_str(part, "refusal", path))
    return Opaque("openai_chat", part)


def _file(file: JsonObject, cache: CacheMark | None) -> Part:
    title = opt_str(file, "filename")
    data = opt_str(file, "file_data")
    if data is None:
        return Document(file_id=required_str(file, "file_id", "file"), title=title, cache=cache)
    inline = parse_data_url(data)
    if inline is None:
        return Document(data=data, media_type="application/pdf", title=title, cache=cache)
    return Document(data=inline[1], media_type=inline[0], title=title, cache=cache)


def _tool(tool: JsonObject, path: str) -> ToolSpec:
    kind = tool.get("type", "function")
    if kind == "function":
        spec = _function(as_object(tool.get("function"), f"{path}.function"), f"{path}.function")
        cache = _cache(tool) or spec.cache
        return ToolSpec(spec.name, spec.description, spec.schema, spec.strict, cache=cache)
    if kind == "custom":
        custom = as_object(tool.get("custom"), f"{path}.custom")
        return ToolSpec(
            required_str(custom, "name", f"{path}.custom"),
            opt_str(custom, "description"),
            kind="custom",
            grammar=opt_object(custom, "format") or None,
        )
    return ToolSpec(str(kind), provider=Opaque("openai_chat", tool))


def _function(function: JsonObject, path: str) -> ToolSpec:
    return ToolSpec(
        required_str(function, "name", path),
        opt_str(function, "description"),
        opt_object(function, "parameters") or None,
        opt_bool(function, "strict"),
        cache=_cache(function),
    )


def _tool_choice(choice: Any) -> ToolChoice | None:
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice in ("auto", "none", "required"):
            return ToolChoice(choice)  # type: ignore[arg-type]
        if choice == "any":
            return ToolChoice("required")
        raise MalformedError("`tool_choice` must be auto, none, required or an object.", field="tool_choice")
    choice = as_object(choice, "tool_choice")
    kind = choice.get("type")
    if kind == "allowed_tools":
        allowed = as_object(choice.get("allowed_tools"), "tool_choice.allowed_tools")
        names = tuple(
            required_str(as_object(t.get(t.get("type", "function")) or t, "tool_choice"), "name", "tool_choice")
            for t in opt_list(allowed, "tools")
            if isinstance(t, dict)
        )
        mode = "required" if allowed.get("mode") == "required" else "auto"
        return ToolChoice(mode, allowed=names)  # type: ignore[arg-type]
    named = choice.get(kind) if kind in ("function", "custom") else choice  # legacy: {"name": ...}
    return ToolChoice("tool", required_str(as_object(named, "tool_choice"), "name", "tool_choice"))


def _format(raw: Any) -> ResponseFormat | None:
    if raw is None:
        return None
    raw = as_object(raw, "response_format")
    kind = raw.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat("json")
    if kind == "json_schema":
        schema = as_object(raw.get("json_schema"), "response_format.json_schema")
        return ResponseFormat(
            "schema",
            opt_object(schema, "schema") or None,
            opt_str(schema, "name"),
            opt_str(schema, "description"),
            opt_bool(schema, "strict"),
        )
    raise MalformedError("`response_format.type` must be text, json_object or json_schema.", field="response_format")
