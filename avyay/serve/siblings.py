"""What several workers of one daemon share through their parent: counters, the leader's facts, news, and reloading.

They speak over `avyay.worker_socket`. How everybody stands is asked when somebody wants to show it, and what was once
shown of a worker stays in the sum when that worker has ended: no scrape is below the one before.

    worker -> parent  ["j", pid]  ["u"] it serves  ["n"] news  ["q", number, counts, gauges] how do the others stand?
                      ["r", question, counts, gauges, facts]  ["l", number, whether it reloaded]
    parent -> worker  ["?", question]  ["n"]  ["l", number] reload
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import orjson

from avyay.errors import DependencyError
from avyay.log import get_logger
from avyay.serve.house import Metric
from avyay.serve.run import App
from avyay.worker_socket import MemberEnd, OwnerEnd, Peer

__all__ = ["Hub", "Joined", "Siblings", "Source"]

_PATIENCE = 1.0  # seconds a worker may take to say how it stands; after that its last word counts
_SILENT = 5.0  # seconds without a report, which comes twice a second, after which nobody waits for a worker's word
_RELOAD = 120.0  # seconds a worker may take to put a configuration to use

Samples: TypeAlias = dict[str, float]  # by kind, name, help and labels, as JSON


class Source(Protocol):
    """An application of this process."""

    def counts(self) -> Iterable[Metric]:
        """What it has counted by itself; asked for in the event loop."""
        ...

    def facts(self) -> Mapping[str, Any] | None:
        """What only the leader knows; None when it does not lead."""
        ...

    def news(self) -> None:
        """Something was put where all look: a job, or the wish to end one."""
        ...


class Siblings:
    """The applications of this process, and through `join` those of the other workers.

    Attributes:
        reload: Reads the configuration anew and says whether it is in use.
    """

    def __init__(self, *, lost: Callable[[], None] | None = None) -> None:
        self._sources: list[Source] = []
        self._gone: Samples = {}  # what applications of this process had counted that have ended
        self._end = end = MemberEnd(lost or _end_worker, lambda: self._own()[0])
        end.handlers |= {"?": self._asked, "n": self._told, "l": self._reload}
        self._tasks: set[asyncio.Task[None]] = set()
        self.reload: Callable[[], Awaitable[bool]] | None = None

    # ------------------------------------------------------------ for applications

    def add(self, source: Source) -> None:
        """Count it in."""
        self._sources.append(source)

    def remove(self, source: Source) -> None:
        """It has ended; what it counted stays."""
        if source not in self._sources:
            return
        self._sources.remove(source)
        _add(self._gone, _samples(source.counts())[0])

    def news(self) -> None:
        """Tell all applications, here and in the other workers."""
        self._told([])
        self._end.send(["n"])

    async def ask(self) -> tuple[list[Metric], Mapping[str, Any] | None]:
        """What all workers count, added up; and the leader's facts, where one of them leads."""
        counts, gauges = self._own()
        facts = self._facts()
        if self._end.joined:
            try:
                others, told = await self._end.ask("q", counts, gauges, patience=2 * _PATIENCE)
            except OSError:
                get_logger("serve").error("siblings_silent")
            else:
                _add(counts, others)
                facts = facts if facts is not None else told
        _add(counts, gauges)
        return _metrics(counts), facts

    @property
    def worker(self) -> dict[str, int]:
        """What says which of several workers this is: for pages that show one worker's view."""
        return {"worker": os.getpid()} if self._end.joined else {}

    # ------------------------------------------------------------ the parent

    async def join(self, path: Path) -> None:
        """Join the parent at `path`.

        Raises:
            OSError: nobody listens there.
        """
        await self._end.start(path)
        self._end.send(["j", os.getpid()])

    def up(self) -> None:
        """Tell the parent that this worker serves."""
        self._end.send(["u"])

    async def leave(self) -> None:
        """Report what is left, and leave."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end.stop()

    def _own(self) -> tuple[Samples, Samples]:
        """Counters and gauges of this process."""
        counts, gauges = dict(self._gone), dict[str, float]()
        for source in self._sources:
            own, now = _samples(source.counts())
            _add(counts, own)
            _add(gauges, now)
        return counts, gauges

    def _facts(self) -> Mapping[str, Any] | None:
        return next((facts for source in self._sources if (facts := source.facts()) is not None), None)

    def _asked(self, message: list[Any]) -> None:
        self._end.send(["r", message[1], *self._own(), self._facts()])

    def _told(self, message: list[Any]) -> None:
        for source in self._sources:
            source.news()

    def _reload(self, message: list[Any]) -> None:
        async def reload() -> None:
            done = await self.reload() if self.reload is not None else False
            self._end.send(["l", message[1], done])

        task = asyncio.ensure_future(reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Joined:
    """ASGI middleware of a worker: it joins its parent before the application starts, and leaves after it has ended."""

    def __init__(self, app: App, siblings: Siblings, path: Path) -> None:
        self._app, self._siblings, self._path = app, siblings, path

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        # A request is handed on as it is: no frame of ours stays on the hot path.
        return self._live(scope, receive, send) if scope["type"] == "lifespan" else self._app(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._siblings.up()
            elif message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._siblings.leave()  # the server ends the loop as soon as it hears of the end
            await send(message)

        try:
            await self._siblings.join(self._path)
        except OSError as error:  # it was killed while we started, and nobody will miss us
            raise DependencyError("The daemon that this worker belongs to has ended.", code="no_parent") from error
        await self._app(scope, receive, told)


class Hub:
    """The parent's side.

    Attributes:
        born: When a worker was started, on the monotonic clock, by its process id.
        heard: Told that a worker's event loop turns (it reports what it counts), and whether it serves already.
        changed: Told how many serve now.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = end = OwnerEnd()
        end.handlers |= {"j": self._joined, "u": self._up, "n": self._news}
        end.handlers |= {"q": self._asked, "r": self._answered, "l": self._reloaded}
        end.left.append(self._left)
        end.heard = self._heard
        self._pids: dict[Peer, int] = {}
        self._gauges: dict[Peer, Samples] = {}
        self._heard_at: dict[Peer, float] = {}
        self._serving: list[Peer] = []
        self._questions: dict[int, _Question] = {}
        self._reloads: dict[int, tuple[Peer, asyncio.Future[bool]]] = {}
        self._numbers = count(1)
        self._reloaded_at = -math.inf
        self.born: Callable[[int], float] = lambda pid: math.inf
        self.heard: Callable[[int, bool], None] = lambda pid, serving: None
        self.changed: Callable[[int], None] = lambda serving: None

    async def serve(self, path: Path) -> None:
        """Listen at `path`, in a folder that nobody else can enter."""
        await self._end.serve(path)

    async def close(self) -> None:
        """Hang up on every worker."""
        await self._end.close()

    @property
    def serving(self) -> int:
        """How many workers serve."""
        return len(self._serving)

    async def reload(self) -> bool:
        """Have the workers put the configuration to use, one after the other; False when the first refuses it."""
        self._reloaded_at = time.monotonic()
        for place, peer in enumerate(list(self._serving)):
            number = next(self._numbers)
            answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._reloads[number] = peer, answer
            peer.send(["l", number])
            done = False
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_RELOAD):
                        done = await answer
            finally:
                del self._reloads[number]
            if not done and place == 0:
                return False
            if not done and (pid := self._pids.get(peer)) is not None:
                get_logger("serve").error("worker_not_reloaded", pid=pid)  # the others are: it begins anew like them
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        return True

    def _heard(self, peer: Peer) -> None:
        self._heard_at[peer] = self._clock()
        if (pid := self._pids.get(peer)) is not None:
            self.heard(pid, peer in self._serving)

    def _joined(self, peer: Peer, message: list[Any]) -> None:
        self._pids[peer] = int(message[1])

    def _up(self, peer: Peer, message: list[Any]) -> None:
        self._serving.append(peer)
        if self.born(self._pids[peer]) < self._reloaded_at:
            peer.send(["l", 0])  # it may have read the configuration before
        self.changed(len(self._serving))

    def _news(self, peer: Peer, message: list[Any]) -> None:
        self._end.tell(["n"], but=peer)

    def _left(self, peer: Peer) -> None:
        self._pids.pop(peer, None)
        self._gauges.pop(peer, None)
        self._heard_at.pop(peer, None)
        if peer in self._serving:
            self._serving.remove(peer)
            self.changed(len(self._serving))
        for question in self._questions.values():
            question.without(peer)
        for reloading, answer in self._reloads.values():
            if reloading is peer and not answer.done():
                answer.set_result(True)  # who died comes back with what is on disk
        self._end.tell(["n"])  # its jobs are anybody's now

    def _reloaded(self, peer: Peer, message: list[Any]) -> None:
        _, answer = self._reloads.get(message[1], (peer, None))
        if answer is not None and not answer.done():
            answer.set_result(bool(message[2]))

    # ------------------------------------------------------------ how everybody stands

    def _asked(self, peer: Peer, message: list[Any]) -> None:
        peer.totals, self._gauges[peer] = message[2], message[3]
        self._end.spawn(self._ask_all(peer, message))

    def _answered(self, peer: Peer, message: list[Any]) -> None:
        peer.totals, self._gauges[peer] = message[2], message[3]
        if (question := self._questions.get(message[1])) is not None:
            question.answered(peer, message[4])

    async def _ask_all(self, asking: Peer, message: list[Any]) -> None:
        since = self._clock() - _SILENT
        others = [one for one in self._end.peers if one is not asking and self._heard_at.get(one, since) >= since]
        number = next(self._numbers)
        question = self._questions[number] = _Question(set(others))
        for peer in others:
            peer.send(["?", number])
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await question.done.wait()
        del self._questions[number]
        total = self._end.gone
        for peer in self._end.peers:
            if peer is not asking:
                _add(total, peer.totals)
                _add(total, self._gauges.get(peer, {}))
        asking.answer(message, [total, question.facts])


class _Question:
    """What all workers were asked, and who has not yet answered."""

    def __init__(self, asked: set[Peer]) -> None:
        self._open = asked
        self.done = asyncio.Event()
        self.facts: Any = None
        self._look()

    def answered(self, peer: Peer, facts: Any) -> None:
        self.facts = self.facts if facts is None else facts
        self.without(peer)

    def without(self, peer: Peer) -> None:
        self._open.discard(peer)
        self._look()

    def _look(self) -> None:
        if not self._open:
            self.done.set()


def _samples(metrics: Iterable[Metric]) -> tuple[Samples, Samples]:
    """Counters, and gauges, which end with whom they are of."""
    found: tuple[Samples, Samples] = ({}, {})
    for name, kind, text, rows in metrics:
        for labels, value in rows:
            key = orjson.dumps([name, kind, text, labels], option=orjson.OPT_SORT_KEYS).decode()
            found[kind != "counter"][key] = value
    return found


def _add(total: Samples, more: Mapping[str, float]) -> None:
    for key, value in more.items():
        total[key] = total.get(key, 0) + value


def _metrics(samples: Samples) -> list[Metric]:
    found: dict[str, tuple[str, str, str, list[tuple[Mapping[str, str], float]]]] = {}
    for key, value in samples.items():
        name, kind, text, labels = orjson.loads(key)
        found.setdefault(name, (name, kind, text, []))[3].append((labels, value))
    return list(found.values())


def _end_worker() -> None:
    """The parent is gone: a worker alone would keep the port and share nothing."""
    os.kill(os.getpid(), signal.SIGTERM)
