"""Bad input to the scanner: one clear sentence or a reported skip, the right exit code, and nothing written."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from avyay.cli.app import run
from avyay.raksha.engines.semgrep import SemgrepEngine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX files")


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "fine.py").write_text("x = 1\n")
    monkeypatch.setenv("AVYAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return folder


def scan(*arguments: str) -> tuple[int, dict[str, Any], str]:
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        status = run(["scan", *arguments, "--json"])
    return status, json.loads(out.getvalue() or "{}"), error.getvalue()


def listing(folder: Path) -> list[tuple[str, float]]:
    return sorted((str(path), path.lstat().st_mtime) for path in folder.rglob("*"))


def symlink_loop(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")


def unreadable(folder: Path) -> None:
    (folder / "secret.py").write_text("x = 1\n")
    (folder / "secret.py").chmod(0)


WRITERS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "binary": (lambda folder: (folder / "a.bin").write_bytes(b"\0\1\2" * 100), 0, "Binary or media."),
    "python with NUL": (lambda folder: (folder / "a.py").write_bytes(b"x = 1\0"), 3, "Holds NUL bytes"),
    "a minified line of a megabyte": (lambda folder: (folder / "a.js").write_text("a();" * 250_000), 3, "minified"),
    "symlink loop": (symlink_loop, 0, "Symbolic link; not followed."),
    "invalid encoding": (lambda folder: (folder / "a.py").write_bytes(b"x = '\xff\xfe'\n"), 3, "Not UTF-8"),
    "broken syntax": (lambda folder: (folder / "a.py").write_text("def (:\n"), 3, "a.py"),
    "unreadable": (unreadable, 3, "Permission denied"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_odd_files_are_told_of(code: Path, name: str) -> None:
    prepare, status, words = WRITERS[name]
    if name == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    prepare(code)
    before = listing(code)
    found, document, _ = scan(str(code))
    assert found == status
    assert words in json.dumps(document["skipped"] + document["ignored"])
    assert document["files"] >= 1
    assert listing(code) == before


def test_a_link_to_itself_named_on_the_command_line(code: Path) -> None:
    symlink_loop(code)
    status, document, _ = scan(str(code / "self"))
    assert status == 3
    assert "symbolic links" in document["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing",), "There is no file or folder missing"),
        (("code", "--rules", "missing.yaml"), "There is no rules folder"),
        (("code", "--rules", "rules.yaml"), "rules.yaml"),
        (("code", "--baseline", "missing.json"), "missing.json"),
        (("code", "--diff", "main"), "repository"),
        (("code", "--sarif", "no/such/folder.sarif"), "Cannot write"),
        (("code", "--fail-on", "terrible"), "terrible"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_sentence(code: Path, arguments: tuple[str, ...], words: str) -> None:
    Path("rules.yaml").write_text("rules: [{id: x, languages: [python], pattern: ")
    before = listing(code)
    status, document, error = scan(*arguments)
    assert status == 2
    assert document == {}
    assert words in error
    assert "Traceback" not in error
    assert listing(code) == before
    assert not Path("no").exists()


@pytest.mark.parametrize("signal", [9, 11])
def test_a_killed_engine_is_never_clean(code: Path, monkeypatch: pytest.MonkeyPatch, signal: int) -> None:
    program = code.parent / "engine"
    program.write_text(f"#!{sys.executable}\nimport os\nos.kill(os.getpid(), {signal})\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(SemgrepEngine, "_binary", lambda self: str(program))
    (code / "a.js").write_text("eval(x)\n")
    before = listing(code)
    status, document, _ = scan(str(code))
    assert status == 3
    assert document["verdict"] == "unchecked"
    assert f"signal {signal}" in json.dumps(document["skipped"])
    assert listing(code) == before


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses names that are no UTF-8")
@pytest.mark.parametrize("repository", [False, True])
def test_names_that_are_no_text(code: Path, repository: bool) -> None:
    bad = b'import os\nos.system("ls " + input())\n'
    for name in (b"odd\xff.py", b"new\nline.py", b"a b.py", "日本.py".encode(), b"Dockerfile.\xff", b"\xff.js"):
        body = b"FROM x\nRUN curl https://a.dev | sh\nUSER a\n" if name.startswith(b"D") else bad
        body = b"eval(location.hash)\n" if name.endswith(b".js") else body
        Path(os.fsdecode(os.fsencode(code) + b"/" + name)).write_bytes(body)
    if repository:
        subprocess.run(["git", "init", "--quiet"], cwd=code, check=True)
    command = [sys.executable, "-m", "avyay", "scan", str(code), "--sarif", "out.sarif", "-q"]
    for _ in range(2):  # the second answer comes from the record
        done = subprocess.run([*command, "--json"], capture_output=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (1, b"")
        found = json.loads(done.stdout)
        assert found["skipped"] == []
        names = {os.fsencode(item["path"]) for item in found["findings"]}
        assert names >= {b"odd\xff.py", b"new\nline.py", b"a b.py", "日本.py".encode(), b"Dockerfile.\xff"}
    text = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (text.returncode, text.stderr) == (1, b"")
    assert b"odd\\udcff.py:2" in text.stdout
    assert len(json.loads(Path("out.sarif").read_text())["runs"][0]["results"]) >= 5
    for option in ("--github", "--agent", "--markdown=out.md"):
        assert subprocess.run([*command, option], capture_output=True, timeout=120, check=False).stderr == b""
