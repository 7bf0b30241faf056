"""Tools across dialects: names the target accepts, free-text tools as functions, provider tools, narrowed choices.

Three shapes exist on the wire (nested under `function`, flat, and flat with `input_schema`); their order is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import orjson

from avyay.marga.wire.fields import load_arguments
from avyay.marga.wire.ids import fit_tool_name
from avyay.marga.wire.model import Dialect, JsonObject, Request, ToolChoice, ToolKind, ToolSpec, ToolUse
from avyay.marga.wire.notes import Notes, UntranslatableError

__all__ = ["ToolNames", "ToolRef", "drop_provider_tools", "visible_tools"]

_CUSTOM: dict[str, bool] = {"openai_chat": True, "openai_responses": True}
_EMPTY_SCHEMA: JsonObject = {"type": "object", "properties": {}}
_INPUT_SCHEMA: JsonObject = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool, as plain text."}},
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class ToolRef:
    """A tool as the caller knows it. `wrapped`: its free text travels as the `input` field of function arguments."""

    name: str
    namespace: str | None = None
    kind: ToolKind = "function"
    wrapped: bool = False

    def unwrap(self, arguments: str) -> str:
        """The arguments as the caller's tool takes them: free text again, for a tool that was sent as a function."""
        if not self.wrapped:
            return arguments
        parsed = load_arguments(arguments)
        text = parsed.get("input") if parsed is not None else None
        return text if isinstance(text, str) else arguments


class ToolNames:
    """The tool names of one exchange, as sent upstream and back.

    Kept from the request to the reply, since a name that had to be shortened or flattened must come back whole.
    """

    __slots__ = ("_back", "_custom", "_dialect", "_sent")

    def __init__(self, request: Request, dialect: Dialect, *, custom_tools: bool | None = None) -> None:
        self._dialect: Dialect = dialect
        self._custom = _CUSTOM.get(dialect, False) if custom_tools is None else custom_tools
        self._sent: dict[tuple[str | None, str], str] = {}
        self._back: dict[str, ToolRef] = {}
        for tool in request.tools:
            if tool.provider is None:
                wrapped = tool.kind == "custom" and not self._custom
                self._register(tool.name, tool.namespace, ToolRef(tool.name, tool.namespace, tool.kind, wrapped))

    def _register(self, name: str, namespace: str | None, ref: ToolRef) -> str:
        key = (namespace, name)
        if key in self._sent:
            return self._sent[key]
        sent = fit_tool_name(self._dialect, name, namespace)
        number = 2
        base = sent
        while sent in self._back:  # two long names with one beginning, or a flattened name that exists already
            sent = f"{base[:55]}_{number}"
            number += 1
        self._sent[key] = sent
        self._back[sent] = ref
        return sent

    def sent(self, name: str, namespace: str | None = None) -> str:
        """The name the target sees."""
        found = self._sent.get((namespace, name))
        if found is not None:
            return found
        if namespace is None:
            return self._register(name, None, ToolRef(name))
        return self._register(name, namespace, ToolRef(name, namespace))

    def sent_for(self, name: str) -> str:
        """The name the target sees for a tool that a tool choice names, with or without its namespace."""
        for (namespace, own), sent in self._sent.items():
            if own == name or (namespace and f"{namespace}__{own}" == name):
                return sent
        return self.sent(name)

    def restore(self, sent: str) -> ToolRef:
        """The caller's tool behind a name the target used."""
        return self._back.get(sent) or ToolRef(sent)

    def offered(self, tool: ToolSpec) -> tuple[str | None, JsonObject]:
        """Description and parameters to offer; a free-text tool becomes a function of one text field."""
        if tool.kind == "custom" and not self._custom:
            description = tool.description or ""
            grammar = (tool.grammar or {}).get("grammar") or tool.grammar or {}
            if grammar.get("definition"):
                description += f"\n\nThe input must follow this {grammar.get('syntax', '')} grammar:\n"
                description += str(grammar["definition"])
            return description.strip() or None, _INPUT_SCHEMA
        return tool.description, tool.schema if tool.schema else _EMPTY_SCHEMA

    def arguments_for(self, call: ToolUse) -> str:
        """An earlier call's arguments as the target takes them."""
        if call.kind == "custom" and not self._custom:
            return orjson.dumps({"input": call.arguments}).decode()
        return call.arguments if call.arguments.strip() or call.kind == "custom" else "{}"


def drop_provider_tools(request: Request, dialect: Dialect, notes: Notes) -> Request:
    """The request without tools that only another provider could run.

    Raises:
        UntranslatableError: Nothing would be left of the offer, or the choice demands such a tool.
    """
    foreign = [t for t in request.tools if t.provider is not None and t.provider.dialect != dialect]
    if not foreign:
        return request
    kept = tuple(t for t in request.tools if t.provider is None or t.provider.dialect == dialect)
    choice = request.tool_choice
    forced = choice is not None and choice.mode == "tool" and any(t.name == choice.name for t in foreign)
    if not kept or forced:
        raise UntranslatableError(
            f"The tool `{foreign[0].name}` is run by its provider and does not exist at the chosen one.",
            field="tools",
            hint="Choose a model of that provider, or offer a function tool instead.",
        )
    for tool in foreign:
        notes.add(f"tools.{tool.name}", "dropped", "run by its provider, not by this one")
    return replace(request, tools=kept)


def visible_tools(request: Request, notes: Notes, *, names_allowed: bool = False) -> tuple[ToolSpec, ...]:
    """The tools to offer: for targets that cannot narrow a choice by names, the offer itself is narrowed."""
    choice = request.tool_choice or ToolChoice()
    if choice.allowed is None or names_allowed:
        return request.tools
    allowed = set(choice.allowed)
    notes.add("tool_choice.allowed_tools", "mapped", "only the allowed tools are offered")
    return tuple(t for t in request.tools if t.name in allowed)
