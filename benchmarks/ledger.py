"""Rows a second into SQLite: the group-commit writer fed by many producers against one-row transactions.

    python benchmarks/ledger.py [--rows 200000] [--producers 64]

Both write the same 20-column rows to a file on the same disk, in one run; the ratio is what carries over.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from pathlib import Path

from avyay.db import Migration, Schema, open_database
from avyay.db_insert import Insert
from avyay.db_writer import GroupCommitWriter

COLUMNS = ("id", *(f"c{number}" for number in range(19)))
SCHEMA = Schema("bench", (Migration("0001", f"CREATE TABLE calls ({', '.join(COLUMNS)}, PRIMARY KEY (id))"),))
CALLS = Insert("calls", COLUMNS)


def row(number: int) -> tuple[object, ...]:
    return (number, "openai", "gpt-4o-mini", "medium", "0193f0", 1234, 567, 0, 0, 0, 525_300_000, "key", "service",
            "customer", "session", 12.5, 230.25, "closed", 1, 1_763_700_000.0)  # fmt: skip


def one_row_transactions(path: Path, rows: int) -> float:
    database = open_database(path, SCHEMA)
    sql, start = CALLS.sql(), time.perf_counter()
    for number in range(rows):
        database.execute(sql, row(number))  # autocommit: a transaction each
    seconds = time.perf_counter() - start
    database.close()
    return rows / seconds


def threads(path: Path, rows: int, producers: int) -> float:
    each = rows // producers
    writer = GroupCommitWriter(path, SCHEMA)

    def produce(index: int) -> None:
        for number in range(index * each, (index + 1) * each):
            writer.append_blocking(CALLS, row(number))

    workers = [threading.Thread(target=produce, args=(index,)) for index in range(producers)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    writer.close(60)
    return each * producers / (time.perf_counter() - start)


def tasks(path: Path, rows: int, producers: int) -> float:
    each = rows // producers
    writer = GroupCommitWriter(path, SCHEMA)

    async def produce(index: int) -> None:
        for number in range(index * each, (index + 1) * each):
            await writer.append_async(CALLS, row(number))
            if not number & 15:
                await asyncio.sleep(0)

    async def everyone() -> None:
        await asyncio.gather(*(produce(index) for index in range(producers)))

    start = time.perf_counter()
    asyncio.run(everyone())
    writer.close(60)
    return each * producers / (time.perf_counter() - start)


def delay_under_load(path: Path, rate: int = 3000, seconds: float = 3.0) -> tuple[float, float]:
    """While an event loop is busy and appends `rate` rows a second: how long until a row is committed (p50, worst)."""
    writer = GroupCommitWriter(path, SCHEMA)
    delays: list[float] = []

    async def drive() -> None:
        start, sent = time.perf_counter(), 0
        pending: list[tuple[int, float]] = []
        while (now := time.perf_counter()) - start < seconds:
            while sent < (now - start) * rate:
                pending.append((writer.append(CALLS, row(sent)), now))
                sent += 1
            done = writer.state().committed
            while pending and pending[0][0] <= done:
                delays.append(now - pending.pop(0)[1])
            sum(range(3000))  # the event loop's own work: this thread never rests
            await asyncio.sleep(0)

    asyncio.run(drive())
    writer.close()
    return statistics.median(delays), max(delays)


def append_cost(path: Path, rows: int) -> float:
    writer = GroupCommitWriter(path, SCHEMA, max_delay=60, max_batch=10**9, capacity=10**9)
    values = [row(number) for number in range(rows)]
    start = time.perf_counter()
    for value in values:
        writer.append(CALLS, value)
    seconds = time.perf_counter() - start
    writer.close(60)
    return seconds / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--producers", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        plain = one_row_transactions(home / "plain.db", arguments.rows // 5)
        from_threads = threads(home / "threads.db", arguments.rows, arguments.producers)
        from_tasks = tasks(home / "tasks.db", arguments.rows, arguments.producers)
        median, worst = delay_under_load(home / "load.db")
        cost = append_cost(home / "append.db", 50_000)
    for name, rate in (
        ("one-row transactions", plain),
        (f"writer, {arguments.producers} threads", from_threads),
        (f"writer, {arguments.producers} tasks", from_tasks),
    ):
        print(f"{name:24} {rate:10,.0f} rows/s  {rate / plain:5.1f}x")
    print(f"one append               {cost * 1e6:10.2f} us")
    print(f"append to commit at 3,000 rows/s beside a busy loop: p50 {median * 1e3:.1f} ms, worst {worst * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
