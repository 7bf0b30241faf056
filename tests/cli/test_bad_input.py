"""What users get wrong: each ends in a clear sentence, a remedy, the documented exit code, and nothing changed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def avyay(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avyay", *arguments],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


MISTAKES = {
    "scan: missing path": (("scan", "nowhere"), 2, "nowhere", "Check the path"),
    "rag index: missing path": (("rag", "index", "nowhere"), 2, "nowhere", ""),
    "quickstart: missing path": (("quickstart", "nowhere"), 2, "nowhere", "avyay quickstart PATH"),
    "config: missing file": (("config", "show", "--config", "no.yaml"), 2, "no.yaml", "avyay init"),
    "config: broken YAML": (("scan", ".", "--config", "broken.yaml"), 2, "broken.yaml:3: broken YAML", "indentation"),
    "config: unknown key": (("scan", ".", "--config", "unknown.yaml"), 2, "unknown.yaml:2", "Did you mean 'fail_on'?"),
    "ask: nothing indexed": (("ask", "how?"), 2, "Nothing has been indexed", "avyay rag index"),
    "route: nothing to route": (("route", "  "), 2, "no prompt", "Try"),
    "route: no provider": (("route", "hello", "--config", "alone.yaml"), 4, "No provider", "OPENAI_API_KEY"),
    "route: no such tier": (("route", "--tier", "cheap", "x"), 2, "cheap", "local"),
    "scan: no such level": (("scan", "--fail-on", "terrible", "."), 2, "terrible", "critical"),
    "scan: SARIF in no folder": (("scan", ".", "--sarif", "no/such/dir/x.sarif"), 2, "Cannot write", "existing folder"),
    "init: no such folder": (("init", "no/such/dir"), 2, "Cannot write", "exists"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_changes_nothing(mistake: str, tmp_path: Path) -> None:
    arguments, code, words, remedy = MISTAKES[mistake]
    (tmp_path / "broken.yaml").write_text("rag:\n  passages: [1\n")
    (tmp_path / "unknown.yaml").write_text("raksha:\n  fail_one: low\n")
    (tmp_path / "alone.yaml").write_text("marga:\n  discover: false\n")
    before = files_below(tmp_path)
    done = avyay(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert files_below(tmp_path) == before


READ_ONLY = "/proc/self/avyay"  # nobody can make a folder there, not even root


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="wants a place nobody can write")
@pytest.mark.parametrize(
    "arguments", [("rag", "index", "."), ("init", "--user"), ("trust", "avyay.yaml")], ids=lambda a: a[0]
)
def test_a_read_only_home(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "avyay.yaml").write_text("rag: {passages: 3}\n")
    (tmp_path / "runbook.md").write_text("# Restore\n\nRun it.\n")
    done = avyay(*arguments, cwd=tmp_path, AVYAY_HOME=READ_ONLY)
    assert done.returncode == 2, done.stderr
    assert "AVYAY_HOME" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="wants a place nobody can write")
def test_doctor_names_the_read_only_home(tmp_path: Path) -> None:
    done = avyay("doctor", cwd=tmp_path, AVYAY_HOME=READ_ONLY)
    assert done.returncode == 3
    assert "MISSING home" in done.stdout
    assert "AVYAY_HOME" in done.stdout


def test_a_folder_without_documents_or_code(tmp_path: Path) -> None:
    indexed = avyay("rag", "index", ".", cwd=tmp_path)
    assert indexed.returncode == 2, indexed.stderr
    assert "Traceback" not in indexed.stderr
    scanned = avyay("scan", ".", cwd=tmp_path)
    assert scanned.returncode in (0, 3), scanned.stderr
    walked = avyay("quickstart", ".", cwd=tmp_path)
    assert walked.returncode == 3
    assert "could not run" in walked.stdout


@pytest.mark.needs("git")
def test_an_empty_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = avyay("rag", "index", ".", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_binary_files_are_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "runbook.md").write_bytes(b"\x00\x01\x02" * 1000)
    (tmp_path / "app.py").write_bytes(b"\x7fELF\x00\x00" * 1000)
    indexed = avyay("rag", "index", ".", cwd=tmp_path)
    assert indexed.returncode != 70, indexed.stderr
    assert "runbook.md" in indexed.stdout + indexed.stderr
    scanned = avyay("scan", ".", "--json", cwd=tmp_path)
    assert scanned.returncode != 70, scanned.stderr
    assert "app.py" in scanned.stdout


def test_without_git_a_plain_folder_still_works(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "runbook.md").write_text("# Etcd\n\n## Restore\n\nRun `etcdctl snapshot restore`.\n")
    path = str(tmp_path / "bin")
    doctor = avyay("doctor", cwd=tmp_path, PATH=path)
    assert doctor.returncode == 3
    assert "MISSING git" in doctor.stdout
    assert "Install git" in doctor.stdout
    indexed = avyay("rag", "index", "docs", cwd=tmp_path, PATH=path)
    assert indexed.returncode in (0, 3), indexed.stderr
    assert "Traceback" not in indexed.stderr


def test_without_semgrep_the_scan_is_never_clean(tmp_path: Path) -> None:
    """An installation whose semgrep is gone: the other engines run, and the verdict is "could not check"."""
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.lower().startswith(("semgrep", "__editable", "_editable")):
            (libraries / entry.name).symlink_to(entry)
    code = tmp_path / "code"
    code.mkdir()
    (code / "app.py").write_text("import subprocess\n\n\ndef run(x):\n    return subprocess.run(x, shell=True)\n")
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-m",
            "avyay",
            "scan",
            "code",
            "--fail-on",
            "critical",
        ],  # -S: no site-packages but these
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{libraries}",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "semgrep is not installed" in done.stdout + done.stderr


def test_retries_say_nothing_where_results_go(tmp_path: Path) -> None:
    """stamina logs every retry to whatever structlog is set up to: by default to standard output."""
    done = avyay("rag", "index", "http://127.0.0.1:9/runbooks.git", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "retry" not in done.stderr
    told = avyay("rag", "index", "http://127.0.0.1:9/runbooks.git", "-v", cwd=tmp_path)
    assert told.stdout == ""
    assert told.stderr.count("retry_scheduled") == 2
