"""Rows to SQLite off the hot path: many producers append in memory, one thread commits them in groups.

An append costs about a microsecond and waits for no disk. What was appended is committed at most `max_delay` plus one
commit later, so a `kill -9` loses a few tens of milliseconds of rows, and the next open says so: every writer leaves a
marker that only a clean `close` removes, and a marker whose writer is gone becomes a row in the table of gaps
(`avyay.db_gaps`). Rows that somebody has been told of go through `avyay.db_journal`, which loses none.

A disk that fails does not take the daemon with it: rows wait in memory (bounded), commits are retried, `state` says
what is wrong. Rows refused because the memory is full are counted and recorded as a gap once the disk is back.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Schema, Synchronous, database_error, open_database
from avyay.db_gaps import WRITER_SCHEMA, hold_liveness, liveness_file, record_crashes, record_gap
from avyay.db_insert import Insert, Row, Value, insert_one_by_one, insert_rows, is_fault_of_a_row
from avyay.errors import AvyayError, DependencyError, InternalError, UnreachableError
from avyay.log import get_logger
from avyay.resilience.backoff import Backoff

__all__ = ["GroupCommitWriter", "WriterState"]


_RETRY = Backoff(base=0.1, cap=5.0, attempts=1_000_000)


@dataclass(frozen=True, slots=True)
class WriterState:
    """What a health check wants to know.

    Args:
        error: Why commits fail at present; None when all is well.
        backlog: Rows in memory.
        committed: Rows committed by this writer.
        rejected: Rows SQLite would not take (a broken constraint, an impossible value); each is logged.
        refused: Rows not accepted because the backlog was full.
    """

    error: AvyayError | None
    backlog: int
    committed: int
    rejected: int
    refused: int

    @property
    def healthy(self) -> bool:
        return self.error is None


class GroupCommitWriter:
    """The writer thread of one database file. Several processes may each have one on the same file.

    Args:
        path: The database; `token` names this writer's session in it.
        schemas: The tables written to; `WRITER_SCHEMA` is added.
        max_delay: Seconds a row waits for company before its commit begins.
        max_batch: Rows that make a commit begin at once, and the most one commit holds.
        capacity: Rows in memory before further ones are refused.
        synchronous: See `avyay.db.Synchronous`; NORMAL survives kill -9, FULL also a power cut.
        busy_timeout: Seconds one try waits for another writer of the file.
        tolerant: Start even when the disk is unreachable, full or read-only, and keep trying.
        clock: For the times in the markers.
        jitter: Random numbers in [0, 1) for the delays between retries.

    Raises:
        ConfigError, CorruptError: The file cannot be ours or is damaged.
        DependencyError: The disk does not let us, and not `tolerant`.
    """

    def __init__(
        self,
        path: Path,
        *schemas: Schema,
        max_delay: float = 0.02,
        max_batch: int = 4096,
        capacity: int = 100_000,
        synchronous: Synchronous = "NORMAL",
        busy_timeout: float = 1.0,
        tolerant: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.path = path
        self._schemas = (*schemas, WRITER_SCHEMA)
        self._max_delay, self._max_batch, self._capacity = max_delay, max_batch, capacity
        self._synchronous: Synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._clock, self._jitter = clock, jitter
        self._log = get_logger(__name__).bind(database=path.name)

        self._lock = threading.Lock()  # guards what follows, up to the blank line
        self._buffer: list[Row] = []
        self._appended = self._done = self._committed = self._rejected = self._refused = 0
        self._awake = False
        self._closing: float | None = None  # when to give up, on the monotonic clock
        self._error: AvyayError | None = None
        self._waiters: list[tuple[int, Future[None]]] = []

        self._wake, self._hurry = threading.Event(), threading.Event()
        self._gaps_recorded = (0, 0)
        self.token = secrets.token_hex(8)
        self._session: int | None = None
        self._database: Database | None = None
        self._inode: tuple[int, int] | None = None
        self._liveness: int | None = None
        try:
            self._connect()
        except DependencyError as error:
            if not tolerant:
                raise
            self._error = error
            self._awake = True  # try again at once, not with the first row
            self._wake.set()
        self._thread = threading.Thread(target=self._run, name=f"writer-{path.name}", daemon=True)
        self._thread.start()

    def append(self, insert: Insert, row: Sequence[Value]) -> int:
        """Hand over one row; never waits. Any thread.

        Returns:
            The row's place in this writer's sequence, for `state` and gaps.

        Raises:
            UnreachableError: The backlog is full (code "backlog_full"): the disk fails or is too slow. The row is not
                written; it is counted and will be recorded as a gap.
            ValueError: Not one value per column.
        """
        sequence = self._try_append(insert, row)
        if sequence is None:
            with self._lock:
                self._refused += 1
            raise self._full()
        return sequence

    async def append_async(self, insert: Insert, row: Sequence[Value], *, patience: float = 10.0) -> int:
        """`append` that waits up to `patience` seconds for room while the backlog is full."""
        deadline = time.monotonic() + patience
        while (sequence := self._try_append(insert, row)) is None:
            try:
                await asyncio.wait_for(asyncio.wrap_future(self._room()), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return self.append(insert, row)
        return sequence

    def append_blocking(self, insert: Insert, row: Sequence[Value], *, patience: float = 10.0) -> int:
        """`append` that blocks up to `patience` seconds for room while the backlog is full. Not for an event loop."""
        deadline = time.monotonic() + patience
        while (sequence := self._try_append(insert, row)) is None:
            try:
                self._room().result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return self.append(insert, row)
        return sequence

    def flush(self, patience: float = 10.0) -> None:
        """Block until all that was appended so far is committed (or rejected).

        Raises:
            UnreachableError: It could not be within `patience` seconds; it is still being tried.
        """
        try:
            self._when_done().result(patience)
        except TimeoutError:
            raise self._not_flushed(patience) from self._error

    async def flush_async(self, patience: float = 10.0) -> None:
        """`flush` for an event loop."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._when_done()), patience)
        except TimeoutError:
            raise self._not_flushed(patience) from self._error

    def state(self) -> WriterState:
        """A snapshot of how it does."""
        with self._lock:
            backlog = self._appended - self._done
            return WriterState(self._error, backlog, self._committed, self._rejected, self._refused)

    def close(self, patience: float = 10.0) -> None:
        """Commit all that is in memory, leave the clean marker, end the thread. Again: nothing.

        Raises:
            UnreachableError: Rows could not be written within `patience` seconds and are lost (code "rows_lost").
        """
        with self._lock:
            first = self._closing is None
            if first:
                self._closing = time.monotonic() + patience
        self._wake.set()
        self._hurry.set()
        self._thread.join()
        lost = self._appended - self._done
        if first and lost:
            raise UnreachableError(
                f"{lost} rows could not be written to {self.path}",
                hint=self._error.hint if self._error else None,
                code="rows_lost",
            ) from self._error

    def __enter__(self) -> GroupCommitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What follows runs on the writer's thread.

    def _run(self) -> None:
        failures = 0
        batch: list[Row] = []
        while True:
            if not batch:
                self._wake.wait()
                self._hurry.wait(self._max_delay)
                batch = self._take()
            closing = self._closing
            try:
                self._commit(batch, final=closing is not None)
            except Exception as error:  # noqa: BLE001 - whatever it is, the daemon lives on and health reports it
                failures += 1
                self._fail(error, failures)
                if not self._pause(_RETRY.delay(failures, self._jitter) or 0.0):
                    break
                continue
            failures = 0
            batch = []
            if closing is not None and self._appended == self._done:
                break
        self._disconnect(clean=self._appended == self._done)
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for _, future in waiters:
            _resolve(future, UnreachableError("the writer was closed before the rows were written", code="rows_lost"))

    def _pause(self, delay: float) -> bool:
        """Wait before the next try; False when `close` has no patience left."""
        self._hurry.clear()
        if self._closing is None:
            self._hurry.wait(delay)
            return True
        left = self._closing - time.monotonic()
        time.sleep(max(0.0, min(delay, 0.2, left)))
        return left > 0

    def _take(self) -> list[Row]:
        with self._lock:
            batch = self._buffer[: self._max_batch]
            self._buffer = self._buffer[self._max_batch :]
            if len(self._buffer) < self._max_batch and self._closing is None:
                self._hurry.clear()
            if not self._buffer and self._closing is None:
                self._awake = False
                self._wake.clear()
        return batch

    def _commit(self, batch: list[Row], *, final: bool) -> None:
        self._check_file()
        database = self._database or self._connect()
        rejected = 0
        try:
            with database.transaction():
                database.execute("PRAGMA defer_foreign_keys = ON")
                insert_rows(database, batch)
                marked = self._mark(database, len(batch), 0, final=final)
        except (AvyayError, ValueError, OverflowError) as error:
            if not is_fault_of_a_row(error):
                raise
            with database.transaction():
                rejected, reason = insert_one_by_one(database, batch)
                marked = self._mark(database, len(batch), rejected, final=final)
            if rejected:
                self._log.error("rows_rejected", rows=rejected, last_reason=reason)
        self._gaps_recorded = marked
        self._finish(len(batch), rejected)

    def _mark(self, database: Database, rows: int, rejected: int, *, final: bool) -> tuple[int, int]:
        """The writer's marker and any gap, in the same transaction as the rows."""
        now = self._clock.now()
        with self._lock:
            last = final and self._appended - self._done <= rows
            counts = (self._refused, self._rejected + rejected)
        for kind, count, recorded in zip(("refused", "rejected"), counts, self._gaps_recorded, strict=True):
            if count > recorded:
                record_gap(database, self._session, kind, self._done, now, count - recorded)
        database.execute(
            "UPDATE writer_sessions SET sequence = ?, committed_at = ?, closed_at = ? WHERE id = ?",
            (self._done + rows, now, now if last else None, self._session),
        )
        return counts

    def _finish(self, rows: int, rejected: int) -> None:
        with self._lock:
            self._done += rows
            self._committed += rows - rejected
            self._rejected += rejected
            recovered, self._error = self._error is not None, None
            ready = [future for target, future in self._waiters if target <= self._done]
            self._waiters = [(target, future) for target, future in self._waiters if target > self._done]
            backlog = self._appended - self._done
        if recovered:
            self._log.warning("writer_recovered", backlog=backlog)
        for future in ready:
            _resolve(future, None)

    def _fail(self, error: Exception, failures: int) -> None:
        if isinstance(error, sqlite3.Error):
            error = database_error(error, self.path)
        shown = error if isinstance(error, AvyayError) else InternalError(f"{type(error).__name__}: {error}")
        with self._lock:
            self._error = shown
        if failures == 1:
            self._log.error("writer_failing", code=shown.code, reason=str(shown), backlog=self._appended - self._done)
        self._close_database()

    def _check_file(self) -> None:
        """A file deleted or replaced under us would take rows that nobody ever sees."""
        if self._database is not None:
            try:
                stat = self.path.stat()
                same = (stat.st_dev, stat.st_ino) == self._inode
            except OSError:
                same = False
            if not same:
                self._close_database()

    def _connect(self) -> Database:
        database = open_database(
            self.path,
            *self._schemas,
            synchronous=self._synchronous,
            busy_timeout=self._busy_timeout,
            check_same_thread=False,
        )
        try:
            if self._liveness is None:
                self._liveness = hold_liveness(liveness_file(self.path, self.token))
            now = self._clock.now()
            with database.transaction():
                for session, sequence in record_crashes(database, self.path, now):
                    self._log.warning("gap_found", session=session, after_sequence=sequence)
                database.execute(
                    "INSERT INTO writer_sessions (token, opened_at) VALUES (?, ?) ON CONFLICT (token) DO NOTHING",
                    (self.token, now),
                )
                row = database.execute("SELECT id FROM writer_sessions WHERE token = ?", (self.token,)).fetchone()
                self._session = int(row[0])
            stat = self.path.stat()
            self._inode = (stat.st_dev, stat.st_ino)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _disconnect(self, *, clean: bool) -> None:
        self._close_database()
        if self._liveness is not None:
            # Left behind, and unlocked, it tells the next open that this writer did not finish.
            if clean:
                liveness_file(self.path, self.token).unlink(missing_ok=True)
            os.close(self._liveness)
            self._liveness = None

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            try:
                database.close()
            except sqlite3.Error as error:
                self._log.warning("close_failed", reason=str(error))

    # What follows runs on the producers' threads.

    def _when_done(self) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            if self._done >= self._appended:
                future.set_result(None)
            else:
                self._waiters.append((self._appended, future))
        self._hurry.set()
        return future

    def _try_append(self, insert: Insert, row: Sequence[Value]) -> int | None:
        if len(row) != len(insert.columns):
            raise ValueError(f"{insert.table} takes {len(insert.columns)} values, not {len(row)}")
        with self._lock:
            if self._closing is not None:
                raise InternalError("the writer is closed", code="writer_closed")
            if self._appended - self._done >= self._capacity:
                return None
            self._buffer.append((insert, row))
            self._appended += 1
            sequence, asleep = self._appended, not self._awake
            self._awake = True
            hurry = len(self._buffer) == self._max_batch
        if asleep:
            self._wake.set()
        if hurry:
            self._hurry.set()
        return sequence

    def _room(self) -> Future[None]:
        """Done when there is room for a row, or was just now."""
        future: Future[None] = Future()
        with self._lock:
            if self._appended - self._done < self._capacity:
                future.set_result(None)
            else:
                self._waiters.append((self._done + 1, future))
        return future

    def _full(self) -> UnreachableError:
        error = self._error
        full = UnreachableError(
            f"{self._capacity} rows wait to be written to {self.path}",
            hint=error.hint if error else "the disk is too slow for this traffic",
            code="backlog_full",
        )
        full.__cause__ = error
        return full

    def _not_flushed(self, patience: float) -> UnreachableError:
        state = self.state()
        return UnreachableError(
            f"{state.backlog} rows are not yet written to {self.path} after {patience:g} s",
            hint=state.error.hint if state.error else "the disk is slow; try again",
            code="not_flushed",
        )


def _resolve(future: Future[None], error: AvyayError | None) -> None:
    if future.set_running_or_notify_cancel():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
