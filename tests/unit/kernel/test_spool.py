"""The lines of a spool: whatever happens to its process or its disk, what was written is read, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.spool import Spool, left_behind, still_kept

COLUMNS = ("id", "text", "detail")


def killed(spool: Spool) -> None:
    """Let go of its files as the kernel does for a process that is gone."""
    for descriptor in [spool._file, *(one[0] for one in spool._old)]:
        os.close(descriptor)


def opened(folder: str | Path, **more: Any) -> Spool:
    return Spool(Path(folder) / "x.db", "token", COLUMNS, more.pop("committed", lambda: 0), **more)


def test_a_living_writer_keeps_its_own(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.begin((1.0, "k"))
    assert left_behind(tmp_path / "x.db") == []
    (kept,) = still_kept(tmp_path / "x.db")
    assert kept.under_way == [([1.0, "k"], None)]
    spool.end(1, 1, ("row", None, b'{"a":[1,"\\n"]}'))
    spool.close()  # what is not committed stays
    (left,) = left_behind(tmp_path / "x.db")
    assert (left.columns, left.rows, left.under_way) == (list(COLUMNS), {1: ["row", None, {"a": [1, "\n"]}]}, [])
    left.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_goes_while_it_is_read_belongs_to_somebody_else(tmp_path: Path) -> None:
    spool = opened(tmp_path, segment=1)
    for sequence in (1, 2):
        spool.end(0, sequence, (sequence, "", b"{}"))
    killed(spool)
    first, *_, last = sorted(tmp_path.iterdir())
    first.unlink()
    first.symlink_to("nowhere")
    assert left_behind(tmp_path / "x.db") == []
    assert last.exists()


def test_what_cannot_be_written_is_counted_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "later"
    spool = opened(home)
    number = spool.begin((1.0, "k"))
    spool.end(number, 1, ("lost", "", b"{}"))
    assert spool.failed == 2
    home.mkdir()
    open_ = spool.begin((2.0, "k"))
    spool.end(0, 2, ("kept", "", b"{}"))
    spool.end(0, 3, (1 << 80, "", b"{}"))  # what JSON has no word for
    spool.note(open_, ("more",))
    assert spool.failed == 3
    killed(spool)
    (left,) = left_behind(home / "x.db")
    assert left.rows == {2: ["kept", "", {}]}
    assert left.missing(0) == 1
    assert left.under_way == [([2.0, "k"], ["more"])]
    said = capsys.readouterr().out
    assert said.count("not_spooled") == 2
    assert said.count("spool_written_again") == 1


# The disk has room for so many more bytes; then it has room again. What is lost, and what that process counts.
FULL_DISK = """
import os, resource, sys
from pathlib import Path
from avyay.spool import Spool
home, room = Path(sys.argv[1]), int(sys.argv[2])
spool = Spool(home / "x.db", "token", ("id", "text", "detail"), lambda: 0)
gone, going = spool.begin((1.0, "gone")), spool.begin((2.0, "going"))
spool.end(0, 1, ("first", "", b"{}"))
size = next(home.iterdir()).stat().st_size
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, most))
spool.end(gone, 2, ("lost", "x" * 100, b"{}"))
spool.end(0, 3, ("lost too", "x" * 100, b"{}"))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert spool.failed == 2
spool.end(0, 4, ("last", "", b"{}"))
os._exit(9)
"""


@pytest.mark.parametrize("room", [0, 7, 40])
def test_a_full_disk_cuts_a_line_and_spoils_no_other(tmp_path: Path, room: int) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(room)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr.decode()
    (left,) = left_behind(tmp_path / "x.db")
    assert left.rows == {1: ["first", "", {}], 4: ["last", "", {}]}
    assert left.missing(0) == 2
    assert left.under_way == [([2.0, "going"], None)]  # that the other ended is known again


steps = st.lists(st.sampled_from(["begin", "note", "end", "whole", "forget", "commit"]), max_size=60)


@given(steps, st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_nothing_uncommitted_is_ever_dropped(todo: list[str], segment: int) -> None:
    """Whatever the size of a segment: what is not committed, and what is under way, can be read again."""
    with tempfile.TemporaryDirectory() as folder:
        committed, sequence = 0, 0
        spool = opened(folder, committed=lambda: committed, segment=segment)
        under_way: dict[int, list[Any] | None] = {}
        forgotten: set[int] = set()
        for step in todo:
            number = next(iter(under_way), 0)
            if step == "begin":
                under_way[spool.begin((len(todo),))] = None
            elif step == "note" and number:
                under_way[number] = [number]
                spool.note(number, (number,))
            elif step in ("end", "whole"):
                sequence += 1
                spool.end(number if step == "end" else 0, sequence, (sequence, "", b"{}"))
                if step == "end":
                    under_way.pop(number, None)
            elif step == "forget" and number:
                spool.forget(number)
                forgotten.add(number)
                del under_way[number]
            elif step == "commit":
                committed = sequence
        killed(spool)
        (left,) = left_behind(Path(folder) / "x.db")
        assert {key: row[0] for key, row in left.rows.items() if key > committed} == {
            n: n for n in range(committed + 1, sequence + 1)
        }
        assert left.missing(committed) == 0
        found = sorted(str(noted) for _, noted in left.under_way)
        if not forgotten:  # of those, older segments may still tell
            assert found == sorted(map(str, under_way.values()))
        assert set(map(str, under_way.values())) <= set(found)


WORDS = st.lists(
    st.text(max_size=6)
    | st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    max_size=3,
)
LINES = st.lists(st.tuples(st.sampled_from(["begin", "note", "end"]), WORDS), min_size=1, max_size=12)


@given(LINES, st.data())
@settings(max_examples=100, deadline=None)
def test_killed_at_any_byte_it_tells_of_all_whole_lines(todo: list[tuple[str, list[Any]]], data: st.DataObject) -> None:
    """What is cut off is what nobody had been told of; what stands before it is there, exactly."""
    with tempfile.TemporaryDirectory() as folder:
        spool = opened(folder)
        (file,) = Path(folder).iterdir()
        rows: dict[int, Any] = {}
        under_way: dict[int, Any] = {}
        after = [(file.stat().st_size, dict(rows), dict(under_way))]
        for sequence, (kind, words) in enumerate(todo, 1):
            number = next(iter(under_way), 0)
            if kind == "begin":
                under_way[spool.begin(words)] = (words, None)
            elif kind == "note" and number:
                under_way[number] = (under_way[number][0], words)
                spool.note(number, words)
            elif kind == "end":
                under_way.pop(number, None)
                rows[sequence] = [*words, {"said": sequence}]
                spool.end(number, sequence, (*words, json.dumps({"said": sequence}).encode()))
            after.append((file.stat().st_size, dict(rows), dict(under_way)))
        killed(spool)
        whole = file.read_bytes()
        cut = data.draw(st.integers(after[0][0], len(whole)))
        file.write_bytes(whole[:cut])
        (left,) = left_behind(Path(folder) / "x.db")
        # A line is whole with its last bracket; the end of the line may be missing.
        _, expected, begun = [one for one in after if one[0] <= cut + 1][-1]
        assert left.rows == expected
        assert [(words, noted) for words, noted in left.under_way] == list(begun.values())
