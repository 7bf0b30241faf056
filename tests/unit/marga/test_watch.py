"""A provider that is given up is news that a crash right after must not swallow."""

from __future__ import annotations

import asyncio
from pathlib import Path

from avyay.config.marga import MargaSettings
from avyay.errors import UnreachableError
from avyay.events.outbox import Outboxes
from avyay.events.reader import EventReader
from avyay.marga.router import Router
from avyay.marga.store import MemoryStore
from avyay.marga.types import Provider
from avyay.marga.watch import Watch
from avyay.resilience.breaker import Outcome


class Told(Outboxes):
    """Outboxes that say when they were asked to hurry."""

    def __init__(self, data: Path, *, fails: bool = False) -> None:
        super().__init__(data)
        self.hurried = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._fails = fails

    def flush(self) -> None:
        super().flush()
        self._loop.call_soon_threadsafe(self.hurried.set)
        if self._fails:
            raise UnreachableError("the disk is full")


async def trip(events: Outboxes) -> Watch:
    router = Router([Provider("p", "fake", "fake:")], MargaSettings(), store=MemoryStore)
    watch = Watch(router, events=events)
    router.health.report("p", "chat", Outcome.FAILURE, 100)
    return watch


def test_a_trip_waits_for_no_company_on_its_way_to_the_disk(tmp_path: Path) -> None:
    async def run() -> None:
        events = Told(tmp_path)
        watch = await trip(events)
        await events.hurried.wait()
        reader = EventReader(tmp_path)  # what another process would find now
        assert [event.name for event in reader.latest(10).events] == ["marga.provider.tripped"]
        reader.close()
        await watch.stop()
        await asyncio.to_thread(events.close)

    asyncio.run(run())


def test_a_disk_that_fails_ends_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        events = Told(tmp_path, fails=True)
        watch = await trip(events)
        await events.hurried.wait()
        await watch.stop()
        await asyncio.to_thread(events.close)

    asyncio.run(run())
