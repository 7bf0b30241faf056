"""Rows that are acknowledged: in a file before their answer's last byte leaves, in the database some moments later.

Joins the writer of groups (`avyay.db_writer`) with the lines that outlive a killed process (`avyay.spool`). What a
process left that is gone is taken over by whoever comes first: another one that writes to the same database looks
every second and once more when it ends, the next start and readers look when they open it. It is taken over once: the
writer's marker, set in the transaction of its rows, says which are committed, then that somebody has taken the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Schema, open_database
from avyay.db_gaps import WRITER_SCHEMA, claim_session, explain_crash, record_crashes
from avyay.db_insert import Insert, Value, insert_one_by_one
from avyay.db_writer import GroupCommitWriter, WriterState
from avyay.errors import AvyayError, DependencyError
from avyay.log import get_logger
from avyay.spool import Left, Spool, left_behind

__all__ = ["Journal", "JournalTable", "take_over", "try_take_over"]

_LOOK = 1.0  # seconds between two looks for what others have left
_TOGETHER = 0.05  # seconds rows wait for company: more costs memory and the latest answers, less a commit for a few


@dataclass(frozen=True, slots=True)
class JournalTable:
    """The table of a journal.

    Args:
        schema: Of the file it is in.
        insert: Its rows. `bytes` in them are JSON, of an object or an array.
        unfinished: The row of what was under way, of (the words it began with, the last that were added, now).
        lacking: Whether such a row lacks something that nobody will ever know.
    """

    schema: Schema
    insert: Insert
    unfinished: Callable[[Sequence[Any], Sequence[Any] | None, float], Sequence[Value]]
    lacking: bool = False


class Journal:
    """Writes rows that somebody will be told of. Thread-safe; several processes may have one on the same file.

    Args:
        path: The database.
    """

    def __init__(self, path: Path, table: JournalTable, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path, self._table, self._clock = path, table, clock
        try_take_over(path, table, clock.now())
        self._writer = GroupCommitWriter(path, table.schema, max_delay=_TOGETHER, tolerant=True, clock=clock)
        self._spool = Spool(path, self._writer.token, table.insert.columns, self._done)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._looking = threading.Thread(target=self._look, name=f"journal-{path.name}", daemon=True)
        self._looking.start()

    @property
    def unspooled(self) -> int:
        """Lines that did not get into the spool: a `kill -9` could have lost them."""
        return self._spool.failed

    def begin(self, words: Iterable[Any]) -> int:
        """Something begins that will become a row; a number for `note` and `add`."""
        with self._lock:
            return self._spool.begin(words)

    def note(self, number: int, words: Iterable[Any]) -> None:
        """More is known of it."""
        with self._lock:
            self._spool.note(number, words)

    def add(self, row: Sequence[Value], number: int = 0) -> None:
        """It is over, and this is its row: after this it survives the process.

        Raises:
            UnreachableError: the disk fails, and too many rows wait for it.
            InternalError: the journal is closed.
        """
        with self._lock:
            try:
                sequence = self._writer.append(self._table.insert, row)
            except AvyayError:
                self._spool.forget(number)
                raise
            self._spool.end(number, sequence, row)

    def state(self) -> WriterState:
        """How its disk does."""
        return self._writer.state()

    def flush(self) -> None:
        """Wait until all of it is committed."""
        self._writer.flush()

    def close(self) -> None:
        """Commit what is in memory, and what others have left.

        Raises:
            UnreachableError: it could not be; whoever looks next finds it in the spool.
        """
        self._ending.set()
        self._looking.join()
        try:
            self._writer.close()
        finally:
            try_take_over(self._path, self._table, self._clock.now())
            with self._lock:
                self._spool.close()

    def _done(self) -> int:
        state = self._writer.state()
        return state.committed + state.rejected

    def _look(self) -> None:
        fine = True
        while not self._ending.wait(_LOOK):
            fine = try_take_over(self._path, self._table, self._clock.now(), quiet=not fine)


def take_over(path: Path, table: JournalTable, now: float) -> int:
    """Write what processes left that are gone; how many rows that were. Blocks.

    Raises:
        AvyayError: it cannot be read or written; the next one to look finds it.
    """
    try:
        found = left_behind(path)
        if not found:
            return 0
        database = open_database(path, table.schema, WRITER_SCHEMA)
        try:
            with database.transaction():
                record_crashes(database, path, now)
                rows = sum(_take_over(database, table, left, now) for left in found)
        finally:
            database.close()
        for left in found:
            left.remove()
    except OSError as error:
        raise DependencyError(
            f"what a killed process left beside {path} cannot be read: {error.strerror}", code="spool_unreadable"
        ) from error
    return rows


def try_take_over(path: Path, table: JournalTable, now: float, *, quiet: bool = False) -> bool:
    """`take_over` that says in the log what it did, or, unless `quiet`, why it could not; whether it could."""
    log = get_logger(__name__).bind(database=path.name)
    try:
        if rows := take_over(path, table, now):
            log.warning("taken_over", rows=rows)
    except AvyayError as error:
        if not quiet:
            log.error("not_taken_over", error=error.message)
        return False
    return True


def _take_over(database: Database, table: JournalTable, left: Left, now: float) -> int:
    claimed = claim_session(database, left.token, now)
    if claimed is None:
        return 0  # somebody else was faster
    session, done = claimed
    missing = left.missing(done)
    # A version before or after this one may have had other columns.
    kept = [(place, name) for place, name in enumerate(left.columns) if name in table.insert.columns]
    insert = replace(table.insert, columns=tuple(name for _, name in kept))
    rows = [row for sequence, row in sorted(left.rows.items()) if sequence > done]
    batch = [(insert, [_value(row[place]) for place, _ in kept]) for row in rows]
    # What is committed although its line is lost is no news.
    unfinished = replace(table.insert, conflict="IGNORE")
    batch += [(unfinished, [*table.unfinished(begun, noted, now)]) for begun, noted in left.under_way]
    rejected, reason = insert_one_by_one(database, batch)
    if rejected:
        get_logger(__name__).error("rows_rejected", database=database.path.name, rows=rejected, last_reason=reason)
    explain_crash(database, session, missing + rejected + (len(left.under_way) if table.lacking else 0))
    return len(batch) - rejected


def _value(value: Any) -> Value:
    """As it was in the row: what is JSON in the line was JSON there."""
    return orjson.dumps(value) if isinstance(value, dict | list) else value
