"""The task queue: claim and acknowledge at full durability, enqueueing with dependencies, a claim among 50,000 tasks.

The peer is litequeue (pip install litequeue) set to the same durability, the floor bare sqlite3: two one-row UPDATE
transactions for each claim and acknowledge. All take turns, so that a busy machine is busy for each of them.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from avyay.engine.queue import Queue
from avyay.engine.types import NewTask

EACH = 100
SIZES = (1_000, 5_000)  # tasks in the queue at the start, all of them claimed and acknowledged


def floor(folder: Path, tasks: int) -> Callable[[], None]:
    db = sqlite3.connect(folder / "floor.db", isolation_level=None)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (id INTEGER PRIMARY KEY, s)")
    db.executemany("INSERT INTO t (s) VALUES (?)", [("ready",)] * tasks)
    numbers = iter(range(1, tasks + 1))

    def step() -> None:
        number = next(numbers)
        for state in ("leased", "done"):
            db.execute("UPDATE t SET s = ? WHERE id = ?", (state, number))

    return step


def ours(folder: Path, tasks: int) -> Callable[[], None]:
    queue = Queue(folder / "engine.db")
    queue.add([NewTask(f"task {i}") for i in range(tasks)])

    def step() -> None:
        lease = queue.claim("bench")
        assert lease is not None
        queue.fail(lease, "acknowledged", final=True)

    return step


def litequeue(folder: Path, tasks: int) -> Callable[[], None] | None:
    try:
        from litequeue import LiteQueue
    except ImportError:
        return None
    queue = LiteQueue(folder / "litequeue.db")
    queue.conn.execute("PRAGMA synchronous = FULL")
    queue.conn.execute("BEGIN")
    for i in range(tasks):
        queue.put(f"task {i}")
    queue.conn.execute("COMMIT")

    def step() -> None:
        message = queue.pop()
        queue.done(message.message_id)

    return step


def rates(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Claims with acknowledgement a second: the median of rounds in which each takes its turn."""
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(EACH):
                step()
            seen[name].append(EACH / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in seen.items()}


def slowest_claims(queue: Queue) -> float:
    """The 99th percentile of a claim, in seconds."""
    latencies = []
    for _ in range(300):
        before = time.perf_counter()
        lease = queue.claim("bench")
        latencies.append(time.perf_counter() - before)
        assert lease is not None
        queue.fail(lease, "acknowledged", final=True)
    return statistics.quantiles(latencies, n=100)[98]


def compare(folder: Path, tasks: int) -> None:
    steps = {"bare sqlite3": floor(folder, tasks), "avyay": ours(folder, tasks)}
    if (peer := litequeue(folder, tasks)) is not None:
        steps["litequeue"] = peer
    found = rates(steps, tasks // EACH)
    rows = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in found.items())
    print(f"claim + acknowledge of {tasks:,} tasks, synchronous=FULL: {rows}")
    print(f"  avyay against bare sqlite3: {found['avyay'] / found['bare sqlite3']:.2f}")
    if peer is not None:
        print(f"  avyay against litequeue: {found['avyay'] / found['litequeue']:.2f}")
    else:
        print("  litequeue is not installed (pip install litequeue): not compared")


def main() -> None:
    for tasks in SIZES:
        with tempfile.TemporaryDirectory() as name:
            compare(Path(name), tasks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = Queue(folder / "large.db")
        started, used = time.perf_counter(), time.process_time()
        large.add([NewTask(f"t{i}", id=f"t{i}", needs=(f"t{i - 1}",) if i else ()) for i in range(10_000)])
        wall, cpu = time.perf_counter() - started, time.process_time() - used
        print(f"10,000 tasks with 10,000 dependencies enqueued in {wall:.2f} s ({cpu:.2f} s of CPU)")
        large.add([NewTask(f"r{i}") for i in range(40_000)])
        print(f"claim among 50,000 tasks: p99 {slowest_claims(large) * 1000:.1f} ms, its write to disk included")


if __name__ == "__main__":
    main()
