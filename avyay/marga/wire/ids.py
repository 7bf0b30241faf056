"""Identifiers that must survive the crossing: tool-call ids, tool names, reply ids and signed reasoning.

All mappings are deterministic, so the same id in a call and in its result is changed the same way, and the next
request of a conversation finds what the last reply sent.
"""

from __future__ import annotations

import base64
import hashlib
import re

import orjson

from avyay.marga.wire.model import DIALECTS, Carry, Dialect

__all__ = ["fit_tool_id", "fit_tool_name", "fit_user", "is_sealed", "open_carry", "reply_id", "seal_carry", "tool_id"]

_SAFE = re.compile(r"[A-Za-z0-9_-]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_ID_LIMIT: dict[str, int] = {"openai_chat": 40, "openai_responses": 64}
_NAME_LIMIT: dict[str, int] = {"openai_chat": 64, "openai_responses": 64, "anthropic_messages": 128}
_REPLY_PREFIX: dict[str, str] = {
    "openai_chat": "chatcmpl-",
    "openai_responses": "resp_",
    "anthropic_messages": "msg_",
    "ollama_chat": "",
    "ollama_generate": "",
}
_SEAL = "avyay1."


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


def reply_id(dialect: Dialect, exchange_id: str) -> str:
    """The id of a reply in the caller's dialect, derived from ours: the same for the stream and for the whole."""
    return _REPLY_PREFIX[dialect] + exchange_id


def tool_id(exchange_id: str, number: int) -> str:
    """The id for a tool call whose provider gave none; unique over the conversation since the exchange is."""
    return f"call_{_digest(exchange_id, 10)}{number:04d}"


def fit_tool_id(dialect: Dialect, raw: str) -> str:
    """`raw` where the target accepts it, else a short id derived from it."""
    if dialect in ("ollama_chat", "ollama_generate"):
        return raw
    limit = _ID_LIMIT.get(dialect, 128)
    if raw and len(raw) <= limit and _SAFE.fullmatch(raw):
        return raw
    return f"call_{_digest(raw, 15)}"


def fit_tool_name(dialect: Dialect, name: str, namespace: str | None = None) -> str:
    """A name the target accepts. Namespaced tools are flattened to `namespace__name`."""
    full = f"{namespace}__{name}" if namespace else name
    limit = _NAME_LIMIT.get(dialect)
    if limit is None or (len(full) <= limit and _SAFE.fullmatch(full)):
        return full
    head = _UNSAFE.sub("_", full)[: limit - 9].rstrip("_") or "tool"
    return f"{head}_{_digest(full, 4)}"


def seal_carry(caller: Dialect, carry: Carry | None) -> str:
    """A reasoning token as the caller's own field can hold it: untouched from its own dialect, else wrapped."""
    if carry is None:
        return ""
    if carry.dialect == caller or carry.dialect is None:
        return carry.token
    packed = orjson.dumps([carry.dialect, carry.token, carry.item_id])
    return _SEAL + base64.urlsafe_b64encode(packed).decode("ascii")


def fit_user(user: str) -> str:
    """An end-user id within OpenAI's 64 characters, the same one each time."""
    return user if len(user) <= 64 else fit_tool_id("openai_chat", user)


def open_carry(caller: Dialect, token: str | None, item_id: str | None = None) -> Carry | None:
    """The inverse of `seal_carry`. A token we did not wrap belongs to the caller's own dialect."""
    if not token:
        return None
    if token.startswith(_SEAL):
        try:
            dialect, inner, inner_id = orjson.loads(base64.urlsafe_b64decode(token[len(_SEAL) :]))
        except (ValueError, TypeError):
            return Carry(None, token)
        if dialect in DIALECTS and isinstance(inner, str) and (inner_id is None or isinstance(inner_id, str)):
            return Carry(dialect, inner, inner_id)
        return Carry(None, token)
    return Carry(caller, token, item_id)


def is_sealed(token: str) -> bool:
    """Whether a token was wrapped by us, so that no provider would accept it as it stands."""
    return token.startswith(_SEAL)
