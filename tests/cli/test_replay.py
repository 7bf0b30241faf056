"""The same question about the same files is answered from the record, and only then."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from avyay.cli.replay import Recorder, Tee, replay
from avyay.config import load_settings

PRINTED = 'Files analyzed: 2 | Time: 12.5s\nMore "seconds": 9\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text("x = 1\n")
    (folder / "requirements.txt").write_text("flask==3.0\n")
    monkeypatch.setenv("AVYAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    return folder


def record(*arguments: str, config: str = "", meanwhile: Callable[[], None] = lambda: None) -> None:
    assert replay(arguments) is None
    if config:
        Path("avyay.yaml").write_text(config)
    tee = Tee(cast("io.TextIOWrapper", io.StringIO()))
    recorder = Recorder(load_settings(), [Path()], (), tee)
    tee.write(PRINTED)
    meanwhile()
    recorder.finish(1)


def test_an_unchanged_project_is_answered_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record("--fail-on", "low")
    assert replay(["--fail-on", "low"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Files analyzed: 2 \| Time: \d+\.\ds", first)
    assert "12.5" not in first, "its own time"
    assert second == 'More "seconds": 9'
    assert replay([]) is None, "another question"


def commit() -> None:
    """Authors' addresses are known addresses."""
    author = ["-c", "user.name=A", "-c", "user.email=a@team.example"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "first"], check=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda: Path("a.py").write_text("x = 2\n"),
        lambda: Path("b.py").write_text(""),
        lambda: Path("a.py").unlink(),
        lambda: Path("requirements.txt").write_text("flask==3.1\n"),
        lambda: Path("avyay.yaml").write_text("raksha: {fail_on: low}\n"),
        commit,
        lambda: os.environ.update(AVYAY_RAKSHA_FAIL_ON="low"),
        lambda: os.environ.update(NO_COLOR="1"),
        lambda: os.chdir(".."),
        lambda: sys.path.append("/somewhere/else"),
    ],
    ids=["content", "new", "gone", "manifest", "settings", "git", "variable", "colour", "folder", "plug-ins"],
)
def test_a_changed_one_is_scanned(project: Path, change: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AVYAY_RAKSHA_FAIL_ON", "NO_COLOR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    record()
    assert replay([]) == 1
    change()
    assert replay([]) is None


@pytest.mark.parametrize(
    "option", ["--sarif", "--fix=unsafe", "--online", "--no-cache", "-v", "-qv", "--diff", "--triage"]
)
def test_what_writes_asks_or_compares_is_never_recorded(project: Path, option: str) -> None:
    record(option)
    assert replay([option]) is None


def test_files_written_during_the_scan_spoil_the_record(project: Path) -> None:
    record(meanwhile=lambda: (project / "a.py").write_text("y = 1\n") and None)
    assert replay([]) is None


def test_settings_that_look_elsewhere_are_not_recorded(project: Path) -> None:
    record(config="raksha: {cache: false}\n")
    assert replay([]) is None


def test_a_broken_record_is_no_record(project: Path, tmp_path: Path) -> None:
    record()
    (path,) = (tmp_path / "home").rglob("answers/*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    for text in ("", "[]", '{"inputs": 1}'):
        path.write_text(text)
        assert replay([]) is None


def test_few_records_are_kept(project: Path, tmp_path: Path) -> None:
    for number in range(25):
        record("--exclude", str(number))
    assert len(list((tmp_path / "home").rglob("answers/*.json"))) == 20


def test_the_command_line_does_so_without_loading_itself(project: Path) -> None:
    (project / "a.py").write_text("import yaml\nyaml.load(open('x'))\n")
    command = [sys.executable, "-P", "-X", "importtime", "-m", "avyay", "scan", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    first, second = (
        subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120) for _ in range(2)
    )
    assert first.returncode == second.returncode == 1
    assert "yaml" in first.stdout
    strip = [line for line in first.stdout.splitlines() if "seconds" not in line]
    assert [line for line in second.stdout.splitlines() if "seconds" not in line] == strip
    heavy = {"typer", "pydantic", "rich", "asyncio", "sqlite3"}
    assert {"typer", "pydantic"} <= imported(first.stderr)
    assert heavy & imported(second.stderr) == set()


def imported(listing: str) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in listing.splitlines() if line.startswith("import time:")}
