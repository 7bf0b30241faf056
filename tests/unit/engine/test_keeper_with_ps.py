"""What macOS has to do with: no /proc, no adoption, no cgroup; real processes, found by `ps` alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from engine_site import Site, start, until

from avyay.engine import keeper
from avyay.engine.checkup import inspect
from avyay.engine.loop import owner_is_gone, owner_name

pytestmark = pytest.mark.skipif(not Path(keeper._PS).exists(), reason="there is no ps")


@pytest.fixture(autouse=True)
def _with_ps() -> Iterator[None]:
    keeper.use_ps()
    yield
    keeper.use_ps(False)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def marked(site: Site) -> dict[int, str]:
    return keeper.marks(site.dispatcher().folders.prefix)


def leftovers(pidfile: Path) -> list[int]:
    """Those of the noted processes that still live."""
    return [int(pid) for pid in pidfile.read_text().split() if keeper.birth(int(pid)) is not None]


class TestFinding:
    def test_a_process_is_told_from_a_later_one_by_its_birth(self) -> None:
        born = keeper.birth(os.getpid())
        assert born is not None
        assert born == keeper.birth(os.getpid())
        assert keeper.birth(2**22 + 1) is None
        assert owner_name("n").endswith(born)
        assert not owner_is_gone(owner_name("n"))
        assert owner_is_gone(owner_name("n").replace(born, "Thu Jan 1 00:00:00 1970"))

    def test_children_and_marks(self) -> None:
        child = subprocess.Popen(["sleep", "600"], env={**os.environ, keeper.MARK: "abc/task/7"})
        try:
            until(lambda: keeper.marks("abc/").get(child.pid) == "abc/task/7")
            assert child.pid in keeper.descendants(os.getpid())
            assert keeper.marks("abc/task/8") == {}
            assert keeper.end_marked("abc/task/7") == (1, set())
        finally:
            child.kill()
            child.wait()

    def test_ps_does_not_find_itself(self) -> None:
        """It is a child of whoever asks; waiting for it to end would never end."""
        child = subprocess.Popen(["sleep", "600"])
        try:
            ended = []
            for _ in range(5):
                found = keeper.descendants(os.getpid())
                assert child.pid in found
                ended.append([pid for pid in found if keeper.birth(pid) is None])
            assert [] in ended  # ps would be there every time; something else may end in between once
        finally:
            child.kill()
            child.wait()


class TestKeeping:
    def test_a_task_is_done_and_what_it_left_is_ended(self, site: Site) -> None:
        pids = site.folder / "pids"
        spawn = f"sleep 600 & echo $! >> {pids}"
        hidden = f"(setsid sh -c 'echo $$ >> {pids}; exec sleep 600' &)"
        both = f"until test $(wc -l < {pids}) -eq 2; do sleep 0.05; done"
        site.add("one", spawn, hidden, both, "echo done > out.txt")
        began = time.monotonic()
        site.run()
        assert site.task("one").state == "done", site.task("one").reason
        assert time.monotonic() - began < 60  # and did not wait for what it could not end
        assert len(pids.read_text().split()) == 2
        assert leftovers(pids) == []
        assert marked(site) == {}
        assert site.data("one", "verifying")["killed"] >= 2

    def test_those_that_hide_their_environment_are_known_by_descent(self, site: Site) -> None:
        """Seen as a grandchild before its parent ended, it is known although nothing marks it any more."""
        pids = site.folder / "pids"
        hidden = f"setsid env -i PATH=$PATH sh -c 'echo $$ >> {pids}; sleep 600'"
        site.add("one", f"({hidden} & sleep 2.5) &", "sleep 4", "echo done > out.txt")
        site.run()
        assert site.task("one").state == "done", site.task("one").reason
        assert leftovers(pids) == []

    def test_a_cap_ends_the_whole_tree(self, site: Site) -> None:
        pids = site.folder / "pids"
        script = f"echo $$ >> {pids}; (sleep 600 & echo $! >> {pids}; wait)"
        site.add("one", script, attempts=1, caps={"wall": 1.0})
        site.run()
        assert site.data("one", "failed")["outcome"] == "capped"
        assert leftovers(pids) == []

    def test_kill_9_of_the_dispatcher_and_of_its_keeper(self, site: Site) -> None:
        pids = site.folder / "pids"
        hidden = f"(setsid sh -c 'echo $$ >> {pids}; exec sleep 600' &)"
        site.add("one", f"echo $$ >> {pids}; {hidden}; sleep 600 & echo $! >> {pids}; wait", attempts=1)
        process = start(site, ps=True)
        try:
            # The keeper and its `ps` are marked too: what counts is that these three are there.
            until(lambda: pids.exists() and len(pids.read_text().split()) == len(leftovers(pids)) == 3)
            until(lambda: set(map(int, pids.read_text().split())) <= set(marked(site)))
            process.send_signal(signal.SIGSTOP)
            keepers = _keepers(keeper.descendants(process.pid))
            assert len(keepers) == 1
            os.kill(keepers[0], signal.SIGKILL)
            process.kill()
            process.wait()
            assert len(leftovers(pids)) == 3
            dispatcher = site.dispatcher()
            with closing(site.open_queue()) as queue:
                assert not all(check.ok for check in inspect(dispatcher, queue))
                dispatcher.recover()
                assert leftovers(pids) == []
                assert marked(site) == {}
                assert all(check.ok for check in inspect(dispatcher, queue))
            dispatcher.close()
        finally:
            process.kill()
            process.wait()


def _keepers(pids: set[int]) -> list[int]:
    # ww: a line is not to end where COLUMNS says that a terminal does.
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.strip().partition(" ") for line in listed.splitlines()]
    return [int(pid) for pid, _, command in rows if int(pid) in pids and "keeper.py" in command]


def test_without_the_switch_linux_uses_proc() -> None:
    keeper.use_ps(False)
    assert keeper.uses_ps() is not sys.platform.startswith("linux")
