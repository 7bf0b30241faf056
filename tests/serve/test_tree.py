"""All daemons as one tree: what dies is started again alone, the end is in order, nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import wait_for

from avyay.cli.app import run as avyay
from avyay.errors import UsageError
from avyay.serve.tree import members

MEMBER = Path(__file__).resolve().parents[1] / "support" / "member.py"
SCRIPT = """
import sys
from avyay.resilience.backoff import Backoff
from avyay.serve.tree import Member, Tree
folder = sys.argv[1]
family = [Member(name, (sys.executable, {member!r}, folder, name)) for name in ("one", "two", "front")]
sys.exit(Tree(family, grown=float(sys.argv[2]), backoff=Backoff(base=0.01, cap=0.05, attempts=10**6)).run())
"""


class Family:
    def __init__(self, folder: Path, grown: float = 0.2) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        command = [sys.executable, "-c", SCRIPT.format(member=str(MEMBER)), str(folder), str(grown)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def pids(self, name: str) -> list[int]:
        file = self.folder / f"{name}.lives"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def up(self) -> None:
        wait_for(lambda: all(self.pids(name) for name in ("one", "two", "front")))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    found = Family(tmp_path)
    found.up()
    yield found
    found.process.kill()
    found.process.wait()
    wait_for(lambda: all(gone(pid) for name in ("one", "two", "front") for pid in found.pids(name)))


def test_a_death_is_mended_and_touches_nobody_else(family: Family) -> None:
    (first,) = family.pids("one")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(family.pids("one")) == 2)
    assert (len(family.pids("two")), len(family.pids("front"))) == (1, 1)
    assert not gone(family.pids("two")[0])


def test_who_dies_at_each_start_is_tried_again_until_it_lives(family: Family) -> None:
    (family.folder / "one.dies").touch()
    os.kill(family.pids("one")[0], signal.SIGKILL)
    wait_for(lambda: len(family.pids("one")) >= 5)
    (family.folder / "one.dies").unlink()
    wait_for(lambda: not gone(family.pids("one")[-1]))
    assert len(family.pids("two")) == 1


def test_the_end_is_in_order(family: Family) -> None:
    family.process.send_signal(signal.SIGTERM)
    assert family.process.wait(60) == 0
    ended = {name: float((family.folder / f"{name}.ended").read_text()) for name in ("one", "two", "front")}
    assert ended["front"] <= min(ended["one"], ended["two"])  # callers are let go before what answers them


def test_nobody_outlives_a_supervisor_that_was_killed(family: Family) -> None:
    family.process.kill()
    family.process.wait()
    for name in ("one", "two", "front"):
        wait_for(lambda name=name: gone(family.pids(name)[0]))  # type: ignore[misc]


def test_who_cannot_start_at_all_ends_the_tree(tmp_path: Path) -> None:
    (tmp_path / "two.refuses").touch()
    family = Family(tmp_path, grown=60)  # however long a start takes
    assert family.process.wait(30) == 2
    wait_for(lambda: all(gone(pid) for name in ("one", "two", "front") for pid in family.pids(name)))


def test_a_taken_port_is_said_once_before_anything_starts(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = dict(zip(["marga", "rag", "raksha", "siddhi", "engine"], free_ports(5), strict=True))
    others = ",".join(f"{name}={port}" for name, port in places.items())
    (collector, front) = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        cases = {
            f"--port {taken + 10}": ["--port", str(taken), "--ports", others, "--collector-port", str(collector)],
            f"--collector-port {taken + 10}": ["--port", str(front), "--ports", others, "--collector-port", str(taken)],
            f"--ports engine={taken + 10}": [
                *("--port", str(front), "--ports", others.replace(f"engine={places['engine']}", f"engine={taken}")),
                *("--collector-port", str(collector)),
            ],
        }
        for option, words in cases.items():
            assert avyay(["serve", "all", *words]) == 2
            told = capfd.readouterr().err
            assert f"Port {taken} on 127.0.0.1 is taken" in told
            assert told.endswith(f"choose another for it: avyay serve all {option}\n")
            assert "listens on" not in told


def test_what_every_component_would_refuse_is_said_once(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hook = {"name": "ops", "url": "https://example.com/", "secret_env": "NOBODY_SETS_THIS"}
    config = home / "hooks.yaml"
    config.write_text(json.dumps({"events": {"webhooks": [hook]}}))
    assert avyay(["serve", "all", "--config", str(config)]) == 2
    told = capfd.readouterr().err
    assert told.count("NOBODY_SETS_THIS, which is not set") == 1
    assert "listens on" not in told


def test_members_and_their_ports() -> None:
    family = members({"rag": 9082}, gateway=9080, host="127.0.0.1", without=["siddhi"], remote=["marga"])
    assert [member.name for member in family] == ["rag", "raksha", "engine", "gateway"]
    assert family[-1].environment["AVYAY_GATEWAY_UPSTREAMS_RAG_URL"] == "http://127.0.0.1:9082"
    assert "9082" in family[0].command
    assert [member.reloads for member in family] == [True] * 4
    family = members({}, gateway=8080, host="127.0.0.1", arguments=["--workers", "2"], reload=True, dispatch=True)
    assert all("--workers" in member.command for member in family)
    ((name, command, reloads),) = [(one.name, one.command, one.reloads) for one in family if "--run" in one.command]
    assert (name, reloads, "--reload-config" in command) == ("engine", False, False)
    assert sum("--reload-config" in member.command for member in family) == 5
    for bad in ({"nope": 1}, {"rag": 9080}, {"rag": 8083}, {"rag": 8085}):
        with pytest.raises(UsageError):
            members(bad, gateway=9080, host="127.0.0.1")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None
    except OSError:
        return 0, None


@pytest.mark.needs("pgrep")
def test_serve_all(home: Path, tmp_path: Path) -> None:
    """The real thing, small: the gateway before the scanner and the queue."""
    front, raksha, engine = free_ports(3)
    command = [sys.executable, "-m", "avyay", "serve", "all", "--port", str(front)]
    command += ["--ports", f"raksha={raksha},engine={engine}"]
    command += [word for name in ("marga", "rag", "siddhi") for word in ("--without", name)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "AVYAY_SERVE_WORKER_TIMEOUT": "5s"}
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(command, env=environment, cwd=home, stderr=file)
    try:
        together = f"All components answer. The gateway's console: http://127.0.0.1:{front}/"
        wait_for(lambda: together in said.read_text(), 90)
        assert [get(f"http://127.0.0.1:{port}/health")[0] for port in (front, raksha, engine)] == [200, 200, 200]
        found = subprocess.run(["pgrep", "-f", f"serve raksha .*{raksha}"], capture_output=True, text=True)
        pid = int(found.stdout.split()[0])
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: gone(pid))
        assert get(f"http://127.0.0.1:{engine}/ready") == (200, {"ready": True})
        wait_for(lambda: get(f"http://127.0.0.1:{raksha}/ready")[0] == 200, 60)
        found = subprocess.run(["pgrep", "-f", f"serve engine .*{engine}"], capture_output=True, text=True)
        pid = int(found.stdout.split()[0])
        os.kill(pid, signal.SIGSTOP)  # it hangs: nothing but its silence tells
        wait_for(lambda: gone(pid), 60)
        wait_for(lambda: get(f"http://127.0.0.1:{engine}/ready")[0] == 200, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    words = said.read_text()
    for title, port in (("The gateway", front), ("RAKSHA", raksha), ("ENGINE", engine)):
        assert f"{title} listens on http://127.0.0.1:{port} " in words
    assert "component_died" in words
    assert "component_hung" in words
    wait_for(lambda: all(get(f"http://127.0.0.1:{port}/health")[0] == 0 for port in (front, raksha, engine)))
