"""Processes that are killed at any moment, against a platform that overspends, bills late and fails: caps hold."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import governor_worker
import pytest
from ad_platforms import GooglePlatform, Market
from governor_worker import CAPS, HYPOTHESES

from avyay.money import Picodollars


def dollars(amount: Picodollars) -> float:
    return amount / 10**12


def start(tmp_path: Path, url: str, seed: int, operations: int) -> subprocess.Popen[bytes]:
    arguments = [str(tmp_path / "b.db"), url, str(seed), str(operations), str(tmp_path / "count")]
    return subprocess.Popen(
        [sys.executable, governor_worker.__file__, *arguments],
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": "/usr/bin:/bin", "AVYAY_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
    )


def crash(tmp_path: Path, processes: int, operations: int, every: float, each: int = 10**9) -> tuple[Market, int]:
    """Run until so many operations are done, killing a process `every` so many seconds, and after `each` so many
    operations; returns the market and the kills.
    """
    market = Market(overspend=2.0, delay=0.2, seed=5)
    market.remember = False
    market.fail_before, market.fail_after = 0.02, 0.05
    chance = random.Random(3)
    (tmp_path / "count").touch()
    kills = 0
    with GooglePlatform(market) as server:
        governor_worker.governor(tmp_path / "b.db", server.url).close()  # the schema is there
        running = [start(tmp_path, server.url, seed, operations) for seed in range(processes)]
        seed = processes
        due = time.monotonic() + every
        next_kill = each
        try:
            while (done := (tmp_path / "count").stat().st_size) < operations:
                time.sleep(0.02)
                with market.lock:
                    market.spend(chance.random() * 0.5)
                    market.settle()
                    bounded(market)
                if time.monotonic() >= due or done >= next_kill:
                    due = time.monotonic() + every
                    next_kill = done + each
                    place = chance.randrange(processes)
                    running[place].kill()
                    running[place].wait()
                    kills += 1
                    running[place] = start(tmp_path, server.url, seed, operations)
                    seed += 1
        finally:
            for process in running:
                process.kill()
                process.wait()
        market.fail_before = market.fail_after = 0.0
        guard = governor_worker.governor(tmp_path / "b.db", server.url)
        try:
            for row in guard.campaigns.all(unfinished=True):
                with contextlib.suppress(Exception):
                    guard.finish(row.name)
            for _ in range(40):
                if guard.sweep().held == 0:
                    break
                time.sleep(0.3)
            assert guard.ledger.pending() == []
            assert guard.ledger.problems() == []
            assert guard.campaigns.alarms() == []
            spent = guard.ledger.balance("source:google").spent
            assert spent == market.total() * 10**6
        finally:
            guard.close()
    assert all(one.status == "REMOVED" for one in market.sold.values())
    return market, kills


def bounded(market: Market) -> None:
    assert market.total() <= dollars(CAPS.total) * 1e6
    assert market.total() <= dollars(CAPS.sources["google"]) * 1e6
    for number in range(HYPOTHESES):
        assert market.total(f"-h{number}-") <= dollars(CAPS.hypothesis) * 1e6
    days: dict[str, int] = {}
    for one in market.sold.values():
        for day, amount in one.days.items():
            days[day] = days.get(day, 0) + amount
    assert all(amount <= dollars(CAPS.day) * 1e6 for amount in days.values())


def test_a_short_run(tmp_path: Path) -> None:
    market, kills = crash(tmp_path, processes=3, operations=250, every=3.0, each=60)
    assert market.total() > 0
    assert kills > 0


@pytest.mark.soak
def test_a_long_run(tmp_path: Path) -> None:
    market, kills = crash(tmp_path, processes=8, operations=100_000, every=0.2)
    assert market.total() > 0
    assert kills > 100
