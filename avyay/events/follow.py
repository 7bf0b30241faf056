"""Following the events of other homes over `/v1/events`: on from where it stopped, as long as it takes.

A home is known by its own id, not by its address: several components of one home tell the same events, so one of them
is listened to at a time, and a component of this very home is not listened to at all.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import orjson

from avyay.clock import SYSTEM_CLOCK
from avyay.errors import AvyayError
from avyay.events.election import try_lock
from avyay.events.followed import FollowedStore, missed_event, read_event
from avyay.http import async_client
from avyay.log import get_logger
from avyay.resilience.backoff import Backoff

__all__ = ["Follower", "Remote"]

_QUIET = 50.0  # seconds without a byte, of which a living stream sends one every 15
_LARGEST_FRAME = 200_000
_HOME = re.compile(r"[A-Za-z0-9_-]{8,64}")
_AGAIN = 15.0  # seconds until a home that is followed through another component, or is this one, is looked at again
_ELECTION = 5.0
_BACKOFF = Backoff(base=0.5, cap=15.0, attempts=1_000_000_000, patience=float("inf"))


class _UnusableError(Exception):
    """The other side answers, and not with events."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A component that may belong to another home.

    Args:
        headers: Makes what the component asks callers for.
    """

    name: str
    url: str
    headers: Callable[[], Mapping[str, str]] = dict


@dataclass(slots=True)
class _Frame:
    """A server-sent event."""

    id: str | None
    name: str
    data: bytes


class Follower:
    """`run` until `stop`. Every process of a home may run one: a lock decides which of them follows.

    Args:
        own: The id of this home.
        store: Opens what is kept; called once this one follows.
        lock: The lock's file.
        backoff: Between two tries to reach a component.
        told: Queues (`queue` in an event's data) that several homes share, and this one tells of itself.
        jitter: Random numbers in [0, 1).
        now: Unix seconds.
    """

    def __init__(
        self,
        remotes: Sequence[Remote],
        own: str,
        store: Callable[[], FollowedStore],
        *,
        lock: Path,
        quiet: float = _QUIET,
        again: float = _AGAIN,
        backoff: Backoff = _BACKOFF,
        told: Callable[[], Collection[str]] = tuple,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], float] = SYSTEM_CLOCK.now,
    ) -> None:
        self._remotes, self._own, self._open, self._lock = remotes, own, store, lock
        self._quiet, self._again, self._backoff, self._jitter = quiet, again, backoff, jitter
        self._now, self._told = now, told
        self._stopping = asyncio.Event()
        self._homes: dict[str, asyncio.Lock] = {}
        self._log = get_logger("events")
        self.following: dict[str, str] = {}  # component -> home
        self.garbled = 0  # frames that were no events

    def stop(self) -> None:
        """End `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """Follow until stopped."""
        held: int | None = None
        while not self._stopping.is_set() and (held := await asyncio.to_thread(try_lock, self._lock)) is None:
            await self._pause(_ELECTION)
        if held is None:
            return
        try:
            await self._follow_all()
        finally:
            os.close(held)

    async def _follow_all(self) -> None:
        try:
            store = await asyncio.to_thread(self._open)
        except AvyayError as error:
            self._log.error("followed_not_opened", error=error.message)
            return
        tasks = [asyncio.create_task(self._follow(store, remote)) for remote in self._remotes]
        try:
            await self._stopping.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(store.close)

    async def _follow(self, store: FollowedStore, remote: Remote) -> None:
        failures = 0
        async with async_client(read=self._quiet) as http:
            while True:
                reached = False
                try:
                    home = await self._whose(http, remote)
                    turn = self._homes.setdefault(home, asyncio.Lock())
                    if home == self._own or turn.locked():
                        failures = 0
                        await asyncio.sleep(self._again)
                        continue
                    async with turn:
                        self.following[remote.name] = home
                        async for _ in self._stream(http, remote, store, home):
                            reached = True
                except (httpx2.HTTPError, httpx2.InvalidURL, _UnusableError, AvyayError, OSError) as error:
                    if failures == 0 or reached:
                        self._log.info("events_not_followed", name=remote.name, reason=str(error)[:200])
                except Exception:  # noqa: BLE001 - a bug must not end the following of a home for good
                    self._log.exception("following_failed", name=remote.name)
                finally:
                    self.following.pop(remote.name, None)
                failures = 0 if reached else failures + 1
                await asyncio.sleep(self._backoff.delay(max(1, failures), self._jitter) or 0.0)

    async def _whose(self, http: httpx2.AsyncClient, remote: Remote) -> str:
        headers = {**remote.headers(), "accept": "application/json"}
        async with http.stream("GET", f"{remote.url}/v1/events?limit=1", headers=headers) as answer:
            home = answer.headers.get("avyay-home", "")
            if answer.status_code != 200 or _HOME.fullmatch(home) is None:
                raise _UnusableError(f"HTTP {answer.status_code}, and no home is named")
            return home

    async def _stream(
        self, http: httpx2.AsyncClient, remote: Remote, store: FollowedStore, home: str
    ) -> AsyncIterator[None]:
        """Keep what comes; yields after each step. Ends when the other side ends the stream."""
        since = await asyncio.to_thread(store.cursor, home)
        headers = {**remote.headers(), "accept": "text/event-stream"}
        query = {"own": "true", "after": "start" if since is None else since}
        async with http.stream("GET", f"{remote.url}/v1/events", params=query, headers=headers) as answer:
            if answer.status_code == 400 and since:
                await asyncio.to_thread(store.add, home, (), None)
                raise _UnusableError("the place reached is not known there: it is read from its start")
            if answer.status_code != 200 or not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise _UnusableError(f"HTTP {answer.status_code}, and no events")
            if answer.headers.get("avyay-home") != home:
                raise _UnusableError("another home answers there now")
            rest = b""
            async for piece in answer.aiter_bytes():
                *blocks, rest = (rest + piece).split(b"\n\n")
                if len(rest) > _LARGEST_FRAME:
                    raise _UnusableError("a frame is too large")
                await self._keep(store, remote, home, [_frame(block) for block in blocks])
                yield

    async def _keep(self, store: FollowedStore, remote: Remote, home: str, frames: Sequence[_Frame]) -> None:
        cursor, events = None, []
        told = await asyncio.to_thread(self._told)
        for frame in frames:
            if frame.name == "avyay.events.missed":
                self._log.warning(
                    "events_missed", name=remote.name, outboxes=frame.data[:200].decode("utf-8", "replace")
                )
                events.append(missed_event(remote.name, frame.data, self._now()))
            elif frame.data:
                event = read_event(frame.data)
                if event is None:
                    self.garbled += 1
                    self._log.warning("no_event", name=remote.name)
                elif not (told and orjson.loads(event[3]).get("queue") in told):
                    events.append(event)
            cursor = frame.id if frame.id is not None else cursor
        if cursor is not None:
            await asyncio.to_thread(store.add, home, events, cursor)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _frame(block: bytes) -> _Frame:
    identity, name, data = None, "", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"id":
            identity = value.decode("utf-8", "replace")
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"data":
            data.append(value)
    return _Frame(identity, name, b"\n".join(data))
