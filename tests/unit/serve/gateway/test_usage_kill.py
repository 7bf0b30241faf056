"""What a killed gateway leaves behind is taken over once and whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from avyay.db import open_database
from avyay.db_gaps import read_gaps
from avyay.serve.gateway.usage import UsageReader
from avyay.spool import left_behind

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
os._exit(9)
"""


def killed(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", GATEWAY, str(path)], capture_output=True, check=False)
    assert (done.returncode, done.stdout[-4:]) == (9, b"done"), done.stderr.decode()


def test_what_was_answered_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    killed(path)
    killed(path)  # takes over what the first has left
    assert len(left_behind(path)) == 1
    reader = UsageReader(path)
    decisions = [decision for decision, _, _ in reader.decisions(since=0, until=1e12)]
    assert decisions == sorted(["committed", "answered", "streaming"] * 2)
    rows = {(row.key, row.endpoint): row for row in reader.days(since="1970-01-01")}
    found = rows["k", "marga:chat"]
    assert (found.requests, found.errors) == (6, 2)  # nobody got an end of the streams
    assert rows["other", "rag:ask"].errors == 2
    reader.close()
    assert left_behind(path) == []
    database = open_database(path)
    assert [gap.missing for gap in read_gaps(database)] == [0, 0]  # a crash, and nothing missing
    assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    database.close()
