"""Requests of the OpenAI Chat Completions API, also as Azure and compatible servers take them."""

from __future__ import annotations

import re
from typing import Any

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
from avyay.marga.wire.ids import fit_tool_id
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
from avyay.marga.wire.reasoning import effort_for
from avyay.marga.wire.target import Target
from avyay.marga.wire.tools import ToolNames, drop_provider_tools

__all__ = ["data_url", "parse_data_url", "parse_request", "render_request"]

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*?(;base64)?,", re.ASCII)
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


def data_url(media_type: str | None, data: str) -> str:
    return f"data:{media_type or 'application/octet-stream'};base64,{data}"


def parse_data_url(url: str) -> tuple[str | None, str] | None:
    """Media type and base64 data of a data URL; None for any other URL. Nothing is ever fetched."""
    if not url.startswith("data:"):
        return None
    found = _DATA_URL.match(url)
    if found is None or not found[2]:
        raise MalformedError("A data URL must be base64-encoded.", field="image_url.url", code="invalid_image_url")
    return found[1], url[found.end() :]


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
        thinking_carry=False,
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


# --- writing -----------------------------------------------------------------------------------------------------


def render_request(request: Request, target: Target, names: ToolNames, notes: Notes) -> JsonObject:
    """The upstream body.

    Raises:
        UntranslatableError: Chat Completions cannot say what was asked.
    """
    request = drop_provider_tools(request, "openai_chat", notes)
    body: JsonObject = {"model": target.model, "messages": _render_messages(request, target, names, notes)}
    if request.stream:
        body["stream"] = True
        if target.stream_usage:
            body["stream_options"] = {"include_usage": True}
    if request.max_tokens is not None:
        limit = target.max_output_tokens
        if limit is not None and request.max_tokens > limit:
            notes.add("max_tokens", "clamped", f"the model writes at most {limit} tokens")
        body[target.max_tokens_field] = min(request.max_tokens, limit or request.max_tokens)
    if request.tools:
        body["tools"] = [_render_tool(t, target, names, notes) for t in request.tools]
        choice = _render_choice(request, names)
        if choice is not None:
            body["tool_choice"] = choice
        if request.parallel_tools is not None:
            body["parallel_tool_calls"] = request.parallel_tools
    _render_sampling(request, target, body, notes)
    effort = effort_for(request.reasoning, target, "reasoning", notes)
    if effort is not None:
        body["reasoning_effort"] = effort
    if request.format is not None:
        body["response_format"] = _render_format(request.format, target, notes)
    for name, value in (
        ("verbosity", request.verbosity),
        ("metadata", request.metadata),
        ("prompt_cache_key", request.cache_key),
    ):
        if value:
            body[name] = value
    if request.user:
        body["user" if target.max_tokens_field == "max_tokens" else "safety_identifier"] = fit_user(request.user)
    if request.service_tier is not None:
        notes.add("service_tier", "dropped", "tiers differ between providers")
    if request.cache is not None and target.cache == "none":
        notes.add("cache_control", "dropped", "the target caches by itself")
    for name, _ in request.extra:
        notes.add(name, "dropped", "an option of another runtime")
    return body


def fit_user(user: str) -> str:
    """An end-user id within OpenAI's 64 characters, the same one each time."""
    return user if len(user) <= 64 else fit_tool_id("openai_chat", user)


def _render_cache(part: JsonObject, mark: CacheMark | None, target: Target, notes: Notes) -> JsonObject:
    if mark is None:
        return part
    if target.cache == "cache_control":
        part["cache_control"] = {"type": "ephemeral", **({"ttl": mark.ttl} if mark.ttl in ("5m", "1h") else {})}
    elif target.cache == "breakpoint":
        ttl = {"1h": "12h", "12h": "12h", "30m": "30m"}.get(mark.ttl or "")
        part["prompt_cache_breakpoint"] = {"mode": "explicit", **({"ttl": ttl} if ttl else {})}
    else:
        notes.add("cache_control", "dropped", "the target caches by itself")
    return part


def _render_messages(request: Request, target: Target, names: ToolNames, notes: Notes) -> list[JsonObject]:
    out: list[JsonObject] = []
    for message in request.messages:
        if message.role == "assistant":
            rendered = _render_assistant(message.parts, target, names, notes)
            if rendered is not None:
                out.append(rendered)
            continue
        if message.role in ("system", "developer"):
            role = message.role if message.role == "system" or target.developer_role else "system"
            content = _render_content(message.parts, target, notes)
            if content:
                out.append({"role": role, "content": content})
            continue
        # Results stand directly behind the calls they answer; whatever else the turn says follows them.
        rest: list[Part] = []
        pictures: list[Part] = []
        for part in message.parts:
            if isinstance(part, ToolResult):
                out.append(_render_result(part, target, notes, pictures))
            else:
                rest.append(part)
        content = _render_content((*pictures, *rest), target, notes)
        if content:
            out.append({"role": "user", "content": content})
    return out


def _render_result(result: ToolResult, target: Target, notes: Notes, pictures: list[Part]) -> JsonObject:
    """A tool message. It holds only text, so pictures follow in a user message that names the call."""
    texts: list[Part] = []
    seen = [p for p in result.content if isinstance(p, Image | Document)]
    for part in result.content:
        if isinstance(part, Text):
            texts.append(part)
        elif isinstance(part, Opaque):
            notes.add(f"messages.{part.raw.get('type', 'item')}", "dropped", f"only {part.dialect} understands it")
    call = fit_tool_id("openai_chat", result.tool_use_id)
    if seen:
        notes.add("tool_result.image", "moved", "a tool message holds only text; pictures follow as user content")
        pictures.append(Text(f"Files returned by tool call {call}:"))
        pictures.extend(seen)
    if result.is_error:
        notes.add("tool_result.is_error", "mapped", "said in the text of the result")
        texts.insert(0, Text("Error:"))
    content = _render_content(tuple(texts), target, notes)
    if isinstance(content, list) and not any(len(p) > 2 for p in content):
        content = "\n".join(p["text"] for p in content)
    if not content:
        content = "(see the files below)" if seen else ""
    return {"role": "tool", "tool_call_id": call, "content": content}


def _render_content(parts: tuple[Part, ...], target: Target, notes: Notes) -> str | list[JsonObject]:
    if len(parts) == 1 and isinstance(parts[0], Text) and (parts[0].cache is None or target.cache == "none"):
        if parts[0].cache is not None:
            notes.add("cache_control", "dropped", "the target caches by itself")
        return parts[0].text
    out: list[JsonObject] = []
    for part in parts:
        rendered = _render_part(part, notes)
        if rendered is not None:
            out.append(_render_cache(rendered, getattr(part, "cache", None), target, notes))
    return out


def _render_part(part: Part, notes: Notes) -> JsonObject | None:
    match part:
        case Text(text) | Refusal(text):
            return {"type": "text", "text": text} if text else None
        case Image():
            if part.file_id is not None:
                raise UntranslatableError(
                    "An image that another provider stores cannot be sent in Chat Completions.",
                    field="messages",
                    hint="Send the image as data or as an https URL.",
                )
            url = part.url or data_url(part.media_type or "image/png", part.data or "")
            image: JsonObject = {"url": url}
            if part.detail:
                image["detail"] = part.detail
            return {"type": "image_url", "image_url": image}
        case Document():
            return _render_document(part)
        case Audio(data, form):
            return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
        case Opaque(dialect, raw):
            if dialect == "openai_chat":
                return raw
            notes.add(f"messages.{raw.get('type', 'item')}", "dropped", f"only {dialect} understands it")
    return None


def _render_document(document: Document) -> JsonObject:
    if document.text is not None:
        head = f"{document.title}:\n" if document.title else ""
        return {"type": "text", "text": f"{head}{document.text}"}
    if document.url is not None:
        raise UntranslatableError(
            "A document given by URL cannot be sent in Chat Completions.",
            field="messages",
            hint="Send the document as data.",
        )
    if document.file_id is not None:
        return {"type": "file", "file": {"file_id": document.file_id}}
    media_type = document.media_type or "application/pdf"
    name = document.title or "document.pdf"
    return {"type": "file", "file": {"filename": name, "file_data": data_url(media_type, document.data or "")}}


def _render_assistant(parts: tuple[Part, ...], target: Target, names: ToolNames, notes: Notes) -> JsonObject | None:
    prose: list[Part] = []
    calls: list[JsonObject] = []
    refusal = ""
    for part in parts:
        if isinstance(part, ToolUse):
            name = names.sent(part.name, part.namespace)
            call: JsonObject = {"id": fit_tool_id("openai_chat", part.id)}
            if part.kind == "custom" and not names.restore(name).wrapped:
                call |= {"type": "custom", "custom": {"name": name, "input": part.arguments}}
            else:
                call |= {"type": "function", "function": {"name": name, "arguments": names.arguments_for(part)}}
            calls.append(call)
        elif isinstance(part, Thinking):
            notes.add("messages.thinking", "stripped", "Chat Completions takes no earlier reasoning back")
        elif isinstance(part, Refusal):
            refusal += part.text
        else:
            prose.append(part)
    content = _render_content(tuple(prose), target, notes)
    if isinstance(content, list) and all(p["type"] == "text" and len(p) == 2 for p in content):
        # One string is what every compatible server understands.
        content = "".join(p["text"] for p in content)
    out: JsonObject = {"role": "assistant", "content": content or None}
    if refusal:
        out["refusal"] = refusal
    if calls:
        out["tool_calls"] = calls
    return out if content or calls or refusal else None


def _render_tool(tool: ToolSpec, target: Target, names: ToolNames, notes: Notes) -> JsonObject:
    if tool.provider is not None:
        return tool.provider.raw
    name = names.sent(tool.name, tool.namespace)
    if tool.kind == "custom" and not names.restore(name).wrapped:
        custom: JsonObject = {"name": name}
        if tool.description:
            custom["description"] = tool.description
        if tool.grammar:
            custom["format"] = _nested_grammar(tool.grammar)
        return {"type": "custom", "custom": custom}
    description, schema = names.offered(tool)
    function: JsonObject = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return _render_cache({"type": "function", "function": function}, tool.cache, target, notes)


def _nested_grammar(grammar: JsonObject) -> JsonObject:
    """Responses writes a grammar flat, Chat nests it."""
    if grammar.get("type") == "grammar" and "grammar" not in grammar:
        return {"type": "grammar", "grammar": {k: v for k, v in grammar.items() if k != "type"}}
    return grammar


def _render_choice(request: Request, names: ToolNames) -> str | JsonObject | None:
    choice = request.tool_choice
    if choice is None:
        return None

    def named(name: str) -> JsonObject:
        sent = names.sent_for(name)
        ref = names.restore(sent)
        kind = "custom" if ref.kind == "custom" and not ref.wrapped else "function"
        return {"type": kind, kind: {"name": sent}}

    if choice.allowed is not None:
        tools = [named(n) for n in choice.allowed]
        mode = "required" if choice.mode == "required" else "auto"
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
    if choice.mode == "tool" and choice.name is not None:
        return named(choice.name)
    return choice.mode


def _render_sampling(request: Request, target: Target, body: JsonObject, notes: Notes) -> None:
    sampling = request.sampling
    for name in ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"):
        value = getattr(sampling, name)
        if value is None:
            continue
        if not target.sampling and name != "seed":
            notes.add(name, "dropped", "the model takes no sampling settings")
        elif name == "temperature" and value > 2:
            notes.add(name, "clamped", "the range here is 0 to 2")
            body[name] = 2.0
        elif name.endswith("penalty") and not -2 <= value <= 2:
            notes.add(name, "clamped", "the range here is -2 to 2")
            body[name] = max(-2.0, min(2.0, value))
        else:
            body[name] = value
    for name in ("top_k", "min_p"):
        value = getattr(sampling, name)
        if value is not None:
            if target.top_k:
                body[name] = value
            else:
                notes.add(name, "dropped", "Chat Completions has no such setting")
    if sampling.stop:
        stop = list(sampling.stop)
        if target.max_stop is not None and len(stop) > target.max_stop:
            raise UntranslatableError(
                f"The target takes at most {target.max_stop} stop strings, {len(stop)} were given.",
                field="stop",
                hint="Give fewer stop strings, or choose another model.",
            )
        body["stop"] = stop


def _render_format(wanted: ResponseFormat, target: Target, notes: Notes) -> JsonObject:
    if wanted.kind == "json" or wanted.schema is None:
        return {"type": "json_object"}
    if not target.json_schema:
        notes.add("response_format", "mapped", "the target knows JSON mode only")
        return {"type": "json_object"}
    schema: JsonObject = {"name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.description:
        schema["description"] = wanted.description
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}
