"""One set of breakers for several worker processes: an owner keeps them, members report outcomes and mirror the state.

They speak JSON lines over a Unix socket. Failures are sent at once, successes in batches, changes of a breaker to all.

    member -> owner   ["s", provider, count]  ["f", provider]  ["r", id, [providers], patience]  ["m", {status: count}]
    owner -> member   ["t", provider, open, reason]  ["a", id, revived]  ["m", {status: count of all others}]
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from avyay.log import get_logger
from avyay.marga.health import Health
from avyay.resilience.breaker import Outcome, Transition

__all__ = ["HealthMember", "HealthOwner"]

_BATCH = 0.05  # seconds that successes wait to be reported together
_COUNTS = 0.5  # seconds between two reports of counters
_MOST_LINE = 1 << 20


class HealthOwner:
    """Keeps the breakers of `health` for all members."""

    def __init__(self, health: Health) -> None:
        self._health = health
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

    def _changed(self, name: str, change: Transition) -> None:
        if self._told is not None:
            self._told(name, change)
        closed = self._health.providers[name].breaker.allow()
        for writer in self._members:
            _send(writer, ["t", name, not closed, change.reason])

    async def _member(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._members[writer] = {}
        try:
            for name in self._health.disturbed:
                _send(writer, ["t", name, True, self._health.providers[name].breaker.reason])
            while line := await reader.readline():
                self._take(orjson.loads(line), writer)
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass
        finally:
            for status, count in self._members.pop(writer, {}).items():
                self._gone[status] = self._gone.get(status, 0) + count
            self._tasks.discard(task)
            writer.close()

    def _take(self, message: list[Any], writer: asyncio.StreamWriter) -> None:
        kind = message[0]
        if kind == "s":
            self._health.report(message[1], Outcome.SUCCESS, message[2])
        elif kind == "f":
            self._health.report(message[1], Outcome.FAILURE)
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

    async def _revive(self, message: list[Any], writer: asyncio.StreamWriter) -> None:
        known = [name for name in message[2] if name in self._health.providers]
        _send(writer, ["a", message[1], await self._health.revive(known, float(message[3]))])


class HealthMember:
    """Reports the outcomes of one worker's calls, and mirrors the owner's breakers in its `health`.

    Args:
        lost: Called when the owner is gone.
        counters: This worker's counters.
    """

    def __init__(self, health: Health, *, counters: Callable[[], dict[str, int]], lost: Callable[[], None]) -> None:
        self._health = health
        self._counters = counters
        self._lost = lost
        self._log = get_logger("marga")
        self._writer: asyncio.StreamWriter | None = None
        self._successes: dict[str, int] = {}
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
        self._health.reporter = self
        self._health.on_revive = self._revive
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

    def outcome(self, name: str, outcome: Outcome) -> None:
        """A call at a provider ended."""
        if outcome is Outcome.SUCCESS:
            self._successes[name] = self._successes.get(name, 0) + 1
            if self._flush is None:
                self._flush = asyncio.get_running_loop().call_later(_BATCH, self._flush_now)
        elif outcome is Outcome.FAILURE and self._writer is not None:
            self._flush_now()  # in order: a success before it ends a row of failures
            _send(self._writer, ["f", name])

    def _flush_now(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._writer is not None:
            for name, count in self._successes.items():
                _send(self._writer, ["s", name, count])
        self._successes.clear()

    async def _revive(self, names: Iterable[str], patience: float) -> bool:
        if self._writer is None:
            return False
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        _send(self._writer, ["r", number, sorted(names), patience])
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

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(orjson.loads(line))
        except (ConnectionError, ValueError) as error:
            self._log.error("owner_unreadable", error=type(error).__name__)
        self._health.reporter = None
        self._lost()

    def _take(self, message: list[Any]) -> None:
        kind = message[0]
        if kind == "t" and message[1] in self._health.providers:
            self._health.mirror(message[1], is_open=bool(message[2]), reason=str(message[3]))
        elif kind == "a":
            answer = self._answers.get(message[1])
            if answer is not None and not answer.done():
                answer.set_result(bool(message[2]))
        elif kind == "m":
            self.others = message[1]


def _nothing() -> None:
    return None


def _send(writer: asyncio.StreamWriter, message: list[Any]) -> None:
    if not writer.is_closing():
        writer.write(orjson.dumps(message) + b"\n")
