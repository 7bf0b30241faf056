"""From the history of a queue to the events of this home: on from where it stopped, none twice, none left out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from avyay.db import Migration, Schema, open_database
from avyay.engine.announce import events_of
from avyay.engine.queue import Queue
from avyay.events.outbox import OUTBOX, append_event

__all__ = ["forward_history", "queues_told"]

_FORWARDED = Schema(
    "engine_forwarded",
    (
        Migration(
            "0001_forwarded",
            "CREATE TABLE forwarded (queue TEXT PRIMARY KEY, number INTEGER NOT NULL) STRICT, WITHOUT ROWID",
        ),
    ),
)
_BATCH = 500
_FIRST = 5_000  # lines that a home looks back at when it meets a queue


def forward_history(open_queue: Callable[[], Queue], outbox: Path) -> int:
    """Publish what was written into the history since the last time, whoever wrote it; says how many lines.

    Several processes of a home may do it at once. The place reached is kept with the events, in one transaction.

    Args:
        open_queue: The queue once more, for this thread.
        outbox: The file of the engine's events.

    Raises:
        AvyayError: the queue, or the file, cannot be reached; nothing is lost.
    """
    told = 0
    with closing(open_queue()) as queue, closing(open_database(outbox, OUTBOX, _FORWARDED)) as database:
        origin = queue.identity()
        while True:
            with database.errors():
                row = database.execute("SELECT number FROM forwarded WHERE queue = ?", (origin,)).fetchone()
            since = row[0] if row is not None else max(0, queue.last_entry() - _FIRST)
            entries = queue.history(after=since, limit=_BATCH)
            tasks = {name: queue.get(name) for name in {entry.task for entry in entries}}
            with database.transaction():
                now = database.execute("SELECT number FROM forwarded WHERE queue = ?", (origin,)).fetchone()
                if now != row:  # another process of this home was quicker
                    continue
                for entry in entries:
                    task = tasks[entry.task]
                    for event in events_of(entry, task.title, task.evidence, origin):
                        append_event(database, event, entry.at)
                last = entries[-1].number if entries else since
                database.execute("INSERT OR REPLACE INTO forwarded VALUES (?, ?)", (origin, last))
            told += len(entries)
            if len(entries) < _BATCH:
                return told


def queues_told(outbox: Path) -> frozenset[str]:
    """The queues whose history this home forwards, as `queue` in the data of their events.

    Raises:
        AvyayError: the file cannot be read.
    """
    if not outbox.is_file():
        return frozenset()
    with closing(open_database(outbox, read_only=True)) as database, database.errors():
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'forwarded'").fetchone() is None:
            return frozenset()
        return frozenset(str(row[0])[:12] for row in database.execute("SELECT queue FROM forwarded"))
