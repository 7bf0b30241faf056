"""A process is killed the moment it has acknowledged: what it acknowledged is published, once and in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from avyay.db import open_database
from avyay.engine.forward import forward_history
from avyay.engine.queue import Queue
from avyay.events.reader import Cursor, EventReader, Recorded

# Each works until it is killed, and prints what others must come to know, when it is done.
ENGINE = """
from avyay.engine.queue import Queue
from avyay.engine.types import NewTask
queue = Queue(home / "data" / "engine" / "engine.db")
for n in forever():
    (name,) = queue.add([NewTask(f"task {n}", attempts=1)])
    acknowledge("engine.task.added", task=name)
    lease = queue.claim("me")
    for state in ("running", "verifying"):
        queue.advance(lease, state)
    if n % 2:
        queue.fail(lease, "no")
        acknowledge("engine.task.dead", task=lease.task.id)
    else:
        queue.advance(lease, "merging")
        queue.finish(lease, "merged", commit="abc", merged=True)
        acknowledge("engine.task.merged", task=lease.task.id)
"""
SIDDHI = """
from avyay.siddhi.machine import State
from avyay.siddhi.store import Store
store = Store(home / "data" / "siddhi" / "siddhi.db")
for n in forever():
    made = store.discover(f"A thing {n}", "general", [], "seen often")
    store.change(made.id, State.SCORED, "goes on")
    acknowledge("siddhi.hypothesis.changed", hypothesis=made.id)
    store.change(made.id, State.KILLED, "no", manual=True)
    acknowledge("siddhi.hypothesis.decided", hypothesis=made.id)
"""
RAG = """
from avyay.embed.hashing import Hashing
from avyay.rag.index import Indexer
from avyay.rag.places import IndexPlaces
from avyay.rag.sources import resolve_source
from avyay.rag.stores.memory import MemoryStore
embedder, documents = Hashing(), home / "documents"
documents.mkdir(exist_ok=True)
places = IndexPlaces.under(home / "data" / "rag")
indexer = Indexer(places, embedder, lambda: MemoryStore())
for n in forever():
    (documents / "a.md").write_text(f"# Version {os.getpid()} {n}\\n\\nRestart the broker.\\n")
    (report,) = indexer.sync([resolve_source(str(documents), worktree=True)])
    acknowledge("rag.documents.indexed", generation=report.generation)
"""
JOBS = """
import asyncio
from avyay.serve.jobs import JobBoard, JobKind
async def main():
    scan = JobKind("scan", lambda order, body, progress: order, again=True)
    board = JobBoard(home / "data" / "raksha" / "jobs.db", scan)
    await board.open()
    for n in forever():
        job = await board.start("scan", {"n": n})
        while board.get(job.id).state != "done":
            await asyncio.sleep(0)
        acknowledge("raksha.job.ended", job=job.id)
asyncio.run(main())
"""
VERDICTS = """
import time
from avyay.marga.anomalies import Anomaly
from avyay.marga.verdicts import VerdictStore
store = VerdictStore(home / "data" / "marga" / "verdicts.db")
for n in forever():
    name = f"{os.getpid()}-{n}"
    assert store.alarm(Anomaly(f"provider {name}", "latency", time.time(), 9.0, 1.0, 8.0))
    acknowledge("marga.anomaly.found", provider=name)
"""
NOW = """
from avyay.events.outbox import Outboxes
from avyay.ports import Event
outboxes = Outboxes(home / "data")
for n in forever():
    outboxes.publish_now(Event("raksha.finding.found", {"n": f"{os.getpid()}-{n}"}, once=f"{os.getpid()}-{n}"))
    acknowledge("raksha.finding.found", n=f"{os.getpid()}-{n}")
"""
KINDS = {"engine": ENGINE, "siddhi": SIDDHI, "rag": RAG, "jobs": JOBS, "verdicts": VERDICTS, "durable": NOW}
HEAD = """
import json, os, sys
from itertools import count as forever
from pathlib import Path
home = Path(sys.argv[1])
def acknowledge(name, **data):
    print(json.dumps([name, data]), flush=True)
"""


def killed(script: str, home: Path, after: int) -> list[tuple[str, dict[str, object]]]:
    """What a process acknowledged until it was killed, which was after that many lines, at once."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + script, str(home)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()  # acknowledged as well, between the last one and the end
    process.stdout.close()
    assert process.wait(30) == -signal.SIGKILL
    return [tuple(json.loads(line)) for line in lines if line.startswith("[") and line.endswith("\n")]


def events_of(home: Path) -> Iterator[Recorded]:
    queue = home / "data" / "engine" / "engine.db"
    if queue.exists():  # the engine's history is its outbox; whoever looks brings it here
        forward_history(lambda: Queue(queue), queue.with_name("events.db"))
    reader, cursor = EventReader(home / "data"), Cursor()
    while (batch := reader.read(cursor, 1000)).events:
        assert not batch.missed
        yield from batch.events
        cursor = batch.cursor
    reader.close()


def check(kind: str, home: Path, rounds: int) -> None:
    acknowledged: list[tuple[str, dict[str, object]]] = []
    for number in range(rounds):
        acknowledged += killed(KINDS[kind], home, 1 + number % 5)
    assert len(acknowledged) >= rounds
    published = list(events_of(home))
    ids = [event.id for event in published]
    assert len(ids) == len(set(ids))
    places = []
    for name, data in acknowledged:
        found = [
            place
            for place, event in enumerate(published)
            if event.name == name and data.items() <= dict(event.data).items()
        ]
        assert len(found) == 1, f"{name} {data} was published {len(found)} times"
        places += found
    assert places == sorted(places), "not in the order of what happened"


@pytest.mark.parametrize("kind", KINDS)
def test_killed_right_after_it_acknowledged(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path, 2)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_killed_right_after_it_acknowledged_many_times(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path, 25)


def test_a_change_that_was_not_committed_is_not_told(tmp_path: Path) -> None:
    """The other half: nothing is told that did not happen."""
    check("engine", tmp_path, 3)
    folder = tmp_path / "data" / "engine"
    with closing(open_database(folder / "engine.db")) as queue:
        query = "SELECT task FROM history WHERE kind = 'done' ORDER BY number"
        happened = [row[0] for row in queue.execute(query)]
    queue.close()
    with closing(open_database(folder / "events.db")) as database:
        query = "SELECT json_extract(data, '$.task') FROM outbox WHERE name = ? ORDER BY number"
        told = [row[0] for row in database.execute(query, ("engine.task.merged",))]
        assert told == happened
        assert len(told) > 0
    database.close()
