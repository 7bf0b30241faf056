"""What systemd learns of a daemon: that it answers, that it does not hang, that it reloads and that it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemon import wait_for
from family import Line
from service_manager import Manager, environment_of, stopped

from avyay.config.environment import Environment
from avyay.serve.notify import ServiceManager, service_manager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd's, and needs /proc")

PATIENCE = 0.4  # seconds


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Started:
    """`avyay serve NAME`, as systemd would start it."""

    def __init__(self, home: Path, *words: str, address: str | None) -> None:
        self.port = free_port()
        self.config = home / "config.yaml"
        if not self.config.exists():
            self.config.write_text("gateway: {failed_attempts: 9}\n")
        self._words = (home / "words").open("w+")
        told = {} if address is None else {"NOTIFY_SOCKET": address}
        command = [sys.executable, "-m", "avyay", "serve", *words]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--config", str(self.config), "--reload-config"],
            env={
                **os.environ,
                "PYTHONPATH": str(Path.cwd()),
                "AVYAY_HOME": str(home / "avyay"),
                "WATCHDOG_USEC": str(int(PATIENCE * 1e6)),
                **told,
            },
            cwd=home,
            stderr=self._words,
        )
        self.pid = self.process.pid

    def words(self) -> str:
        return Path(self._words.name).read_text()

    def answers(self, port: int | None = None) -> bool:
        try:
            with Line(port or self.port) as line:
                return line.ask("GET", "/ready")[0] == 200
        except OSError:
            return False

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


@contextmanager
def started(home: Path, *words: str, address: str | None) -> Iterator[Started]:
    found = Started(home, *words, address=address)
    try:
        yield found
    except AssertionError as error:
        raise AssertionError(found.words()) from error
    finally:
        found.process.kill()
        found.process.wait()
        found._words.close()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    # A socket's path holds about 100 characters, and the folder of a test's may be longer than that.
    name = f"avyay-test-{os.getpid()}-{time.monotonic_ns()}"
    with Manager(f"@{name}" if request.param == "abstract" else f"/tmp/{name}") as made:
        yield made


@pytest.mark.parametrize("words", [("gateway",), ("gateway", "--workers", "2")], ids=["one", "two"])
def test_a_daemon_says_how_it_does(words: tuple[str, ...], manager: Manager, tmp_path: Path) -> None:
    with started(tmp_path, *words, address=manager.address) as daemon:
        manager.wait_for("READY")
        assert daemon.answers()  # at once
        if "--workers" in words:
            manager.wait_for("STATUS", lambda message: message["STATUS"] == "2 of 2 workers serve.")
            for worker in children(daemon.pid):
                assert not environment_of(worker) & {"NOTIFY_SOCKET", "WATCHDOG_USEC"}
        manager.wait_for("WATCHDOG")
        # A configuration that can be used, and one that cannot.
        daemon.config.write_text("gateway: {failed_attempts: 8}\n")
        os.kill(daemon.pid, signal.SIGHUP)
        assert int(manager.wait_for("RELOADING")["MONOTONIC_USEC"]) > 0
        assert "read last" in manager.wait_for("READY")["STATUS"]
        daemon.config.write_text("gateway: {failed_attempts: nine}\n")
        os.kill(daemon.pid, signal.SIGHUP)
        manager.wait_for("RELOADING")
        assert "cannot be used" in manager.wait_for("READY")["STATUS"]
        # It hangs, and goes on.
        os.kill(daemon.pid, signal.SIGSTOP)
        wait_for(lambda: stopped(daemon.pid))
        manager.read()
        time.sleep(3 * PATIENCE)
        assert manager.read() == []
        os.kill(daemon.pid, signal.SIGCONT)
        manager.wait_for("WATCHDOG")
        assert daemon.end() == 0
        assert manager.states() == ["READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"]
        assert manager.speakers == {daemon.pid}


def test_a_tree_is_ready_when_all_of_it_answers(tmp_path: Path) -> None:
    raksha = free_port()
    absent = [word for name in ("marga", "rag", "siddhi", "engine") for word in ("--without", name)]
    with Manager(f"@avyay-test-{os.getpid()}-tree") as manager:
        with started(tmp_path, "all", "--ports", f"raksha={raksha}", *absent, address=manager.address) as daemon:
            assert manager.wait_for("READY")["STATUS"] == "All components answer."
            assert daemon.answers()
            assert daemon.answers(raksha)
            for child in children(daemon.pid):
                assert "NOTIFY_SOCKET" not in environment_of(child)
            manager.wait_for("WATCHDOG")
            (scanner,) = [
                child for child in children(daemon.pid) if b"\0raksha\0" in Path(f"/proc/{child}/cmdline").read_bytes()
            ]
            os.kill(scanner, signal.SIGKILL)
            manager.wait_for("STATUS", lambda message: message["STATUS"] == "Does not answer: raksha.")
            manager.wait_for("STATUS", lambda message: message["STATUS"] == "All components answer.")
            os.kill(daemon.pid, signal.SIGHUP)
            manager.wait_for("RELOADING")
            manager.wait_for("READY")
            wait_for(lambda: daemon.words().count('"reloaded"') == 2)
            daemon.config.write_text("gateway: {failed_attempts: nine}\n")
            os.kill(daemon.pid, signal.SIGHUP)
            manager.wait_for("RELOADING")
            assert "cannot be used" in manager.wait_for("READY")["STATUS"]
            assert daemon.end() == 0
        assert daemon.words().count("reload_refused") == 1  # not by each component
        assert manager.states() == ["READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"]
        assert manager.speakers == {daemon.pid}


TREE = """
import sys
from avyay.config.environment import Environment
from avyay.resilience.backoff import Backoff
from avyay.serve.notify import service_manager
from avyay.serve.tree import Member, Tree
folder, member, port = sys.argv[1:]
family = [
    Member("scanner", (sys.executable, "-c", "raise SystemExit(70)"), address=("127.0.0.1", int(port))),
    Member("front", (sys.executable, member, folder, "front")),
]
backoff = Backoff(base=0.01, cap=0.05, attempts=10**6)
sys.exit(Tree(family, backoff=backoff, manager=service_manager(Environment())).run())
"""


def test_a_tree_is_ready_though_a_component_dies_again_and_again(tmp_path: Path) -> None:
    """The rest answers, and to end all of it would help nobody."""
    address = f"@avyay-test-{os.getpid()}-dying"
    member = Path(__file__).resolve().parents[1] / "support" / "member.py"
    with Manager(address) as manager, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        command = [sys.executable, "-c", TREE, str(tmp_path), str(member), str(nobody.getsockname()[1])]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "NOTIFY_SOCKET": address}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as tree:
            try:
                assert manager.wait_for("READY")["STATUS"] == "Does not answer: scanner."
                wait_for((tmp_path / "front.lives").exists)
                tree.send_signal(signal.SIGTERM)
                assert tree.wait(60) == 0
            finally:
                tree.kill()
        assert manager.states() == ["READY", "STOPPING"]


def test_nobody_is_told_who_did_not_ask(tmp_path: Path) -> None:
    with Manager(f"@avyay-test-{os.getpid()}-silent") as manager:
        with started(tmp_path, "gateway", address=None) as daemon:
            wait_for(daemon.answers, 120)
            assert daemon.end() == 0
        assert manager.read() == []
        assert "not_told" not in daemon.words()


def test_who_hangs_leaves_word_of_where(tmp_path: Path) -> None:
    """The manager ends it by SIGABRT."""
    address = f"@avyay-test-{os.getpid()}-abort"
    with Manager(address) as manager, started(tmp_path, "gateway", address=address) as daemon:
        manager.wait_for("READY")
        os.kill(daemon.pid, signal.SIGABRT)
        assert daemon.process.wait(60) == -signal.SIGABRT
        assert "most recent call first" in daemon.words()


def test_a_manager_that_is_not_there_keeps_nobody_from_serving(tmp_path: Path) -> None:
    with started(tmp_path, "gateway", address=str(tmp_path / "nobody")) as daemon:
        wait_for(daemon.answers, 120)
        assert daemon.end() == 0
        assert daemon.words().count("service_manager_not_told") == 1


def test_what_is_told_and_when(tmp_path: Path) -> None:
    with Manager(f"@avyay-test-{os.getpid()}-unit") as manager:
        teller = ServiceManager(manager.address)
        teller.reloading()  # there is nothing to reload yet
        teller.status("Opens\nits files.")
        teller.ready("One.")
        teller.ready("Two.")
        teller.reloading()
        teller.ready("Three.")
        teller.stopping()
        teller.stopping()
        teller.ready("Too late.")
        told = [{name: value for name, value in one.items() if name != "MONOTONIC_USEC"} for one in manager.read()]
        assert told == [
            {"STATUS": "Opens its files."},
            {"READY": "1", "STATUS": "One."},
            {"STATUS": "Two."},
            {"RELOADING": "1"},
            {"READY": "1", "STATUS": "Three."},
            {"STOPPING": "1", "STATUS": "Drains."},
        ]
        asyncio.run(ServiceManager(manager.address).watch())  # nobody waits for signs of life: it ends
        assert manager.read() == []


@pytest.mark.parametrize(
    ("variables", "watched"),
    [
        ({"WATCHDOG_USEC": "2000000"}, True),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, False),  # it is meant for another process
        ({"WATCHDOG_USEC": "soon"}, False),
        ({}, False),
    ],
    ids=["asked", "of another", "no number", "not asked"],
)
def test_signs_of_life_are_given_to_who_asks(
    variables: dict[str, str], watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Manager(f"@avyay-test-{os.getpid()}-life") as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        teller = service_manager(Environment({"NOTIFY_SOCKET": manager.address, **variables}))
        assert "NOTIFY_SOCKET" not in os.environ

        async def watch() -> None:
            watching = asyncio.ensure_future(teller.watch())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert watching.done() != watched
            watching.cancel()

        asyncio.run(watch())
        assert manager.read() == ([{"WATCHDOG": "1"}] if watched else [])


@pytest.mark.parametrize("address", ["vsock:2:1234", "nonsense"])
def test_an_address_that_is_no_unix_socket_is_left_alone(address: str) -> None:
    service_manager(Environment({"NOTIFY_SOCKET": address})).ready("Nobody hears it.")
