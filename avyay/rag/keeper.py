"""Keeping a running index fresh: syncs what was pushed, polls in case nobody says so, reconciles once a day."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from avyay.errors import AvyayError
from avyay.log import get_logger

if TYPE_CHECKING:
    from avyay.ports import Progress
    from avyay.rag.plan import SyncReport
    from avyay.rag.service import RagService

__all__ = ["Keeper", "KeeperStatus"]

log = get_logger("rag")
JITTER = 0.1  # intervals vary by so much, or all daemons would fetch at once
IDLE = 3_600.0


@dataclass
class KeeperStatus:
    """What the keeper has done. Times are Unix seconds; `problems` holds the last error of each source."""

    syncs: int = 0
    failures: int = 0
    changes: int = 0
    reconciles: int = 0
    mended: int = 0
    last_sync: float | None = None
    last_reconcile: float | None = None
    problems: dict[str, str] = field(default_factory=dict)


class Keeper:
    """A daemon loop: `run` until `stop`.

    Args:
        poll_interval: Seconds between looks at all sources; 0: never.
        reconcile_interval: Seconds between reconciliations; 0: never.
        jitter: Gives numbers from 0 to 1.
    """

    def __init__(
        self,
        rag: RagService,
        *,
        poll_interval: float,
        reconcile_interval: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._rag = rag
        self._clock = rag.clock
        self._poll, self._reconcile = poll_interval, reconcile_interval
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._stopping = False
        start = self._clock.monotonic()
        self._next_poll = start if poll_interval else None
        self._next_reconcile = start + self._spread(reconcile_interval) if reconcile_interval else None
        self._noting = threading.Lock()
        self.status = KeeperStatus()

    def stop(self) -> None:
        """End `run` after what it is doing."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until stopped. Errors of sources are noted and tried again at the next poll."""
        while not self._stopping:
            await self.tick()
            self._wake.clear()
            if self._stopping:
                return
            try:
                await asyncio.wait_for(self._wake.wait(), self._pause())
            except TimeoutError:
                pass

    async def tick(self) -> None:
        """Do what is due."""
        now = self._clock.monotonic()
        if self._next_reconcile is not None and now >= self._next_reconcile:
            self._next_reconcile = now + self._spread(self._reconcile)
            await self._reconcile_once()
            return
        if self._next_poll is not None and now >= self._next_poll:
            self._next_poll = now + self._spread(self._poll)
            for name in sorted(row.spec.name for row in self._rag.sources()):
                if self._stopping:
                    return
                await asyncio.to_thread(self.sync, [name])

    def sync(self, names: Iterable[str], progress: Progress | None = None) -> list[SyncReport]:
        """Sync these sources, each by itself: an error of one is noted and touches no other. Blocks."""
        found: list[SyncReport] = []
        for name in names:
            try:
                reports = self._rag.sync([name], progress=progress)
            except AvyayError as error:
                if error.code == "cancelled":
                    raise
                with self._noting:
                    self.status.failures += 1
                    self.status.problems[name] = error.message
                log.warning("sync_failed", source=name, error=error.message)
                continue
            found += reports
            changed = [report for report in reports if not report.up_to_date]
            with self._noting:
                self.status.syncs += 1
                self.status.changes += len(changed)
                self.status.last_sync = self._clock.now()
                self.status.problems.pop(name, None)
            for report in changed:
                log.info("source_changed", source=name, head=report.head, chunks=report.chunks)
        return found

    async def _reconcile_once(self) -> None:
        try:
            report = await asyncio.to_thread(self._rag.reconcile)
        except AvyayError as error:
            self.status.failures += 1
            self.status.problems["reconcile"] = error.message
            log.error("reconcile_failed", error=error.message)
            return
        self.status.reconciles += 1
        self.status.mended += len(report.mended) + len(report.stale)
        self.status.last_reconcile = self._clock.now()
        self.status.problems = dict(report.unchecked)
        if not report.sound:
            log.warning("index_mended", mended=report.mended, stale=report.stale, unchecked=list(report.unchecked))

    def _spread(self, seconds: float) -> float:
        return seconds * (1 + JITTER * (2 * self._jitter() - 1))

    def _pause(self) -> float:
        now = self._clock.monotonic()
        due = [when for when in (self._next_poll, self._next_reconcile) if when is not None]
        return max(0.0, min(due) - now) if due else IDLE
