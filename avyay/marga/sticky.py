"""Which model a conversation is with: it must not change in a tool loop, nor under reasoning only its issuer reads."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import orjson

from avyay.clock import Clock
from avyay.marga.wire import RequestFeatures

__all__ = ["Conversations", "conversation_key"]

_MOST = 50_000
_FORGET_AFTER = 3600.0  # seconds


def conversation_key(body: dict[str, Any], features: RequestFeatures, session: str | None) -> str | None:
    """What tells one conversation from another; None when its model may change freely.

    The session the caller names, else its first turns: those stay when a conversation grows.
    """
    if not (features.tools or features.provider_tools or features.signed_thinking or features.tool_loop):
        return None
    named = session or features.session
    if named is not None:
        return f"named:{named}"
    turns = body.get("messages") or body.get("input")
    if not isinstance(turns, list) or not turns:
        return None
    first = next((i for i, t in enumerate(turns) if isinstance(t, dict) and t.get("role") == "user"), 0)
    begin = orjson.dumps([features.user, turns[: first + 1]])
    return hashlib.blake2b(begin, digest_size=16).hexdigest()


class Conversations:
    """Remembers who served a conversation last, for an hour."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._served: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def last(self, key: str) -> str | None:
        """The candidate (`provider/model`) that answered last."""
        found = self._served.get(key)
        if found is None or self._clock.monotonic() - found[1] > _FORGET_AFTER:
            return None
        return found[0]

    def served(self, key: str, candidate: str) -> None:
        """A candidate has answered."""
        self._served[key] = (candidate, self._clock.monotonic())
        self._served.move_to_end(key)
        if len(self._served) > _MOST:
            self._served.popitem(last=False)
