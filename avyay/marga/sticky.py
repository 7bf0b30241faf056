"""When a conversation keeps its model: always inside a tool loop, and while a warm prompt cache makes staying cheaper.

Pure but for the bounded memory of who answered whom.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from avyay.marga.cost import EXPECTED_OUTPUT, cost_of
from avyay.marga.types import TIERS, Candidate, Condition, Ranked
from avyay.marga.view import RequestView
from avyay.marga.wire import RequestFeatures
from avyay.ports import Tier

__all__ = ["Answered", "Conversations", "Homes", "conversation_of", "stay"]


@dataclass(frozen=True, slots=True)
class Answered:
    """Who answered a conversation last. `cached` tokens of it may still be warm at that provider; `at` is monotonic."""

    candidate: str
    at: float
    cached: int = 0


class Conversations:
    """Remembers the last answer of each conversation, bounded and with expiry.

    Args:
        ttl: Seconds a conversation without an open tool loop is remembered; prompt caches live about 300.
        loop_ttl: The same while tools run: people leave a tool waiting overnight.
    """

    def __init__(self, *, ttl: float = 300.0, loop_ttl: float = 86_400.0, most: int = 50_000) -> None:
        self._ttl = ttl
        self._loop_ttl = loop_ttl
        self._most = most
        self._known: OrderedDict[str, Answered] = OrderedDict()
        self.on_remember: Callable[[str, Answered], None] | None = None  # tells other workers

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, conversation: str, answered: Answered) -> None:
        """A candidate has answered."""
        self.learn(conversation, answered)
        if self.on_remember is not None:
            self.on_remember(conversation, answered)

    def learn(self, conversation: str, answered: Answered) -> None:
        """A candidate has answered, here or at another worker."""
        self._known[conversation] = answered
        self._known.move_to_end(conversation)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def last(self, conversation: str, now: float, *, bound: bool) -> Answered | None:
        """Who answered last, if that still counts.

        Args:
            bound: The conversation is in a tool loop or carries signed reasoning.
        """
        known = self._known.get(conversation)
        if known is None or now - known.at > (self._loop_ttl if bound else self._ttl):
            return None
        return known


class Homes:
    """Remembers which provider stores a response: what continues it must go there. Bounded, the oldest go first."""

    def __init__(self, *, most: int = 100_000) -> None:
        self._most = most
        self._known: OrderedDict[str, str] = OrderedDict()
        self.on_remember: Callable[[str, str], None] | None = None  # tells other workers

    def remember(self, response: str, provider: str) -> None:
        """A provider has stored a response."""
        self.learn(response, provider)
        if self.on_remember is not None:
            self.on_remember(response, provider)

    def learn(self, response: str, provider: str) -> None:
        """A provider has stored a response, for this worker or another."""
        self._known[response] = provider
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def of(self, response: str) -> str | None:
        """The provider that stores a response, if it is known."""
        return self._known.get(response)


def conversation_of(
    key: str | None, session: str | None, features: RequestFeatures, body: Mapping[str, Any]
) -> str | None:
    """What tells one conversation from another; None when its model may change freely. Tenants never share one.

    The session the caller names, else its first turns: those stay when a conversation grows.
    """
    named = session or features.session
    if named is not None:
        start: Any = named
    elif features.tools or features.provider_tools or features.signed_thinking or features.cache_marks:
        turns = body.get("messages") or body.get("input")
        if not isinstance(turns, list) or not turns:
            return None
        first = next((i for i, turn in enumerate(turns) if isinstance(turn, dict) and turn.get("role") == "user"), 0)
        start = [features.user, turns[: first + 1]]
    else:
        return None
    said = orjson.dumps([key, named is not None, start], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(said, digest_size=16).hexdigest()


def stay(
    view: RequestView,
    ranked: Sequence[Ranked],
    last: Answered | None,
    tier: Tier,
    conditions: Mapping[str, Condition],
    *,
    input_tokens: int,
) -> tuple[tuple[Ranked, ...], str | None]:
    """The candidates with the one that answered last in front, where it should stay; and the reason.

    A model is never changed under a tool loop or under reasoning that only its issuer can read back, unless it is down.
    Otherwise it stays when it is good enough for this request and, its warm cache counted, no dearer than the first.
    """
    if last is None or not ranked:
        return tuple(ranked), None
    place = next((i for i, entry in enumerate(ranked) if entry.candidate.name == last.candidate), None)
    if place is None or conditions.get(last.candidate, Condition()).state == "open":
        return tuple(ranked), None
    entry = ranked[place]
    front = (entry, *ranked[:place], *ranked[place + 1 :])
    if view.tool_loop:
        return front, f"stays with {last.candidate}: a tool loop is open" if place else None
    if view.signed_thinking:
        return front, f"stays with {last.candidate}: its signed reasoning is in the conversation" if place else None
    if place == 0 or last.cached <= 0 or TIERS.index(entry.candidate.model.tier) < TIERS.index(tier):
        return tuple(ranked), None
    warm = _cost(entry.candidate, view, input_tokens, min(last.cached, input_tokens))
    cold = _cost(ranked[0].candidate, view, input_tokens, 0)
    if warm is None or cold is None or warm > cold:
        return tuple(ranked), None
    return front, f"stays with {last.candidate}: {last.cached} tokens are warm in its cache, which is no dearer"


def _cost(candidate: Candidate, view: RequestView, tokens: int, cached: int) -> int | None:
    output = min(view.max_tokens or EXPECTED_OUTPUT, EXPECTED_OUTPUT)
    return cost_of(candidate.model, input_tokens=tokens, output_tokens=output, cache_read=cached)
