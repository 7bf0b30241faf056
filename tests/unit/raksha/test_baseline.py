"""Accepted findings and old commits: only what is new counts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from avyay.errors import UsageError
from avyay.raksha.baseline import read_baseline, write_baseline
from avyay.raksha.engines.base import Engine
from avyay.raksha.scan import CodeScanner, PathRule
from avyay.raksha.types import Report

CALL = "import subprocess\nsubprocess.run(a, shell=True)\n"


def lines(report: Report) -> list[str]:
    return [f"{finding.path}:{finding.line}" for finding in report.findings]


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_baseline_holds_back_what_was_there(scanner: CodeScanner, write, tmp_path: Path) -> None:
    root = write({"a.py": CALL})
    path = tmp_path / "baseline.json"
    write_baseline(path, scanner.scan([root]).findings)
    assert "shell=True" not in path.read_text(), "no code in the file"
    write({"a.py": "# moved\n" + CALL + "subprocess.run(a, shell=True)\nsubprocess.run(b, shell=True)\n"})
    baseline = read_baseline(path)
    report = scanner.scan([root], baseline=baseline)
    assert lines(report) == ["a.py:4", "a.py:5"], "a second copy of an accepted line is new"
    assert [item.by for item in report.suppressed] == ["baseline"]
    write({"a.py": "x = 1\n"})
    scanner.scan([root], baseline=baseline)
    assert len(baseline.stale) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"raksha_baseline": 9, "findings": []}', '{"raksha_baseline": 1}'])
def test_no_baseline(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.json"
    with pytest.raises(UsageError, match="Cannot read the baseline"):
        read_baseline(path)
    path.write_text(text)
    with pytest.raises(UsageError, match="no baseline"):
        read_baseline(path)


def test_unwritable_baseline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot write the baseline"):
        write_baseline(tmp_path / "none" / "b.json", [])
    write_baseline(tmp_path / "b.json", [])
    assert json.loads((tmp_path / "b.json").read_text())["findings"] == []


@pytest.mark.needs("git")
def test_diff_counts_only_what_is_new(scanner: CodeScanner, write) -> None:
    root = write({"old.py": CALL, "changed.py": CALL, "moved.py": CALL + "x = 1\n" * 9, "sub/deep.py": CALL})
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    git(root, "checkout", "-qb", "feature")
    git(root, "mv", "moved.py", "renamed.py")
    write({"changed.py": "# moved down\n" + CALL + "subprocess.run(new, shell=True)\n", "sub/deep.py": CALL + "y\n"})
    git(root, "commit", "-qam", "two")
    write({"untracked.py": CALL})
    git(root, "checkout", "-q", "main")
    git(root, "commit", "-q", "--allow-empty", "-m", "main goes on")
    git(root, "checkout", "-q", "feature")

    report = scanner.scan([root], diff="main")
    assert sorted(lines(report)) == ["changed.py:4", "untracked.py:2"]
    assert report.files == 4
    assert {item.by for item in report.suppressed} == {"diff"}
    assert lines(scanner.scan([root / "sub"], diff="main")) == []
    assert lines(scanner.scan([root], diff="HEAD")) == ["untracked.py:2"]


@pytest.mark.needs("git")
def test_diff_needs_a_commit(scanner: CodeScanner, write) -> None:
    root = write({"a.py": CALL})
    with pytest.raises(UsageError, match="no git repository"):
        scanner.scan([root], diff="main")
    git(root, "init", "-q")
    with pytest.raises(UsageError, match="no commit 'nope'"):
        scanner.scan([root], diff="nope")
    with pytest.raises(UsageError, match="no commit"):
        scanner.scan([root], diff="--output=x")


def test_path_rules(engines: list[Engine], write) -> None:
    root = write({"a.py": CALL, "tests/b.py": CALL, "low/c.py": CALL})
    rules = [
        PathRule(("tests/",), disable=("demo-*",), reason="tests run fixed commands"),
        PathRule(("low/**",), severity=(("demo-shell", "low"),)),
    ]
    report = CodeScanner(engines, path_rules=rules).scan([root])
    assert [(f.path, f.severity) for f in report.findings] == [("a.py", "high"), ("low/c.py", "low")]
    assert [(item.by, item.reason) for item in report.suppressed] == [("path", "tests run fixed commands")]
    assert lines(CodeScanner(engines, disable=("demo-shell", "bandit-*")).scan([root])) == []


def test_inline_suppression_in_a_scan(scanner: CodeScanner, write) -> None:
    root = write({"a.py": "import subprocess\nsubprocess.run(a, shell=True)  # avyay: ignore[demo-shell] a constant\n"})
    report = scanner.scan([root])
    assert not report.findings
    assert [(item.by, item.reason) for item in report.suppressed] == [("inline", "a constant")]
    write({"a.py": "x = 1  # avyay: ignore[demo-shell] a constant\n"})
    assert [f.rule for f in scanner.scan([root]).findings] == ["suppression-unused"]
