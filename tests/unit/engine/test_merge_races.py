"""Dispatchers that merge into one branch and are killed at any moment: nothing is merged twice, nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from engine_site import Site, git, until

from avyay.db import integrity_problems, open_database
from avyay.engine.schema import SCHEMA
from avyay.engine.types import NewTask

# Dispatchers without agents: each claims, makes a commit for the task, and merges it as the loop does. They are forked
# from a process that has loaded everything, which kills one at random every now and then and starts another.
RACE = """
import json, os, random, signal, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])
from engine_site import Site
import avyay.engine.nodes.local
from avyay.engine.loop import owner_name
from avyay.engine.merge import Result, _MovedError, merged_before
from avyay.engine.queue import LostLeaseError

folder, processes, kills, pause = Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])

def work():
    site = Site(folder, **json.loads(sys.argv[6]))
    dispatcher, queue, owner = site.dispatcher(), site.open_queue(), owner_name("worker")
    (place,) = dispatcher.places.values()
    workshop = place.workshop
    files = workshop.checked_out() is not None

    def commit(head, task):
        tree = workshop.copy.output("rev-parse", head + "^{tree}").strip()
        if files:  # one of its own, which the work tree has to follow
            blob = workshop.copy.git("hash-object", "-w", "--stdin", stdin=task.id.encode()).text.strip()
            listed = workshop.copy.output("ls-tree", tree) + f"100644 blob {blob}\\t{task.id}.txt\\n"
            tree = workshop.copy.git("mktree", stdin=listed.encode()).text.strip()
        message = task.title + "\\n\\nAvyay-Task: " + task.id + "\\n"
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        return workshop.copy.output(*identity, "commit-tree", tree, "-p", head, "-m", message).strip()

    def merge(lease):
        queue.advance(lease, "running")
        queue.advance(lease, "verifying")
        while True:
            with place.merging._turn() as turn:
                if earlier := merged_before(queue, workshop, lease.task.id):
                    queue.advance(lease, "merging", commit=earlier)
                    queue.finish(lease)
                    return
                head = workshop.fetch()
                made = commit(head, lease.task)
                workshop.deliver(made)
                queue.advance(lease, "merging", commit=made)

                try:
                    place.merging._step(queue, lease, Result("", head, made, ""), turn)
                    return
                except _MovedError:
                    queue.advance(lease, "verifying")

    rounds = 0
    while True:
        rounds += 1
        if rounds % 20 == 0:
            dispatcher.reconcile()
        lease = queue.claim(owner)
        if lease is None:
            dispatcher.reconcile()
            if set(queue.counts()) == {"done"}:
                return
            continue
        try:
            merge(lease)
        except LostLeaseError:
            pass

def start():
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

generator = random.Random(7)
running, killed = {start() for _ in range(processes)}, 0
struck = time.monotonic()
while running:
    pid, status = os.waitpid(-1, os.WNOHANG)
    if pid:
        running.discard(pid)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            kills = 0
        else:
            running.add(start())
    elif kills and time.monotonic() - struck > pause:
        struck = time.monotonic()
        os.kill(generator.choice(sorted(running)), signal.SIGKILL)
        kills, killed = kills - 1, killed + 1
    else:
        time.sleep(0.005)
print("killed", killed)
"""


def race(
    place: Path | str, tmp_path: Path, *, processes: int, tasks: int, kills: int, pause: float, files: bool = False
) -> None:
    """Args: files: main is checked out, and its work tree has to follow."""
    shared = {"queue_url": place} if isinstance(place, str) else {}
    site = Site(tmp_path, **shared)
    if not files:
        git(site.repository, "checkout", "--quiet", "--detach")
    queue = site.open_queue()
    queue.add([NewTask(f"task {i}", id=f"t{i}", attempts=10_000, accept="true") for i in range(tasks)])
    support = str(Path(__file__).parents[2] / "support")
    numbers = (processes, kills, pause)
    command = [sys.executable, "-c", RACE, str(tmp_path), support, *map(str, numbers), json.dumps(shared)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    sys.stdout.write(done.stdout)
    assert queue.counts() == {"done": tasks}
    queue.close()
    times = Counter(site.merged())
    assert [name for name, number in times.items() if number > 1] == [], "merged twice"
    assert len(times) == tasks, "lost"
    if files:
        dispatcher = site.dispatcher()
        (merging,) = [place.merging for place in dispatcher.places.values()]
        until(lambda: (dispatcher.reconcile(), merging._follower.pending() is None)[1])
        assert git(site.repository, "status", "--porcelain") == ""
        assert len(list(site.repository.glob("t*.txt"))) == tasks
        assert not (site.repository / ".git/index.lock").exists()
    if not shared:
        with closing(open_database(tmp_path / "avyay/data/engine/engine.db", SCHEMA)) as database:
            assert integrity_problems(database) == []


def test_dispatchers_that_are_killed_merge_everything_once(place: Path | str, tmp_path: Path) -> None:
    race(place, tmp_path, processes=3, tasks=20, kills=4, pause=0.7)


def test_the_work_tree_follows_dispatchers_that_are_killed(tmp_path: Path) -> None:
    race(tmp_path, tmp_path, processes=3, tasks=20, kills=5, pause=0.5, files=True)


@pytest.mark.soak
def test_the_work_tree_follows_for_long(tmp_path: Path) -> None:
    race(tmp_path, tmp_path, processes=6, tasks=500, kills=10**9, pause=0.3, files=True)


@pytest.mark.soak
def test_eight_processes_five_thousand_tasks(place: Path | str, tmp_path: Path) -> None:
    race(place, tmp_path, processes=8, tasks=5000, kills=10**9, pause=0.3)


@pytest.mark.soak
def test_two_dispatchers_two_thousand_tasks(place: Path | str, tmp_path: Path) -> None:
    race(place, tmp_path, processes=2, tasks=2000, kills=0, pause=0.1)


# A dispatcher whose wall clock is set back and forward by an hour, again and again.
JUMPING = """
import json, random, signal, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])
from engine_site import Site
from avyay.clock import SystemClock

class Jumping(SystemClock):
    def now(self):
        return super().now() + random.Random(int(time.monotonic() * 4)).choice((-3600.0, 0.0, 3600.0))

dispatcher = Site(Path(sys.argv[1]), **json.loads(sys.argv[3])).dispatcher(clock=Jumping())
signal.signal(signal.SIGTERM, lambda *_: dispatcher.stop())
dispatcher.run()
"""


@pytest.mark.soak
def test_clocks_that_jump_by_an_hour_expire_nothing(place: Path | str, tmp_path: Path) -> None:
    shared = {"queue_url": place} if isinstance(place, str) else {}
    sites = [Site(tmp_path, **shared, nodes=[{"name": f"node{number}", "slots": 3}]) for number in range(2)]
    for number in range(60):
        sites[0].add(f"t{number}", "sleep 3", f"echo x > t{number}.txt")
    support = str(Path(__file__).parents[2] / "support")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JUMPING, str(tmp_path), support, json.dumps(site.given)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for site in sites
    ]  # fmt: skip
    with closing(sites[0].open_queue()) as queue:
        try:
            until(lambda: queue.counts().get("done", 0) == 60, 300)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(60)
        kinds = Counter(entry.kind for entry in queue.history(limit=10**6))
        assert kinds["claimed"] == kinds["done"] == 60
        assert kinds["lease_lost"] == 0
    assert sorted(sites[0].merged()) == sorted(f"t{number}" for number in range(60))
