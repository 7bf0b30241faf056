"""What a provider makes of a request that reached it: its content in order, and everything it would refuse.

Independent of the router's own parsers on purpose.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from avyay.marga.wire.model import Dialect

__all__ = ["Seen", "SeenResult", "read_request"]


@dataclass(slots=True)
class SeenResult:
    """A tool's result: the position of the call it answers among all calls, -1 when it answers none."""

    call: int
    text: str
    pictures: list[str] = field(default_factory=list)
    error: bool = False


@dataclass(slots=True)
class Seen:
    """A request as the provider reads it.

    Attributes:
        texts: (role, text) of every text outside tool results, in order.
        pictures: Base64 data or URL of every picture outside tool results.
        calls: Name and arguments of the tool calls of the history.
        tools: Name, description and schema, in order.
        choice: auto, none, required, or tool:NAME; None when not said.
        schema: The structured output asked for.
        reasons: Whether reasoning is asked for; None when not said.
        violations: What the provider would refuse, in words.
    """

    texts: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)
    results: list[SeenResult] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    tools: list[tuple[str, str, Any]] = field(default_factory=list)
    choice: str | None = None
    parallel: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    stop: list[str] = field(default_factory=list)
    schema: Any = None
    reasons: bool | None = None
    cache_marks: int = 0
    stream: bool = False
    violations: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.violations.append(otherwise)

    def call(self, call_id: str, name: str, arguments: Any) -> None:
        self.expect(bool(call_id) and call_id not in self.call_ids, f"tool call id {call_id!r} is empty or used twice")
        self.call_ids.append(call_id)
        self.calls.append((name, arguments))

    def position(self, call_id: Any) -> int:
        found = self.call_ids.index(call_id) if call_id in self.call_ids else -1
        self.expect(found >= 0, f"a tool result for {call_id!r}, which nobody called")
        return found


def read_request(dialect: Dialect, body: dict[str, Any]) -> Seen:
    """Read a request as strictly as its provider would."""
    seen = Seen(stream=bool(body.get("stream", dialect.startswith("ollama"))))
    seen.cache_marks = json.dumps(body).count('"cache_control"')
    seen.expect(isinstance(body.get("model"), str) and bool(body["model"]), "no model")
    _READERS[dialect](body, seen)
    return seen


def _json(seen: Seen, text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        seen.violations.append(f"tool arguments are no JSON text: {str(text)[:60]!r}")
        return text


def _bare(url: str) -> str:
    """Data of a data URL, else the URL."""
    return url.split(";base64,", 1)[1] if url.startswith("data:") and ";base64," in url else url


# --- Chat Completions --------------------------------------------------------------------------------------------


def _chat(body: dict[str, Any], seen: Seen) -> None:
    waiting: list[str] = []
    for message in body["messages"]:
        role = message["role"]
        seen.expect(role in ("system", "developer", "user", "assistant", "tool"), f"role {role!r}")
        if role == "tool":
            call_id = message.get("tool_call_id")
            seen.expect(call_id in waiting, "a tool message that does not follow the call it answers")
            waiting = [c for c in waiting if c != call_id]
            text, pictures = _chat_content(message.get("content"), seen)
            seen.expect(not pictures, "a picture in a tool message")
            seen.results.append(SeenResult(seen.position(call_id), text, pictures))
            continue
        seen.expect(not waiting, "a tool call without its result before the next turn")
        waiting = []
        text, pictures = _chat_content(message.get("content"), seen)
        calls = message.get("tool_calls") or []
        seen.expect(bool(text or pictures or calls), f"an empty {role} message")
        if text:
            seen.texts.append((role, text))
        seen.pictures += pictures
        for call in calls:
            seen.expect(call.get("type") == "function", "a tool call without type function")
            function = call["function"]
            seen.call(call.get("id") or "", function["name"], _json(seen, function["arguments"]))
            waiting.append(call.get("id") or "")
    for tool in body.get("tools") or []:
        function = tool["function"]
        seen.tools.append((function["name"], function.get("description") or "", function.get("parameters")))
    seen.choice = _choice(body.get("tool_choice"))
    seen.parallel = body.get("parallel_tool_calls")
    seen.expect(seen.parallel is None or bool(seen.tools), "parallel_tool_calls without tools")
    seen.expect(seen.choice is None or bool(seen.tools), "tool_choice without tools")
    seen.max_tokens = body.get("max_completion_tokens") or body.get("max_tokens")
    _ranges(body, seen, 2.0)
    stop = body.get("stop") or []
    seen.stop = [stop] if isinstance(stop, str) else stop
    form = body.get("response_format") or {}
    seen.schema = (form.get("json_schema") or {}).get("schema")
    effort = body.get("reasoning_effort")
    seen.reasons = None if effort is None else effort != "none"


def _ranges(body: dict[str, Any], seen: Seen, hottest: float) -> None:
    seen.temperature = body.get("temperature")
    seen.top_k = body.get("top_k")
    seen.expect(seen.temperature is None or 0 <= seen.temperature <= hottest, f"temperature {seen.temperature}")


def _choice(choice: Any) -> str | None:
    if not isinstance(choice, dict):
        return choice if choice is None else str(choice)
    return f"tool:{choice.get('name') or (choice.get('function') or {}).get('name')}"


def _chat_content(content: Any, seen: Seen) -> tuple[str, list[str]]:
    if content is None or isinstance(content, str):
        return content or "", []
    texts, pictures = [], []
    for part in content:
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] == "image_url":
            pictures.append(_bare(part["image_url"]["url"]))
        else:
            seen.violations.append(f"a {part['type']} part in Chat Completions")
    return "\n".join(texts), pictures


# --- Messages ----------------------------------------------------------------------------------------------------


def _messages(body: dict[str, Any], seen: Seen) -> None:
    seen.expect(isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 0, "max_tokens is required")
    seen.max_tokens = body.get("max_tokens")
    system = body.get("system")
    for block in [{"type": "text", "text": system}] if isinstance(system, str) else system or []:
        seen.texts.append(("system", block["text"]))
    previous, waiting = "", set[str]()
    for message in body["messages"]:
        role, content = message["role"], message["content"]
        seen.expect(role in ("user", "assistant", "system"), f"role {role!r}")
        seen.expect(bool(previous) or role == "user", "the first turn is not the user's")
        seen.expect(bool(content), f"an empty {role} turn")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        answered = {b["tool_use_id"] for b in blocks if b["type"] == "tool_result"}
        if waiting:
            seen.expect(answered == waiting, "the turn after tool calls does not hold exactly their results")
        kinds = [b["type"] == "tool_result" for b in blocks]
        seen.expect(kinds == sorted(kinds, reverse=True), "tool results are not first in their turn")
        waiting = {b["id"] for b in blocks if b["type"] == "tool_use"}
        for block in blocks:
            _messages_block(role, block, seen)
        previous = role
    for tool in body.get("tools") or []:
        seen.expect((tool.get("input_schema") or {}).get("type") == "object", "a tool without an object schema")
        seen.tools.append((tool["name"], tool.get("description") or "", tool.get("input_schema")))
    choice = body.get("tool_choice")
    if choice:
        kind = {"any": "required"}.get(choice["type"], choice["type"])
        seen.choice = f"tool:{choice['name']}" if kind == "tool" else kind
        if "disable_parallel_tool_use" in choice:
            seen.parallel = not choice["disable_parallel_tool_use"]
        seen.expect(bool(seen.tools), "tool_choice without tools")
    _ranges(body, seen, 1.0)
    seen.stop = body.get("stop_sequences") or []
    config = body.get("output_config") or {}
    seen.schema = (config.get("format") or body.get("output_format") or {}).get("schema")
    thinking = body.get("thinking") or {}
    if thinking or config.get("effort"):
        seen.reasons = thinking.get("type") != "disabled"
    if thinking.get("type") == "enabled":
        seen.expect(1024 <= thinking["budget_tokens"] < body["max_tokens"], "a thinking budget outside its range")
        seen.expect(seen.temperature in (None, 1) and seen.top_k is None, "sampling settings beside thinking")
    for name in ("stream_options", "parallel_tool_calls", "stop", "n", "response_format", "reasoning_effort"):
        seen.expect(name not in body, f"{name} does not belong here")


def _messages_block(role: str, block: dict[str, Any], seen: Seen) -> None:
    kind = block["type"]
    if kind == "text":
        seen.expect(bool(block["text"].strip()), "an empty text block")
        seen.texts.append((role, block["text"]))
    elif kind == "image":
        seen.pictures.append(block["source"].get("data") or block["source"].get("url"))
    elif kind == "thinking":
        seen.expect(bool(block.get("signature")), "a thinking block without signature")
        seen.signatures.append(block.get("signature") or "")
    elif kind == "tool_use":
        seen.expect(role == "assistant", "tool_use outside an assistant's turn")
        seen.expect(isinstance(block["input"], dict), "a tool's input is no object")
        seen.call(block["id"], block["name"], block["input"])
    elif kind == "tool_result":
        seen.expect(role == "user", "tool_result outside a user's turn")
        content = block.get("content") or ""
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "\n".join(p["text"] for p in parts if p["type"] == "text")
        pictures = [p["source"].get("data") or p["source"].get("url") for p in parts if p["type"] == "image"]
        position = seen.position(block["tool_use_id"])
        seen.results.append(SeenResult(position, text, pictures, bool(block.get("is_error"))))


# --- Responses ---------------------------------------------------------------------------------------------------


def _responses(body: dict[str, Any], seen: Seen) -> None:
    if body.get("instructions"):
        seen.texts.append(("system", body["instructions"]))
    items = body["input"]
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        _responses_item(item, seen)
    answered = {result.call for result in seen.results}
    seen.expect(answered >= set(range(len(seen.calls))), "a tool call without its output")
    for tool in body.get("tools") or []:
        seen.expect("function" not in tool, "a tool nested under `function`")
        seen.tools.append((tool["name"], tool.get("description") or "", tool.get("parameters")))
    seen.choice = _choice(body.get("tool_choice"))
    seen.parallel = body.get("parallel_tool_calls")
    seen.max_tokens = body.get("max_output_tokens")
    seen.expect(seen.max_tokens is None or seen.max_tokens >= 16, "max_output_tokens below 16")
    _ranges(body, seen, 2.0)
    seen.schema = ((body.get("text") or {}).get("format") or {}).get("schema")
    effort = (body.get("reasoning") or {}).get("effort")
    seen.reasons = None if effort is None else effort != "none"
    for name in ("messages", "stop", "max_tokens", "response_format", "reasoning_effort"):
        seen.expect(name not in body, f"{name} does not belong here")


def _responses_item(item: dict[str, Any], seen: Seen) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role, content = item["role"], item["content"]
        texts, pictures = ([content], []) if isinstance(content, str) else _responses_parts(role, content, seen)
        if any(texts):
            seen.texts.append((role, "\n".join(texts)))
        seen.pictures += pictures
    elif kind == "function_call":
        seen.call(item["call_id"], item["name"], _json(seen, item["arguments"]))
    elif kind == "function_call_output":
        output = item["output"]
        texts, pictures = ([output], []) if isinstance(output, str) else _responses_parts("user", output, seen)
        seen.results.append(SeenResult(seen.position(item["call_id"]), "\n".join(texts), pictures))


def _responses_parts(role: str, parts: list[dict[str, Any]], seen: Seen) -> tuple[list[str], list[str]]:
    texts, pictures = [], []
    wanted = "output_text" if role == "assistant" else "input_text"
    for part in parts:
        if part["type"] == "input_image":
            pictures.append(_bare(part["image_url"]))
        else:
            seen.expect(part["type"] == wanted, f"a {part['type']} part in a {role} message")
            texts.append(part.get("text") or "")
    return texts, pictures


# --- Ollama ------------------------------------------------------------------------------------------------------


def _ollama(body: dict[str, Any], seen: Seen) -> None:
    messages = body.get("messages")
    if messages is None:
        first = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        messages = [*first, {"role": "user", "content": body["prompt"], "images": body.get("images")}]
    pending: list[tuple[int, str]] = []
    for message in messages:
        role = message["role"]
        seen.expect(role in ("system", "user", "assistant", "tool"), f"role {role!r}")
        text = message.get("content") or ""
        seen.expect(isinstance(text, str), "content is no string")
        pictures = list(message.get("images") or [])
        seen.expect(not any(p.startswith(("data:", "http")) for p in pictures), "a picture that is not bare base64")
        if role == "tool":
            call_id, name = message.get("tool_call_id"), message.get("tool_name")
            seen.expect(bool(name), "a tool message without tool_name")
            index = seen.call_ids.index(call_id) if call_id in seen.call_ids else None
            if index is None:
                index = next((i for i, n in pending if n == name), -1)
            seen.expect(any(i == index for i, _ in pending), "a tool message that answers no call")
            pending = [(i, n) for i, n in pending if i != index]
            seen.results.append(SeenResult(index, text, pictures))
            continue
        if text:
            seen.texts.append((role, text))
        seen.pictures += pictures
        for call in message.get("tool_calls") or []:
            function = call["function"]
            seen.expect(isinstance(function["arguments"], dict), "a tool's arguments are no object")
            pending.append((len(seen.calls), function["name"]))
            seen.call(call.get("id") or f"call {len(seen.calls)}", function["name"], function["arguments"])
    for tool in body.get("tools") or []:
        function = tool["function"]
        seen.tools.append((function["name"], function.get("description") or "", function.get("parameters")))
    options = body.get("options") or {}
    _ranges(options, seen, 1e9)
    seen.max_tokens = options.get("num_predict")
    stop = options.get("stop") or []
    seen.stop = [stop] if isinstance(stop, str) else stop
    seen.schema = body.get("format") if isinstance(body.get("format"), dict) else None
    think = body.get("think")
    seen.reasons = None if think is None else bool(think)


_READERS = {
    "openai_chat": _chat,
    "anthropic_messages": _messages,
    "openai_responses": _responses,
    "ollama_chat": _ollama,
    "ollama_generate": _ollama,
}
