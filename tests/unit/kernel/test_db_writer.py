"""The group-commit writer: nothing acknowledged is lost, what is lost is said, a bad disk stops nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from avyay.clock import FakeClock
from avyay.db import Database, Migration, Schema, open_database
from avyay.db_gaps import WRITER_SCHEMA, read_gaps
from avyay.db_insert import Insert
from avyay.db_writer import GroupCommitWriter
from avyay.errors import ConfigError, CorruptError, DependencyError, InternalError, UnreachableError

CALLS_SCHEMA = Schema(
    "calls",
    (
        Migration(
            "0001",
            """
            CREATE TABLE calls (id INTEGER PRIMARY KEY, model TEXT NOT NULL, cost INTEGER);
            CREATE TABLE attempts (call_id INTEGER NOT NULL REFERENCES calls, number INTEGER);
            """,
        ),
    ),
)
CALLS = Insert("calls", ("id", "model", "cost"))
ATTEMPTS = Insert("attempts", ("call_id", "number"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.db"


def read(path: Path) -> Database:
    return open_database(path, CALLS_SCHEMA, WRITER_SCHEMA, read_only=True)


def count(path: Path, table: str = "calls") -> int:
    database = read(path)
    try:
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        database.close()


def gaps(path: Path) -> list[tuple[str, int, int | None]]:
    database = read(path)
    try:
        return [(gap.kind, gap.after_sequence, gap.missing) for gap in read_gaps(database)]
    finally:
        database.close()


def impatient() -> float:
    """No jitter: retry at once."""
    return 0.0


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen within 10 s")


def test_what_is_flushed_is_on_disk(path: Path) -> None:
    with GroupCommitWriter(path, CALLS_SCHEMA, max_delay=60) as writer:
        for number in range(1000):
            assert writer.append(CALLS, (number, "m", number * 10)) == number + 1
        writer.flush()
        assert count(path) == 1000
        assert writer.state().committed == 1000
    database = read(path)
    assert database.execute("SELECT sum(cost), min(model) FROM calls").fetchone() == (4995000, "m")
    database.close()


def test_a_row_is_committed_without_being_asked(path: Path) -> None:
    with GroupCommitWriter(path, CALLS_SCHEMA) as writer:
        writer.append(CALLS, (1, "m", 1))
        wait_until(lambda: count(path) == 1)


def test_closing_drains_and_leaves_no_gap(path: Path) -> None:
    writer = GroupCommitWriter(path, CALLS_SCHEMA, max_delay=60, max_batch=7)
    for number in range(100):
        writer.append(CALLS, (number, "m", None))
    writer.close()
    writer.close()
    assert count(path) == 100
    with pytest.raises(InternalError):
        writer.append(CALLS, (100, "m", None))
    GroupCommitWriter(path, CALLS_SCHEMA).close()
    assert gaps(path) == []
    assert list(path.parent.glob("*.lock")) == []


def test_many_threads_and_two_tables(path: Path) -> None:
    def produce(start: int) -> None:
        for number in range(start, start + 200):
            writer.append_blocking(CALLS, (number, "m", 1))
            writer.append_blocking(ATTEMPTS, (number, 1))

    with GroupCommitWriter(path, CALLS_SCHEMA, capacity=150, max_batch=64, max_delay=0.001) as writer:
        threads = [threading.Thread(target=produce, args=(index * 1000,)) for index in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (count(path), count(path, "attempts")) == (3200, 3200)
    assert writer.state().refused == writer.state().rejected == 0


def test_asyncio_producers(path: Path) -> None:
    async def produce(start: int) -> None:
        for number in range(start, start + 50):
            await writer.append_async(CALLS, (number, "m", 1))

    async def all_of_them() -> None:
        await asyncio.gather(*(produce(index * 100) for index in range(64)))
        await writer.flush_async()

    with GroupCommitWriter(path, CALLS_SCHEMA, capacity=100, max_delay=0.001) as writer:
        asyncio.run(all_of_them())
        assert count(path) == 3200


def test_a_child_may_come_before_its_parent_in_a_batch(path: Path) -> None:
    with GroupCommitWriter(path, CALLS_SCHEMA, max_delay=60) as writer:
        writer.append(CALLS, (1, "m", 1))
        writer.flush()
        for row in ((ATTEMPTS, (1, 1)), (CALLS, (2, "m", 1)), (ATTEMPTS, (2, 1))):
            writer.append(*row)
    assert count(path, "attempts") == 2
    assert writer.state().rejected == 0


@pytest.mark.parametrize(
    "bad",
    [(1, None, 0), (1, "m", 2**70), (1, "\ud800", 0), (1, object(), 0), (0, "duplicate", 0)],
    ids=["constraint", "too big", "surrogate", "no value", "duplicate"],
)
def test_an_impossible_row_is_left_out_alone(path: Path, bad: tuple[int, str, int]) -> None:
    with GroupCommitWriter(path, CALLS_SCHEMA, max_delay=60) as writer:
        writer.append(CALLS, (0, "m", 1))
        writer.append(CALLS, bad)
        writer.append(CALLS, (2, "m", 1))
        writer.flush()
        state = writer.state()
    assert (state.committed, state.rejected, state.healthy) == (2, 1, True)
    assert count(path) == 2
    assert gaps(path) == [("rejected", 0, 1)]


def test_a_missing_parent_is_an_impossible_row(path: Path) -> None:
    with GroupCommitWriter(path, CALLS_SCHEMA, max_delay=60) as writer:
        for row in ((CALLS, (1, "m", 1)), (ATTEMPTS, (99, 1)), (ATTEMPTS, (1, 1))):
            writer.append(*row)
    assert (count(path), count(path, "attempts"), writer.state().rejected) == (1, 1, 1)


def test_conflicts_can_be_ignored(path: Path) -> None:
    once = Insert("calls", ("id", "model", "cost"), conflict="IGNORE")
    with GroupCommitWriter(path, CALLS_SCHEMA) as writer:
        for _ in range(3):
            writer.append(once, (1, "m", 1))
    assert count(path) == 1
    assert gaps(path) == []


def test_a_row_of_the_wrong_width_is_a_bug_of_the_caller(path: Path) -> None:
    with GroupCommitWriter(path, CALLS_SCHEMA) as writer, pytest.raises(ValueError, match="takes 3 values"):
        writer.append(CALLS, (1, "m"))


def test_a_locked_database_delays_and_loses_nothing(path: Path) -> None:
    with GroupCommitWriter(path, CALLS_SCHEMA, jitter=impatient, busy_timeout=0.01, max_delay=0.001) as writer:
        other = open_database(path, CALLS_SCHEMA)
        with other.transaction():
            for number in range(10):
                writer.append(CALLS, (number, "m", 1))
            wait_until(lambda: not writer.state().healthy)
            error = writer.state().error
            assert error is not None
            assert error.code == "database_busy"
            with pytest.raises(UnreachableError) as caught:
                writer.flush(patience=0.01)
            assert caught.value.code == "not_flushed"
        writer.flush()
        assert writer.state().healthy
        other.close()
    assert count(path) == 10
    assert gaps(path) == []


def test_a_full_backlog_refuses_counts_and_flags(path: Path) -> None:
    with GroupCommitWriter(
        path, CALLS_SCHEMA, jitter=impatient, busy_timeout=0.01, max_delay=0.001, capacity=10
    ) as writer:
        other = open_database(path, CALLS_SCHEMA)
        with other.transaction():
            for number in range(10):
                writer.append(CALLS, (number, "m", 1))
            for number in range(3):
                with pytest.raises(UnreachableError) as caught:
                    writer.append(CALLS, (100 + number, "m", 1))
                assert caught.value.code == "backlog_full"
            with pytest.raises(UnreachableError):
                writer.append_blocking(CALLS, (200, "m", 1), patience=0.01)
            with pytest.raises(UnreachableError):
                asyncio.run(writer.append_async(CALLS, (201, "m", 1), patience=0.01))
            assert (writer.state().backlog, writer.state().refused) == (10, 5)
        other.close()
        writer.flush()
        writer.append(CALLS, (300, "m", 1))
    assert count(path) == 11
    assert sum(missing or 0 for kind, _, missing in gaps(path) if kind == "refused") == 5


def test_closing_on_a_bad_disk_says_what_is_lost_and_the_next_open_flags_it(path: Path) -> None:
    writer = GroupCommitWriter(path, CALLS_SCHEMA, jitter=impatient, busy_timeout=0.01, max_delay=60)
    writer.append(CALLS, (1, "m", 1))
    writer.flush()
    other = open_database(path, CALLS_SCHEMA, busy_timeout=0.01)
    with other.transaction():
        writer.append(CALLS, (2, "m", 1))
        with pytest.raises(UnreachableError) as caught:
            writer.close(patience=0.01)
    assert caught.value.code == "rows_lost"
    assert "1 rows" in caught.value.message
    other.close()
    GroupCommitWriter(path, CALLS_SCHEMA).close()
    assert gaps(path) == [("crash", 1, None)]


def test_a_disk_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    home = tmp_path / "mount"
    path = home / "calls.db"
    with GroupCommitWriter(path, CALLS_SCHEMA, jitter=impatient, busy_timeout=0.01, max_delay=0.001) as writer:
        writer.append(CALLS, (1, "m", 1))
        writer.flush()
        home.rename(tmp_path / "away")
        home.write_text("in the way")
        writer.append(CALLS, (2, "m", 1))
        wait_until(lambda: not writer.state().healthy)
        assert isinstance(writer.state().error, DependencyError)
        home.unlink()
        (tmp_path / "away").rename(home)
        writer.flush()
        assert writer.state().healthy
    assert count(path) == 2


def test_a_deleted_database_is_noticed(path: Path) -> None:
    with GroupCommitWriter(path, CALLS_SCHEMA, jitter=impatient, busy_timeout=0.01, max_delay=0.001) as writer:
        writer.append(CALLS, (1, "m", 1))
        writer.flush()
        path.unlink()
        writer.append(CALLS, (2, "m", 1))
        writer.flush()
        assert count(path) == 1


def test_starting_on_a_bad_disk(tmp_path: Path) -> None:
    blocked = tmp_path / "home"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(DependencyError):
        GroupCommitWriter(blocked / "calls.db", CALLS_SCHEMA)
    with GroupCommitWriter(
        blocked / "calls.db", CALLS_SCHEMA, tolerant=True, jitter=impatient, busy_timeout=0.01
    ) as writer:
        assert not writer.state().healthy
        writer.append(CALLS, (1, "m", 1))
        blocked.unlink()
        writer.flush()
        assert writer.state().healthy
    assert count(blocked / "calls.db") == 1


def test_what_no_patience_can_mend_is_raised_at_once(path: Path) -> None:
    newer = Schema("calls", (*CALLS_SCHEMA.migrations, Migration("0002", "SELECT 1")))
    open_database(path, newer).close()
    with pytest.raises(ConfigError):
        GroupCommitWriter(path, CALLS_SCHEMA, tolerant=True)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(CorruptError):
        GroupCommitWriter(path, CALLS_SCHEMA, tolerant=True)


PRODUCER = """
import sys
from pathlib import Path
from avyay.db_insert import Insert
from avyay.db_writer import GroupCommitWriter
from avyay.db import Migration, Schema
schema = Schema("calls", (Migration("0001", '''
            CREATE TABLE calls (id INTEGER PRIMARY KEY, model TEXT NOT NULL, cost INTEGER);
            CREATE TABLE attempts (call_id INTEGER NOT NULL REFERENCES calls, number INTEGER);
            '''),))
writer = GroupCommitWriter(Path(sys.argv[1]), schema)
calls = Insert("calls", ("id", "model", "cost"))
number = 0
while True:
    for _ in range(50):
        number += 1
        writer.append(calls, (number, "m", 1))
    writer.flush()
    print(number, flush=True)  # acknowledged
"""


def test_kill_9_loses_nothing_acknowledged_and_leaves_a_gap(path: Path) -> None:
    producer = subprocess.Popen(
        [sys.executable, "-c", PRODUCER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.environ["PATH"]},
    )
    assert producer.stdout is not None
    acknowledged = 0
    while acknowledged < 1000:
        acknowledged = int(producer.stdout.readline())
    with GroupCommitWriter(path, CALLS_SCHEMA):  # a living writer is no gap
        assert gaps(path) == []
    producer.send_signal(signal.SIGKILL)
    rest = producer.stdout.read().split()
    producer.wait(60)
    producer.stdout.close()
    acknowledged = int(rest[-1]) if rest and len(rest[-1]) >= len(str(acknowledged)) else acknowledged
    clock = FakeClock(now=5_000_000_000.0)
    GroupCommitWriter(path, CALLS_SCHEMA, clock=clock).close()
    assert count(path) >= acknowledged
    database = read(path)
    (gap,) = read_gaps(database)
    assert (gap.kind, gap.missing, gap.found_at) == ("crash", None, 5_000_000_000.0)
    assert gap.after_sequence == database.execute("SELECT max(id) FROM calls").fetchone()[0]
    assert gap.since < gap.found_at
    database.close()
    GroupCommitWriter(path, CALLS_SCHEMA).close()
    assert len(gaps(path)) == 1  # flagged once
    assert list(path.parent.glob("*.lock")) == []
