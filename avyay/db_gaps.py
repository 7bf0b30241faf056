"""Markers of who writes to a database file, and the gaps they reveal when a writer did not finish.

Each writer has a session row that only a clean end closes, and holds a lock file that the kernel releases when its
process ends, however it ends. An open session without its lock is a crash.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from avyay.db import Database, Migration, Schema
from avyay.errors import DependencyError

__all__ = [
    "WRITER_SCHEMA",
    "Gap",
    "claim_session",
    "explain_crash",
    "hold_liveness",
    "is_held",
    "liveness_file",
    "read_gaps",
    "record_crashes",
    "record_gap",
]

_ALL = 1 << 62  # as a sequence: all that a writer left has been taken over

WRITER_SCHEMA = Schema(
    "writer",
    (
        Migration(
            "0001_sessions_and_gaps",
            """
            CREATE TABLE writer_sessions (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                token TEXT NOT NULL UNIQUE,
                opened_at REAL NOT NULL,
                sequence INTEGER NOT NULL DEFAULT 0,
                committed_at REAL,
                closed_at REAL
            );
            CREATE TABLE writer_gaps (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                session_id INTEGER NOT NULL REFERENCES writer_sessions,
                kind TEXT NOT NULL CHECK (kind IN ('crash', 'refused', 'rejected')),
                after_sequence INTEGER NOT NULL,
                since REAL NOT NULL,
                found_at REAL NOT NULL,
                missing INTEGER
            );
            """,
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Gap:
    """Rows that are or may be missing.

    Args:
        kind: "crash": its writer ended without `close`; what it held in memory (at most the last 100 ms) is gone,
            unless it kept a journal. "refused": the backlog was full. "rejected": SQLite would not take them.
        session: The writer's number.
        after_sequence: The last row of that writer known to be committed before the gap.
        since: Seconds since the epoch of its last commit before the gap (or of its start).
        found_at: When the gap was recorded.
        missing: How many rows, where known; after a crash of one that kept a journal, how many lack something (what the
            calls cost that were under way), so 0 tells of a crash that cost nothing.
    """

    kind: str
    session: int
    after_sequence: int
    since: float
    found_at: float
    missing: int | None


def read_gaps(database: Database) -> list[Gap]:
    """All recorded gaps, oldest first; the file needs `WRITER_SCHEMA`."""
    with database.errors():
        rows = database.execute(
            "SELECT kind, session_id, after_sequence, since, found_at, missing FROM writer_gaps ORDER BY id"
        )
        return [Gap(*row) for row in rows]


def record_gap(database: Database, session: int | None, kind: str, after: int, now: float, missing: int | None) -> None:
    """Add a gap to the table; inside the caller's transaction."""
    database.execute(
        "INSERT INTO writer_gaps (session_id, kind, after_sequence, since, found_at, missing)"
        " SELECT id, ?, ?, coalesce(committed_at, opened_at), ?, ? FROM writer_sessions WHERE id = ?",
        (kind, after, now, missing, session),
    )


def record_crashes(database: Database, path: Path, now: float) -> list[tuple[int, int]]:
    """Turn the markers of writers that are gone into gaps; (session, last sequence) of each."""
    found = []
    open_markers = database.execute(
        "SELECT id, token, sequence FROM writer_sessions WHERE closed_at IS NULL"
    ).fetchall()
    for session, token, sequence in open_markers:
        file = liveness_file(path, token)
        if is_held(file):
            continue
        record_gap(database, session, "crash", sequence, now, None)
        database.execute("UPDATE writer_sessions SET closed_at = ? WHERE id = ?", (now, session))
        file.unlink(missing_ok=True)
        found.append((session, sequence))
    return found


def liveness_file(path: Path, token: str) -> Path:
    """Beside the database, one per writer."""
    return path.with_name(f"{path.name}-writer-{token}.lock")


def hold_liveness(file: Path) -> int:
    """A lock the kernel releases when this process ends, however it ends; returns its descriptor."""
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise DependencyError(
            f"cannot lock {file}: {error.strerror}", hint="set AVYAY_HOME to a folder on a local disk", code="no_lock"
        ) from error
    return descriptor


def is_held(file: Path) -> bool:
    """Whether the process that made the lock file lives."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def claim_session(database: Database, token: str, now: float) -> tuple[int, int] | None:
    """Become the one who writes what a writer that is gone left outside the database; inside the caller's transaction.

    Returns:
        Its session and the last row of it that is committed; None where somebody else has claimed it.
    """
    database.execute(
        "INSERT INTO writer_sessions (token, opened_at, closed_at) VALUES (?, ?, ?) ON CONFLICT (token) DO NOTHING",
        (token, now, now),
    )
    session, done = database.execute("SELECT id, sequence FROM writer_sessions WHERE token = ?", (token,)).fetchone()
    if done == _ALL:
        return None
    database.execute("UPDATE writer_sessions SET sequence = ? WHERE id = ?", (_ALL, session))
    return session, done


def explain_crash(database: Database, session: int, missing: int) -> None:
    """Say how many rows a crash has cost, now that somebody knows; inside the caller's transaction."""
    database.execute(
        "UPDATE writer_gaps SET missing = ? WHERE session_id = ? AND kind = 'crash' AND missing IS NULL",
        (missing, session),
    )
