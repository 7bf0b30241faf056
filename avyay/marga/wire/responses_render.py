"""Writing requests of the OpenAI Responses API."""

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

_MINIMUM_OUTPUT = 16  # below this the API refuses max_output_tokens


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
