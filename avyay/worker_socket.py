"""How several workers of one daemon share what one owner keeps: JSON lines over a Unix socket.

A line is `[kind, ...]`. Whoever uses an end says what becomes of each kind (`handlers`); two kinds stand here:

    member -> owner   ["m", {counter: value}]          owner -> member   ["m", {counter: sum over all other members}]
    member -> owner   [kind, number, ...]              owner -> member   ["a", number, answer]

Counters of a member that has ended are kept. When the owner is gone, `lost` is called at once, and who waits for an
answer gets none: a worker alone would keep the port and share nothing, so the daemons end theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from avyay.log import get_logger

__all__ = ["MemberEnd", "OwnerEnd", "Peer"]

Message: TypeAlias = list[Any]

_MOST_LINE = 1 << 20
_COUNTS = 0.5  # seconds between two reports of counters


class Peer:
    """A member, as the owner sees it. `number` is its own among all members there ever were."""

    __slots__ = ("_writer", "number", "totals")

    def __init__(self, number: int, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.totals: dict[str, float] = {}
        self._writer = writer

    def send(self, message: Message) -> None:
        """Tell it something; one that is gone hears nothing."""
        self.write(orjson.dumps(message) + b"\n")

    def answer(self, message: Message, answer: Any) -> None:
        """Answer what it asked."""
        self.send(["a", message[1], answer])

    def write(self, line: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(line)


class OwnerEnd:
    """The owner's end.

    Attributes:
        handlers: By kind, what is done with a message. An awaitable it returns holds up its member's next message.
        joined, left: Told of every member that comes and goes.
        heard: Told of whoever says something, which each does a few times a second.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Peer, Message], Awaitable[None] | None]] = {"m": self._counted}
        self.joined: list[Callable[[Peer], None]] = []
        self.left: list[Callable[[Peer], None]] = []
        self.heard: Callable[[Peer], None] = lambda peer: None
        self._peers: dict[int, Peer] = {}
        self._gone: dict[str, float] = {}  # counters of members that have ended
        self._met = 0
        self._log = get_logger("workers")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def peers(self) -> list[Peer]:
        """The members there are."""
        return list(self._peers.values())

    @property
    def gone(self) -> dict[str, float]:
        """The counters of members that have ended."""
        return dict(self._gone)

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

    def tell(self, message: Message, *, but: Peer | None = None) -> None:
        """Tell all members, or all but one."""
        line = orjson.dumps(message) + b"\n"
        for peer in self._peers.values():
            if peer is not but:
                peer.write(line)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that no member's next message waits for."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _member(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._met += 1
        peer = self._peers[self._met] = Peer(self._met, writer)
        try:
            for told in self.joined:
                told(peer)
            async for message in _messages(reader):
                self.heard(peer)
                work = self.handlers[message[0]](peer, message)
                if work is not None:
                    await work
        except asyncio.CancelledError:
            pass
        except Exception:  # noqa: BLE001 - a bug of ours must not end the owner of all; its member is started anew
            self._log.exception("member_not_understood", member=peer.number)
        finally:
            del self._peers[peer.number]
            _add(self._gone, peer.totals)
            for told in self.left:
                told(peer)
            self._tasks.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def _counted(self, peer: Peer, message: Message) -> None:
        peer.totals = message[1]
        others = dict(self._gone)
        for other in self._peers.values():
            if other is not peer:
                _add(others, other.totals)
        peer.send(["m", others])


class MemberEnd:
    """A worker's end.

    Args:
        lost: Called when the owner is gone.
        totals: This worker's counters; None: it reports none.

    Attributes:
        handlers: By kind, what is done with a message.
        others: The counters of all other workers, those that have ended included.
        leaving: Done before the last counters are sent.
        losing: Done when the owner is gone.
    """

    def __init__(self, lost: Callable[[], None], totals: Callable[[], dict[str, float]] | None = None) -> None:
        self.handlers: dict[str, Callable[[Message], None]] = {"m": self._counted, "a": self._answered}
        self.leaving: list[Callable[[], None]] = []
        self.losing: list[Callable[[], None]] = [lost]
        self.others: dict[str, float] = {}
        self._totals = totals
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._asked = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def joined(self) -> bool:
        """Whether there is an owner, and with it other workers."""
        return self._writer is not None and not self._writer.is_closing()

    async def start(self, path: Path) -> None:
        """Join the owner at `path`.

        Raises:
            OSError: nobody listens there.
        """
        reader, self._writer = await asyncio.open_unix_connection(str(path), limit=_MOST_LINE)
        self._tasks = [asyncio.ensure_future(self._listen(reader))]
        if self._totals is not None:
            self._tasks.append(asyncio.ensure_future(self._report(self._totals)))

    async def stop(self) -> None:
        """Report what is left, and leave."""
        self.losing.clear()
        for last in self.leaving:
            last()
        if self._totals is not None:
            self.send(["m", self._totals()])
        if self._writer is not None:
            with suppress(ConnectionError):
                await self._writer.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with suppress(ConnectionError):
                await self._writer.wait_closed()

    def send(self, message: Message) -> None:
        """Tell the owner something; without one it goes nowhere."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(orjson.dumps(message) + b"\n")

    async def ask(self, kind: str, *rest: Any, patience: float) -> Any:
        """The owner's answer.

        Raises:
            OSError: there is no owner (ConnectionError), or no answer in `patience` seconds (TimeoutError).
        """
        if not self.joined:
            raise ConnectionError("there is no owner")
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self.send([kind, number, *rest])
        try:
            async with asyncio.timeout(patience):
                return await answer
        finally:
            self._waiting.pop(number, None)

    async def _report(self, totals: Callable[[], dict[str, float]]) -> None:
        while True:
            await asyncio.sleep(_COUNTS)
            self.send(["m", totals()])

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        async for message in _messages(reader):
            self.handlers[message[0]](message)
        if self._writer is not None:
            self._writer.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the owner is gone"))
        for told in self.losing:
            told()

    def _counted(self, message: Message) -> None:
        self.others = message[1]

    def _answered(self, message: Message) -> None:
        answer = self._waiting.get(message[1])
        if answer is not None and not answer.done():
            answer.set_result(message[2])


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    """What the other side says, until it is gone."""
    try:
        while line := await reader.readline():
            yield orjson.loads(line)
    except ConnectionError:
        return  # it was still being told something when it left
    except ValueError as error:
        get_logger("workers").error("other_end_unreadable", error=type(error).__name__)


def _add(to: dict[str, float], what: dict[str, float]) -> None:
    for name, value in what.items():
        to[name] = to.get(name, 0) + value
