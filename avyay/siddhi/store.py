"""What SIDDHI remembers: complaints, cursors, hypotheses, and a history that only grows."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Migration, Schema, open_database
from avyay.errors import UsageError
from avyay.events.outbox import OUTBOX, append_event
from avyay.ports import Event as Happened
from avyay.siddhi.machine import Change, State, change
from avyay.siddhi.types import Complaint, Event, Hypothesis

__all__ = ["Store"]

SCHEMA = Schema(
    "siddhi",
    (
        Migration(
            "0001_mine_and_decide",
            """
            CREATE TABLE complaints (
                source TEXT NOT NULL, id TEXT NOT NULL, permalink TEXT NOT NULL, title TEXT NOT NULL,
                text TEXT NOT NULL, hash TEXT NOT NULL, created_at REAL NOT NULL, segment TEXT NOT NULL,
                points INTEGER NOT NULL, replies INTEGER NOT NULL, seen_at REAL NOT NULL,
                PRIMARY KEY (source, id)
            ) WITHOUT ROWID;
            CREATE TABLE forgotten (
                source TEXT NOT NULL, id TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (source, id)
            ) WITHOUT ROWID;
            CREATE TABLE cursors (
                source TEXT NOT NULL, query TEXT NOT NULL, cursor TEXT NOT NULL, at REAL NOT NULL,
                PRIMARY KEY (source, query)
            ) WITHOUT ROWID;
            CREATE TABLE hypotheses (
                number INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, segment TEXT NOT NULL,
                state TEXT NOT NULL, round INTEGER NOT NULL DEFAULT 1, score REAL, scored_by TEXT NOT NULL DEFAULT '',
                reasons TEXT NOT NULL DEFAULT '{}', created_at REAL NOT NULL, changed_at REAL NOT NULL
            );
            CREATE TABLE evidence (
                number INTEGER NOT NULL REFERENCES hypotheses, source TEXT NOT NULL, id TEXT NOT NULL,
                PRIMARY KEY (source, id),
                FOREIGN KEY (source, id) REFERENCES complaints ON DELETE CASCADE
            ) WITHOUT ROWID;
            CREATE INDEX evidence_by_hypothesis ON evidence (number);
            CREATE TABLE events (
                number INTEGER PRIMARY KEY AUTOINCREMENT, hypothesis INTEGER NOT NULL REFERENCES hypotheses,
                at REAL NOT NULL, kind TEXT NOT NULL, before TEXT, after TEXT, reason TEXT NOT NULL,
                manual INTEGER NOT NULL DEFAULT 0, data TEXT NOT NULL DEFAULT '{}'
            );
            CREATE INDEX events_by_hypothesis ON events (hypothesis, number);
            CREATE TABLE answers (
                key TEXT PRIMARY KEY, answer TEXT NOT NULL, model TEXT NOT NULL, cost INTEGER NOT NULL, at REAL NOT NULL
            ) WITHOUT ROWID;
            CREATE TRIGGER events_stay BEFORE DELETE ON events
            BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
            CREATE TRIGGER events_are_final BEFORE UPDATE ON events
            BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
            """,
        ),
    ),
)
_COMPLAINT = "source, id, permalink, title, text, hash, created_at, segment, points, replies"
_HYPOTHESIS = "number, title, segment, state, round, score, scored_by, reasons, created_at, changed_at"


class Store:
    """SIDDHI's SQLite file. Thread-safe; processes share the file, not the object."""

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._database = open_database(path, SCHEMA, OUTBOX, check_same_thread=False)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def _write(self) -> Iterator[Database]:
        with self._lock, self._database.transaction() as database:
            yield database

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._database.errors():
            return self._database.execute(query, values).fetchall()

    # ------------------------------------------------------------ mining

    def add_page(self, source: str, query: str, complaints: Iterable[Complaint], cursor: str) -> int:
        """Keep a page and where the next one begins, together: a crash repeats a page or does not, but loses none.

        Returns:
            How many were new. What was forgotten on request stays forgotten.
        """
        now = self.clock.now()
        with self._write() as database:
            new = 0
            for one in complaints:
                gone = database.execute(
                    "SELECT 1 FROM forgotten WHERE source = ? AND id = ?", (one.source, one.id)
                ).fetchone()
                if gone:
                    continue
                known = database.execute(
                    "SELECT 1 FROM complaints WHERE source = ? AND id = ?", (one.source, one.id)
                ).fetchone()
                new += known is None
                database.execute(
                    f"INSERT INTO complaints ({_COMPLAINT}, seen_at) VALUES (?,?,?,?,?,?,?,?,?,?,?)"  # noqa: S608
                    " ON CONFLICT (source, id) DO UPDATE SET title = excluded.title, text = excluded.text,"
                    " hash = excluded.hash, points = excluded.points, replies = excluded.replies",
                    (
                        *(one.source, one.id, one.permalink, one.title, one.text, one.hash, one.created_at),
                        *(one.segment, one.points, one.replies, now),
                    ),
                )
            database.execute(
                "INSERT INTO cursors VALUES (?, ?, ?, ?) ON CONFLICT (source, query)"
                " DO UPDATE SET cursor = excluded.cursor, at = excluded.at",
                (source, query, cursor, now),
            )
        return new

    def cursor(self, source: str, query: str) -> str | None:
        """Where mining `query` at `source` goes on; None when it has not begun."""
        rows = self._rows("SELECT cursor FROM cursors WHERE source = ? AND query = ?", source, query)
        return rows[0][0] if rows else None

    def forget(self, source: str, identifier: str) -> bool:
        """Delete a complaint for good, because its author or its source did. Returns whether it was here."""
        with self._write() as database:
            database.execute("INSERT OR IGNORE INTO forgotten VALUES (?, ?, ?)", (source, identifier, self.clock.now()))
            return bool(
                database.execute("DELETE FROM complaints WHERE source = ? AND id = ?", (source, identifier)).rowcount
            )

    def complaints(self, hypothesis: str | None = None) -> list[Complaint]:
        """All complaints, or those behind a hypothesis, oldest first."""
        if hypothesis is None:
            rows = self._rows(f"SELECT {_COMPLAINT} FROM complaints ORDER BY created_at, source, id")  # noqa: S608
        else:
            rows = self._rows(
                f"SELECT {_COMPLAINT} FROM complaints JOIN evidence USING (source, id)"  # noqa: S608
                " WHERE number = ? ORDER BY created_at, source, id",
                _number(hypothesis),
            )
        return [Complaint(*row) for row in rows]

    def complaint_count(self) -> dict[str, int]:
        """How many complaints each source gave."""
        return dict(self._rows("SELECT source, count(*) FROM complaints GROUP BY source ORDER BY source"))

    def unclaimed(self) -> list[Complaint]:
        """Complaints that support no hypothesis yet."""
        rows = self._rows(
            f"SELECT {_COMPLAINT} FROM complaints LEFT JOIN evidence USING (source, id)"  # noqa: S608
            " WHERE number IS NULL ORDER BY created_at, source, id"
        )
        return [Complaint(*row) for row in rows]

    # ------------------------------------------------------------ hypotheses

    def discover(self, title: str, segment: str, evidence: Sequence[Complaint], reason: str) -> Hypothesis:
        """A new hypothesis, with the complaints it rests on. A complaint supports one hypothesis only."""
        step = change(None, State.DISCOVERED, reason)
        now = self.clock.now()
        with self._write() as database:
            number = database.execute(
                "INSERT INTO hypotheses (title, segment, state, created_at, changed_at) VALUES (?, ?, ?, ?, ?)",
                (title, segment, step.after, now, now),
            ).lastrowid
            for one in evidence:
                database.execute("INSERT OR IGNORE INTO evidence VALUES (?, ?, ?)", (number, one.source, one.id))
            _append(database, int(number or 0), now, "changed", step, {"complaints": len(evidence)})
        return self.hypothesis(f"h{number}")

    def support(self, hypothesis: str, evidence: Iterable[Complaint]) -> None:
        """Add complaints to those a hypothesis rests on."""
        number = _number(hypothesis)
        with self._write() as database:
            for one in evidence:
                database.execute("INSERT OR IGNORE INTO evidence VALUES (?, ?, ?)", (number, one.source, one.id))

    def change(
        self,
        hypothesis: str,
        after: State,
        reason: str,
        *,
        manual: bool = False,
        data: Mapping[str, Any] | None = None,
        score: tuple[float, str, Mapping[str, Any]] | None = None,
    ) -> Hypothesis:
        """Move a hypothesis on, recording why.

        Args:
            manual: A person overrides the table of transitions.
            data: Numbers the decision rests on; kept with the event.
            score: Score, who gave it, and the reasons; stored with the hypothesis.

        Raises:
            IllegalTransitionError: The table does not allow it; nothing was written.
            UsageError: There is no such hypothesis.
        """
        now = self.clock.now()
        with self._write() as database:
            number = _number(hypothesis)
            row = database.execute("SELECT state FROM hypotheses WHERE number = ?", (number,)).fetchone()
            if row is None:
                raise _unknown(hypothesis)
            step = change(State(row[0]), after, reason, manual=manual)
            again = step.before is State.PROMISING and step.after is State.GENERATING
            database.execute(
                "UPDATE hypotheses SET state = ?, changed_at = ?, round = round + ? WHERE number = ?",
                (step.after, now, int(again), number),
            )
            if score is not None:
                database.execute(
                    "UPDATE hypotheses SET score = ?, scored_by = ?, reasons = ? WHERE number = ?",
                    (score[0], score[1], json.dumps(score[2], ensure_ascii=False), number),
                )
            _append(database, number, now, "overridden" if manual else "changed", step, data or {})
            append_event(database, _told(hypothesis, step, data or {}), now)
        return self.hypothesis(hypothesis)

    def note(self, hypothesis: str, kind: str, reason: str, data: Mapping[str, Any] | None = None) -> None:
        """Record something that happened without changing the state."""
        with self._write() as database:
            _append(database, _number(hypothesis), self.clock.now(), kind, reason, data or {})

    def hypothesis(self, identifier: str) -> Hypothesis:
        """One hypothesis.

        Raises:
            UsageError: There is none of this id.
        """
        rows = self._rows(f"SELECT {_HYPOTHESIS} FROM hypotheses WHERE number = ?", _number(identifier))  # noqa: S608
        if not rows:
            raise _unknown(identifier)
        return _hypothesis(rows[0])

    def hypotheses(self, *states: State) -> list[Hypothesis]:
        """Those in the given states (all without any), best score first."""
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        rows = self._rows(
            f"SELECT {_HYPOTHESIS} FROM hypotheses {where} ORDER BY score IS NULL, score DESC, number",  # noqa: S608
            *states,
        )
        return [_hypothesis(row) for row in rows]

    def history(self, hypothesis: str) -> list[Event]:
        """All that happened to a hypothesis, oldest first."""
        rows = self._rows(
            "SELECT number, hypothesis, at, kind, before, after, reason, manual, data FROM events"
            " WHERE hypothesis = ? ORDER BY number",
            _number(hypothesis),
        )
        return [
            Event(
                row[0],
                f"h{row[1]}",
                row[2],
                row[3],
                State(row[4]) if row[4] else None,
                State(row[5]) if row[5] else None,
                row[6],
                bool(row[7]),
                json.loads(row[8]),
            )
            for row in rows
        ]

    # ------------------------------------------------------------ models' answers

    def answer(self, key: str) -> tuple[str, str] | None:
        """A model's answer to the same question, and the model; None when it was not asked."""
        rows = self._rows("SELECT answer, model FROM answers WHERE key = ?", key)
        return (rows[0][0], rows[0][1]) if rows else None

    def keep_answer(self, key: str, answer: str, model: str, cost: int) -> None:
        """Remember an answer by the hash of its question. `cost` is in picodollars."""
        with self._write() as database:
            database.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", (key, answer, model, cost, self.clock.now())
            )


_DECIDED = frozenset({State.VALIDATED, State.KILLED, State.PROMISING})


def _told(hypothesis: str, step: Change, data: Mapping[str, Any]) -> Happened:
    """What others learn of a change: numbers and the reason, no complaint and no address."""
    name = "siddhi.hypothesis.decided" if step.after in _DECIDED else "siddhi.hypothesis.changed"
    numbers = {key: value for key, value in data.items() if isinstance(value, int | float | bool)}
    return Happened(
        name,
        {
            "hypothesis": hypothesis,
            "before": step.before,
            "after": step.after,
            "reason": step.reason[:500],
            "manual": step.manual,
            "numbers": numbers,
        },
    )


def _append(
    database: sqlite3.Connection, number: int, at: float, kind: str, step: Change | str, data: Mapping[str, Any]
) -> None:
    before, after, reason, manual = (
        (None, None, step, False) if isinstance(step, str) else (step.before, step.after, step.reason, step.manual)
    )
    database.execute(
        "INSERT INTO events (hypothesis, at, kind, before, after, reason, manual, data)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (number, at, kind, before, after, reason, int(manual), json.dumps(data, ensure_ascii=False, default=str)),
    )


def _number(identifier: str) -> int:
    if identifier[:1] == "h" and identifier[1:].isdecimal():
        return int(identifier[1:])
    raise _unknown(identifier)


def _unknown(identifier: str) -> UsageError:
    return UsageError(f"There is no hypothesis {identifier!r}.", hint="See: avyay siddhi status", code="no_hypothesis")


def _hypothesis(row: tuple[Any, ...]) -> Hypothesis:
    return Hypothesis(
        f"h{row[0]}", row[1], row[2], State(row[3]), row[4], row[5], row[6], json.loads(row[7]), row[8], row[9]
    )
