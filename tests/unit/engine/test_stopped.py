"""A dispatcher that is stopped (SIGSTOP, Ctrl-Z) while it holds a lock: bounded, named, and nobody else's fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from engine_site import Site

from avyay.engine.checkup import inspect
from avyay.engine.database import SqliteQueue
from avyay.engine.lease import Breath, LeaseWatch
from avyay.engine.queue import Queue
from avyay.engine.types import NewTask
from avyay.engine.worktree import take_turn
from avyay.errors import UnreachableError
from avyay.lock_holder import file_locker, sqlite_writer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the holder is read from /proc")

IN_TRANSACTION = """
import os, signal, sys
from avyay.engine.queue import Queue
queue = Queue(sys.argv[1])
lease = queue.claim("stopped")
def stop():
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
for state in ("running", "verifying", "merging"):
    queue.advance(lease, state)
queue.finish(lease, act=stop)
print("finished", flush=True)
"""
IN_TURN = """
import os, signal, sys; from pathlib import Path
from avyay.engine.worktree import take_turn
with take_turn(Path(sys.argv[1])):
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextmanager
def stopped(program: str, argument: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, argument],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqliteQueue, "busy_timeout", 0.3)


@pytest.mark.usefixtures("_impatient")
class TestSqlite:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        with closing(Queue(tmp_path / "engine.db")) as queue:
            queue.add([NewTask("one", id="one"), NewTask("two", id="two")])
        return tmp_path / "engine.db"

    def test_others_are_told_who_it_is_and_what_to_do(self, place: Path) -> None:
        with stopped(IN_TRANSACTION, str(place)) as process, closing(Queue(place)) as queue:
            with pytest.raises(
                UnreachableError, match=rf"locked by process {process.pid} .*, which is stopped"
            ) as caught:
                queue.claim("w")
            assert f"kill -CONT {process.pid}" in str(caught.value.hint)
            assert queue.get("two").state == "ready"  # reading goes on
            (who, remedy) = queue.stuck() or ("", "")
            assert str(process.pid) in who
            assert f"kill -KILL {process.pid}" in remedy

    def test_continued_it_ends_what_it_began(self, place: Path) -> None:
        with stopped(IN_TRANSACTION, str(place)) as process, closing(Queue(place)) as queue:
            process.send_signal(signal.SIGCONT)
            assert process.wait(30) == 0
            assert queue.get("one").state == "done"
            assert queue.stuck() is None

    def test_killed_it_holds_nothing_any_more(self, place: Path) -> None:
        with stopped(IN_TRANSACTION, str(place)) as process, closing(Queue(place)) as queue:
            process.kill()
            process.wait()
            assert queue.get("one").state == "merging"
            assert queue.claim("w") is not None
            assert sqlite_writer(place) is None


@pytest.mark.usefixtures("_impatient")
class TestDispatcher:
    def test_it_waits_for_the_lock_and_blames_nobody(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """The leases of others could not breathe meanwhile: when the lock is free again they have their time anew."""
        site = Site(tmp_path)
        site.add("held", "true")
        site.add("other", "true")
        place = site.paths.component("engine") / "engine.db"
        with stopped(IN_TRANSACTION, str(place)) as process:
            dispatcher = site.dispatcher()
            checks = {check.what: check for check in inspect(dispatcher, site.open_queue())}
            assert not checks["queue lock"].ok
            assert f"kill -CONT {process.pid}" in checks["queue lock"].detail
            thread = threading.Thread(target=dispatcher.run)
            thread.start()
            said: list[str] = []

            def in_vain() -> int:
                said.extend(capfd.readouterr())
                return "".join(said).count("tick_failed")

            _until(lambda: in_vain() >= 2)
            assert thread.is_alive()
            process.send_signal(signal.SIGCONT)
            process.wait(30)
            with closing(site.open_queue()) as queue:
                _until(lambda: queue.get("other").attempt == 1)
                assert "lease_lost" not in [entry.kind for entry in queue.history("held")]
            dispatcher.stop()
            thread.join(30)

    def test_a_lease_that_could_not_breathe_gets_a_fresh_timeout(self) -> None:
        watch = LeaseWatch(timeout=60)
        breath = Breath("t", 1, 5)
        assert watch.look([breath], 0) == []
        watch.forgive()
        assert watch.look([breath], 70) == []
        assert watch.look([breath], 129) == []
        assert watch.look([breath], 130) == [breath]


class TestTurns:
    def test_who_holds_a_turn_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "merge.lock"
        with stopped(IN_TURN, str(path)) as process:
            told = rf"held for 0 s by process {process.pid} .*stopped"
            with pytest.raises(UnreachableError, match=told) as caught, take_turn(path, patience=0.1):
                pass
            assert f"kill -CONT {process.pid}" in str(caught.value.hint)
        assert file_locker(path) is None
        with take_turn(path, patience=0.1):
            assert (file_locker(path) or os).pid == os.getpid()  # type: ignore[union-attr]

    def test_a_file_that_nobody_locks_or_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("")
        assert file_locker(tmp_path / "x") is None
        assert file_locker(tmp_path / "gone") is None
        assert sqlite_writer(tmp_path / "gone.db") is None


@pytest.mark.needs("postgres", "initdb")
class TestPostgres:
    def test_the_server_names_the_session_and_ends_it(self, postgres: object, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a limit of seven seconds here; nobody has to find the stopped process."""
        url = postgres.new_url()  # type: ignore[attr-defined]
        with closing(Queue(url)) as queue:
            queue.add([NewTask("one", id="one"), NewTask("two", id="two")])
            program = f"import avyay.postgres; avyay.postgres.IDLE_TIMEOUT_MS = 7000\n{IN_TRANSACTION}"
            with stopped(program, url) as process:
                _until(lambda: queue.stuck() is not None)
                (who, remedy) = queue.stuck() or ("", "")
                assert "has left a transaction open" in who
                assert "pg_terminate_backend" in remedy
                assert queue.claim("w") is not None  # another task: nothing waits for the one that is stuck
                _until(lambda: queue.stuck() is None)
                queue.cancel("one")  # its row is free again
                process.send_signal(signal.SIGCONT)
                assert process.wait(30) != 0  # what it wanted to write is refused
            assert queue.get("one").state == "cancelled"


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
