"""What others learn of the queue: of every kind of line, of a history that several homes share, of nodes that go."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from outbox import told

from avyay.clock import FakeClock
from avyay.engine.announce import events_of
from avyay.engine.forward import forward_history, queues_told
from avyay.engine.nodes.base import Control, Node, Order, Report
from avyay.engine.presence import Presence
from avyay.engine.queue import Queue
from avyay.engine.types import Entry, NewTask, State
from avyay.events.outbox import Outboxes
from avyay.events.reader import Cursor, EventReader


@pytest.mark.parametrize(
    "kind, before, after, detail, names",
    [
        ("added", None, "ready", "", ["task.added"]),
        ("added", None, "blocked", "waits for approval", ["task.added", "approval.requested"]),
        ("claimed", "ready", "leased", "attempt 1 of 3", ["task.claimed"]),
        ("running", "leased", "running", "", ["task.started"]),
        ("failed", "running", "ready", "crashed; again in 3 s", ["attempt.failed"]),
        ("failed", "running", "failed", "refused", ["task.failed"]),
        ("failed", "running", "dead", "crashed", ["task.dead"]),
        ("lease_lost", "running", "ready", "no heartbeat", ["task.lost"]),
        ("lease_lost", "running", "dead", "no heartbeat", ["task.lost", "task.dead"]),
        ("waiting", "verifying", "blocked", "waits for approval", ["task.waiting", "approval.requested"]),
        ("held", "blocked", "blocked", "needs a, which is dead", ["task.held"]),
        ("done", "merging", "done", "left as branch x", ["task.done"]),
        ("cancelled", "ready", "cancelled", "by hand", ["task.cancelled"]),
    ],
)
def test_every_line_is_told_by_its_name(
    kind: str, before: State | None, after: State, detail: str, names: list[str]
) -> None:
    entry = Entry(7, "t-1", 1.0, kind, before, after, None, None, detail, {"log": "x" * 9_000, "turns": 3})
    events = list(events_of(entry, "A title", ["a.py:1"], "q"))
    assert [event.name for event in events] == [f"engine.{name}" for name in names]
    assert all(event.data["title"] == "A title" and event.data["turns"] == 3 for event in events)
    assert not any("log" in event.data for event in events)
    assert {event.once for event in events} == {"history-7"}


def test_merged_is_what_reached_the_branch(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "engine.db")
    for merged in ({"merged": True}, {}):
        queue.add([NewTask("one")])
        lease = queue.claim("me")
        assert lease is not None
        for state in ("running", "verifying", "merging"):
            queue.advance(lease, state)  # type: ignore[arg-type]
        queue.finish(lease, "merged as abc", commit="abc", **merged)
    queue.close()
    forward_history(lambda: Queue(tmp_path / "engine.db"), tmp_path / "events.db")
    names = [name for name, _ in told(tmp_path / "events.db")]
    assert [name for name in names if name in ("engine.task.merged", "engine.task.done")] == [
        *("engine.task.merged", "engine.task.done")
    ]


class TestASharedHistory:
    def test_every_home_tells_all_of_it_with_the_same_ids(self, place: Path | str, tmp_path: Path) -> None:
        url = place
        queue = Queue(url)
        queue.add([NewTask("early")])
        homes = [tmp_path / "a" / "engine" / "events.db", tmp_path / "b" / "engine" / "events.db"]
        assert forward_history(lambda: Queue(url), homes[0]) == 1
        assert forward_history(lambda: Queue(url), homes[0]) == 0
        names = queue.add([NewTask(f"task {n}") for n in range(1_100)])
        assert forward_history(lambda: Queue(url), homes[0]) == 1_100
        queue.cancel(names[0])
        for home in homes:
            forward_history(lambda: Queue(url), home)
        queue.close()
        readers = [EventReader(home.parent.parent) for home in homes]
        first, second = ([event.id for event in reader.read(Cursor(), 5_000).events] for reader in readers)
        for reader in readers:
            reader.close()
        assert first == second
        assert len(set(first)) == 1_102
        name, data = told(homes[0])[-1]
        assert (name, data["queue"] in queues_told(homes[0])) == ("engine.task.cancelled", True)
        assert queues_told(tmp_path / "nothing.db") == frozenset()

    def test_what_was_told_before_a_crash_is_not_told_again(self, place: Path | str, tmp_path: Path) -> None:
        """The place reached is kept in the transaction of the events; without it the ids would still be the same."""
        url, home = place, tmp_path / "engine" / "events.db"
        queue = Queue(url)
        queue.add([NewTask("one"), NewTask("two")])
        forward_history(lambda: Queue(url), home)
        import sqlite3

        with sqlite3.connect(home) as database:
            database.execute("DELETE FROM forwarded")
        database.close()
        forward_history(lambda: Queue(url), home)
        queue.close()
        assert len(told(home)) == 2


FORWARD = """
import sys
from pathlib import Path
from avyay.engine import forward
from avyay.engine.queue import Queue
forward._BATCH = 7
print("ready", flush=True)
while True:
    forward.forward_history(lambda: Queue(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("rounds", [2, pytest.param(25, marks=pytest.mark.soak)])
def test_killed_while_it_forwards(rounds: int, place: Path | str, tmp_path: Path) -> None:
    """Whenever it is killed, the next goes on: every line of history is told once and in order."""
    url, home = str(place), tmp_path / "engine" / "events.db"
    queue, ending = Queue(url), threading.Event()

    def work() -> None:
        own = Queue(url)
        while not ending.is_set():
            own.add([NewTask("a task")])
        own.close()

    worker = threading.Thread(target=work)
    worker.start()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for number in range(rounds):
        process = subprocess.Popen(
            [sys.executable, "-c", FORWARD, url, str(home)], stdout=subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.01 * (number % 9))
        process.kill()
        process.wait(30)
        process.stdout.close()
    ending.set()
    worker.join()
    forward_history(lambda: Queue(url), home)
    happened = [entry.task for entry in _all(queue)]
    queue.close()
    assert [data["task"] for _, data in told(home)] == happened[-len(told(home)) :]
    assert len(happened) == len(told(home))


def _all(queue: Queue) -> list[Entry]:
    found: list[Entry] = []
    while batch := queue.history(after=found[-1].number if found else 0):
        found += batch
    return found


class Machine(Node):
    """A node that answers or does not."""

    def __init__(self, name: str) -> None:
        self.name, self.slots = name, 1

    def capabilities(self) -> frozenset[str]:
        return frozenset()

    def agents(self) -> tuple[str, ...]:
        return ()

    def run(self, order: Order, control: Control) -> Report:
        raise NotImplementedError


def test_a_node_that_goes_and_returns_is_told_once_each(tmp_path: Path) -> None:
    clock, nodes = FakeClock(), [Machine("laptop"), Machine("desk")]
    outboxes = Outboxes(tmp_path, clock=clock)

    def look() -> list[tuple[str, str]]:
        presence = Presence(tmp_path / "engine" / "away", outboxes, clock)  # as after a restart
        presence.look(nodes)
        presence.look(nodes)
        found = told(tmp_path / "engine" / "events.db")
        return [(name.removeprefix("engine.node."), data["node"]) for name, data in found]

    assert look() == []
    nodes[0].away = "laptop went away"
    assert look() == [("lost", "laptop")]
    clock.advance(90)
    nodes[0].away = ""
    nodes[1].away = "no route"
    assert look() == [("lost", "laptop"), ("back", "laptop"), ("lost", "desk")]
    nodes[0].away = "again"
    assert look()[3:] == [("lost", "laptop")]
    seconds = [data["seconds"] for name, data in told(tmp_path / "engine" / "events.db") if name.endswith("back")]
    assert seconds == [90.0]
    outboxes.close()


def test_a_crash_between_telling_and_remembering_tells_the_same(tmp_path: Path) -> None:
    clock, node = FakeClock(), Machine("laptop")
    outboxes = Outboxes(tmp_path, clock=clock)
    presence = Presence(tmp_path / "engine" / "away", outboxes, clock)
    node.away = "gone"
    presence.look([node])
    note = tmp_path / "engine" / "away" / "laptop"
    note.write_text(note.read_text().removesuffix(" told"))
    clock.advance(5)
    presence.look([node])
    assert len(told(tmp_path / "engine" / "events.db")) == 1
    outboxes.close()
