"""What people asked and thought of it: sessions (kept only when one is named), and verdicts on answers.

A file of its own beside the index, so that it can be deleted without touching that. Questions and answers are stored
only for named sessions; a verdict names chunks, not words.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Migration, Schema, open_database
from avyay.errors import UsageError
from avyay.rag.answer import Turn
from avyay.rag.drift import Observation
from avyay.rag.shadow import Comparison

__all__ = ["INTERACTIONS", "Interactions", "Verdicts"]

KEPT_TURNS = 50
KEPT_ANSWERS = 10_000

INTERACTIONS = Schema(
    "rag_interactions",
    (
        Migration(
            "0001_interactions",
            """
            CREATE TABLE turns (
                id INTEGER PRIMARY KEY,
                session TEXT NOT NULL,
                question TEXT NOT NULL,
                answer TEXT NOT NULL,
                at REAL NOT NULL
            );
            CREATE INDEX turns_session ON turns (session, id);
            CREATE TABLE answers (
                id TEXT PRIMARY KEY,
                mode TEXT NOT NULL,
                chunks TEXT NOT NULL,
                confidence REAL NOT NULL,
                generation INTEGER NOT NULL,
                at REAL NOT NULL
            );
            CREATE TABLE verdicts (
                answer_id TEXT PRIMARY KEY REFERENCES answers (id) ON DELETE CASCADE,
                verdict TEXT NOT NULL CHECK (verdict IN ('up', 'down')),
                comment TEXT NOT NULL,
                at REAL NOT NULL
            );
            """,
        ),
        Migration(
            "0002_shadows",
            """
            CREATE TABLE shadows (
                answer_id TEXT PRIMARY KEY,
                overlap REAL NOT NULL,
                same_first INTEGER NOT NULL,
                confidence REAL NOT NULL,
                shadow_confidence REAL NOT NULL,
                at REAL NOT NULL
            );
            """,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Counts over the answers that are remembered."""

    answers: int
    unanswered: int
    up: int
    down: int


class Interactions:
    """Reads and writes the file; opened on first use. Safe to share between threads."""

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = path
        self._clock = clock
        self._database: Database | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def history(self, session: str) -> list[Turn]:
        """The turns of a session, oldest first."""
        if not self._path.is_file():
            return []
        with self._lock, self._open().errors():
            rows = self._open().execute("SELECT question, answer FROM turns WHERE session = ? ORDER BY id", (session,))
            return [Turn(*row) for row in rows.fetchall()]

    def add_turn(self, session: str, turn: Turn) -> None:
        """Remember a turn; a session keeps its last 50."""
        with self._lock, self._open().transaction() as database:
            database.execute(
                "INSERT INTO turns (session, question, answer, at) VALUES (?, ?, ?, ?)",
                (session, turn.question, turn.answer, self._clock.now()),
            )
            database.execute(
                "DELETE FROM turns WHERE session = ?1 AND id NOT IN"
                " (SELECT id FROM turns WHERE session = ?1 ORDER BY id DESC LIMIT ?2)",
                (session, KEPT_TURNS),
            )

    def sessions(self) -> list[tuple[str, int, float]]:
        """Name, turns and time of the last turn of each session, newest first."""
        if not self._path.is_file():
            return []
        with self._lock, self._open().errors():
            query = "SELECT session, count(*), max(at) FROM turns GROUP BY session ORDER BY max(at) DESC"
            return [(name, count, at) for name, count, at in self._open().execute(query).fetchall()]

    def forget(self, session: str) -> int:
        """Delete a session; says how many turns it had."""
        with self._lock, self._open().transaction() as database:
            return database.execute("DELETE FROM turns WHERE session = ?", (session,)).rowcount

    def add_answer(
        self, identity: str, *, mode: str, chunks: Sequence[str], confidence: float, generation: int
    ) -> None:
        """Remember that an answer was given, so that a verdict can name it."""
        with self._lock, self._open().transaction() as database:
            database.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)",
                (identity, mode, json.dumps(list(chunks)), confidence, generation, self._clock.now()),
            )
            database.execute("DELETE FROM answers WHERE rowid <= (SELECT max(rowid) FROM answers) - ?", (KEPT_ANSWERS,))

    def add_verdict(self, identity: str, verdict: Literal["up", "down"], comment: str = "") -> None:
        """Record what somebody thought of an answer; a second verdict replaces the first.

        Raises:
            UsageError: there is no such answer.
        """
        with self._lock, self._open().transaction() as database:
            rows = database.execute("SELECT id FROM answers WHERE id LIKE ? || '%' LIMIT 2", (identity,)).fetchall()
            if len(rows) != 1 or not identity.isalnum():
                raise UsageError(
                    f"There is no answer {identity!r}.",
                    hint="The id stands under each answer, and in --json.",
                    code="no_answer",
                )
            database.execute(
                "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)", (rows[0][0], verdict, comment, self._clock.now())
            )

    def verdicts(self) -> Verdicts:
        """How the answers did."""
        if not self._path.is_file():
            return Verdicts(0, 0, 0, 0)
        with self._lock, self._open().errors():
            row = (
                self._open()
                .execute(
                    "SELECT (SELECT count(*) FROM answers), (SELECT count(*) FROM answers WHERE mode = 'none'),"
                    " (SELECT count(*) FROM verdicts WHERE verdict = 'up'),"
                    " (SELECT count(*) FROM verdicts WHERE verdict = 'down')"
                )
                .fetchone()
            )
        return Verdicts(*row)

    def add_shadow(self, answer: str, comparison: Comparison) -> None:
        """Remember how a shadow's results compared."""
        with self._lock, self._open().transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO shadows VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(answer, comparison.overlap, comparison.same_first),
                    *(comparison.confidence, comparison.shadow_confidence, self._clock.now()),
                ),
            )
            database.execute("DELETE FROM shadows WHERE rowid <= (SELECT max(rowid) FROM shadows) - ?", (KEPT_ANSWERS,))

    def shadows(self) -> list[Comparison]:
        """All remembered comparisons."""
        if not self._path.is_file():
            return []
        with self._lock, self._open().errors():
            rows = self._open().execute(
                "SELECT s.overlap, s.same_first, s.confidence, s.shadow_confidence, v.verdict FROM shadows s"
                " LEFT JOIN verdicts v ON v.answer_id = s.answer_id"
            )
            return [
                Comparison(overlap, bool(same), shown, other, None if verdict is None else verdict == "up")
                for overlap, same, shown, other, verdict in rows.fetchall()
            ]

    def observations(self) -> list[Observation]:
        """All remembered answers, oldest first, for the drift alarm."""
        if not self._path.is_file():
            return []
        with self._lock, self._open().errors():
            rows = self._open().execute(
                "SELECT a.confidence, a.mode, v.verdict FROM answers a LEFT JOIN verdicts v ON v.answer_id = a.id"
                " ORDER BY a.at, a.rowid"
            )
            return [
                Observation(confidence, mode != "none", None if verdict is None else verdict == "up")
                for confidence, mode, verdict in rows.fetchall()
            ]

    def _open(self) -> Database:
        if self._database is None:
            self._database = open_database(self._path, INTERACTIONS, check_same_thread=False)
        return self._database
