"""Signed reasoning in a conversation's history: kept byte for byte, or a whole turn's of it taken out.

A provider accepts its own reasoning back only unchanged. What another model or gateway signed it refuses, and half a
turn's reasoning is worse than none, so stripping always takes a turn at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from avyay.marga.wire.ids import is_sealed
from avyay.marga.wire.model import Dialect, JsonObject, Message, Request, Thinking, ToolResult
from avyay.marga.wire.notes import Notes

__all__ = ["has_foreign_thinking", "keep_own_thinking", "strip_thinking"]


def _is_thinking(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") in ("thinking", "redacted_thinking")


def _is_foreign(block: JsonObject) -> bool:
    """Whether no Messages provider signed this block: unsigned, or wrapped by us for another dialect."""
    token = block.get("signature") if block.get("type") == "thinking" else block.get("data")
    return not isinstance(token, str) or not token or is_sealed(token)


def _opens_turn(message: Any) -> bool:
    """A user message that is more than tool results begins a new turn."""
    if not isinstance(message, dict) or message.get("role") != "user":
        return False
    content = message.get("content")
    if isinstance(content, list):
        return not any(isinstance(b, dict) and b.get("type") == "tool_result" for b in content)
    return True


def has_foreign_thinking(dialect: Dialect, body: JsonObject) -> bool:
    """Whether the history holds reasoning that a provider of this dialect would refuse."""
    if dialect == "anthropic_messages":
        messages = body.get("messages")
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, list) and any(_is_thinking(b) and _is_foreign(b) for b in content):
                return True
    elif dialect == "openai_responses":
        items = body.get("input")
        if isinstance(items, list):
            return any(_foreign_item(i) for i in items)
    return False


def _foreign_item(item: Any) -> bool:
    if not isinstance(item, dict) or item.get("type") != "reasoning":
        return False
    token = item.get("encrypted_content")
    if isinstance(token, str) and token:
        return is_sealed(token)
    item_id = item.get("id")
    return isinstance(item_id, str) and item_id.startswith("rs_avyay_")


def strip_thinking(dialect: Dialect, body: JsonObject, notes: Notes, *, everything: bool) -> JsonObject:
    """The body without refused reasoning; the same object when there is none.

    Args:
        dialect: The body's dialect.
        body: Not changed; parts that stay are shared.
        notes: Receives what was stripped.
        everything: Take out all reasoning, since another model signed it; else only turns with foreign reasoning.
    """
    if dialect == "openai_responses":
        items = body.get("input")
        if not isinstance(items, list):
            return body
        kept = [
            i
            for i in items
            if not (isinstance(i, dict) and i.get("type") == "reasoning" and (everything or _foreign_item(i)))
        ]
        if len(kept) == len(items):
            return body
        notes.add("input.reasoning", "stripped", "reasoning signed by another model")
        return {**body, "input": kept}
    if dialect != "anthropic_messages":
        return body
    messages = body.get("messages")
    if not isinstance(messages, list):
        return body
    out: list[Any] = []
    changed = False
    start = 0
    bounds = [i for i, m in enumerate(messages) if i and _opens_turn(m)] + [len(messages)]
    last_stripped = False
    for end in bounds:
        turn = messages[start:end]
        start = end
        blocks = [b for m in turn for b in _assistant_blocks(m) if _is_thinking(b)]
        last_stripped = bool(blocks) and (everything or any(map(_is_foreign, blocks)))
        if last_stripped:
            changed = True
            turn = [m for m in (_without_thinking(m) for m in turn) if m is not None]
        out.extend(turn)
    if not changed:
        return body
    notes.add("messages.thinking", "stripped", "reasoning signed by another model, taken out by whole turns")
    result = {**body, "messages": out}
    thinking = body.get("thinking")
    in_loop = bool(out) and not _opens_turn(out[-1])
    if last_stripped and in_loop and isinstance(thinking, dict) and thinking.get("type") == "enabled":
        notes.add("thinking", "dropped", "an open tool loop without its signed reasoning must end without thinking")
        del result["thinking"]
    return result


def _assistant_blocks(message: Any) -> list[Any]:
    if isinstance(message, dict) and message.get("role") == "assistant":
        content = message.get("content")
        if isinstance(content, list):
            return content
    return []


def _without_thinking(message: Any) -> Any:
    blocks = _assistant_blocks(message)
    if not any(map(_is_thinking, blocks)):
        return message
    kept = [b for b in blocks if not _is_thinking(b)]
    return {**message, "content": kept} if kept else None


def keep_own_thinking(request: Request, dialect: Dialect, notes: Notes, *, everything: bool) -> Request:
    """A translated request with only such reasoning as its target signed, by whole turns.

    Args:
        request: The neutral request.
        dialect: The target's dialect.
        notes: Receives what was stripped.
        everything: Take out all signed reasoning, since another model signed it.
    """
    if not any(isinstance(p, Thinking) for m in request.messages for p in m.parts):
        return request
    messages: list[Message] = []
    turn: list[Message] = []

    def settle() -> None:
        thoughts = [p for m in turn for p in m.parts if isinstance(p, Thinking)]
        signed = [p.carry for p in thoughts if p.carry is not None]
        foreign = any(c.dialect != dialect for c in signed) or (bool(signed) and len(signed) < len(thoughts))
        if (signed and everything) or foreign:
            notes.add("messages.thinking", "stripped", "reasoning signed by another model, taken out by whole turns")
            for message in turn:
                kept = tuple(p for p in message.parts if not isinstance(p, Thinking))
                if kept:
                    messages.append(Message(message.role, kept))
        else:
            messages.extend(turn)
        turn.clear()

    for message in request.messages:
        if message.role == "user" and not any(isinstance(p, ToolResult) for p in message.parts):
            settle()
        turn.append(message)
    settle()
    return replace(request, messages=tuple(messages))
