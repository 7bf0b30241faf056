"""The task queue: claim and acknowledge at full durability, enqueueing with dependencies, a claim among 50,000 tasks.

The floor is bare sqlite3 at the same durability: two one-row UPDATE transactions for each claim and acknowledge.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from avyay.engine.queue import Queue
from avyay.engine.types import NewTask

ROUNDS = 200


def floor(folder: Path) -> float:
    db = sqlite3.connect(folder / "floor.db", isolation_level=None)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (id INTEGER PRIMARY KEY, s)")
    db.executemany("INSERT INTO t (s) VALUES (?)", [("ready",)] * ROUNDS)
    started = time.perf_counter()
    for number in range(1, ROUNDS + 1):
        for state in ("leased", "done"):
            db.execute("UPDATE t SET s = ? WHERE id = ?", (state, number))
    return ROUNDS / (time.perf_counter() - started)


def claims(queue: Queue) -> tuple[float, float]:
    """Claims with acknowledgement a second, and the 99th percentile of a claim in seconds."""
    latencies = []
    started = time.perf_counter()
    for _ in range(ROUNDS):
        before = time.perf_counter()
        lease = queue.claim("bench")
        latencies.append(time.perf_counter() - before)
        assert lease is not None
        queue.park(lease, 1e9, "acknowledged")
    return ROUNDS / (time.perf_counter() - started), statistics.quantiles(latencies, n=100)[98]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = floor(folder)
        queue = Queue(folder / "engine.db")
        queue.add([NewTask(f"task {i}") for i in range(ROUNDS * 2)])
        rate, _ = claims(queue)
        print(
            f"claim + acknowledge, synchronous=FULL: {rate:,.0f}/s, {rate / bare:.2f} of bare sqlite3 ({bare:,.0f}/s)"
        )
        large = Queue(folder / "large.db")
        started = time.perf_counter()
        large.add([NewTask(f"t{i}", id=f"t{i}", needs=(f"t{i - 1}",) if i else ()) for i in range(10_000)])
        print(f"10,000 tasks with 10,000 dependencies enqueued in {time.perf_counter() - started:.2f} s")
        large.add([NewTask(f"r{i}") for i in range(40_000)])
        _, p99 = claims(large)
        print(f"claim among 50,000 tasks: p99 {p99 * 1000:.1f} ms")


if __name__ == "__main__":
    main()
