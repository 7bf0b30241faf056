"""What may be answered again from an earlier answer, and what makes two requests the same. Pure.

An answer belongs to one tenant: the caller's key together with the customer it names. Nothing of a tool loop is ever
kept or replayed, nor what a provider's own tools fetched, nor an answer that calls a tool.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from avyay.marga.types import TIERS, Dialect, Hints
from avyay.marga.wire import RequestFeatures, StopReason
from avyay.ports import Tier

__all__ = [
    "Asked",
    "Directives",
    "Entry",
    "asked_of",
    "good_enough",
    "keepable",
    "pieces",
    "read_directives",
    "tenant_of",
    "why_not",
]

_MAX_AGE = re.compile(r"max-age\s*=\s*\"?(\d{1,9})")
_KEPT_STOPS: frozenset[StopReason] = frozenset({"end", "stop_sequence", "max_tokens"})
_PIECE = 8192  # bytes a replayed stream is sent in, about


@dataclass(frozen=True, slots=True)
class Directives:
    """What the caller's `Cache-Control` asks for. `max_age` in seconds."""

    read: bool = True
    keep: bool = True
    max_age: int | None = None


_NO_DIRECTIVES = Directives()


def read_directives(header: str | None) -> Directives:
    """`no-store` neither reads nor keeps, `no-cache` asks anew and keeps, `max-age=N` takes nothing older."""
    if not header:
        return _NO_DIRECTIVES
    text = header.lower()
    if "no-store" in text:
        return Directives(read=False, keep=False)
    found = _MAX_AGE.search(text)
    age = int(found[1]) if found else None
    return Directives(read="no-cache" not in text and age != 0, max_age=age)


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer as its caller got it. `created` and `expires` are Unix times, `cost` what it cost in picodollars."""

    key: bytes
    tenant: bytes
    created: float
    expires: float
    streaming: bool
    content_type: str
    body: bytes
    provider: str
    model: str
    tier: Tier
    input: int
    output: int
    cost: int
    decision: str


@dataclass(slots=True)
class Asked:
    """A request that may be answered from an earlier answer.

    Attributes:
        context: Names everything of the request but its newest user text; None when that text cannot be told apart.
        text: The newest user text.
    """

    tenant: bytes
    key: bytes
    context: bytes | None
    text: str
    directives: Directives


def tenant_of(key: str | None, customer: str | None) -> bytes:
    """Whose an answer is. Without keys and customers everybody is one tenant."""
    return _digest([key, customer])


def why_not(features: RequestFeatures, body: Mapping[str, Any], *, sampled: bool) -> str | None:
    """Why a request is neither answered from the cache nor kept in it; None when it may be.

    Args:
        sampled: Whether requests that ask for a temperature above 0, or for several answers, may be.
    """
    if features.tool_loop or features.tool_results or features.signed_thinking:
        return "a tool loop"
    if features.provider_tools:
        return "tools of the provider"
    if features.previous_response_id is not None or body.get("conversation") is not None:
        return "a conversation the provider keeps"
    if body.get("background") is True:
        return "a background response"
    if not sampled and ((features.temperature or 0.0) > 0 or features.choices > 1):
        return "a temperature above 0"
    return None


def asked_of(
    tenant: bytes,
    dialect: Dialect,
    body: Mapping[str, Any],
    features: RequestFeatures,
    hints: Hints,
    extra: Any,
    directives: Directives,
    *,
    semantic: bool,
) -> Asked:
    """What names a request among those of its tenant.

    Args:
        extra: Whatever else changes the answer: headers and query that are sent on.
        semantic: Whether a similar request may do as well, so that a context is needed.
    """
    around = [
        *(dialect, features.stream, extra),
        *(hints.model, hints.tier, hints.quality_min, hints.residency),
    ]
    key = _digest([tenant.hex(), around, body])
    context = None
    text = features.last_user_text
    if semantic and text and not (features.tools or features.images or features.documents or features.audio):
        rest = _without(body, text)
        context = None if rest is None else _digest([tenant.hex(), around, rest])
    return Asked(tenant, key, context, text, directives)


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=20).digest()


def _without(body: Mapping[str, Any], text: str) -> Mapping[str, Any] | None:
    """The body with its last user text taken out; None unless it stands there in one piece, as the last turn."""
    for name in ("input", "prompt"):
        if body.get(name) == text:
            return {**body, name: None}
    for name in ("messages", "input"):
        turns = body.get(name)
        if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
            continue
        last = turns[-1]
        content = last.get("content")
        if last.get("role") != "user":
            return None
        if content == text:
            return {**body, name: [*turns[:-1], {**last, "content": None}]}
        if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
            only = content[0]
            if only.get("text") == text:
                return {**body, name: [*turns[:-1], {**last, "content": [{**only, "text": None}]}]}
    return None


def good_enough(entry: Entry, tier: Tier, directives: Directives, now: float, *, pinned: bool) -> bool:
    """Whether an entry still answers a request that routing would send to `tier` now.

    A class that was promoted since, or a request whose hints ask for more, is not served what a lesser tier said.
    """
    if now >= entry.expires or (directives.max_age is not None and now - entry.created > directives.max_age):
        return False
    return pinned or TIERS.index(entry.tier) >= TIERS.index(tier)


def keepable(stop: StopReason | None, *, tools: bool) -> bool:
    """Whether an answer that ended so may be given again: not a refusal, not a call of a tool, not half of one."""
    return not tools and stop in _KEPT_STOPS


def pieces(entry: Entry) -> Iterator[bytes]:
    """A stream's bytes again, in pieces that end where an event ends."""
    body, start = entry.body, 0
    end = b"\n" if b"ndjson" in entry.content_type.encode() else b"\n\n"
    while start < len(body):
        cut = body.find(end, start + _PIECE)
        cut = len(body) if cut < 0 else cut + len(end)
        yield body[start:cut]
        start = cut
