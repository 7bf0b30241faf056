"""Reading requests of the native Ollama API: `/api/chat` and `/api/generate`."""

from __future__ import annotations

from typing import Any

import orjson

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
    Image,
    JsonObject,
    Message,
    Part,
    Reasoning,
    Request,
    ResponseFormat,
    Role,
    Sampling,
    Text,
    Thinking,
    ToolResult,
    ToolSpec,
    ToolUse,
)
from avyay.marga.wire.notes import MalformedError, Notes, UntranslatableError

__all__ = ["parse_chat", "parse_generate"]

_SAMPLING = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "num_predict",
}
_KNOWN = {"model", "messages", "prompt", "system", "images", "tools", "format", "options", "stream", "think"}
# How the runtime keeps and splits its model; no other provider has these, and the answer does not depend on them.
_RUNTIME = {"keep_alive", "truncate", "shift"}
_REFUSED = {
    "suffix": "fill-in-the-middle",
    "template": "a prompt template of its own",
    "raw": "an untouched prompt",
    "context": "an encoded history",
    "logprobs": "log probabilities",
}


def parse_chat(body: JsonObject, notes: Notes) -> Request:
    """The neutral request of `/api/chat`.

    Raises:
        MalformedError: The body is not such a request.
        UntranslatableError: It asks for something only Ollama can answer.
    """
    if "messages" not in body:
        raise MalformedError("`messages` is required.", field="messages", code="missing_field")
    messages = _messages(as_list(body["messages"], "messages"))
    tools = tuple(_tool(as_object(t, f"tools.{i}"), f"tools.{i}") for i, t in enumerate(opt_list(body, "tools")))
    return _request(body, messages, tools, notes)


def parse_generate(body: JsonObject, notes: Notes) -> Request:
    """The neutral request of `/api/generate`: one prompt as a user message."""
    messages: list[Message] = []
    system = opt_str(body, "system")
    if system:
        messages.append(Message("system", (Text(system),)))
    parts: list[Part] = [_image(i, "images") for i in opt_list(body, "images")]
    prompt = opt_str(body, "prompt")
    if prompt:
        parts.append(Text(prompt))
    messages.append(Message("user", tuple(parts)))
    return _request(body, tuple(messages), (), notes)


def _request(body: JsonObject, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...], notes: Notes) -> Request:
    for field, what in _REFUSED.items():
        if body.get(field):
            raise UntranslatableError(
                f"`{field}` asks for {what}, which the chosen provider does not know.",
                field=field,
                hint="Leave it out, or choose an Ollama model.",
            )
    options = opt_object(body, "options")
    stop = options.get("stop")
    predict = opt_int(options, "num_predict")
    if predict is not None and predict < 0:
        predict = None  # -1: without limit, -2: until the context is full
    extra: list[tuple[str, Any]] = [(k, body[k]) for k in body if k in _RUNTIME]
    extra += [(f"options.{k}", v) for k, v in options.items() if k not in _SAMPLING]
    for field in body:
        if field not in _KNOWN and field not in _RUNTIME and field not in _REFUSED:
            notes.add(field, "dropped", "not known in another dialect")
    return Request(
        model=required_str(body, "model", ""),
        messages=messages,
        stream=opt_bool(body, "stream") is not False,  # streaming is the default here
        max_tokens=predict,
        tools=tools,
        sampling=Sampling(
            temperature=opt_float(options, "temperature"),
            top_p=opt_float(options, "top_p"),
            top_k=opt_int(options, "top_k"),
            min_p=opt_float(options, "min_p"),
            seed=opt_int(options, "seed"),
            frequency_penalty=opt_float(options, "frequency_penalty"),
            presence_penalty=opt_float(options, "presence_penalty"),
            stop=(stop,) if isinstance(stop, str) else tuple(as_str(s, "stop") for s in opt_list(options, "stop")),
        ),
        reasoning=_reasoning(body.get("think")),
        format=_format(body.get("format")),
        extra=tuple(extra),
    )


def _reasoning(think: Any) -> Reasoning:
    if think is None:
        return Reasoning()
    if isinstance(think, bool):
        return Reasoning("on" if think else "off")
    if think in ("low", "medium", "high", "max"):
        return Reasoning("on", think)
    raise MalformedError("`think` must be true, false, low, medium, high or max.", field="think")


def _format(raw: Any) -> ResponseFormat | None:
    if raw is None or raw == "":
        return None
    if raw == "json":
        return ResponseFormat("json")
    return ResponseFormat("schema", as_object(raw, "format"))


def _image(raw: Any, path: str) -> Image:
    return Image(data=as_str(raw, path), media_type=_media_type(raw))


def _media_type(data: str) -> str:
    """Ollama sends bare base64; the first bytes tell the kind."""
    for head, kind in (("/9j/", "image/jpeg"), ("iVBOR", "image/png"), ("R0lG", "image/gif"), ("UklGR", "image/webp")):
        if data.startswith(head):
            return kind
    return "image/png"


def _messages(raw: list[Any]) -> tuple[Message, ...]:
    """Tool results name the tool, not always the call: each is matched to the oldest open call of that name."""
    out: list[Message] = []
    results: list[Part] = []
    pending: list[ToolUse] = []
    count = 0
    for number, value in enumerate(raw):
        path = f"messages.{number}"
        item = as_object(value, path)
        role = required_str(item, "role", path).lower()
        text = opt_str(item, "content") or ""
        images = [_image(i, f"{path}.images") for i in opt_list(item, "images")]
        if role == "tool":
            name = opt_str(item, "tool_name") or opt_str(item, "name")
            call_id = opt_str(item, "tool_call_id")
            call = next((c for c in pending if c.id == call_id), None) if call_id else None
            call = call or next((c for c in pending if name in (None, c.name)), None) or (pending or [None])[0]  # type: ignore[list-item]
            if call is None:
                raise MalformedError(f"`{path}` answers no tool call.", field=path)
            pending.remove(call)
            content: tuple[Part, ...] = (*((Text(text),) if text else ()), *images)
            results.append(ToolResult(call.id, content, name=name or call.name))
            continue
        if results:
            out.append(Message("user", tuple(results)))
            results = []
        parts: list[Part] = []
        if role == "assistant":
            thought = opt_str(item, "thinking")
            if thought:
                parts.append(Thinking(thought))
            if text:
                parts.append(Text(text))
            pending = []
            for i, call_raw in enumerate(opt_list(item, "tool_calls")):
                where = f"{path}.tool_calls.{i}"
                call_raw = as_object(call_raw, where)
                function = as_object(call_raw.get("function"), f"{where}.function")
                arguments = function.get("arguments")
                text_of = arguments if isinstance(arguments, str) else orjson.dumps(arguments or {}).decode()
                call_id = opt_str(call_raw, "id") or f"call_{count}"
                count += 1
                use = ToolUse(call_id, required_str(function, "name", f"{where}.function"), text_of)
                pending.append(use)
                parts.append(use)
            out.append(Message("assistant", tuple(parts)))
        elif role in ("system", "user", "developer"):
            name_: Role = "user" if role == "user" else "system"
            out.append(Message(name_, (*images, *((Text(text),) if text else ()))))
        else:
            raise MalformedError(f"`{path}.role` must be system, user, assistant or tool.", field=f"{path}.role")
    if results:
        out.append(Message("user", tuple(results)))
    return tuple(out)


def _tool(tool: JsonObject, path: str) -> ToolSpec:
    function = as_object(tool.get("function"), f"{path}.function")
    name = required_str(function, "name", f"{path}.function")
    return ToolSpec(name, opt_str(function, "description"), opt_object(function, "parameters") or None)
