"""What is still to be delivered, what was, and what was given up: on disk, so that a restart forgets nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Migration, Schema, open_database
from avyay.errors import UsageError
from avyay.events.reader import Cursor, Recorded
from avyay.events.sinks import Message
from avyay.resilience.backoff import Backoff

__all__ = ["Deliveries", "Delivery"]

State = Literal["waiting", "delivered", "dead"]
SCHEMA = Schema(
    "deliveries",
    (
        Migration(
            "0001_deliveries",
            """
            CREATE TABLE sinks (name TEXT PRIMARY KEY, cursor TEXT NOT NULL) WITHOUT ROWID;
            CREATE TABLE deliveries (
                number INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, event TEXT NOT NULL, name TEXT NOT NULL,
                body BLOB NOT NULL, state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0,
                failures INTEGER NOT NULL DEFAULT 0, due_at REAL NOT NULL, created_at REAL NOT NULL, ended_at REAL,
                problem TEXT NOT NULL DEFAULT '', UNIQUE (sink, event)
            );
            CREATE INDEX deliveries_due ON deliveries (sink, due_at) WHERE state = 'waiting';
            """,
        ),
        Migration("0002_since", "ALTER TABLE sinks ADD COLUMN since REAL NOT NULL DEFAULT 0"),
    ),
)
_COLUMNS = "number, sink, event, name, state, attempts, due_at, created_at, ended_at, problem"
_ADD = "INSERT OR IGNORE INTO deliveries (sink, event, name, body, due_at, created_at) VALUES (?,?,?,?,?,?)"
_OLD = 3_600.0
_MOST_WAITING = 10_000  # of one sink; beyond it the oldest are given up


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one sink. Times are Unix seconds."""

    number: int
    sink: str
    event: str
    name: str
    state: State
    attempts: int
    due_at: float
    created_at: float
    ended_at: float | None
    problem: str


class Deliveries:
    """The file. Thread-safe; one process at a time delivers, any number look."""

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._database = open_database(path, SCHEMA, check_same_thread=False)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def begin(self, sink: str, head: Callable[[], Cursor]) -> Cursor:
        """Where a sink stands. One that was never seen begins behind what has already happened."""
        with self._lock, self._database.transaction() as database:
            row = database.execute("SELECT cursor FROM sinks WHERE name = ?", (sink,)).fetchone()
            if row is not None:
                return Cursor.parse(row[0])
            here = head()
            database.execute("INSERT INTO sinks VALUES (?, ?, ?)", (sink, str(here), self._clock.now()))
            return here

    def add(self, sink: str, events: Sequence[Recorded], cursor: Cursor) -> None:
        """Take events up and move the sink's cursor, together: none is taken twice, none left out.

        What happened a good while before the sink was first there is no news to it: such events come late, when
        another home is followed for the first time.
        """
        now = self._clock.now()
        with self._lock, self._database.transaction() as database:
            row = database.execute("SELECT since FROM sinks WHERE name = ?", (sink,)).fetchone()
            since = row[0] - _OLD if row is not None else 0.0
            database.executemany(
                _ADD,
                [
                    (sink, event.id, event.name, orjson.dumps(event.body()), now, now)
                    for event in events
                    if event.at >= since
                ],
            )
            database.execute("UPDATE sinks SET cursor = ? WHERE name = ?", (str(cursor), sink))
            database.execute(
                "UPDATE deliveries SET state = 'dead', ended_at = ?, problem = 'too many were waiting' WHERE number IN"
                " (SELECT number FROM deliveries WHERE sink = ? AND state = 'waiting'"
                "  ORDER BY number DESC LIMIT -1 OFFSET ?)",
                (now, sink, _MOST_WAITING),
            )

    def due(self, sink: str, limit: int, *, leave: frozenset[int] = frozenset()) -> list[tuple[int, Message]]:
        """What may be sent now, oldest first, without those under way."""
        with self._lock, self._database.errors():
            rows = self._database.execute(
                "SELECT number, event, name, body FROM deliveries WHERE sink = ? AND state = 'waiting' AND due_at <= ?"
                " ORDER BY due_at, number LIMIT ?",
                (sink, self._clock.now(), limit + len(leave)),
            ).fetchall()
        return [(row[0], Message(row[1], row[2], row[3])) for row in rows if row[0] not in leave][:limit]

    def delivered(self, number: int) -> None:
        """It was taken."""
        self._end(number, "delivered", "")

    def failed(
        self,
        number: int,
        why: str,
        backoff: Backoff,
        random: Callable[[], float],
        *,
        retry_after: float | None = None,
        final: bool = False,
    ) -> bool:
        """It was not taken: try again later, or give up. Says whether it was given up."""
        with self._lock, self._database.transaction() as database:
            row = database.execute("SELECT failures FROM deliveries WHERE number = ?", (number,)).fetchone()
            failures = (row[0] if row else 0) + 1
            delay = None if final else backoff.delay(failures, random, retry_after)
            now = self._clock.now()
            database.execute(
                "UPDATE deliveries SET attempts = attempts + 1, failures = ?, problem = ?, state = ?, due_at = ?,"
                " ended_at = ? WHERE number = ?",
                (
                    *(failures, why[:200], "waiting" if delay is not None else "dead"),
                    *(now + (delay or 0.0), None if delay is not None else now, number),
                ),
            )
        return delay is None

    def rows(self, *states: State, limit: int = 100) -> list[Delivery]:
        """The newest deliveries in the given states (all without any), newest first."""
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        query = f"SELECT {_COLUMNS} FROM deliveries {where} ORDER BY number DESC LIMIT ?"  # noqa: S608 - constants
        with self._lock, self._database.errors():
            return [Delivery(*row) for row in self._database.execute(query, (*states, limit))]

    def counts(self) -> dict[str, dict[str, int]]:
        """By sink and state."""
        found: dict[str, dict[str, int]] = {}
        with self._lock, self._database.errors():
            rows = self._database.execute(
                "SELECT sink, state, count(*) FROM deliveries GROUP BY sink, state"
            ).fetchall()
        for sink, state, count in rows:
            found.setdefault(sink, {})[state] = count
        return found

    def retry(self, events: Sequence[str] = ()) -> int:
        """Send what was given up once more: these events (by id), or all; says how many.

        Raises:
            UsageError: an event is not among them.
        """
        with self._lock, self._database.transaction() as database:
            for event in events:
                row = database.execute(
                    "SELECT 1 FROM deliveries WHERE event = ? AND state = 'dead'", (event,)
                ).fetchone()
                if row is None:
                    raise UsageError(
                        f"{event!r} is not among the dead letters.", hint="See: avyay events dead", code="no_event"
                    )
            where = f"AND event IN ({', '.join('?' * len(events))})" if events else ""
            query = "UPDATE deliveries SET state = 'waiting', failures = 0, due_at = ?, ended_at = NULL"
            done = database.execute(f"{query} WHERE state = 'dead' {where}", (self._clock.now(), *events))
            return done.rowcount

    def replay(self, sink: str, events: Sequence[Recorded]) -> int:
        """Send events to a sink now, whether or not they were sent before; says how many."""
        now = self._clock.now()
        with self._lock, self._database.transaction() as database:
            for event in events:
                database.execute(_ADD, (sink, event.id, event.name, orjson.dumps(event.body()), now, now))
                database.execute(
                    "UPDATE deliveries SET state = 'waiting', failures = 0, due_at = ?, ended_at = NULL"
                    " WHERE sink = ? AND event = ?",
                    (now, sink, event.id),
                )
        return len(events)

    def prune(self, keep_for: float) -> int:
        """Forget what ended so many seconds ago; says how much."""
        with self._lock, self._database.transaction() as database:
            return database.execute(
                "DELETE FROM deliveries WHERE ended_at < ?", (self._clock.now() - keep_for,)
            ).rowcount

    def _end(self, number: int, state: State, problem: str) -> None:
        values: tuple[Any, ...] = (state, self._clock.now(), problem, number)
        with self._lock, self._database.transaction() as database:
            database.execute(
                "UPDATE deliveries SET state = ?, ended_at = ?, problem = ?, attempts = attempts + 1 WHERE number = ?",
                values,
            )
