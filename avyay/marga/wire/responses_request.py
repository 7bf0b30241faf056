"""Requests of the OpenAI Responses API."""

from __future__ import annotations

from typing import Any

from avyay.marga.wire.chat_request import data_url, fit_user, parse_data_url
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
from avyay.marga.wire.ids import fit_tool_id, open_carry
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

__all__ = ["parse_request", "render_request"]

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
_MINIMUM_OUTPUT = 16  # below this the API refuses max_output_tokens


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
        thinking_carry="reasoning.encrypted_content" in opt_list(body, "include"),
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


# --- writing -----------------------------------------------------------------------------------------------------


def render_request(request: Request, target: Target, names: ToolNames, notes: Notes) -> JsonObject:
    """The upstream body. Nothing is stored there, since no caller of another dialect asked for it.

    Raises:
        UntranslatableError: The Responses API cannot say what was asked.
    """
    request = drop_provider_tools(request, "openai_responses", notes)
    body: JsonObject = {
        "model": target.model,
        "input": _render_input(request, target, names, notes),
        "store": False,
    }
    if request.stream:
        body["stream"] = True
    if request.max_tokens is not None:
        limit = target.max_output_tokens or request.max_tokens
        asked = max(_MINIMUM_OUTPUT, min(request.max_tokens, limit))
        if asked != request.max_tokens:
            notes.add("max_tokens", "clamped", f"the range here is {_MINIMUM_OUTPUT} to {limit}")
        body["max_output_tokens"] = asked
    if request.tools:
        body["tools"] = [_render_tool(t, names, notes) for t in request.tools]
        choice = _render_choice(request, names)
        if choice is not None:
            body["tool_choice"] = choice
        if request.parallel_tools is not None:
            body["parallel_tool_calls"] = request.parallel_tools
    _render_sampling(request, target, body, notes)
    _render_reasoning(request, target, body, notes)
    text: JsonObject = {}
    if request.format is not None:
        text["format"] = _render_format(request.format)
    if request.verbosity:
        text["verbosity"] = request.verbosity
    if text:
        body["text"] = text
    if request.metadata:
        body["metadata"] = request.metadata
    if request.cache_key:
        body["prompt_cache_key"] = request.cache_key
    if request.user:
        body["safety_identifier"] = fit_user(request.user)
    if request.service_tier is not None:
        notes.add("service_tier", "dropped", "tiers differ between providers")
    if request.cache is not None:
        notes.add("cache_control", "dropped", "the target caches by itself")
    for name, _ in request.extra:
        notes.add(name, "dropped", "an option of another runtime")
    return body


def _render_sampling(request: Request, target: Target, body: JsonObject, notes: Notes) -> None:
    sampling = request.sampling
    if sampling.stop:
        raise UntranslatableError(
            "The Responses API has no stop strings.",
            field="stop",
            hint="Leave them out, or choose a model served through another API.",
        )
    for name in ("temperature", "top_p"):
        value = getattr(sampling, name)
        if value is None:
            continue
        if not target.sampling:
            notes.add(name, "dropped", "the model takes no sampling settings")
        elif name == "temperature" and value > 2:
            notes.add(name, "clamped", "the range here is 0 to 2")
            body[name] = 2.0
        else:
            body[name] = value
    for name in ("top_k", "min_p", "seed", "frequency_penalty", "presence_penalty"):
        if getattr(sampling, name) is not None:
            notes.add(name, "dropped", "the Responses API has no such setting")


def _render_reasoning(request: Request, target: Target, body: JsonObject, notes: Notes) -> None:
    reasoning: JsonObject = {}
    effort = effort_for(request.reasoning, target, "reasoning", notes)
    if effort is not None:
        reasoning["effort"] = effort
    wanted = request.reasoning.mode == "on" and target.reasoning == "effort"
    if wanted and request.reasoning.display != "omitted":
        reasoning["summary"] = request.reasoning.summary or "auto"
    if reasoning:
        body["reasoning"] = reasoning
    if target.reasoning == "effort":
        body["include"] = ["reasoning.encrypted_content"]


def _mark(part: JsonObject, cache: CacheMark | None, target: Target, notes: Notes) -> JsonObject:
    if cache is None:
        return part
    if target.cache == "breakpoint":
        ttl = {"1h": "12h", "12h": "12h", "30m": "30m"}.get(cache.ttl or "")
        part["prompt_cache_breakpoint"] = {"mode": "explicit", **({"ttl": ttl} if ttl else {})}
    else:
        notes.add("cache_control", "dropped", "the target caches by itself")
    return part


def _render_input(request: Request, target: Target, names: ToolNames, notes: Notes) -> list[JsonObject]:
    out: list[JsonObject] = []
    for message in request.messages:
        held: list[JsonObject] = []

        def flush(role: str, held: list[JsonObject]) -> None:
            if held:
                out.append({"type": "message", "role": role, "content": list(held)})
                held.clear()

        for part in message.parts:
            match part:
                case ToolUse():
                    flush(message.role, held)
                    out.append(_render_call(part, names))
                case ToolResult():
                    flush(message.role, held)
                    out.append(_render_output(part, target, notes))
                case Thinking():
                    flush(message.role, held)
                    item = _render_thought(part, notes)
                    if item is not None:
                        out.append(item)
                case _:
                    rendered = _render_part(part, target, notes, assistant=message.role == "assistant")
                    if rendered is not None:
                        held.append(rendered)
        flush(message.role, held)
    return _results_first(out)


def _results_first(items: list[JsonObject]) -> list[JsonObject]:
    """Tool outputs directly behind their calls, before what else the user says in that turn."""
    out: list[JsonObject] = []
    for item in items:
        if item["type"].endswith("_output"):
            at = len(out)
            while at and out[at - 1].get("role") == "user":
                at -= 1
            if at and (out[at - 1]["type"].endswith(("_call", "_output"))):
                out.insert(at, item)
                continue
        out.append(item)
    return out


def _render_call(part: ToolUse, names: ToolNames) -> JsonObject:
    name = names.sent(part.name, part.namespace)
    call_id = fit_tool_id("openai_responses", part.id)
    if part.kind == "custom":
        return {"type": "custom_tool_call", "call_id": call_id, "name": name, "input": part.arguments}
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": names.arguments_for(part)}


def _render_output(part: ToolResult, target: Target, notes: Notes) -> JsonObject:
    content: list[JsonObject] = []
    if part.is_error:
        notes.add("tool_result.is_error", "mapped", "said in the text of the result")
        content.append({"type": "input_text", "text": "Error:"})
    for piece in part.content:
        rendered = _render_part(piece, target, notes, assistant=False)
        if rendered is not None:
            content.append(rendered)
    output: str | list[JsonObject] = content
    if all(p.keys() == {"type", "text"} for p in content):
        output = "\n".join(p["text"] for p in content)
    kind = "custom_tool_call_output" if part.kind == "custom" else "function_call_output"
    return {"type": kind, "call_id": fit_tool_id("openai_responses", part.tool_use_id), "output": output}


def _render_thought(part: Thinking, notes: Notes) -> JsonObject | None:
    carry = part.carry
    if carry is None or carry.dialect != "openai_responses":
        notes.add("messages.thinking", "stripped", "reasoning signed elsewhere cannot be read here")
        return None
    summary = [{"type": "summary_text", "text": part.text}] if part.text else []
    item: JsonObject = {"type": "reasoning", "summary": summary, "encrypted_content": carry.token}
    if carry.item_id:
        item["id"] = carry.item_id
    return item


def _render_part(part: Part, target: Target, notes: Notes, *, assistant: bool) -> JsonObject | None:
    match part:
        case Text(text, cache):
            if not text:
                return None
            return _mark({"type": "output_text" if assistant else "input_text", "text": text}, cache, target, notes)
        case Refusal(text):
            return {"type": "refusal", "refusal": text} if assistant else {"type": "input_text", "text": text}
        case Image():
            image: JsonObject = {"type": "input_image", "detail": part.detail or "auto"}
            if part.file_id is not None:
                raise UntranslatableError(
                    "An image that another provider stores cannot be sent to the Responses API.",
                    field="messages",
                    hint="Send the image as data or as an https URL.",
                )
            image["image_url"] = part.url or data_url(part.media_type or "image/png", part.data or "")
            return _mark(image, part.cache, target, notes)
        case Document():
            return _mark(_render_document(part), part.cache, target, notes)
        case Audio(data, form):
            return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
        case Opaque(dialect, raw):
            if dialect == "openai_responses":
                return raw
            notes.add(f"messages.{raw.get('type', 'item')}", "dropped", f"only {dialect} understands it")
    return None


def _render_document(document: Document) -> JsonObject:
    if document.text is not None:
        head = f"{document.title}:\n" if document.title else ""
        return {"type": "input_text", "text": f"{head}{document.text}"}
    out: JsonObject = {"type": "input_file"}
    if document.url is not None:
        out["file_url"] = document.url
    elif document.file_id is not None:
        out["file_id"] = document.file_id
    else:
        out["filename"] = document.title or "document.pdf"
        out["file_data"] = data_url(document.media_type or "application/pdf", document.data or "")
    return out


def _render_tool(tool: ToolSpec, names: ToolNames, notes: Notes) -> JsonObject:
    if tool.provider is not None:
        return tool.provider.raw
    out: JsonObject = {"type": tool.kind, "name": names.sent(tool.name, tool.namespace)}
    if tool.description:
        out["description"] = tool.description
    if tool.cache is not None:
        notes.add("cache_control", "dropped", "the target caches by itself")
    if tool.kind == "custom":
        if tool.grammar:
            out["format"] = _flat_grammar(tool.grammar)
        return out
    # Strict is the default here and would change the schema's meaning, so it is always said.
    return {**out, "parameters": names.offered(tool)[1], "strict": bool(tool.strict)}


def _flat_grammar(grammar: JsonObject) -> JsonObject:
    inner = grammar.get("grammar")
    return {"type": "grammar", **inner} if isinstance(inner, dict) else grammar


def _render_choice(request: Request, names: ToolNames) -> str | JsonObject | None:
    choice = request.tool_choice
    if choice is None:
        return None

    def named(name: str) -> JsonObject:
        sent = names.sent_for(name)
        return {"type": names.restore(sent).kind, "name": sent}

    if choice.allowed is not None:
        mode = "required" if choice.mode == "required" else "auto"
        return {"type": "allowed_tools", "mode": mode, "tools": [named(n) for n in choice.allowed]}
    if choice.mode == "tool" and choice.name is not None:
        return named(choice.name)
    return choice.mode


def _render_format(wanted: ResponseFormat) -> JsonObject:
    if wanted.kind == "json" or wanted.schema is None:
        return {"type": "json_object"}
    out: JsonObject = {"type": "json_schema", "name": wanted.name or "answer", "schema": wanted.schema}
    if wanted.description:
        out["description"] = wanted.description
    if wanted.strict is not None:
        out["strict"] = wanted.strict
    return out
