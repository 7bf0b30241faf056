"""Where the queue keeps its rows: SQLite on one machine, PostgreSQL by URL for several. Same statements, same tests.

SQLite has one writer at a time, so a transaction sees nothing change. PostgreSQL runs writers side by side: rows that
are read in order to be written are locked, a claim skips rows that another claim holds, and what looks at more than one
task (dependencies, overlapping files) takes a lock of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from avyay.db import open_database
from avyay.engine.schema import POSTGRES_SCHEMA, SCHEMA
from avyay.lock_holder import sqlite_writer
from avyay.postgres import IDLE_TIMEOUT_MS, PostgresDatabase, is_postgres_url

__all__ = ["QueueDatabase", "Rows", "open_queue_database"]

Scope = Literal["graph", "files"]
_LOCKS: dict[Scope, int] = {"graph": 1, "files": 2}
_HISTORY = 3


class Rows(Protocol):
    """The answer to a statement."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class QueueDatabase(Protocol):
    """What the queue asks of a database."""

    @property
    def for_update(self) -> str:
        """Ends a SELECT whose rows must stay as they are until the transaction ends."""
        ...

    @property
    def skip_locked(self) -> str:
        """The same, and rows that others hold are left out."""
        ...

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Rows: ...

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None: ...

    def append(self, statement: str, values: Sequence[Any]) -> int:
        """INSERT one row into a table that numbers its rows; returns its `number`."""
        ...

    def transaction(self, scope: Scope | None = None) -> AbstractContextManager[QueueDatabase]:
        """All or nothing; `scope` is what nobody else may change meanwhile."""
        ...

    def guard(self, scope: Scope) -> None:
        """Let nobody else change this until the open transaction ends."""
        ...

    def whole_history(self) -> AbstractContextManager[QueueDatabase]:
        """To read history in: no line with a lower number than those that are there can still appear."""
        ...

    def problems(self) -> list[str]:
        """What the database's own check finds wrong."""
        ...

    def stuck(self) -> tuple[str, str] | None:
        """Who keeps all others from writing and does nothing, and what to do about it; None when nobody is known to."""
        ...

    def close(self) -> None: ...


class SqliteQueue:
    """A file, synchronous=FULL: what was acknowledged survives a power cut."""

    for_update = ""
    skip_locked = ""
    busy_timeout: ClassVar[float] = 30.0
    """Seconds to wait for somebody who writes."""
    page_size: ClassVar[int] = 2048
    """Bytes. A change writes three small rows, each with all of its page: half the page is half of what is written."""

    def __init__(self, path: Path) -> None:
        self._db = open_database(
            path, SCHEMA, synchronous="FULL", busy_timeout=self.busy_timeout, page_size=self.page_size
        )
        self.execute: Callable[..., Rows] = self._db.execute  # as it is: this is called a dozen times a task

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        self._db.executemany(statement, rows)

    def append(self, statement: str, values: Sequence[Any]) -> int:
        return int(self._db.execute(statement, values).lastrowid or 0)  # RETURNING would cost as much as the rest

    @contextmanager
    def transaction(self, scope: Scope | None = None) -> Iterator[SqliteQueue]:
        with self._db.transaction():
            yield self

    def guard(self, scope: Scope) -> None:
        """Nothing to do: there is one writer at a time."""

    @contextmanager
    def whole_history(self) -> Iterator[SqliteQueue]:
        yield self

    def problems(self) -> list[str]:
        from avyay.db import integrity_problems

        return integrity_problems(self._db)

    def stuck(self) -> tuple[str, str] | None:
        holder = sqlite_writer(self._db.path)
        return (f"{holder} holds {self._db.path}", holder.remedy) if holder is not None and holder.stopped else None

    def close(self) -> None:
        self._db.close()


class PostgresQueue:
    """A database that several dispatchers share."""

    for_update = " FOR UPDATE"
    skip_locked = " FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str) -> None:
        self._db = PostgresDatabase(url, POSTGRES_SCHEMA)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Rows:
        return self._db.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        self._db.executemany(statement, rows)

    def append(self, statement: str, values: Sequence[Any]) -> int:
        (row,) = self._db.execute(f"{statement} RETURNING number", values).fetchall()
        return int(row[0])

    @contextmanager
    def transaction(self, scope: Scope | None = None) -> Iterator[PostgresQueue]:
        with self._db.transaction():
            # Transactions may commit in another order than their lines of history took their numbers in. So each
            # shares a lock, always its first, that a reader of the whole history takes alone.
            self._db.lock(_HISTORY, shared=True)
            if scope is not None:
                self.guard(scope)
            yield self

    def guard(self, scope: Scope) -> None:
        self._db.lock(_LOCKS[scope])

    @contextmanager
    def whole_history(self) -> Iterator[PostgresQueue]:
        with self._db.transaction():
            self._db.lock(_HISTORY)
            yield self

    def problems(self) -> list[str]:
        return []  # checksums and constraints are the server's own affair

    def stuck(self) -> tuple[str, str] | None:
        row = self._db.execute(
            "SELECT pid, coalesce(host(client_addr), 'a local socket'),"
            " extract(epoch FROM now() - state_change)::BIGINT FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'avyay'"
            " AND state = 'idle in transaction' AND now() - state_change > interval '5 s' ORDER BY state_change LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        pid, client, seconds = row
        limit = IDLE_TIMEOUT_MS // 1000
        return (
            f"session {pid} of {client} has left a transaction open for {seconds} s",
            f"The server ends it after {limit} s; or at once: SELECT pg_terminate_backend({pid})",
        )

    def close(self) -> None:
        self._db.close()


def open_queue_database(place: Path | str) -> QueueDatabase:
    """The queue's database: a file, or a PostgreSQL URL.

    Raises:
        AvyayError: it cannot be opened; see `avyay.db` and `avyay.postgres`.
    """
    if isinstance(place, str) and is_postgres_url(place):
        return PostgresQueue(place)
    return SqliteQueue(Path(place))
