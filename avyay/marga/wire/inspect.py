"""What routing wants to know of a request, read straight from the caller's body without translating it.

Runs on every request, so it walks the body once, follows no block it does not need, and tolerates whatever a later
parse would refuse: a wrong type simply does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import orjson

from avyay.marga.wire.fields import required_str
from avyay.marga.wire.model import Dialect, Effort, JsonObject
from avyay.marga.wire.thinking import has_foreign_thinking

__all__ = ["RequestFeatures", "inspect", "map_text", "prompt_texts"]

JsonMode: TypeAlias = Literal["none", "json", "schema"]


@dataclass(slots=True)
class RequestFeatures:
    """Counts are characters, not tokens.

    Attributes:
        model: As the caller wrote it.
        stream: Whether the answer is to be streamed.
        messages: Messages or items of the conversation.
        turns: User messages that are more than tool results.
        system_chars: System and developer text.
        prompt_chars: All text sent, tools included.
        last_user_text: The newest user message's text, for classification; do not store it.
        images, documents, audio: How many of each.
        tools: Function tools offered.
        provider_tools: Names of tools only their own provider can run.
        tool_calls: Tool calls in the history.
        tool_results: Tool results in the history.
        tool_loop: The conversation ends with tool results: the model that called must answer.
        forced_tool: The answer must be a tool call.
        json_mode: What kind of structured answer is asked for.
        signed_thinking: The history holds reasoning only its issuer accepts back.
        foreign_thinking: Some of it no provider of this dialect issued (`begin` then strips it).
        reasoning: Whether thinking is asked for.
        effort: The level asked for.
        thinking_budget: The token budget asked for.
        max_tokens: The output limit asked for.
        temperature: As asked.
        choices: `n`, or 1.
        logprobs: Whether log probabilities are asked for.
        previous_response_id: Responses: the stored answer this continues, which pins its provider.
        stores: Responses: whether the answer is to be stored by the provider.
        cache_marks: Whether prompt-cache marks are present.
        user: The end user's id, as the caller names it.
        session: A session key the caller gives, if any.
    """

    model: str = ""
    stream: bool = False
    messages: int = 0
    turns: int = 0
    system_chars: int = 0
    prompt_chars: int = 0
    last_user_text: str = ""
    images: int = 0
    documents: int = 0
    audio: int = 0
    tools: int = 0
    provider_tools: tuple[str, ...] = ()
    tool_calls: int = 0
    tool_results: int = 0
    tool_loop: bool = False
    forced_tool: bool = False
    json_mode: JsonMode = "none"
    signed_thinking: bool = False
    foreign_thinking: bool = False
    reasoning: bool = False
    effort: Effort | None = None
    thinking_budget: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    choices: int = 1
    logprobs: bool = False
    previous_response_id: str | None = None
    stores: bool = False
    cache_marks: bool = False
    user: str | None = None
    session: str | None = None

    @property
    def vision(self) -> bool:
        return self.images > 0


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def inspect(dialect: Dialect, body: JsonObject) -> RequestFeatures:
    """The features of a request.

    Raises:
        MalformedError: There is no model name.
    """
    out = RequestFeatures(model=required_str(body, "model", ""))
    ollama = dialect in ("ollama_chat", "ollama_generate")
    stream = body.get("stream")
    out.stream = stream is not False if ollama else stream is True
    if dialect == "openai_responses":
        _responses(body, out)
    elif dialect == "ollama_generate":
        _generate(body, out)
    else:
        _messages(dialect, body, out)
    if dialect == "anthropic_messages":
        _anthropic_settings(body, out)
    elif ollama:
        _ollama_settings(body, out)
    else:
        _openai_settings(body, out)
    _tools(body, out)
    if out.signed_thinking or dialect == "anthropic_messages":
        out.foreign_thinking = has_foreign_thinking(dialect, body)
    return out


def _text(value: str, role: str, out: RequestFeatures, words: list[str]) -> None:
    out.prompt_chars += len(value)
    if role in ("system", "developer"):
        out.system_chars += len(value)
    elif role == "user":
        words.append(value)


def _messages(dialect: Dialect, body: JsonObject, out: RequestFeatures) -> None:
    system = body.get("system")
    if dialect == "anthropic_messages" and system is not None:
        _content(system, "system", out, [])
    last_role = ""
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        out.messages += 1
        role = message.get("role")
        role = role if isinstance(role, str) else "user"
        words: list[str] = []
        before = out.tool_results
        if role in ("tool", "function"):
            out.tool_results += 1
        _content(message.get("content"), role, out, words)
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            out.tool_calls += len(calls)
            for call in calls:
                inner = call.get("function") if isinstance(call, dict) else None
                arguments = inner.get("arguments") if isinstance(inner, dict) else None
                out.prompt_chars += len(arguments) if isinstance(arguments, str) else len(orjson.dumps(arguments))
        images = message.get("images")
        if isinstance(images, list):
            out.images += len(images)
        if "cache_control" in message:
            out.cache_marks = True
        if role in ("system", "developer"):
            continue
        last_role = "result" if out.tool_results > before else role
        if role == "user" and (words or out.tool_results == before):
            if out.tool_results == before:
                out.turns += 1
            if words:
                out.last_user_text = "\n".join(words)
    out.tool_loop = last_role == "result"


def _content(content: Any, role: str, out: RequestFeatures, words: list[str]) -> None:
    if isinstance(content, str):
        _text(content, role, out, words)
        return
    if not isinstance(content, list):
        return
    for block in content:
        if isinstance(block, dict):
            _block(block, role, out, words)


def _block(block: JsonObject, role: str, out: RequestFeatures, words: list[str]) -> None:
    if "cache_control" in block or "prompt_cache_breakpoint" in block:
        out.cache_marks = True
    kind = block.get("type")
    if kind in ("text", "input_text", "output_text"):
        text = block.get("text")
        if isinstance(text, str):
            _text(text, role, out, words)
    elif kind in ("image", "image_url", "input_image"):
        out.images += 1
    elif kind in ("document", "file", "input_file"):
        out.documents += 1
    elif kind == "input_audio":
        out.audio += 1
    elif kind == "tool_use":
        out.tool_calls += 1
        out.prompt_chars += len(orjson.dumps(block.get("input")))
    elif kind == "tool_result":
        out.tool_results += 1
        _content(block.get("content"), "tool", out, [])
    elif kind in ("thinking", "redacted_thinking"):
        thought = block.get("thinking")
        out.prompt_chars += len(thought) if isinstance(thought, str) else 0
        if block.get("signature") or block.get("data"):
            out.signed_thinking = True


def _responses(body: JsonObject, out: RequestFeatures) -> None:
    out.previous_response_id = _str(body.get("previous_response_id"))
    out.stores = body.get("store") is not False
    instructions = body.get("instructions")
    if isinstance(instructions, str):
        _text(instructions, "system", out, [])
    items = body.get("input")
    if isinstance(items, str):
        out.messages = out.turns = 1
        out.prompt_chars += len(items)
        out.last_user_text = items
        return
    last = ""
    for item in items if isinstance(items, list) else ():
        if not isinstance(item, dict):
            continue
        out.messages += 1
        kind = item.get("type") or "message"
        if kind == "message":
            role = item.get("role")
            role = role if isinstance(role, str) else "user"
            words: list[str] = []
            _content(item.get("content"), role, out, words)
            if role == "user":
                out.turns += 1
                out.last_user_text = "\n".join(words) or out.last_user_text
            if role in ("user", "assistant"):
                last = role
        elif kind in ("function_call", "custom_tool_call"):
            out.tool_calls += 1
            out.prompt_chars += len(item.get("arguments") or item.get("input") or "")
            last = "call"
        elif kind in ("function_call_output", "custom_tool_call_output"):
            out.tool_results += 1
            _content(item.get("output"), "tool", out, [])
            last = "result"
        elif kind == "reasoning":
            out.signed_thinking = out.signed_thinking or bool(item.get("encrypted_content"))
    out.tool_loop = last == "result"


def _generate(body: JsonObject, out: RequestFeatures) -> None:
    out.messages = out.turns = 1
    for key, role in (("system", "system"), ("prompt", "user"), ("suffix", "assistant")):
        value = body.get(key)
        if isinstance(value, str):
            _text(value, role, out, [])
    out.last_user_text = _str(body.get("prompt")) or ""
    images = body.get("images")
    out.images = len(images) if isinstance(images, list) else 0


def _anthropic_settings(body: JsonObject, out: RequestFeatures) -> None:
    out.max_tokens = _int(body.get("max_tokens"))
    out.temperature = _number(body.get("temperature"))
    thinking = body.get("thinking")
    if isinstance(thinking, dict):
        out.reasoning = thinking.get("type") in ("enabled", "adaptive", "between_tools")
        out.thinking_budget = _int(thinking.get("budget_tokens"))
    config = body.get("output_config")
    if isinstance(config, dict):
        out.effort = _effort(config.get("effort"))
        if config.get("format"):
            out.json_mode = "schema"
    if body.get("output_format"):
        out.json_mode = "schema"
    choice = body.get("tool_choice")
    out.forced_tool = isinstance(choice, dict) and choice.get("type") in ("any", "tool")
    metadata = body.get("metadata")
    out.user = _str(metadata.get("user_id")) if isinstance(metadata, dict) else None
    out.cache_marks = out.cache_marks or "cache_control" in body


def _effort(value: Any) -> Effort | None:
    return value if value in ("none", "minimal", "low", "medium", "high", "xhigh", "max") else None


def _ollama_settings(body: JsonObject, out: RequestFeatures) -> None:
    options = body.get("options")
    if isinstance(options, dict):
        out.max_tokens = _int(options.get("num_predict"))
        out.temperature = _number(options.get("temperature"))
    think = body.get("think")
    out.reasoning = bool(think)
    out.effort = _effort(think)
    form = body.get("format")
    out.json_mode = "schema" if isinstance(form, dict) else "json" if form == "json" else "none"
    out.logprobs = bool(body.get("logprobs"))


def _openai_settings(body: JsonObject, out: RequestFeatures) -> None:
    for key in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        if out.max_tokens is None:
            out.max_tokens = _int(body.get(key))
    out.temperature = _number(body.get("temperature"))
    effort: Any = body.get("reasoning_effort")
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict):
        effort = reasoning.get("effort")
    out.effort = _effort(effort)
    out.reasoning = out.effort not in (None, "none")
    text = body.get("text")
    form = body.get("response_format") or (text.get("format") if isinstance(text, dict) else None)
    if isinstance(form, dict):
        kind = form.get("type")
        out.json_mode = "schema" if kind == "json_schema" else "json" if kind == "json_object" else "none"
    choice = body.get("tool_choice")
    out.forced_tool = choice == "required" or (
        isinstance(choice, dict)
        and (choice.get("type") in ("function", "custom") or "required" in (choice.get("mode"), _mode(choice)))
    )
    out.choices = _int(body.get("n")) or 1
    out.logprobs = bool(body.get("logprobs") or body.get("top_logprobs"))
    out.user = _str(body.get("safety_identifier")) or _str(body.get("user"))
    out.session = _str(body.get("prompt_cache_key"))


def _mode(choice: JsonObject) -> Any:
    allowed = choice.get("allowed_tools")
    return allowed.get("mode") if isinstance(allowed, dict) else None


def _tools(body: JsonObject, out: RequestFeatures) -> None:
    provider: list[str] = []
    tools = body.get("tools")
    if tools:
        out.prompt_chars += len(orjson.dumps(tools))
    functions = body.get("functions")
    for tool in (*(tools if isinstance(tools, list) else ()), *(functions if isinstance(functions, list) else ())):
        if not isinstance(tool, dict):
            continue
        kind = tool.get("type")
        if kind in (None, "function", "custom"):
            out.tools += 1
            out.cache_marks = out.cache_marks or "cache_control" in tool
        elif kind == "namespace":
            inner = tool.get("tools")
            out.tools += len(inner) if isinstance(inner, list) else 0
        else:
            provider.append(_str(tool.get("name")) or str(kind))
    out.provider_tools = tuple(provider)


def map_text(dialect: Dialect, body: JsonObject, change: Callable[[str], str]) -> JsonObject:
    """A copy of the body with every prompt text passed through `change`; the same object when nothing changed.

    Texts are system, user, assistant and tool-result texts, not tool definitions, tool arguments or reasoning. Pass the
    result to `begin` with `edited=True`.
    """

    def content(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list):
            return _same(value, [block(v) for v in value])
        return value

    def block(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = value.get("type")
        if kind in ("text", "input_text", "output_text") and isinstance(value.get("text"), str):
            return _with(value, "text", change(value["text"]))
        if kind == "tool_result":
            return _with(value, "content", content(value.get("content")))
        if kind == "document":
            source = value.get("source")
            if isinstance(source, dict) and source.get("type") == "text" and isinstance(source.get("data"), str):
                return _with(value, "source", _with(source, "data", change(source["data"])))
        return value

    def item(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for key in ("content", "output"):
            if key in value:
                value = _with(value, key, content(value[key]))
        return value

    for key in ("system", "instructions", "prompt", "suffix"):
        if key in body and (dialect == "ollama_generate" or key in ("system", "instructions")):
            body = _with(body, key, content(body[key]))
    for key in ("messages", "input"):
        value = body.get(key)
        if isinstance(value, list):
            body = _with(body, key, _same(value, [item(v) for v in value]))
        elif isinstance(value, str) and key == "input":
            body = _with(body, key, change(value))
    return body


def _same(before: list[Any], after: list[Any]) -> list[Any]:
    return before if all(a is b for a, b in zip(before, after, strict=True)) else after


def _with(obj: JsonObject, key: str, value: Any) -> JsonObject:
    old = obj.get(key)
    if value is old or (isinstance(value, str) and value == old):
        return obj
    return {**obj, key: value}


# Values of these keys are data of another kind: base64, names, marks and proofs.
_NO_TEXT = frozenset(
    {"type", "role", "id", "call_id", "tool_use_id", "tool_call_id", "data", "url", "image_url", "images", "signature"}
    | {"encrypted_content", "media_type", "cache_control", "file_data", "file_id", "detail", "status"}
)


def prompt_texts(body: JsonObject) -> list[str]:
    """Every text the model will read, tool definitions included; for counting tokens with the target's own count."""
    out: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            if value:
                out.append(value)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key == "source" and isinstance(inner, dict) and inner.get("type") == "text":
                    walk(inner.get("data"))
                elif key in ("input", "arguments") and isinstance(inner, dict):
                    out.append(orjson.dumps(inner).decode())
                elif key not in _NO_TEXT:
                    walk(inner)

    for key in ("system", "instructions", "messages", "input", "prompt", "suffix"):
        walk(body.get(key))
    for key in ("tools", "functions"):
        tools = body.get(key)
        if isinstance(tools, list):
            out.extend(orjson.dumps(tool).decode() for tool in tools)
    return out
