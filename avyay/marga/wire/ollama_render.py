"""Writing requests of the native Ollama API: `/api/chat` and `/api/generate`."""

from __future__ import annotations

from avyay.marga.wire.fields import (
    load_arguments,
)
from avyay.marga.wire.model import (
    Audio,
    Document,
    Image,
    JsonObject,
    Opaque,
    Part,
    Refusal,
    Request,
    Text,
    Thinking,
    ToolResult,
    ToolSpec,
    ToolUse,
)
from avyay.marga.wire.notes import Notes, UntranslatableError
from avyay.marga.wire.reasoning import ollama_think
from avyay.marga.wire.target import Target
from avyay.marga.wire.tools import ToolNames, drop_provider_tools, visible_tools

__all__ = ["render_chat", "render_generate"]


def render_chat(request: Request, target: Target, names: ToolNames, notes: Notes) -> JsonObject:
    """The body for `/api/chat`.

    Raises:
        UntranslatableError: Ollama cannot be asked this.
    """
    request = drop_provider_tools(request, "ollama_chat", notes)
    body: JsonObject = {"model": target.model, "messages": _render_messages(request, names, notes)}
    tools = _offered(request, notes)
    if tools:
        body["tools"] = [_render_tool(t, names) for t in tools]
    _settings(request, target, body, notes)
    return body


def render_generate(request: Request, target: Target, notes: Notes) -> JsonObject:
    """The body for `/api/generate`, which holds one prompt.

    Raises:
        UntranslatableError: The request is a conversation or offers tools.
    """
    system = [m for m in request.messages if m.role in ("system", "developer")]
    rest = [m for m in request.messages if m.role not in ("system", "developer")]
    if request.tools or len(rest) != 1 or any(not isinstance(p, Text | Image) for m in rest for p in m.parts):
        raise UntranslatableError(
            "`/api/generate` takes one prompt, not a conversation.", hint="Use the target's `/api/chat`."
        )
    texts, images = _text_and_images(rest[0].parts, notes)
    body: JsonObject = {"model": target.model, "prompt": texts}
    if images:
        body["images"] = images
    if system:
        body["system"] = "\n\n".join(_text_and_images(m.parts, notes)[0] for m in system)
    _settings(request, target, body, notes)
    return body


def _offered(request: Request, notes: Notes) -> tuple[ToolSpec, ...]:
    choice = request.tool_choice
    if choice is not None and choice.mode == "none":
        if request.tools:
            notes.add("tool_choice", "mapped", "no tools are offered")
        return ()
    if choice is not None and choice.mode in ("required", "tool"):
        raise UntranslatableError(
            "Ollama cannot be forced to call a tool.",
            field="tool_choice",
            hint='Use tool_choice "auto", or choose another model.',
        )
    if request.parallel_tools is False and request.tools:
        notes.add("parallel_tool_calls", "dropped", "Ollama has no such setting")
    return visible_tools(request, notes)


def _settings(request: Request, target: Target, body: JsonObject, notes: Notes) -> None:
    body["stream"] = request.stream
    options: JsonObject = {}
    for name, value in request.extra:
        if name.startswith("options."):
            options[name[8:]] = value
        else:
            body[name] = value
    sampling = request.sampling
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty"):
        value = getattr(sampling, name)
        if value is not None:
            options[name] = value
    if sampling.stop:
        options["stop"] = list(sampling.stop)
    if request.max_tokens is not None:
        limit = target.max_output_tokens
        if limit is not None and request.max_tokens > limit:
            notes.add("max_tokens", "clamped", f"the model writes at most {limit} tokens")
        options["num_predict"] = min(request.max_tokens, limit or request.max_tokens)
    if options:
        body["options"] = options
    think = ollama_think(request.reasoning, target, notes)
    if think is not None:
        body["think"] = think
    if request.format is not None:
        body["format"] = request.format.schema if request.format.schema is not None else "json"
    for name, given in (
        ("verbosity", request.verbosity),
        ("metadata", request.metadata),
        ("service_tier", request.service_tier),
        ("prompt_cache_key", request.cache_key),
        ("user", request.user),
        ("cache_control", request.cache),
    ):
        if given:
            notes.add(name, "dropped", "Ollama has no such setting")


def _render_messages(request: Request, names: ToolNames, notes: Notes) -> list[JsonObject]:
    out: list[JsonObject] = []
    called: dict[str, str] = {}
    for message in request.messages:
        if message.role == "assistant":
            out.extend(_render_assistant(message.parts, names, called, notes))
            continue
        rest: list[Part] = []
        for part in message.parts:
            if isinstance(part, ToolResult):
                out.append(_render_result(part, called, notes))
            else:
                rest.append(part)
        text, images = _text_and_images(tuple(rest), notes)
        if text or images:
            item: JsonObject = {"role": "user" if message.role == "user" else "system", "content": text}
            if images:
                item["images"] = images
            out.append(item)
    return out


def _render_assistant(
    parts: tuple[Part, ...], names: ToolNames, called: dict[str, str], notes: Notes
) -> list[JsonObject]:
    text, _ = _text_and_images(tuple(p for p in parts if not isinstance(p, Thinking | ToolUse)), notes)
    item: JsonObject = {"role": "assistant", "content": text}
    thought = ""
    calls: list[JsonObject] = []
    for part in parts:
        if isinstance(part, Thinking):
            if part.carry is not None:
                notes.add("messages.thinking", "stripped", "reasoning signed elsewhere stays with its signer")
            else:
                thought += part.text
        elif isinstance(part, ToolUse):
            name = names.sent(part.name, part.namespace)
            called[part.id] = name
            arguments = load_arguments(names.arguments_for(part))
            if arguments is None:
                notes.add("tool_calls.arguments", "mapped", "broken JSON is sent as text under `input`")
                arguments = {"input": part.arguments}
            function = {"index": len(calls), "name": name, "arguments": arguments}
            calls.append({"id": part.id, "function": function})
    if thought:
        item["thinking"] = thought
    if calls:
        item["tool_calls"] = calls
    return [item] if text or calls or thought else []


def _render_result(result: ToolResult, called: dict[str, str], notes: Notes) -> JsonObject:
    text, images = _text_and_images(result.content, notes)
    if result.is_error:
        notes.add("tool_result.is_error", "mapped", "said in the text of the result")
        text = f"Error:\n{text}"
    item: JsonObject = {"role": "tool", "content": text, "tool_call_id": result.tool_use_id}
    name = called.get(result.tool_use_id) or result.name
    if name:
        item["tool_name"] = name
    if images:
        item["images"] = images
    return item


def _text_and_images(parts: tuple[Part, ...], notes: Notes) -> tuple[str, list[str]]:
    texts: list[str] = []
    images: list[str] = []
    for part in parts:
        if getattr(part, "cache", None) is not None:
            notes.add("cache_control", "dropped", "the target caches by itself")
        match part:
            case Text(text) | Refusal(text):
                texts.append(text)
            case Image():
                if part.data is None:
                    raise UntranslatableError(
                        "Ollama takes images only as data, and this gateway fetches no URLs.",
                        field="messages",
                        hint="Send the image as base64 data.",
                    )
                images.append(part.data)
            case Document():
                if part.text is None:
                    raise UntranslatableError(
                        "Ollama takes no files.", field="messages", hint="Send the document's text."
                    )
                texts.append(f"{part.title}:\n{part.text}" if part.title else part.text)
            case Audio():
                raise UntranslatableError("Ollama takes no audio.", field="messages", hint="Send text.")
            case Opaque(dialect, raw):
                notes.add(f"messages.{raw.get('type', 'item')}", "dropped", f"only {dialect} understands it")
    return "\n".join(texts), images


def _render_tool(tool: ToolSpec, names: ToolNames) -> JsonObject:
    description, schema = names.offered(tool)
    function: JsonObject = {"name": names.sent(tool.name, tool.namespace)}
    if description:
        function["description"] = description
    function["parameters"] = schema
    return {"type": "function", "function": function}
