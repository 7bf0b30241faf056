"""The keeper: what was pushed at once, polls on time, a failing source without harm to others, a daily round."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from avyay.clock import FakeClock
from avyay.rag.keeper import Keeper
from avyay.rag.service import RagService
from tests.unit.rag.conftest import ETCD, Repository


def keeper(rag: RagService, **intervals: float) -> Keeper:
    times = {"poll_interval": 0.0, "reconcile_interval": 0.0, **intervals}
    return Keeper(rag, **times, jitter=lambda: 0.5)


def test_what_was_pushed_is_synced(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))
    repository.write("etcd.md", ETCD + "\nzebra\n")
    repository.commit()
    made = keeper(rag)
    (report,) = made.sync(["runbooks"])
    assert list(report.changed) == ["etcd.md"]
    assert (made.status.syncs, made.status.changes, made.status.failures) == (1, 1, 0)
    assert "zebra" in rag.search("zebra")[0].text


def test_it_works_until_told_to_stop(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))

    async def run() -> None:
        made = keeper(rag, poll_interval=300)
        running = asyncio.create_task(made.run())
        while not made.status.syncs:
            await asyncio.sleep(0.005)
        made.stop()
        await running

    asyncio.run(run())


def test_polls_and_the_daily_round(rag: RagService, repository: Repository, clock: FakeClock) -> None:
    rag.index(str(repository.root))

    async def run() -> None:
        made = keeper(rag, poll_interval=300, reconcile_interval=86_400)
        await made.tick()
        await made.tick()
        assert made.status.syncs == 1
        clock.advance(300)
        await made.tick()
        assert made.status.syncs == 2
        clock.advance(86_400)
        await made.tick()
        assert (made.status.reconciles, made.status.mended) == (1, 0)
        assert made.status.last_reconcile == clock.now()

    asyncio.run(run())


def test_a_source_that_is_gone(rag: RagService, repository: Repository, tmp_path: Path) -> None:
    other = Repository(tmp_path / "other")
    other.write("b.md", "# B\n\nbeta\n")
    other.commit()
    rag.index(str(repository.root))
    rag.index(str(other.root))
    shutil.rmtree(repository.root)

    async def run() -> None:
        made = keeper(rag, poll_interval=300)
        await made.tick()
        assert (made.status.syncs, made.status.failures) == (1, 1)
        assert "runbooks is gone" in made.status.problems["runbooks"]

    asyncio.run(run())
    assert rag.search("etcd")
