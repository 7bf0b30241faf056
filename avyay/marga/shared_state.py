"""What several workers of one router share: an owner keeps the breakers, members report and are told.

They speak over `avyay.worker_socket`. Failures are sent at once, successes and latencies in batches. What one member
learns (latencies, rate limits, who answered a conversation, where a response is stored) the owner passes to the others.

    member -> owner   ["s", provider, endpoint, count]  ["f", provider, endpoint]
                      ["r", number, [[provider, endpoint]], patience]  and what is passed on
    passed on         ["l", [[provider, endpoint, stream, size, [seconds]]]]  ["q", provider, endpoint, seconds]
                      ["c", {conversation: [candidate, cached]}]  ["h", response, provider]
    owner -> member   ["t", provider, endpoint, open, reason]
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from avyay.marga.health import CallKind, EndpointHealth, Place
from avyay.marga.router import Router
from avyay.marga.sticky import Answered
from avyay.marga.types import Endpoint
from avyay.resilience.breaker import Outcome, Transition
from avyay.worker_socket import MemberEnd, OwnerEnd, Peer

__all__ = ["StateMember", "StateOwner"]

_BATCH = 0.05  # seconds that successes wait to be reported together
_LATENCIES = 20  # of each kind reported in one batch; a quantile needs no more
_LEARNED = ("l", "q", "c", "h")  # what the owner passes on


class StateOwner:
    """Keeps the breakers of its router for all members, and passes on what they learn."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._health = health = router.health
        self._end = end = OwnerEnd()
        end.joined.append(self._joined)
        end.handlers |= {"s": self._succeeded, "f": self._failed, "r": self._asked}
        end.handlers |= dict.fromkeys(_LEARNED, self._learned)
        self._told = health.on_transition
        health.on_transition = self._changed

    async def serve(self, path: Path) -> None:
        """Listen at `path`, in a folder that nobody else can enter."""
        await self._end.serve(path)

    async def close(self) -> None:
        """Hang up on every member."""
        await self._end.close()

    @property
    def members(self) -> int:
        """How many are connected."""
        return len(self._end.peers)

    def _changed(self, health: EndpointHealth, change: Transition) -> None:
        if self._told is not None:
            self._told(health, change)
        self._end.tell(["t", health.provider, health.endpoint, not health.breaker.allow(), change.reason])

    def _joined(self, peer: Peer) -> None:
        for provider, endpoint in self._health.disturbed:
            peer.send(["t", provider, endpoint, True, self._health.at(provider, endpoint).breaker.reason])

    def _succeeded(self, peer: Peer, message: list[Any]) -> None:
        self._health.report(message[1], message[2], Outcome.SUCCESS, message[3])

    def _failed(self, peer: Peer, message: list[Any]) -> None:
        self._health.report(message[1], message[2], Outcome.FAILURE)

    def _learned(self, peer: Peer, message: list[Any]) -> None:
        _learn(self._router, message)  # a probe is as patient as the members are
        self._end.tell(message, but=peer)

    def _asked(self, peer: Peer, message: list[Any]) -> None:
        self._end.spawn(self._revive(peer, message))

    async def _revive(self, peer: Peer, message: list[Any]) -> None:
        places: list[Place] = [(p, e) for p, e in message[2] if p in self._health.providers]
        peer.answer(message, await self._health.revive(places, float(message[3])))


class StateMember:
    """Reports what one worker's calls became, and takes over what the owner and the other workers know.

    Args:
        lost: Called when the owner is gone.
    """

    def __init__(self, router: Router, *, lost: Callable[[], None]) -> None:
        self._router = router
        self._end = end = MemberEnd(lost)
        end.losing.append(self._alone)
        end.leaving.append(self._flush_now)
        end.handlers |= {"t": self._changed} | dict.fromkeys(_LEARNED, partial(_learn, router))
        self._successes: dict[Place, int] = {}
        self._latencies: dict[tuple[Place, CallKind], list[float]] = {}
        self._answered: dict[str, tuple[str, int]] = {}
        self._flush: asyncio.TimerHandle | None = None

    async def start(self, path: Path) -> None:
        """Join the owner at `path`.

        Raises:
            OSError: nobody listens there.
        """
        await self._end.start(path)
        router = self._router
        router.health.reporter = self
        router.health.on_revive = self._revive
        router.conversations.on_remember = self._remembered
        router.homes.on_remember = self._stored

    async def stop(self) -> None:
        """Report what is left and leave."""
        await self._end.stop()

    @property
    def joined(self) -> bool:
        """Whether there are other workers."""
        return self._end.joined

    # ------------------------------------------------------------ what happened here

    def outcome(self, provider: str, endpoint: Endpoint, outcome: Outcome) -> None:
        """A call ended."""
        if outcome is Outcome.SUCCESS:
            place = provider, endpoint
            self._successes[place] = self._successes.get(place, 0) + 1
            self._soon()
        elif outcome is Outcome.FAILURE:
            self._flush_now()  # in order: a success before it ends a row of failures
            self._end.send(["f", provider, endpoint])

    def latency(self, provider: str, endpoint: Endpoint, kind: CallKind, seconds: float) -> None:
        """A call began to answer."""
        seen = self._latencies.setdefault(((provider, endpoint), kind), [])
        if len(seen) < _LATENCIES:
            seen.append(round(seconds, 4))
            self._soon()

    def throttled(self, provider: str, endpoint: Endpoint, seconds: float | None) -> None:
        """An endpoint answered 429."""
        self._end.send(["q", provider, endpoint, seconds])

    def _remembered(self, conversation: str, answered: Answered) -> None:
        self._answered[conversation] = answered.candidate, answered.cached
        self._soon()

    def _stored(self, response: str, provider: str) -> None:
        self._end.send(["h", response, provider])

    def _soon(self) -> None:
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_BATCH, self._flush_now)

    def _flush_now(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        for (provider, endpoint), count in self._successes.items():
            self._end.send(["s", provider, endpoint, count])
        if self._latencies:
            self._end.send(["l", [[*place, *kind, seen] for (place, kind), seen in self._latencies.items()]])
        if self._answered:
            self._end.send(["c", self._answered])
        self._successes.clear()
        self._latencies.clear()
        self._answered = {}

    async def _revive(self, places: Iterable[Place], patience: float) -> bool:
        try:
            return bool(await self._end.ask("r", sorted(places), patience, patience=patience + 1.0))
        except OSError:
            return False

    # ------------------------------------------------------------ what happened elsewhere

    def _alone(self) -> None:
        self._router.health.reporter = None

    def _changed(self, message: list[Any]) -> None:
        health = self._router.health
        if message[1] in health.providers:
            health.mirror(message[1], message[2], is_open=bool(message[3]), reason=str(message[4]))


def _learn(router: Router, message: list[Any]) -> None:
    """Take over what a member has learned."""
    kind = message[0]
    if kind == "l":
        for provider, endpoint, stream, size, seen in message[1]:
            for seconds in seen:
                router.health.learn_latency(provider, endpoint, (stream, size), seconds)
    elif kind == "q":
        router.health.learn_throttled(message[1], message[2], message[3])
    elif kind == "c":
        now = router.clock.monotonic()
        for conversation, (candidate, cached) in message[1].items():
            router.conversations.learn(conversation, Answered(candidate, now, cached))
    elif kind == "h":
        router.homes.learn(message[1], message[2])
