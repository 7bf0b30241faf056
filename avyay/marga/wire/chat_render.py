"""Writing requests of the OpenAI Chat Completions API, also as Azure and compatible servers take them."""

from __future__ import annotations

from avyay.marga.wire.data_urls import data_url
from avyay.marga.wire.ids import fit_tool_id, fit_user
from avyay.marga.wire.model import (
    Audio,
    CacheMark,
    Document,
    Image,
    JsonObject,
    Opaque,
    Part,
    Refusal,
    Request,
    ResponseFormat,
    Text,
    Thinking,
    ToolResult,
    ToolSpec,
    ToolUse,
)
from avyay.marga.wire.notes import Notes, UntranslatableError
from avyay.marga.wire.reasoning import effort_for
from avyay.marga.wire.target import Target
from avyay.marga.wire.tools import ToolNames, drop_provider_tools

__all__ = ["render_request"]


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
