"""An unchanged file under unchanged rules is not looked at twice; the cache holds no secret and is never in the way."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from avyay.clock import FakeClock
from avyay.raksha.cache import DAY, KEEP_DAYS, ResultCache, cache_key, decode, encode
from avyay.raksha.engines.base import FileResult, Outcome, Step
from avyay.raksha.project import Project
from avyay.raksha.scan import CodeScanner
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Edit, Rule

RULE = Rule("word", "A word", "high", ("CWE-1",), why="w", bad="b", good="g", fix="f", engine="words")
SECRET = "s3cr3t-value-of-this-file"


class WordEngine:
    """Finds a word; counts what it was asked to read."""

    name, version = "words", "1"

    def __init__(self, word: str = "bad", *, key: str = "k") -> None:
        self.word = word
        self.read: list[str] = []
        self._key = key

    def rules(self) -> Sequence[Rule]:
        return [RULE]

    def digest(self) -> str:
        return self._key

    def key(self, project: Project) -> str:
        return self._key

    def reads(self, file: SourceFile) -> bool:
        return True

    def run(self, files: Sequence[SourceFile], project: Project, *, step: Step, cancel: threading.Event) -> Outcome:
        outcome = Outcome()
        for file in files:
            self.read.append(file.name)
            place = file.text.find(self.word)
            if place >= 0:
                secrets = (SECRET,) if SECRET in file.text else ()
                edits = (Edit(1, 1, 1, 2, "x", safe=True),)
                outcome.of(file.name).findings.append(
                    file.finding(RULE, place, place + 3, secrets=secrets, edits=edits)
                )
        step(len(files))
        return outcome


def test_only_what_changed_is_read_again(write, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "scan.db"
    root = write({"a.py": "bad", "b.py": "good"})

    def scan(engine: WordEngine) -> tuple[list[str], list[str]]:
        report = CodeScanner([engine], cache=cache).scan([root])
        return sorted(engine.read), [f"{f.path}:{f.fingerprint}" for f in report.findings]

    read, first = scan(WordEngine())
    assert read == ["a.py", "b.py"]
    assert scan(WordEngine()) == ([], first)
    (root / "b.py").write_text("still good")
    assert scan(WordEngine())[0] == ["b.py"]
    assert scan(WordEngine(key="other rules"))[0] == ["a.py", "b.py"]
    assert scan(WordEngine(key=""))[0] == ["a.py", "b.py"], "no key: never from the cache"
    (root / "a.py").rename(root / "c.py")
    assert scan(WordEngine())[0] == ["c.py"], "the name is part of what was looked at"


def test_secrets_stay_out_of_the_cache(write, tmp_path: Path) -> None:
    cache = tmp_path / "scan.db"
    root = write({"a.py": f"bad = '{SECRET}'"})
    first = CodeScanner([WordEngine()], cache=cache).scan([root])
    for path in tmp_path.glob("scan.db*"):
        assert SECRET.encode() not in path.read_bytes()
    again = WordEngine()
    second = CodeScanner([again], cache=cache).scan([root])
    assert again.read == []
    assert second.findings == first.findings
    assert second.findings[0].secrets == (SECRET,)


def test_what_failed_is_not_remembered() -> None:
    file = SourceFile("a.py", b"bad", "python")
    assert encode(FileResult(failed="Timeout."), file) is None
    hidden = file.finding(RULE, 0, 3, secrets=("not in the file",))
    assert encode(FileResult([hidden]), file) is None
    loud = replace(file.finding(RULE, 0, 3, secrets=("bad",)), message="this is bad")
    assert encode(FileResult([loud]), file) is None


def test_results_survive_the_trip() -> None:
    file = SourceFile("a.py", "é = 'bad'".encode(), "python")
    finding = file.finding(RULE, 5, 8, secrets=("bad",), edits=(Edit(1, 2, 3, 4, "é", safe=True),))
    result = FileResult([finding], parsed=False, problem="line 3", sure=True)
    text = encode(result, file)
    assert text is not None
    assert decode(text, file) == result
    assert decode("[1]", file) is None
    assert decode("nonsense", file) is None


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look at" * 30, b""])
def test_a_broken_cache_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scan.db"
    path.write_bytes(content)
    cache = ResultCache(path)
    cache.put({b"k": "v"})
    assert cache.get([b"k"]) == {b"k": "v"}
    cache.close()


def test_no_place_for_a_cache_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ResultCache(tmp_path / "file" / "scan.db")
    cache.put({b"k": "v"})
    assert cache.get([b"k"]) == {}
    cache.close()


def test_a_locked_cache_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "scan.db"
    with closing(ResultCache(path)) as first:
        first.put({b"k": "v"})
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    cache = ResultCache(path)
    cache.put({b"l": "w"})
    assert cache.get([b"l"]) == {}
    cache.close()
    other.close()


def test_old_results_are_dropped(tmp_path: Path) -> None:
    clock = FakeClock()
    cache = ResultCache(tmp_path / "scan.db", clock=clock)
    cache.put({b"old": "v"})
    clock.advance(DAY * (KEEP_DAYS + 1))
    cache.put({b"new": "v"})
    assert set(cache.get([b"old", b"new"])) == {b"new"}
    cache.close()


def test_keys_differ() -> None:
    one = SourceFile("a.py", b"x", "python")
    keys = {
        cache_key("e", "v", one),
        cache_key("f", "v", one),
        cache_key("e", "w", one),
        cache_key("e", "v", SourceFile("b.py", b"x", "python")),
        cache_key("e", "v", SourceFile("a.py", b"y", "python")),
    }
    assert len(keys) == 5
