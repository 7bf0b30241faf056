"""Starting a daemon: the port, who holds it, and the unit that systemd gets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from avyay.cli.app import run as avyay
from avyay.serve.port_holder import port_holder


@pytest.fixture
def taken() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]  # type: ignore[misc]


@pytest.mark.parametrize("more", [(), ("--workers", "2", "--reload-config")], ids=["one", "two"])
@pytest.mark.parametrize("name", ["gateway", "marga", "rag", "raksha", "siddhi", "engine"])
def test_a_taken_port_ends_it_at_once_and_names_the_holder(
    name: str, more: tuple[str, ...], taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert avyay(["serve", name, "--port", str(taken), *more]) == 2
    words = capsys.readouterr().err
    assert f"Port {taken} on 127.0.0.1 is taken" in words
    assert "listens on" not in words
    if sys.platform == "linux":
        assert f"(pid {os.getpid()})" in words


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_holder_is_named_by_its_whole_command_line_without_its_credentials() -> None:
    script = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
    words = ["x" * 300, "two words", "sk-abcdefghijklmnopqrstuvwx", "a\nline", "the end"]
    command = [sys.executable, "-c", script + "time.sleep(600)", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            told = port_holder(int(holder.stdout.readline())) or ""
        finally:
            holder.kill()
    assert f"{'x' * 300} 'two words' [redacted] 'a\\nline' 'the end' (pid {holder.pid})" in told


def test_nobody_holds_a_free_port(taken: int) -> None:
    assert port_holder(taken) is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert port_holder(port) is None


def test_options_that_exclude_each_other() -> None:
    assert avyay(["serve", "engine", "--run", "--reload-config"]) == 2
    assert avyay(["serve", "rag", "--workers", "0"]) == 2
    assert avyay(["serve", "all", "--ports", "marga"]) == 2
    assert avyay(["serve", "all", "--without", "nobody"]) == 2


UNITS = ["gateway", "marga", "rag", "raksha", "siddhi", "engine", "all"]


@pytest.mark.parametrize("name", UNITS)
def test_units(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["serve", name, "--port", "9999", "--workers", "3", "--print-unit"]
    monkeypatch.setattr(sys, "argv", ["avyay", *words])
    assert avyay(words) == 0
    unit = capsys.readouterr().out
    assert f"serve {name} --port 9999 --workers 3 --reload-config\n" in unit
    assert "--print-unit" not in unit
    assert "NoNewPrivileges=yes" in unit
    assert ("PrivateDevices=yes" in unit) == (name not in ("engine", "all"))
    lines = unit.splitlines()
    for line in ("Type=notify", "NotifyAccess=main", "WatchdogSec=30", "TimeoutStartSec=300", "LimitCORE=0"):
        assert line in lines
    monkeypatch.setenv("AVYAY_SERVE_WORKER_TIMEOUT", "0")
    assert avyay(words) == 0
    unit = capsys.readouterr().out
    assert ("Type=notify" in unit, "WatchdogSec" in unit) == (True, False)
    assert avyay([*words, "--user-unit"]) == 0
    assert "WantedBy=default.target" in capsys.readouterr().out


@pytest.mark.needs("systemd-analyze")
def test_systemd_understands_the_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where names hold what systemd would otherwise read as its own."""
    monkeypatch.setenv("AVYAY_HOME", str(tmp_path / "a 100% $HOME"))
    files = []
    for name in UNITS:
        words = ["serve", name, "--print-unit"]
        monkeypatch.setattr(sys, "argv", ["avyay", *words])
        assert avyay(words) == 0
        files.append(tmp_path / f"avyay-{name}.service")
        files[-1].write_text(capsys.readouterr().out)
    found = subprocess.run(["systemd-analyze", "verify", *map(str, files)], capture_output=True, text=True)
    ours = [line for line in found.stderr.splitlines() if "avyay-" in line]
    assert ours == []
