"""What several workers of one router share: an owner keeps the breakers, members report and are told.

They speak JSON lines over a Unix socket. Failures are sent at once, successes and latencies in batches. What one member
learns (latencies, rate limits, who answered a conversation, where a response is stored) the owner passes to the others.

    member -> owner   ["s", provider, endpoint, count]  ["f", provider, endpoint]  ["m", {status: count}]
                      ["r", id, [[provider, endpoint]], patience]  and what is passed on
    passed on         ["l", [[provider, endpoint, stream, size, [seconds]]]]  ["q", provider, endpoint, seconds]
                      ["c", {conversation: [candidate, cached]}]  ["h", response, provider]
    owner -> member   ["t", provider, endpoint, open, reason]  ["a", id, revived]  ["m", {status: count of all others}]
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from avyay.log import get_logger
from avyay.marga.health import CallKind, EndpointHealth, Place
from avyay.marga.router import Router
from avyay.marga.sticky import Answered
from avyay.marga.types import Endpoint
from avyay.resilience.breaker import Outcome, Transition

__all__ = ["StateMember", "StateOwner"]

_BATCH = 0.05  # seconds that successes wait to be reported together
_LATENCIES = 20  # of each kind reported in one batch; a quantile needs no more
_COUNTS = 0.5  # seconds between two reports of counters
_MOST_LINE = 1 << 20


class StateOwner:
    """Keeps the breakers of its router for all members, and passes on what they learn."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._health = health = router.health
        self._members: dict[asyncio.StreamWriter, dict[str, int]] = {}
        self._gone: dict[str, int] = {}  # counters of members that have ended
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told = health.on_transition
        health.on_transition = self._changed

    async def serve(self, path: Path) -> None:
        """Listen at `path`, in a folder that nobody else can enter."""
        self._server = await asyncio.start_unix_server(self._member, str(path), limit=_MOST_LINE)

    async def close(self) -> None:
        """Hang up on every member."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(self, health: EndpointHealth, change: Transition) -> None:
        if self._told is not None:
            self._told(health, change)
        for writer in self._members:
            _send(writer, ["t", health.provider, health.endpoint, not health.breaker.allow(), change.reason])

    async def _member(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._members[writer] = {}
        try:
            for provider, endpoint in self._health.disturbed:
                _send(writer, ["t", provider, endpoint, True, self._health.at(provider, endpoint).breaker.reason])
            while line := await reader.readline():
                self._take(line, writer)
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass
        finally:
            for status, count in self._members.pop(writer, {}).items():
                self._gone[status] = self._gone.get(status, 0) + count
            self._tasks.discard(task)
            writer.close()

    def _take(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        message = orjson.loads(line)
        kind = message[0]
        if kind == "s":
            self._health.report(message[1], message[2], Outcome.SUCCESS, message[3])
        elif kind == "f":
            self._health.report(message[1], message[2], Outcome.FAILURE)
        elif kind == "r":
            work = asyncio.ensure_future(self._revive(message, writer))
            self._tasks.add(work)
            work.add_done_callback(self._tasks.discard)
        elif kind == "m":
            self._members[writer] = message[1]
            others = dict(self._gone)
            for other, counts in self._members.items():
                if other is not writer:
                    for status, count in counts.items():
                        others[status] = others.get(status, 0) + count
            _send(writer, ["m", others])
        else:
            _learn(self._router, message)  # a probe is as patient as the members are
            for other in self._members:
                if other is not writer and not other.is_closing():
                    other.write(line)

    async def _revive(self, message: list[Any], writer: asyncio.StreamWriter) -> None:
        places: list[Place] = [(p, e) for p, e in message[2] if p in self._health.providers]
        _send(writer, ["a", message[1], await self._health.revive(places, float(message[3]))])


class StateMember:
    """Reports what one worker's calls became, and takes over what the owner and the other workers know.

    Args:
        lost: Called when the owner is gone.
        counters: This worker's counters.
    """

    def __init__(self, router: Router, *, counters: Callable[[], dict[str, int]], lost: Callable[[], None]) -> None:
        self._router = router
        self._counters = counters
        self._lost = lost
        self._log = get_logger("marga")
        self._writer: asyncio.StreamWriter | None = None
        self._successes: dict[Place, int] = {}
        self._latencies: dict[tuple[Place, CallKind], list[float]] = {}
        self._answered: dict[str, tuple[str, int]] = {}
        self._flush: asyncio.TimerHandle | None = None
        self._answers: dict[int, asyncio.Future[bool]] = {}
        self._asked = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.others: dict[str, int] = {}

    async def start(self, path: Path) -> None:
        """Join the owner at `path`.

        Raises:
            OSError: nobody listens there.
        """
        reader, self._writer = await asyncio.open_unix_connection(str(path), limit=_MOST_LINE)
        router = self._router
        router.health.reporter = self
        router.health.on_revive = self._revive
        router.conversations.on_remember = self._remembered
        router.homes.on_remember = self._stored
        self._tasks = [asyncio.ensure_future(self._listen(reader)), asyncio.ensure_future(self._count())]

    async def stop(self) -> None:
        """Report what is left and leave."""
        self._lost = _nothing
        self._flush_now()
        if self._writer is not None:
            _send(self._writer, ["m", self._counters()])
            with suppress(ConnectionError):
                await self._writer.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    @property
    def joined(self) -> bool:
        """Whether there are other workers."""
        return self._writer is not None

    # ------------------------------------------------------------ what happened here

    def outcome(self, provider: str, endpoint: Endpoint, outcome: Outcome) -> None:
        """A call ended."""
        if outcome is Outcome.SUCCESS:
            place = provider, endpoint
            self._successes[place] = self._successes.get(place, 0) + 1
            self._soon()
        elif outcome is Outcome.FAILURE and self._writer is not None:
            self._flush_now()  # in order: a success before it ends a row of failures
            _send(self._writer, ["f", provider, endpoint])

    def latency(self, provider: str, endpoint: Endpoint, kind: CallKind, seconds: float) -> None:
        """A call began to answer."""
        seen = self._latencies.setdefault(((provider, endpoint), kind), [])
        if len(seen) < _LATENCIES:
            seen.append(round(seconds, 4))
            self._soon()

    def throttled(self, provider: str, endpoint: Endpoint, seconds: float | None) -> None:
        """An endpoint answered 429."""
        if self._writer is not None:
            _send(self._writer, ["q", provider, endpoint, seconds])

    def _remembered(self, conversation: str, answered: Answered) -> None:
        self._answered[conversation] = answered.candidate, answered.cached
        self._soon()

    def _stored(self, response: str, provider: str) -> None:
        if self._writer is not None:
            _send(self._writer, ["h", response, provider])

    def _soon(self) -> None:
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_BATCH, self._flush_now)

    def _flush_now(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._writer is not None:
            for (provider, endpoint), count in self._successes.items():
                _send(self._writer, ["s", provider, endpoint, count])
            if self._latencies:
                _send(self._writer, ["l", [[*place, *kind, seen] for (place, kind), seen in self._latencies.items()]])
            if self._answered:
                _send(self._writer, ["c", self._answered])
        self._successes.clear()
        self._latencies.clear()
        self._answered = {}

    async def _revive(self, places: Iterable[Place], patience: float) -> bool:
        if self._writer is None:
            return False
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        _send(self._writer, ["r", number, sorted(places), patience])
        try:
            async with asyncio.timeout(patience + 1.0):
                return await answer
        except TimeoutError:
            return False
        finally:
            self._answers.pop(number, None)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_COUNTS)
            if self._writer is not None:
                _send(self._writer, ["m", self._counters()])

    # ------------------------------------------------------------ what happened elsewhere

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(orjson.loads(line))
        except (ConnectionError, ValueError) as error:
            self._log.error("owner_unreadable", error=type(error).__name__)
        self._router.health.reporter = None
        self._lost()

    def _take(self, message: list[Any]) -> None:
        kind, health = message[0], self._router.health
        if kind == "t":
            if message[1] in health.providers:
                health.mirror(message[1], message[2], is_open=bool(message[3]), reason=str(message[4]))
        elif kind == "a":
            answer = self._answers.get(message[1])
            if answer is not None and not answer.done():
                answer.set_result(bool(message[2]))
        elif kind == "m":
            self.others = message[1]
        else:
            _learn(self._router, message)


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


def _nothing() -> None:
    return None


def _send(writer: asyncio.StreamWriter, message: list[Any]) -> None:
    if not writer.is_closing():
        writer.write(orjson.dumps(message) + b"\n")
