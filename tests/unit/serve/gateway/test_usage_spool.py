"""What a killed gateway leaves behind is taken over once and whole."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.db import open_database
from avyay.db_gaps import read_gaps
from avyay.serve.gateway.usage import UsageReader, recover
from avyay.serve.gateway.usage_spool import Spool, left_behind

# A gateway in small. What was answered it says on stdout; then it is gone, as by kill -9.
GATEWAY = """
import os, sys
from pathlib import Path
from avyay.serve.gateway.usage import UsageJournal
journal = UsageJournal(Path(sys.argv[1]))
journal.add(1.0, "k", "marga:chat", 200, "committed", 0.1)
journal.flush()
number = journal.begin(2.0, "k", "marga:chat")
journal.add(2.0, "k", "marga:chat", 200, "answered", 0.1, number)
streaming = journal.begin(3.0, "k", "marga:chat")
journal.answered(streaming, "streaming")
journal.begin(4.0, "other", "rag:ask")
os.write(1, b"done")
if len(sys.argv) > 2:
    journal._spool._file and os.write(journal._spool._file, b'["e", 9, 99, [1')
os._exit(9)
"""


def killed(path: Path, *more: str) -> None:
    done = subprocess.run([sys.executable, "-c", GATEWAY, str(path), *more], capture_output=True, check=False)
    assert (done.returncode, done.stdout[-4:]) == (9, b"done"), done.stderr.decode()


def decisions(reader: UsageReader) -> list[str]:
    return [decision for decision, _, _ in reader.decisions(since=0, until=1e12)]


def test_what_was_answered_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    for words in ((), ("torn",)):
        killed(path, *words)  # the second takes over what the first has left
    assert len(left_behind(path)) == 1
    reader = UsageReader(path)
    assert decisions(reader) == sorted(["committed", "answered", "streaming"] * 2)
    rows = {(row.key, row.endpoint): row for row in reader.days(since="1970-01-01")}
    assert (rows["k", "marga:chat"].requests, rows["k", "marga:chat"].errors) == (
        6,
        2,
    )  # nobody got an end of the streams
    assert rows["other", "rag:ask"].errors == 2
    reader.close()
    assert left_behind(path) == []
    database = open_database(path)
    assert [gap.missing for gap in read_gaps(database)] == [0, 0]  # a crash, and nothing missing
    assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    database.close()


def test_it_is_taken_over_once(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    killed(path)
    (segment,) = tmp_path.glob("usage.db-spool-*")
    kept = segment.read_bytes()
    assert recover(path, 10.0) >= 2
    segment.write_bytes(kept)  # killed in the middle of taking over: committed, and not yet removed
    assert recover(path, 11.0) == 0
    reader = UsageReader(path)
    assert decisions(reader) == sorted(["committed", "answered", "streaming"])
    reader.close()


def test_a_living_gateway_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    spool = Spool(path, "token", lambda: 0)
    spool.begin(1.0, "k", "marga:chat")
    assert left_behind(path) == []
    spool.end(1, 1, ("row",))
    spool.close()  # what is not committed stays
    (left,) = left_behind(path)
    assert (left.rows, left.under_way) == ({1: ["row"]}, [])


def test_a_spool_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "nowhere" / "usage.db", "token", lambda: 0)
    spool.begin(1.0, "k", "marga:chat")
    spool.end(1, 1, ("row",))
    assert spool.failed == 3
    spool.close()


steps = st.lists(st.sampled_from(["begin", "answered", "end", "refused", "commit"]), max_size=60)


@given(steps, st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_nothing_uncommitted_is_ever_dropped(todo: list[str], segment: int) -> None:
    """Whatever the size of a segment: what is not committed, and what is under way, can be read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.db"
        committed, sequence = 0, 0
        spool = Spool(path, "token", lambda: committed, segment=segment)
        under_way: dict[int, str | None] = {}
        for step in todo:
            number = next(iter(under_way), 0)
            if step == "begin":
                under_way[spool.begin(1.0, "k", "marga:chat")] = None
            elif step == "answered" and number:
                under_way[number] = f"d{number}"
                spool.answered(number, f"d{number}")
            elif step in ("end", "refused"):
                sequence += 1
                spool.end(number if step == "end" else 0, sequence, (sequence,))
                if step == "end":
                    under_way.pop(number, None)
            elif step == "commit":
                committed = sequence
        for descriptor in [spool._file, *(one[0] for one in spool._old)]:
            os.close(descriptor)  # killed
        found = left_behind(path)
        rows = {key: row for one in found for key, row in one.rows.items() if key > committed}
        assert rows == {n: [n] for n in range(committed + 1, sequence + 1)}
        assert sorted(str(one[3]) for left in found for one in left.under_way) == sorted(map(str, under_way.values()))
