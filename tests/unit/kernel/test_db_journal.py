"""Rows of a journal: all that were acknowledged are in the database once, whoever was killed and whoever takes over."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon import wait_for

from avyay.db import Migration, Schema, open_database
from avyay.db_gaps import read_gaps
from avyay.db_insert import Insert, Value
from avyay.db_journal import Journal, JournalTable, take_over
from avyay.errors import AvyayError
from avyay.spool import Spool, left_behind

NOTES = Schema(
    "notes",
    (
        Migration(
            "0001",
            "CREATE TABLE notes (id TEXT NOT NULL, cost INTEGER NOT NULL, detail BLOB) STRICT",
        ),
    ),
)
INSERT = Insert("notes", ("id", "cost", "detail"))


def unfinished(begun: Sequence[Any], noted: Sequence[Any] | None, now: float) -> list[Value]:
    return [begun[0], noted[0] if noted else -1, None]


TABLE = JournalTable(NOTES, INSERT, unfinished, lacking=True)

# Writes rows and says which are acknowledged, until it is killed.
WRITER = """
import os, sys, signal
from pathlib import Path
sys.path[:0] = sys.argv[2].split(":")
from avyay.db_journal import Journal
from test_db_journal import TABLE
journal = Journal(Path(sys.argv[1]), TABLE)
for number in range(300):
    begun = journal.begin((f"{os.getpid()}-{number}",))
    if number == 299:
        journal.note(begun, (7,))
        break
    journal.add((f"{os.getpid()}-{number}", 2**62 + number, b'{"cost":[0.1,"x"]}'), begun)
    if number == 150:
        journal.flush()
    os.write(1, f"{os.getpid()}-{number}\\n".encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> list[str]:
    """The rows that a writer had acknowledged."""
    here = Path(__file__).parent
    folders = f"{here}:{here.parents[1] / 'support'}"
    done = subprocess.run([sys.executable, "-c", WRITER, str(path), folders], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    return [line for line in done.stdout.decode().splitlines() if " " not in line]  # the log has spaces


def rows(path: Path) -> dict[str, tuple[int, bytes | None]]:
    with closing(open_database(path, NOTES)) as database:
        found = database.execute("SELECT id, cost, detail FROM notes").fetchall()
    assert set(Counter(row[0] for row in found).values()) <= {1}
    return {row[0]: (row[1], row[2]) for row in found}


def test_nothing_acknowledged_is_lost_or_doubled(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    told = killed(path)
    assert len(told) == 299
    kept = {file: file.read_bytes() for file in tmp_path.glob("*-spool-*")}
    assert 1 <= take_over(path, TABLE, 10.0) <= 149  # 151 were committed, and are in the file as well
    for file, content in kept.items():
        file.write_bytes(content)  # killed in the middle of taking over: committed, and not yet removed
    assert take_over(path, TABLE, 11.0) == 0
    assert left_behind(path) == []
    found = rows(path)
    assert sorted(found) == sorted([*told, f"{told[0].split('-')[0]}-299"])
    for row in told:
        assert found[row] == (2**62 + int(row.split("-")[1]), b'{"cost":[0.1,"x"]}')
    assert found[f"{told[0].split('-')[0]}-299"] == (7, None)
    with closing(open_database(path)) as database:
        assert [gap.missing for gap in read_gaps(database)] == [1]  # of one nobody knows how it ended


def test_a_sibling_takes_over_while_it_lives_and_when_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    journal = Journal(path, TABLE)
    told = killed(path)
    wait_for(lambda: set(told) <= set(rows(path)))
    wait_for(lambda: left_behind(path) == [])
    journal._ending.set()  # it looks no more
    journal._looking.join()
    told += killed(path)
    journal.add(("own", 1, None))
    journal.close()
    assert {*told, "own"} <= set(rows(path))
    assert not list(tmp_path.glob("*spool*"))


def test_many_may_take_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    told = [row for _ in range(2) for row in killed(path)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: take_over(path, TABLE, 10.0), range(6)))
    assert set(told) <= set(rows(path))


def test_other_columns_and_impossible_rows(tmp_path: Path) -> None:
    """Of another version: what is known is kept. A row the database will not take keeps back no other."""
    path = tmp_path / "x.db"
    spool = Spool(path, "other", ("cost", "colour", "id"), lambda: 0)
    spool.end(0, 1, (5, "red", "a"))
    spool.end(0, 2, ("no number", "red", "b"))
    spool.end(0, 4, (6, "red", "c"))
    spool.close()
    assert take_over(path, TABLE, 10.0) == 2
    assert rows(path) == {"a": (5, None), "c": (6, None)}
    assert left_behind(path) == []


def test_what_cannot_be_written_now_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.mkdir()
    journal = Journal(path, TABLE)
    journal.add(("a", 1, None))
    with pytest.raises(AvyayError):
        journal._writer.close(0.0)
    journal.close()
    with pytest.raises(AvyayError):
        take_over(path, TABLE, 10.0)
    path.rmdir()
    assert take_over(path, TABLE, 10.0) == 1
    assert rows(path) == {"a": (1, None)}
