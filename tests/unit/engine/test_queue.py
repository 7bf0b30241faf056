"""The queue against a model, against kill -9, against two dispatchers, against lying clocks."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from avyay.clock import FakeClock
from avyay.db import Schema, open_database
from avyay.engine.lease import HEARTBEAT, TIMEOUT, Breath, LeaseWatch
from avyay.engine.queue import LostLeaseError, Queue
from avyay.engine.schema import SCHEMA
from avyay.engine.types import ACTIVE, FINAL, STATES, TRANSITIONS, Lease, NewTask, allowed
from avyay.errors import UsageError


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(place: Path | str, clock: FakeClock) -> Iterator[Queue]:
    made = Queue(place, clock=clock, random=lambda: 0.5)
    yield made
    made.close()


def claim(queue: Queue, owner: str = "node") -> Lease:
    lease = queue.claim(owner)
    assert lease is not None
    return lease


def finish(queue: Queue, lease: Lease) -> None:
    for state in ("running", "verifying", "merging"):
        queue.advance(lease, state)  # type: ignore[arg-type]
    queue.finish(lease)


class TestStates:
    def test_every_transition_is_named_or_refused(self) -> None:
        assert set(TRANSITIONS) == set(STATES)
        assert all(after in STATES for follow in TRANSITIONS.values() for after in follow)
        assert TRANSITIONS["done"] == frozenset()
        for state in ACTIVE:
            assert allowed(state, "ready"), "a lost lease must lead back"
            assert allowed(state, "dead")
        for state in FINAL - {"done"}:
            assert allowed(state, "ready"), "a retry must be possible"

    def test_a_whole_life(self, queue: Queue) -> None:
        (name,) = queue.add([NewTask("Fix the parser", evidence=("parser.py:7",))])
        lease = claim(queue)
        assert (lease.task.id, lease.attempt) == (name, 1)
        finish(queue, lease)
        assert queue.get(name).state == "done"
        kinds = [entry.kind for entry in queue.history(name)]
        assert kinds == ["added", "claimed", "running", "verifying", "merging", "done"]

    def test_steps_cannot_be_skipped(self, queue: Queue) -> None:
        queue.add([NewTask("x")])
        lease = claim(queue)
        with pytest.raises(LostLeaseError):
            queue.advance(lease, "merging")
        with pytest.raises(ValueError, match="active"):
            queue.advance(lease, "done")


class TestFences:
    def test_an_owner_that_lost_its_lease_changes_nothing(self, queue: Queue, clock: FakeClock) -> None:
        queue.add([NewTask("x", attempts=5)])
        old = claim(queue, "lid-closed")
        queue.expire(Breath(old.task.id, old.fence, 0))
        clock.advance(3600)
        new = claim(queue, "other")
        assert new.fence > old.fence
        for write in (
            lambda: queue.beat(old),
            lambda: queue.advance(old, "running"),
            lambda: queue.finish(old),
            lambda: queue.fail(old, "too late"),
            lambda: queue.park(old, 1, "too late"),
        ):
            with pytest.raises(LostLeaseError, match="no longer holds"):
                write()
        finish(queue, new)
        assert queue.get(new.task.id).owner is None

    def test_the_same_owner_with_an_older_fence_is_refused_too(self, queue: Queue, clock: FakeClock) -> None:
        queue.add([NewTask("x")])
        old = claim(queue, "node")
        queue.fail(old, "crashed")
        clock.advance(3600)
        claim(queue, "node")
        with pytest.raises(LostLeaseError):
            queue.beat(old)

    def test_a_heartbeat_saves_from_expiry(self, queue: Queue) -> None:
        queue.add([NewTask("x")])
        lease = claim(queue)
        seen = queue.breaths()[0]
        queue.beat(lease)
        assert queue.expire(seen) is None
        assert queue.get(lease.task.id).state == "leased"


class TestAttempts:
    def test_three_attempts_then_the_dead_letters(self, queue: Queue, clock: FakeClock) -> None:
        (name,) = queue.add([NewTask("x")])
        for expected in ("ready", "ready", "dead"):
            assert queue.fail(claim(queue), "agent crashed") == expected
            clock.advance(10_000)
        assert queue.claim("node") is None
        assert queue.get(name).reason == "agent crashed"
        queue.retry(name)
        assert claim(queue).attempt == 1

    def test_backoff_holds_a_task_back(self, queue: Queue, clock: FakeClock) -> None:
        queue.add([NewTask("x")])
        queue.fail(claim(queue), "crashed")
        assert queue.claim("node") is None  # 0.5 x 30 s
        clock.advance(15.1)
        assert queue.claim("node") is not None

    def test_a_rate_limit_is_no_attempt(self, queue: Queue, clock: FakeClock) -> None:
        (name,) = queue.add([NewTask("x", attempts=1)])
        for _ in range(5):
            queue.park(claim(queue), 60, "rate limit")
            assert queue.claim("node") is None
            clock.advance(61)
        assert queue.get(name).attempt == 0

    def test_a_final_failure_is_not_tried_again(self, queue: Queue) -> None:
        (name,) = queue.add([NewTask("x")])
        assert queue.fail(claim(queue), "model unknown", final=True) == "failed"
        assert queue.get(name).state == "failed"


class TestDependencies:
    def test_order_and_wake(self, queue: Queue) -> None:
        queue.add([NewTask("b", id="b", needs=("a",)), NewTask("a", id="a"), NewTask("c", id="c", needs=("a", "b"))])
        assert queue.get("c").reason == "waits for a, b"
        for name in ("a", "b", "c"):
            lease = claim(queue)
            assert lease.task.id == name
            assert queue.claim("other") is None
            finish(queue, lease)

    def test_what_failed_upstream_is_named_downstream(self, queue: Queue) -> None:
        queue.add([NewTask("a", id="a"), NewTask("b", id="b", needs=("a",)), NewTask("c", id="c", needs=("b",))])
        queue.fail(claim(queue), "refused", final=True)
        assert queue.get("c").reason == "needs a, which is failed"
        queue.retry("a")
        assert queue.get("c").reason == "waits for a"
        finish(queue, claim(queue))
        assert queue.get("b").state == "ready"

    @pytest.mark.parametrize(
        "tasks, words",
        [
            (
                [NewTask("a", id="a", needs=("b",)), NewTask("b", id="b", needs=("a",))],
                "other: a -> b -> a",
            ),
            ([NewTask("a", id="a", needs=("a",))], "wait for each other: a -> a"),
            ([NewTask("a", id="a", needs=("zzz",))], "needs 'zzz', which does not exist"),
            ([NewTask("a", id="a"), NewTask("b", id="a")], "already"),
            ([NewTask("  ")], "no title"),
            ([NewTask("a", attempts=0)], "attempts"),
        ],
    )
    def test_bad_tasks_are_refused_whole(self, queue: Queue, tasks: list[NewTask], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            queue.add([NewTask("good"), *tasks])
        assert queue.counts() == {}

    def test_approval(self, queue: Queue) -> None:
        (name,) = queue.add([NewTask("drop the table", approval=True)])
        assert queue.claim("node") is None
        assert queue.get(name).reason == "waits for approval"
        queue.approve(name, by="ada")
        assert claim(queue).task.id == name
        with pytest.raises(UsageError, match="no approval"):
            queue.approve(name, by="ada")


class TestChoice:
    def test_priority_then_age(self, queue: Queue) -> None:
        queue.add([NewTask("old", id="old"), NewTask("urgent", id="urgent", priority=9), NewTask("new", id="new")])
        assert [claim(queue).task.id for _ in range(3)] == ["urgent", "old", "new"]

    def test_capabilities(self, queue: Queue) -> None:
        queue.add([NewTask("x", requires=frozenset({"os:linux", "agent:codex"}))])
        assert queue.claim("mac", frozenset({"os:macos", "agent:codex"})) is None
        assert queue.claim("box", frozenset({"os:linux", "agent:codex", "gpu"})) is not None

    def test_tasks_on_the_same_files_do_not_run_side_by_side(self, queue: Queue) -> None:
        queue.add(
            [NewTask("a", files=("src/**/*.py",)), NewTask("b", files=("src/app.py",)), NewTask("c", files=("docs/",))]
        )
        first, second = claim(queue), claim(queue)
        assert [first.task.title, second.task.title] == ["a", "c"]
        assert queue.claim("node") is None
        finish(queue, first)
        assert claim(queue).task.title == "b"

    def test_the_same_need_is_added_once(self, queue: Queue) -> None:
        one = queue.add([NewTask("x", fingerprint="todo:app.py:7")])
        assert queue.add([NewTask("x again", fingerprint="todo:app.py:7")]) == one
        assert queue.counts() == {"ready": 1}

    def test_however_many_it_cannot_do_stand_before_the_one_it_can(self, queue: Queue) -> None:
        others = [NewTask(f"m{i}", requires=frozenset({"os:macos"}), priority=i % 3) for i in range(150)]
        mine = [NewTask("low", id="low", priority=-1), NewTask("mid", id="mid", priority=1)]
        queue.add([*others, *mine])
        claimed = [queue.claim("w", frozenset({"os:linux"})) for _ in range(3)]
        assert [lease and lease.task.id for lease in claimed] == ["mid", "low", None]


class TestLeaseWatch:
    def test_three_missed_heartbeats(self) -> None:
        watch = LeaseWatch()
        breath = Breath("t", 1, 0)
        assert watch.look([breath], 0) == []
        assert watch.look([breath], TIMEOUT - 1) == []
        assert watch.look([breath], TIMEOUT) == [breath]

    def test_breathing_owners_are_never_lost(self) -> None:
        watch = LeaseWatch()
        assert not any(watch.look([Breath("t", 1, beat)], beat * HEARTBEAT) for beat in range(1000))

    def test_a_new_dispatcher_judges_only_after_a_timeout_of_its_own(self) -> None:
        assert LeaseWatch().look([Breath("t", 1, 5)], 1e9) == []

    def test_a_machine_that_slept_gives_everybody_a_fresh_timeout(self) -> None:
        watch = LeaseWatch()
        breath = Breath("t", 1, 3)
        watch.look([breath], 0)
        assert watch.look([breath], 3600) == []
        assert watch.look([breath], 3600 + TIMEOUT) == [breath]

    def test_the_wall_clock_plays_no_part(self, queue: Queue, clock: FakeClock) -> None:
        queue.add([NewTask("x")])
        lease = claim(queue)
        watch = LeaseWatch()
        for hour in (3600, -7200, 3600):
            clock.jump(hour)
            assert watch.look(queue.breaths(), clock.monotonic()) == []
            queue.beat(lease)
            clock.advance(HEARTBEAT)


class QueueModel(RuleBasedStateMachine):
    """Random claims, failures, expiries and cancellations; the queue never says two contradictory things."""

    new_place: Callable[[], Path | str]

    @initialize(tasks=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=8))
    def begin(self, tasks: list[list[int]]) -> None:
        self.clock = FakeClock()
        self.queue = Queue(self.new_place(), clock=self.clock, random=lambda: 0.0)
        new = [
            NewTask(f"task {i}", id=f"t{i}", needs=tuple({f"t{n}" for n in needs if n < i}), files=(f"f{i % 3}",))
            for i, needs in enumerate(tasks)
        ]
        self.queue.add(new)
        self.held: dict[str, Lease] = {}
        self.stale: list[Lease] = []
        self.finished: set[str] = set()

    @rule()
    def claim_one(self) -> None:
        lease = self.queue.claim(f"owner{self.clock.monotonic()}")
        self.clock.advance(1)
        if lease is not None:
            assert lease.task.id not in self.held
            assert all(need in self.finished for need in lease.task.needs)
            assert not any(set(lease.task.files) & set(other.task.files) for other in self.held.values())
            self.held[lease.task.id] = lease

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["finish", "fail", "final", "park", "expire", "cancel"]))
    def end_one(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        lease = self.held.pop(name)
        if how == "finish":
            finish(self.queue, lease)
            self.finished.add(name)
        elif how in ("fail", "final"):
            self.queue.fail(lease, "broken", final=how == "final")
        elif how == "park":
            self.queue.park(lease, 0, "limit")
        elif how == "cancel":
            self.queue.cancel(name)
        else:
            (breath,) = [b for b in self.queue.breaths() if b.task == name]
            self.queue.expire(breath)
        self.stale.append(lease)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def stale_owners_are_refused(self, data: st.DataObject) -> None:
        with pytest.raises(LostLeaseError):
            self.queue.beat(data.draw(st.sampled_from(self.stale)))

    @rule(data=st.data())
    def retry_one(self, data: st.DataObject) -> None:
        ended = [task.id for task in self.queue.tasks("failed", "dead", "cancelled")]
        if ended:
            self.queue.retry(data.draw(st.sampled_from(ended)))

    @invariant()
    def states_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        for task in self.queue.tasks():
            assert (task.state in ACTIVE) == (task.id in self.held)
            assert (task.state == "done") == (task.id in self.finished)
            open_needs = [need for need in task.needs if need not in self.finished]
            if task.state == "blocked":
                assert open_needs, task
                assert task.reason
            if task.state == "ready":
                assert not open_needs, task
            assert self.queue.history(task.id) == [entry for entry in self.queue.history() if entry.task == task.id]
        assert self.queue._db.problems() == []

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgres", marks=pytest.mark.needs("postgres", "initdb"))])
def test_the_model_of_the_queue(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    numbers = itertools.count()
    server = request.getfixturevalue("postgres") if backend == "postgres" else None

    class Machine(QueueModel):
        @staticmethod
        def new_place() -> Path | str:
            return server.new_url() if server else tmp_path / f"engine{next(numbers)}.db"

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=25 if server is None else 8, stateful_step_count=30, deadline=None)
    )


WORKER = """
import random, sys
from pathlib import Path
from avyay.engine.queue import LostLeaseError, Queue
queue = Queue(sys.argv[1], random=lambda: 0.0)
log = open(sys.argv[2], "a", buffering=1)
while True:
    lease = queue.claim(sys.argv[3])
    if lease is None:
        for breath in queue.breaths():
            if random.random() < 0.02: queue.expire(breath, "the test says so")
        counts = queue.counts()
        if set(counts) <= {"done", "dead"}: break
        continue
    try:
        for state in ("running", "verifying", "merging"): queue.advance(lease, state)
        queue.finish(lease)
        log.write(lease.task.id + "\\n")
    except LostLeaseError:
        pass
"""


def crash_test(place: Path | str, tmp_path: Path, *, processes: int, tasks: int, kills: int, pause: float) -> None:
    """Workers that are killed at random lose nothing and finish nothing twice."""
    queue = Queue(place)
    queue.add([NewTask(f"task {i}", id=f"t{i}", attempts=10_000) for i in range(tasks)])
    generator = random.Random(11)

    def start(number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORKER, str(place), str(tmp_path / f"log{number}"), f"worker{number}"]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})

    running = {number: start(number) for number in range(processes)}
    killed = 0
    for number in range(processes, processes + kills):
        time.sleep(pause)
        victim = generator.choice(sorted(running))
        killed += running[victim].poll() is None  # it ends by itself when everything is done
        running[victim].send_signal(signal.SIGKILL)
        running.pop(victim).wait()
        if queue.counts() == {"done": tasks}:
            break
        running[number] = start(number)
    sys.stdout.write(f"killed {killed}\n")
    for process in running.values():
        assert process.wait(timeout=600) == 0
    done = [line for log in tmp_path.glob("log*") for line in log.read_text().split()]
    assert len(done) == len(set(done)), "a task was finished twice"
    assert queue.counts() == {"done": tasks}
    finished = [entry for entry in queue.history(limit=10**9) if entry.kind == "done"]
    assert len(finished) == tasks
    assert queue._db.problems() == []
    queue.close()


def test_kill_9_loses_nothing(place: Path | str, tmp_path: Path) -> None:
    crash_test(place, tmp_path, processes=3, tasks=60, kills=4, pause=0.6)


@pytest.mark.soak
def test_kill_9_soak(place: Path | str, tmp_path: Path) -> None:
    crash_test(place, tmp_path, processes=8, tasks=5000, kills=400, pause=0.3)


def test_a_queue_of_an_older_release_keeps_its_stories(tmp_path: Path) -> None:
    old = Schema(SCHEMA.name, SCHEMA.migrations[:3])
    database = open_database(tmp_path / "engine.db", old)
    with database.transaction():
        for name in ("a", "b"):
            database.execute(
                "INSERT INTO tasks (id, title, description, accept, files, requires, evidence, priority, state,"
                " attempts, fence, created, updated) VALUES (?, 'x', '', '', '[]', '[]', '[]', 0, 'ready', 3, 7, 0, 0)",
                (name,),
            )
        for task, kind, fence in (("a", "added", None), ("b", "added", None), ("a", "claimed", 7), ("a", "parked", 7)):
            database.execute("INSERT INTO history (task, at, kind, fence) VALUES (?, 0, ?, ?)", (task, kind, fence))
        database.execute("UPDATE fences SET last = 2")
    database.close()
    queue = Queue(tmp_path / "engine.db")
    assert [(entry.kind, entry.fence) for entry in queue.history("a")] == [
        ("added", None), ("claimed", 7), ("parked", 7),
    ]  # fmt: skip
    lease = queue.claim("w")
    assert lease is not None
    assert lease.fence > 4
    assert [entry.kind for entry in queue.history("a", after=1)] == ["claimed", "parked", "claimed"]
    assert queue.history("a")[-1].fence == lease.fence
    assert [entry.kind for entry in queue.history("b")] == ["added"]
    queue.close()


def test_a_change_writes_few_small_pages(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "engine.db")
    queue.add([NewTask(f"task {number}") for number in range(600)])
    database, frame = queue._db._db, 2048 + 24  # type: ignore[attr-defined]
    assert database.execute("PRAGMA page_size").fetchone() == (2048,)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    database.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
    for _ in range(300):
        queue.fail(claim(queue), "acknowledged", final=True)
    written = (tmp_path / "engine.db-wal").stat().st_size / frame / 300
    assert written < 6.6, "each a row, its line of history, and one leaf of the index; now and then a new page"
    queue.close()


def test_a_file_of_an_older_release_keeps_its_page_size(tmp_path: Path) -> None:
    open_database(tmp_path / "engine.db", Schema(SCHEMA.name, SCHEMA.migrations[:5])).close()
    queue = Queue(tmp_path / "engine.db")
    database = queue._db._db  # type: ignore[attr-defined]
    assert database.execute("PRAGMA page_size").fetchone() == (4096,)
    (index,) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'open_tasks'").fetchone()
    assert "owner DESC" in index
    queue.add([NewTask("x")])
    claim(queue)
    queue.close()
