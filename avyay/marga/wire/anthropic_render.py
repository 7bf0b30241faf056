"""Writing requests of the Anthropic Messages API."""

from __future__ import annotations

import orjson

from avyay.marga.wire.fields import (
    load_arguments,
)
from avyay.marga.wire.ids import fit_tool_id
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
    ToolChoice,
    ToolResult,
    ToolSpec,
    ToolUse,
)
from avyay.marga.wire.notes import Notes, UntranslatableError
from avyay.marga.wire.reasoning import anthropic_thinking
from avyay.marga.wire.target import Target
from avyay.marga.wire.tools import ToolNames, drop_provider_tools, visible_tools

__all__ = ["render_request"]

DEFAULT_MAX_TOKENS = 8192
_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def render_request(request: Request, target: Target, names: ToolNames, notes: Notes) -> JsonObject:
    """The upstream body.

    Raises:
        UntranslatableError: The Messages API cannot say what was asked.
    """
    request = drop_provider_tools(request, "anthropic_messages", notes)
    body: JsonObject = {"model": target.model}
    maximum = _max_tokens(request, target, notes)
    body["max_tokens"] = maximum
    system, messages = _messages(request, target, names, notes)
    if system:
        body["system"] = system
    body["messages"] = messages
    if request.stream:
        body["stream"] = True
    tools = [_render_tool(t, target, names, notes) for t in visible_tools(request, notes)]
    if tools:
        body["tools"] = tools
        choice = _render_choice(request, names)
        if choice:
            body["tool_choice"] = choice
    config: JsonObject = {}
    thinking, effort = anthropic_thinking(request, target, maximum, _starts_with_thinking(messages), notes)
    if thinking:
        body["thinking"] = thinking
    if effort:
        config["effort"] = effort
    _sampling(request, target, thinking is not None and thinking.get("type") != "disabled", body, notes)
    if request.format is not None:
        _render_format(request.format, target, config, body, notes)
    if config:
        body["output_config"] = config
    if request.user:
        body["metadata"] = {"user_id": request.user[:256]}
    if request.cache is not None and target.cache == "cache_control":
        body["cache_control"] = _render_cache(request.cache)
    _leftovers(request, body, notes)
    return body


def _max_tokens(request: Request, target: Target, notes: Notes) -> int:
    limit = target.max_output_tokens
    asked = request.max_tokens
    if asked is None:
        notes.add("max_tokens", "defaulted", "the Messages API requires a limit")
        return limit or DEFAULT_MAX_TOKENS
    if limit is not None and asked > limit:
        notes.add("max_tokens", "clamped", f"the model writes at most {limit} tokens")
        return limit
    return asked


def _render_cache(mark: CacheMark) -> JsonObject:
    if mark.ttl == "1h" or mark.ttl == "12h":
        return {"type": "ephemeral", "ttl": "1h"}
    return {"type": "ephemeral", "ttl": "5m"} if mark.ttl == "5m" else {"type": "ephemeral"}


def _messages(
    request: Request, target: Target, names: ToolNames, notes: Notes
) -> tuple[list[JsonObject], list[JsonObject]]:
    """System blocks, and messages in strictly alternating turns with tool results first in theirs."""
    system: list[JsonObject] = []
    turns: list[JsonObject] = []
    held: list[JsonObject] = []  # instructions waiting for a user turn to follow
    for message in request.messages:
        if message.role in ("system", "developer"):
            blocks = _blocks(message.parts, target, names, notes)
            if not turns and not held:
                system.extend(blocks)
            elif target.mid_system:
                if turns[-1]["role"] == "user":
                    turns.append({"role": "system", "content": blocks})
                elif turns[-1]["role"] == "system":
                    turns[-1]["content"].extend(blocks)
                else:
                    notes.add("messages.system", "moved", "an instruction may only follow a user turn")
                    held.extend(blocks)
            else:
                notes.add("messages.system", "moved", "told in a user turn: the model takes no later instructions")
                held.extend(_as_user_text(blocks))
                if turns[-1]["role"] == "user":
                    turns[-1]["content"].extend(held)
                    held = []
            continue
        blocks = _blocks(message.parts, target, names, notes)
        if not blocks and not (held and message.role == "user"):
            continue
        if turns and turns[-1]["role"] == message.role:
            turns[-1]["content"].extend(blocks)
        else:
            turns.append({"role": message.role, "content": blocks})
        if held and message.role == "user":
            if target.mid_system:
                turns.append({"role": "system", "content": held})
            else:
                turns[-1]["content"] = turns[-1]["content"][: -len(blocks) or None] + held + blocks
            held = []
    if held:
        turns.append({"role": "user", "content": _as_user_text(held) if target.mid_system else held})
    if not turns:
        raise UntranslatableError(
            "The Messages API needs at least one user message.",
            field="messages",
            hint="Add a user message after the instructions.",
        )
    if turns[0]["role"] == "assistant":
        notes.add("messages", "moved", "the conversation must open with a user turn")
        turns.insert(0, {"role": "user", "content": [{"type": "text", "text": "(conversation continues)"}]})
    for turn in turns:
        if turn["role"] == "user":
            turn["content"].sort(key=lambda block: block["type"] != "tool_result")  # stable: order is kept otherwise
    return system, turns


def _as_user_text(blocks: list[JsonObject]) -> list[JsonObject]:
    return [{**b, "text": f"<system>\n{b['text']}\n</system>"} if b.get("type") == "text" else b for b in blocks]


def _blocks(parts: tuple[Part, ...], target: Target, names: ToolNames, notes: Notes) -> list[JsonObject]:
    out: list[JsonObject] = []
    for part in parts:
        block = _block(part, target, names, notes)
        if block is not None:
            mark = getattr(part, "cache", None)
            if mark is not None:
                if target.cache == "cache_control":
                    block["cache_control"] = _render_cache(mark)
                else:
                    notes.add("cache_control", "dropped", "the target takes no cache marks")
            out.append(block)
    return out


def _block(part: Part, target: Target, names: ToolNames, notes: Notes) -> JsonObject | None:
    match part:
        case Text(text) | Refusal(text):
            return {"type": "text", "text": text} if text else None
        case Thinking():
            return _render_thinking(part, notes)
        case ToolUse():
            arguments = names.arguments_for(part)
            parsed = load_arguments(arguments)
            if parsed is None:
                notes.add("tool_calls.arguments", "mapped", "broken JSON is sent as text under `input`")
                parsed = {"input": arguments}
            call = fit_tool_id("anthropic_messages", part.id)
            return {"type": "tool_use", "id": call, "name": names.sent(part.name, part.namespace), "input": parsed}
        case ToolResult():
            content = _blocks(part.content, target, names, notes)
            block: JsonObject = {
                "type": "tool_result",
                "tool_use_id": fit_tool_id("anthropic_messages", part.tool_use_id),
            }
            if len(content) == 1 and content[0].keys() == {"type", "text"}:
                block["content"] = content[0]["text"]
            elif content:
                block["content"] = content
            if part.is_error:
                block["is_error"] = True
            return block
        case Image():
            return {"type": "image", "source": _image_source(part, notes)}
        case Document():
            return _render_document(part)
        case Audio():
            raise UntranslatableError(
                "The Messages API takes no audio.", field="messages", hint="Send text, or choose another model."
            )
        case Opaque(dialect, raw):
            if dialect == "anthropic_messages":
                return raw
            notes.add(f"messages.{raw.get('type', 'item')}", "dropped", f"only {dialect} understands it")
            return None
    return None


def _render_thinking(part: Thinking, notes: Notes) -> JsonObject | None:
    carry = part.carry
    if carry is None or carry.dialect != "anthropic_messages":
        notes.add("messages.thinking", "stripped", "reasoning signed elsewhere cannot be checked here")
        return None
    if part.redacted:
        return {"type": "redacted_thinking", "data": carry.token}
    return {"type": "thinking", "thinking": part.text, "signature": carry.token}


def _image_source(image: Image, notes: Notes) -> JsonObject:
    if image.detail not in (None, "auto"):
        notes.add("image_url.detail", "dropped", "the Messages API has no detail level")
    if image.data is not None:
        media_type = image.media_type or "image/png"
        if media_type == "image/jpg":
            media_type = "image/jpeg"
        if media_type not in _IMAGE_TYPES:
            raise UntranslatableError(
                f"The Messages API takes no {media_type} images.",
                field="messages",
                hint="Send JPEG, PNG, GIF or WebP.",
            )
        return {"type": "base64", "media_type": media_type, "data": image.data}
    if image.url is not None:
        return {"type": "url", "url": image.url}
    raise UntranslatableError(
        "An image that another provider stores cannot be sent to the Messages API.",
        field="messages",
        hint="Send the image as data or as an https URL.",
    )


def _render_document(document: Document) -> JsonObject:
    source: JsonObject
    if document.text is not None:
        source = {"type": "text", "media_type": "text/plain", "data": document.text}
    elif document.data is not None:
        if document.media_type not in (None, "application/pdf"):
            raise UntranslatableError(
                f"The Messages API takes no {document.media_type} files.", field="messages", hint="Send PDF or text."
            )
        source = {"type": "base64", "media_type": "application/pdf", "data": document.data}
    elif document.url is not None:
        source = {"type": "url", "url": document.url}
    else:
        raise UntranslatableError(
            "A file that another provider stores cannot be sent to the Messages API.",
            field="messages",
            hint="Send the file as data.",
        )
    block: JsonObject = {"type": "document", "source": source}
    if document.title:
        block["title"] = document.title
    return block


def _render_tool(tool: ToolSpec, target: Target, names: ToolNames, notes: Notes) -> JsonObject:
    if tool.provider is not None:
        return tool.provider.raw
    out: JsonObject = {"name": names.sent(tool.name, tool.namespace)}
    description, schema = names.offered(tool)
    if description:
        out["description"] = description
    out["input_schema"] = schema if schema.get("type") == "object" else {"type": "object", **schema}
    if tool.strict:
        out["strict"] = True
    if tool.cache is not None:
        if target.cache == "cache_control":
            out["cache_control"] = _render_cache(tool.cache)
        else:
            notes.add("cache_control", "dropped", "the target takes no cache marks")
    return out


def _render_choice(request: Request, names: ToolNames) -> JsonObject | None:
    choice = request.tool_choice or ToolChoice("auto")
    out: JsonObject
    if choice.mode == "none":
        return {"type": "none"}
    if choice.mode == "required":
        out = {"type": "any"}
    elif choice.mode == "tool" and choice.name is not None:
        out = {"type": "tool", "name": names.sent_for(choice.name)}
    else:
        out = {"type": "auto"}
    if request.parallel_tools is not None:
        out["disable_parallel_tool_use"] = not request.parallel_tools
    elif request.tool_choice is None:
        return None
    return out


def _starts_with_thinking(messages: list[JsonObject]) -> bool:
    """Whether the turn a tool loop is in opens with reasoning, as a token budget demands of it."""
    for message in reversed(messages):
        if message["role"] == "assistant":
            return message["content"][0]["type"] in ("thinking", "redacted_thinking")
    return False


def _sampling(request: Request, target: Target, thinks: bool, body: JsonObject, notes: Notes) -> None:
    sampling = request.sampling
    stop = [s for s in sampling.stop if s.strip()]
    if len(stop) < len(sampling.stop):
        notes.add("stop", "dropped", "the Messages API refuses stop strings of white space")
    if stop:
        body["stop_sequences"] = stop
    for name in ("temperature", "top_p", "top_k"):
        value = getattr(sampling, name)
        if value is None:
            continue
        if not target.sampling:
            notes.add(name, "dropped", "the model takes no sampling settings")
        elif thinks and (name != "top_p" or value < 0.95):
            notes.add(name, "dropped", "not allowed together with thinking")
        elif name == "temperature" and value > 1:
            notes.add(name, "clamped", "the range here is 0 to 1")
            body[name] = 1.0
        else:
            body[name] = value
    for name in ("min_p", "seed", "frequency_penalty", "presence_penalty"):
        if getattr(sampling, name):
            notes.add(name, "dropped", "the Messages API has no such setting")


def _render_format(wanted: ResponseFormat, target: Target, config: JsonObject, body: JsonObject, notes: Notes) -> None:
    if wanted.kind == "schema" and wanted.schema is not None and target.json_schema:
        config["format"] = {"type": "json_schema", "schema": wanted.schema}
        return
    notes.add("response_format", "mapped", "asked for in the instructions: no such output mode")
    text = "Answer with one valid JSON object and nothing else."
    if wanted.schema is not None:
        text += f" It must match this JSON Schema:\n{orjson.dumps(wanted.schema).decode()}"
    body["system"] = [*body.get("system", []), {"type": "text", "text": text}]


def _leftovers(request: Request, body: JsonObject, notes: Notes) -> None:
    if request.service_tier in ("auto", "standard_only"):
        body["service_tier"] = request.service_tier
    elif request.service_tier is not None:
        notes.add("service_tier", "dropped", "tiers differ between providers")
    if request.verbosity:
        notes.add("verbosity", "dropped", "the Messages API has no such setting")
    if request.metadata:
        notes.add("metadata", "dropped", "the Messages API stores no metadata")
    if request.cache_key:
        notes.add("prompt_cache_key", "dropped", "the Messages API has no cache keys")
    for name, _ in request.extra:
        notes.add(name, "dropped", "an option of another runtime")
