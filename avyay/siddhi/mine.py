"""Mining: every source at its own pace, page by page, stored as it comes; one source's limit never stalls another."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AvyayError, UnreachableError
from avyay.money import ZERO, times
from avyay.resilience.backoff import Backoff
from avyay.resilience.rate_headers import RateLimit
from avyay.siddhi.budget import Governor
from avyay.siddhi.miners.base import LimitedError, Miner, Page, Rate
from avyay.siddhi.store import Store

__all__ = ["Mined", "Pacer", "mine"]

PATIENCE = 16 * 60.0
"""Seconds: windows are 15 minutes at most; a source that asks for more is left for the next run."""
_BACKOFF = Backoff(base=2.0, cap=300.0, attempts=6, patience=PATIENCE)


@dataclass(slots=True)
class Mined:
    """What one source gave. `stopped` says why it ended early; "" when it was read to the end."""

    source: str
    query: str
    pages: int = 0
    seen: int = 0
    new: int = 0
    stopped: str = ""


class Pacer:
    """Keeps a source's stated rate over any window, and slows down when its headers say so."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._sent: deque[float] = deque()
        self._not_before = 0.0
        self._lock = asyncio.Lock()

    async def turn(self) -> None:
        """Wait until one more request is within the rate."""
        async with self._lock:
            while (wait := self._wait()) > 0:
                await self._clock.sleep(wait)
            self._sent.append(self._clock.monotonic())

    def _wait(self) -> float:
        now = self._clock.monotonic()
        while self._sent and self._sent[0] <= now - self._rate.seconds:
            self._sent.popleft()
        room = self._sent[0] + self._rate.seconds - now if len(self._sent) >= self._rate.requests else 0.0
        return max(room, self._not_before - now)

    def heard(self, limits: Sequence[RateLimit]) -> None:
        """Take in what an answer's headers said."""
        for limit in limits:
            if limit.remaining is not None and limit.reset_after is not None and limit.remaining < 1:
                self.hold(limit.reset_after)

    def hold(self, seconds: float) -> None:
        """Send nothing for so long."""
        self._not_before = max(self._not_before, self._clock.monotonic() + seconds)


async def mine(
    store: Store,
    jobs: Sequence[tuple[Miner, str]],
    *,
    pages: int = 10,
    governor: Governor | None = None,
    clock: Clock = SYSTEM_CLOCK,
    chance: Callable[[], float] = random.random,
    pacers: Mapping[str, Pacer] | None = None,
) -> list[Mined]:
    """Read up to `pages` pages of every job; jobs of one source take turns, sources run side by side.

    Args:
        governor: Needed by sources that charge; without it they are refused.
        pacers: Of a longer-lived process, by source, so that rates hold from one call to the next.
    """
    sources: dict[str, list[tuple[Miner, str]]] = {}
    for miner, query in jobs:
        sources.setdefault(miner.name, []).append((miner, query))

    async def run(name: str) -> list[Mined]:
        pacer = (pacers or {}).get(name) or Pacer(sources[name][0][0].rate, clock)
        return [
            await _read(store, miner, query, pacer, pages, governor, clock, chance) for miner, query in sources[name]
        ]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(name)) for name in sources]
    return [mined for task in tasks for mined in task.result()]


async def _read(
    store: Store,
    miner: Miner,
    query: str,
    pacer: Pacer,
    pages: int,
    governor: Governor | None,
    clock: Clock,
    chance: Callable[[], float],
) -> Mined:
    result = Mined(miner.name, query)
    failures = 0
    while result.pages < pages:
        cursor = store.cursor(miner.name, query)
        try:
            await pacer.turn()
            page = await _paid(miner, query, cursor, governor)
        except (LimitedError, UnreachableError) as error:
            failures += 1
            asked = error.wait if isinstance(error, LimitedError) else None
            permanent = error.code.startswith("http_4")
            wait = None if permanent else _BACKOFF.delay(failures, chance, asked)
            if wait is None:
                result.stopped = str(error)
                break
            pacer.hold(wait)
            continue
        except AvyayError as error:
            result.stopped = str(error)
            break
        failures = 0
        pacer.heard(page.limits)
        result.pages += 1
        result.seen += len(page.complaints)
        result.new += store.add_page(miner.name, query, page.complaints, page.cursor)
        if page.done:
            break
    return result


async def _paid(miner: Miner, query: str, cursor: str | None, governor: Governor | None) -> Page:
    if miner.price == ZERO:
        return await miner.page(query, cursor)
    if governor is None:
        raise UnreachableError(f"{miner.name} charges for posts and there is no budget for it.", code="http_4")
    with governor.paid(miner.name, times(miner.price, miner.page_size)) as bill:
        try:
            page = await miner.page(query, cursor)
        except LimitedError:
            bill.nothing()
            raise
        bill.cost(times(miner.price, page.posts))
    return page
