"""The loop from the queue to the main branch, with a real repository, real processes and an agent that does as told."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from engine_site import Site, git, start, until
from outbox import told

from avyay.db import open_database
from avyay.engine import keeper
from avyay.engine.checkup import inspect
from avyay.engine.forward import forward_history
from avyay.engine.loop import owner_name
from avyay.engine.narrate import narrate
from avyay.engine.types import Entry, Lease
from avyay.errors import UnreachableError
from avyay.lock_holder import file_locker

WRITE = "echo done > out.txt"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class TestFromQueueToMain:
    def test_a_task_is_done_verified_and_merged(self, site: Site) -> None:
        site.add("one", WRITE, "git add out.txt", "git commit -qm mine", "echo more > left.txt")
        site.run()
        assert site.task("one").state == "done", site.task("one").reason
        assert site.story("one") == ["added", "claimed", "running", "verifying", "merging", "done"]
        assert (site.repository / "out.txt").read_text() == "done\n"  # the user's work tree went along
        assert (site.repository / "left.txt").read_text() == "more\n"  # what was not committed counts too
        assert git(site.repository, "status", "--porcelain") == ""
        assert git(site.repository, "rev-list", "--count", "main").strip() == "2"  # one verified commit a task
        assert site.merged() == ["one"]

    def test_nothing_is_left_but_the_log(self, site: Site) -> None:
        site.add("one", WRITE, "sleep 600 &", "(setsid env -i sleep 600 &)")
        dispatcher = site.dispatcher()
        dispatcher.run(once=True)
        assert site.task("one").state == "done"
        (folder,) = (site.paths.component("engine") / "attempts/one").iterdir()
        assert "tree" not in {item.name for item in folder.iterdir()}
        assert keeper.marks(dispatcher.folders.prefix) == {}
        assert keeper.inside(str(folder)) == set()
        (place,) = dispatcher.places.values()
        assert place.workshop.branches() == []

    def test_followers_start_from_what_was_merged(self, site: Site) -> None:
        site.add("first", "echo 1 > count")
        site.add("second", "echo 2 >> count", needs=("first",))
        site.add("third", "echo 3 >> count", needs=("second",))
        site.run()
        assert site.merged() == ["first", "second", "third"]
        assert (site.repository / "count").read_text() == "1\n2\n3\n"

    def test_a_branch_checked_out_nowhere_moves_too(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        git(site.repository, "checkout", "--quiet", "--detach")
        site.add("one", WRITE)
        site.run()
        assert site.merged() == ["one"]

    def test_uncommitted_changes_in_the_way_lose_nothing(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        site.commit({"out.txt": "old\n"})
        (site.repository / "out.txt").write_text("precious\n")
        before = site.head()
        site.add("one", WRITE, attempts=1)
        dispatcher = site.dispatcher()
        for place in dispatcher.places.values():
            place.merging._pause = 0.0
        dispatcher.run(once=True)
        assert site.head() == before
        assert (site.repository / "out.txt").read_text() == "precious\n"
        assert "cannot follow main" in site.task("one").reason
        assert "Commit or stash" in site.task("one").reason
        assert (site.task("one").state, site.task("one").attempt) == ("ready", 0)
        assert "was verified, and waits: " in site.told("one")
        git(site.repository, "checkout", "--quiet", "out.txt")
        with closing(site.open_queue()) as queue:
            queue.retry("one")  # need not wait any longer, and keeps what it has
        site.run()
        assert site.story("one").count("claimed") == 2
        assert "its result was verified before" in site.told("one")  # no agent worked on it again
        assert site.merged() == ["one"]
        assert (site.repository / "out.txt").read_text() == "done\n"

    def test_a_task_without_acceptance_command_costs_nothing(self, tmp_path: Path) -> None:
        site = Site(tmp_path, verify={"scan": "off"})
        site.add("one", WRITE)
        site.run()
        assert site.task("one").state == "failed"
        assert "no acceptance command" in site.task("one").reason

    def test_as_a_branch(self, tmp_path: Path) -> None:
        site = Site(tmp_path, merge={"mode": "branch"})
        before = site.head()
        site.add("one", WRITE)
        site.run()
        assert site.task("one").state == "done"
        assert site.head() == before
        (branch,) = git(site.repository, "branch", "--list", "avyay/*", "--format=%(refname:short)").split()
        assert git(site.repository, "show", f"{branch}:out.txt") == "done\n"


class TestRefused:
    def test_a_red_result_is_not_merged_and_its_log_is_the_next_prompt(self, site: Site) -> None:
        before = site.head()
        learn = "echo x >> out.txt; if grep -q 'reason is 4[2]' $AVYAY_PROMPT; then echo ok > good; fi"
        site.add("one", learn, accept="test -f good || { echo the reason is 4$((1+1)); exit 3; }", attempts=3)
        site.run()
        assert site.story("one").count("failed") == 1
        assert site.data("one", "failed")["by"] == "accept"
        assert "the reason is 42" in site.data("one", "failed")["log"]
        assert site.task("one").state == "done"
        assert site.task("one").attempt == 2
        assert git(site.repository, "rev-list", "--count", f"{before}..main").strip() == "1"

    @pytest.mark.parametrize(
        "script", ["rm tests/basic.sh", "echo exit 0 > tests/basic.sh", "echo true > check.sh", "mv tests more"]
    )
    def test_an_agent_that_moves_the_goal(self, site: Site, script: str) -> None:
        site.commit({"tests/basic.sh": "test -f out.txt\n"})
        before = site.head()
        site.add("one", script, attempts=1)
        site.run()
        assert site.head() == before
        assert site.task("one").state == "dead"
        assert site.data("one", "failed")["by"] == "protected"

    def test_unless_the_task_says_so(self, site: Site) -> None:
        site.add("one", "rm tests/basic.sh", "echo true > tests/new.sh", allow=frozenset({"tests"}))
        site.run()
        assert site.merged() == ["one"]

    def test_no_change_is_no_success(self, site: Site) -> None:
        site.add("one", "echo all done", attempts=1)
        site.run()
        assert site.task("one").state == "dead"
        assert "no change" in site.task("one").reason

    def test_two_that_are_green_alone_and_red_together(self, site: Site) -> None:
        site.commit(
            {"tests/sum.sh": "n=$(ls part | wc -l); test $n -le 1 || { echo $n parts; exit 1; }\n", "part/.keep": ""}
        )
        meet = f"touch {site.folder}/$$; while [ $(ls {site.folder} | grep -c '^[0-9]*$') -lt 2 ]; do sleep 0.05; done"
        site.add("left", "mkdir -p part", "echo l > part/left", meet, attempts=1)
        site.add("right", "mkdir -p part", "echo r > part/right", meet, attempts=1)
        site.run()
        states = {name: site.task(name).state for name in ("left", "right")}
        assert sorted(states.values()) == ["dead", "done"]
        (loser,) = [name for name, state in states.items() if state == "dead"]
        assert "2 parts" in site.data(loser, "failed")["log"]
        assert len(site.merged()) == 1

    def test_a_conflict_is_sent_back_with_its_log(self, site: Site) -> None:
        site.commit({"line": "old\n"})
        meet = f"touch {site.folder}/$$; while [ $(ls {site.folder} | grep -c '^[0-9]*$') -lt 2 ]; do sleep 0.05; done"
        site.add("left", "echo left > line", meet, attempts=1)
        site.add("right", "echo right > line", meet, attempts=1)
        site.run()
        assert sorted(site.task(name).state for name in ("left", "right")) == ["dead", "done"]
        assert len(site.merged()) == 1


class TestCaps:
    def test_wall_time(self, site: Site) -> None:
        site.add("one", WRITE, "sleep 600", attempts=1, caps={"wall": 0.5})
        site.run()
        assert site.task("one").reason.startswith("capped")
        assert site.merged() == []

    def test_silence(self, site: Site) -> None:
        site.add("one", "echo hello", "sleep 600", attempts=1, caps={"stall": 0.5})
        site.run()
        assert site.data("one", "failed")["outcome"] == "capped"
        assert "showed nothing" in site.task("one").reason

    def test_cancelled_while_it_runs(self, site: Site) -> None:
        started = site.folder / "started"
        site.add("one", "trap '' TERM", f"touch {started}", "sleep 600")
        dispatcher = site.dispatcher()
        thread = threading.Thread(target=dispatcher.run, kwargs={"once": True})
        thread.start()
        until(started.exists)
        queue = site.open_queue()
        queue.cancel("one", "changed my mind")
        queue.close()
        thread.join(30)
        assert not thread.is_alive()
        assert site.task("one").state == "cancelled"
        assert keeper.marks(dispatcher.folders.prefix) == {}

    def test_ended_in_order_gives_tasks_back(self, site: Site) -> None:
        site.add("one", "sleep 600")
        dispatcher = site.dispatcher()
        thread = threading.Thread(target=dispatcher.run)
        thread.start()
        until(lambda: site.task("one").state == "running")
        dispatcher.stop()
        thread.join(30)
        assert not thread.is_alive()
        assert (site.task("one").state, site.task("one").attempt) == ("ready", 0)


def sleepers(pids: Path) -> tuple[str, str]:
    """Two lines of a script: a child that sleeps, and one in a session of its own; both say who they are."""
    return (f"sleep 600 & echo $! >> {pids}", f"(setsid sh -c 'echo $$ >> {pids}; exec sleep 600' &)")


def alive(pids: Path) -> list[int]:
    """Those who said who they are, and sleep now."""
    found = []
    for word in pids.read_text().split() if pids.exists() else ():
        listed = subprocess.run(["ps", "-o", "stat=,comm=", "-p", word], capture_output=True, text=True).stdout.split()
        if listed and not listed[0].startswith("Z") and listed[1].endswith("sleep"):
            found.append(int(word))
    return found


def history(site: Site, name: str) -> list[Entry]:
    with closing(site.open_queue()) as queue:
        return queue.history(name)


def stop_without_a_lock(process: subprocess.Popen[bytes], site: Site) -> None:
    """Stop it where it holds none that nobody could break: other tests look at those."""
    for _ in range(200):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with closing(open_database(site.paths.component("engine") / "engine.db", busy_timeout=0.0)) as database:
            try:
                with database.transaction():
                    pass
            except UnreachableError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.05)
                continue
        held = [path for path in site.paths.component("engine").rglob("*lock") if path.is_file() and file_locker(path)]
        if not held:
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("it always holds a lock")


class TestDispatchersThatDie:
    def test_kill_nine_leaves_no_process_and_no_lost_task(self, site: Site) -> None:
        pids = site.folder / "pids"
        site.add("one", WRITE, *sleepers(pids), "wait")
        process = start(site)
        try:
            until(lambda: len(alive(pids)) == 2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            prefix = site.dispatcher().folders.prefix
            until(lambda: not keeper.marks(prefix))
            assert alive(pids) == []
        finally:
            process.kill()
            process.wait()
        queue = site.open_queue()
        queue._db.execute("UPDATE tasks SET description = ?", (f"$ {WRITE}",))
        queue.close()
        site.run()
        assert site.merged() == ["one"]
        assert "lease_lost" in site.story("one")

    def test_a_keeper_that_is_killed_is_swept_up_after(self, site: Site) -> None:
        pids = site.folder / "pids"
        site.add("one", *sleepers(pids), "wait", attempts=1)
        dispatcher = site.dispatcher()
        thread = threading.Thread(target=dispatcher.run, kwargs={"once": True})
        thread.start()
        until(lambda: len(alive(pids)) == 2)
        listed = subprocess.run(
            ["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True
        ).stdout
        (keeping,) = [
            int(line.split()[0]) for line in listed.splitlines() if "keeper.py" in line and str(site.folder) in line
        ]
        os.kill(keeping, signal.SIGKILL)
        thread.join(30)
        assert not thread.is_alive()
        assert keeper.marks(dispatcher.folders.prefix) == {}
        assert site.data("one", "failed")["outcome"] == "crashed"

    def test_merged_but_not_written_down(self, site: Site) -> None:
        """The dispatcher died between moving the branch and committing the transaction."""
        site.add("one", WRITE)
        queue = site.open_queue()
        lease = queue.claim("local@" + owner_name("x").partition("@")[2].rpartition(":")[0] + ":0")
        assert lease is not None
        commit = site.commit({"out.txt": "done\n"}, "Task one\n\nAvyay-Task: one\n")
        queue.advance(lease, "running")
        queue.advance(lease, "verifying")
        queue.advance(lease, "merging", commit=commit)
        queue.close()
        site.run()
        assert site.task("one").state == "done"
        assert site.merged() == ["one"]

    def test_merged_by_a_git_that_outlived_its_dispatcher(self, site: Site) -> None:
        """The lease was taken away first, and the branch moved after that."""
        site.add("one", WRITE)
        queue = site.open_queue()
        lease = queue.claim("local@elsewhere:1:1")
        assert lease is not None
        commit = site.commit({"out.txt": "done\n"}, "Task one\n\nAvyay-Task: one\n")
        queue.advance(lease, "running")
        queue.advance(lease, "verifying")
        queue.advance(lease, "merging", commit=commit)
        (breath,) = queue.breaths()
        assert queue.expire(breath) == "ready"
        queue.close()
        site.run()
        assert site.task("one").state == "done"
        assert site.merged() == ["one"]

    def test_died_before_the_branch_moved(self, site: Site) -> None:
        site.add("one", WRITE)
        queue = site.open_queue()
        lease = queue.claim("local@" + owner_name("x").partition("@")[2].rpartition(":")[0] + ":0")
        assert lease is not None
        queue.advance(lease, "running")
        queue.advance(lease, "verifying")
        queue.advance(lease, "merging", commit="0" * 40)
        queue.close()
        site.run()
        assert site.task("one").state == "done"
        assert site.merged() == ["one"]

    def test_a_stopped_dispatcher_loses_its_lease_and_merges_nothing(self, tmp_path: Path) -> None:
        """The lid is closed over one dispatcher; another takes over; the first wakes and must not merge as well."""
        site = Site(tmp_path)
        site.add("one", WRITE, f"until test -e {tmp_path}/go; do sleep 0.05; echo waiting; done")
        first = start(site)
        second = None
        try:
            second = site.dispatcher()
            prefix = second.folders.prefix
            until(lambda: bool(keeper.marks(prefix)))
            stop_without_a_lock(first, site)
            thread = threading.Thread(target=second.run)
            thread.start()
            until(lambda: site.story("one").count("claimed") == 2)
            (tmp_path / "go").touch()
            first.send_signal(signal.SIGCONT)
            until(lambda: site.task("one").state == "done")
            fence = min(entry.fence for entry in history(site, "one") if entry.kind == "claimed")
            until(lambda: not (second.folders.folder("one", fence) / "owner.json").exists())  # the first gave up
        finally:
            first.kill()
            first.wait()
            if second is not None:
                second.stop()
                thread.join(30)
        assert site.merged() == ["one"]
        assert site.task("one").attempt == 2

    def test_the_doctor_sees_and_mends(self, site: Site) -> None:
        site.add("one", "sleep 600")
        queue = site.open_queue()
        lease = queue.claim("local@" + owner_name("x").partition("@")[2].rpartition(":")[0] + ":0")
        assert isinstance(lease, Lease)
        dispatcher = site.dispatcher()
        folder = dispatcher.folders.open("one", lease.fence)
        (folder / "owner.json").write_text('{"pid": 0, "birth": "x"}')
        environment = {**os.environ, keeper.MARK: dispatcher.folders.mark("one", lease.fence)}
        orphan = subprocess.Popen(["sleep", "600"], env=environment)
        wrong = {check.what for check in inspect(dispatcher, queue) if not check.ok}
        assert wrong == {"leases", "worktrees", "processes"}
        assert dispatcher.recover()
        assert orphan.wait(60) == -signal.SIGKILL
        assert all(check.ok for check in inspect(dispatcher, queue))
        queue.close()
        dispatcher.close()


class TestWhatIsTold:
    def test_everything_that_happens_is_an_event_once(self, site: Site) -> None:
        site.add("early", WRITE)
        site.add("wants", WRITE, approval=True, needs=("early",))
        first, second = site.dispatcher(), site.dispatcher()
        second.run(once=True)
        first.close()
        events_file = site.paths.data / "engine" / "events.db"
        forward_history(site.open_queue, events_file)
        events = told(events_file)
        assert [name.removeprefix("engine.") for name, data in events if data["task"] == "early"] == [
            *("task.added", "task.claimed", "task.started", "task.verifying", "task.merging", "task.merged")
        ]
        assert [name.removeprefix("engine.") for name, data in events if data["task"] == "wants"] == [
            *("task.added", "task.freed", "approval.requested")
        ]
        (merged,) = (data for name, data in events if name == "engine.task.merged")
        assert merged["commit"]

    def test_the_story_says_what_it_took(self, site: Site) -> None:
        site.add("one", WRITE, "sleep 600 &")
        site.run()
        queue = site.open_queue()
        story = "\n".join(narrate(queue.get("one"), queue.history("one")))
        queue.close()
        for wanted in ("began to run (script on local)", "1 process it left was ended", "output.log", "merged as"):
            assert wanted in story, story
