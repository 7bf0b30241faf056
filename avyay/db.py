"""The one place that opens SQLite: WAL, busy timeout, foreign keys, migrations, errors with a remedy.

A component describes its tables as a `Schema` and opens its own file with it. Several schemas may share one file (a
component's tables, the kernel's ledger, the group-commit writer's marker): each is versioned by its own name.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from avyay.errors import (
    AvyayError,
    ConfigError,
    CorruptError,
    DependencyError,
    InternalError,
    UnreachableError,
)
from avyay.lock_holder import sqlite_writer

if TYPE_CHECKING:
    import aiosqlite

__all__ = [
    "Database",
    "Migration",
    "Schema",
    "Synchronous",
    "database_error",
    "integrity_problems",
    "open_async_database",
    "open_database",
]

Synchronous = Literal["OFF", "NORMAL", "FULL", "EXTRA"]
"""What a commit survives: NORMAL the death of the process, FULL also a power cut (about 30 times slower)."""

BUSY_TIMEOUT = 5.0
_RECORD = "avyay_migrations"
_create_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a schema. Once released it never changes: a correction is a new step.

    Args:
        name: Unique in its schema, such as "0002_add_tier".
        apply: SQL (any number of statements), or a function given the connection inside the open transaction.
            It must not begin, commit or roll back.
    """

    name: str
    apply: str | Callable[[sqlite3.Connection], None]


@dataclass(frozen=True, slots=True)
class Schema:
    """Named, ordered migrations: `Schema("marga", (Migration("0001_calls", "CREATE TABLE ..."),))`."""

    name: str
    migrations: tuple[Migration, ...]

    def __post_init__(self) -> None:
        names = [migration.name for migration in self.migrations]
        if len(set(names)) != len(names):
            raise ValueError(f"schema {self.name} has two migrations of one name")


class Database(sqlite3.Connection):
    """A connection in autocommit mode that knows its file; write through `transaction()`."""

    path: Path = Path()

    @contextmanager
    def transaction(self, *, immediate: bool = True) -> Iterator[Database]:
        """All or nothing; commits at the end of the block and rolls back on any exception.

        Args:
            immediate: Take the write lock at once (BEGIN IMMEDIATE), so that what is read in the block cannot change
                before what is written. False gives a consistent snapshot for reading.

        Raises:
            AvyayError: What SQLite reports, as `database_error` words it.
        """
        try:
            self.execute("BEGIN IMMEDIATE" if immediate else "BEGIN DEFERRED")
            try:
                yield self
                self.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back on some errors (a full disk); a second ROLLBACK would hide the first.
                if self.in_transaction:
                    self.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise database_error(error, self.path) from error

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn a `sqlite3.Error` raised in the block into an `AvyayError`."""
        try:
            yield
        except sqlite3.Error as error:
            raise database_error(error, self.path) from error


def open_database(
    path: Path,
    *schemas: Schema,
    synchronous: Synchronous = "NORMAL",
    busy_timeout: float = BUSY_TIMEOUT,
    read_only: bool = False,
    check_same_thread: bool = True,
    page_size: int | None = None,
) -> Database:
    """Open (and unless `read_only` create and migrate) a database file.

    Missing parent directories are made with mode 0700 and the file with 0600. All pending migrations of all schemas
    are applied in one transaction: either the file ends up current or it stays as it was.

    Args:
        path: The file. It must be on a local disk: WAL needs shared memory.
        schemas: The tables the caller relies on. Other schemas found in the file are left alone.
        synchronous: See `Synchronous`.
        busy_timeout: Seconds to wait for another writer before giving up.
        read_only: Never create, migrate or write.
        check_same_thread: As in `sqlite3.connect`; pass False only when the caller holds a lock of its own.
        page_size: Bytes, for a file that is new; one that is there keeps its own. By default SQLite's.

    Raises:
        ConfigError: The file was written by a newer avyay, or is somebody else's database.
        CorruptError: The file is not a database, is damaged, or its recorded migrations are not ours.
        DependencyError: It cannot be created or written, the disk is full, or it is missing and `read_only`.
        UnreachableError: It stayed locked for `busy_timeout`, or the disk fails.
    """
    database: Database | None = None
    try:
        if read_only:
            if not path.is_file():
                raise DependencyError(
                    f"there is no database at {path}", hint="run the command that writes it first", code="no_database"
                )
        else:
            _create_file(path)
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
            timeout=busy_timeout,
            isolation_level=None,
            uri=True,
            factory=Database,
            check_same_thread=check_same_thread,
        )
        database.path = path
        database.execute("PRAGMA foreign_keys = ON")
        if not read_only:
            if page_size is not None:
                # avyay: ignore[sql-injection] a PRAGMA takes no parameters, and this is an int
                database.execute(f"PRAGMA page_size = {page_size}")
            _enter_wal(database, busy_timeout)
        database.execute(f"PRAGMA synchronous = {synchronous}")
        _migrate(database, schemas, read_only=read_only)
    except BaseException as error:
        if database is not None:
            database.close()
        if isinstance(error, sqlite3.Error):
            raise database_error(error, path) from error
        raise
    return database


def open_async_database(
    path: Path,
    *schemas: Schema,
    synchronous: Synchronous = "NORMAL",
    busy_timeout: float = BUSY_TIMEOUT,
    read_only: bool = False,
) -> aiosqlite.Connection:
    """`open_database` for asyncio: use as `async with open_async_database(...) as connection` (or await it).

    For convenience at small rates; what must keep up with traffic goes through `avyay.db_writer`.
    """
    import aiosqlite

    connector = partial(
        open_database,
        path,
        *schemas,
        synchronous=synchronous,
        busy_timeout=busy_timeout,
        read_only=read_only,
        check_same_thread=False,
    )
    return aiosqlite.Connection(connector, iter_chunk_size=64)


def integrity_problems(database: Database) -> list[str]:
    """What SQLite's own check finds wrong: empty when the file is sound. Reads the whole file."""
    with database.errors():
        found = [str(row[0]) for row in database.execute("PRAGMA quick_check(20)")]
        found += [f"{row[0]} row {row[1]} refers to a missing {row[2]}" for row in _broken_references(database)]
    return [line for line in found if line != "ok"]


def database_error(error: sqlite3.Error, path: Path) -> AvyayError:
    """Word what SQLite reports so that the user knows what to do; the file's content is never quoted."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    match primary:
        case sqlite3.SQLITE_FULL:
            return DependencyError(
                f"the disk is full: nothing was written to {path}",
                hint="free some space and try again",
                code="disk_full",
            )
        case sqlite3.SQLITE_READONLY:
            return _not_writable(path)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return DependencyError(
                f"cannot open the database {path}",
                hint="check that its folder exists and is yours, or set AVYAY_HOME to one that is",
                code="database_unopenable",
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            holder = sqlite_writer(path)
            return UnreachableError(
                f"the database {path} is locked by {holder or 'another process'}",
                hint=holder.remedy if holder else "wait for it to finish, or stop it, and try again",
                code="database_busy",
            )
        case sqlite3.SQLITE_IOERR:
            return UnreachableError(
                f"the disk under {path} fails ({getattr(error, 'sqlite_errorname', 'SQLITE_IOERR')})",
                hint="check the disk, and that the folder still exists",
                code="disk_error",
            )
        case sqlite3.SQLITE_NOTADB:
            return CorruptError(
                f"{path} is not a database",
                hint=f"move it away (mv {path} {path}.bad) and try again",
                code="not_a_database",
            )
        case sqlite3.SQLITE_CORRUPT:
            return CorruptError(
                f"the database {path} is damaged",
                hint=f'restore it from a backup, or save what is readable: sqlite3 {path} ".recover"',
                code="database_damaged",
            )
        case _:
            return InternalError(f"{path}: {error}", code="database")


def _not_writable(path: Path) -> DependencyError:
    return DependencyError(
        f"{path} cannot be written",
        hint="make the file and its folder writable, or set AVYAY_HOME to a folder that is",
        code="database_read_only",
    )


def _create_file(path: Path) -> None:
    """Make the file private before SQLite fills it: its -wal and -shm take over the mode."""
    # One lock for all: closing a descriptor of a file drops this process's POSIX locks on it, so no other thread may
    # have the file open in SQLite between our open and close.
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _create_lock:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
                    raise _not_writable(path) from None
    except OSError as error:
        raise DependencyError(
            f"cannot create {path}: {error.strerror}",
            hint="make its folder writable, free some space, or set AVYAY_HOME to a folder that is yours",
            code="database_uncreatable",
        ) from error


def _enter_wal(database: Database, patience: float) -> None:
    # Two processes opening a new file at once meet here, and SQLite answers "locked" without its usual waiting.
    deadline = time.monotonic() + patience
    while True:
        try:
            (mode,) = database.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        raise DependencyError(
            f"the file system under {database.path} has no shared memory for write-ahead logging",
            hint="set AVYAY_HOME to a folder on a local disk",
            code="database_needs_local_disk",
        )


def _migrate(database: Database, schemas: Sequence[Schema], *, read_only: bool) -> None:
    if not _pending(database, schemas):
        return
    if read_only:
        raise ConfigError(
            f"{database.path} was written by an older avyay",
            hint="run a command that writes to it once, to bring it up to date",
            code="schema_older",
        )
    # SQLite's documented way to rebuild tables: references are off meanwhile and checked before the commit.
    database.execute("PRAGMA foreign_keys = OFF")
    with database.transaction():
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {_RECORD} (schema TEXT NOT NULL, position INTEGER NOT NULL,"
            " name TEXT NOT NULL, applied_at INTEGER NOT NULL DEFAULT (CAST(strftime('%s', 'now') AS INTEGER)),"
            " PRIMARY KEY (schema, position)) WITHOUT ROWID"
        )
        # Read again under the write lock: another process may have migrated since.
        for schema, position, migration in _pending(database, schemas):
            _apply(database, migration)
            database.execute(
                f"INSERT INTO {_RECORD} (schema, position, name) VALUES (?, ?, ?)",  # noqa: S608 - a constant name
                (schema.name, position, migration.name),
            )
        if broken := _broken_references(database):
            raise InternalError(
                f"migrating {database.path} would leave {len(broken)} broken references", code="migration"
            )
    database.execute("PRAGMA foreign_keys = ON")


def _pending(database: Database, schemas: Sequence[Schema]) -> list[tuple[Schema, int, Migration]]:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if _RECORD not in tables:
        if tables:
            raise ConfigError(
                f"{database.path} is a database that avyay did not make",
                hint="name another file, or set AVYAY_HOME to a folder of its own",
                code="foreign_database",
            )
        return [(schema, i, migration) for schema in schemas for i, migration in enumerate(schema.migrations)]
    pending = []
    for schema in schemas:
        query = f"SELECT name FROM {_RECORD} WHERE schema = ? ORDER BY position"  # noqa: S608 - a constant name
        applied = [name for (name,) in database.execute(query, (schema.name,))]
        known = [migration.name for migration in schema.migrations]
        if applied[: len(known)] != known[: len(applied)]:
            raise CorruptError(
                f"{database.path} records migrations of {schema.name} that this avyay does not know",
                hint="it belongs to another branch or program: move it away, or set AVYAY_HOME to another folder",
                code="schema_diverged",
            )
        if len(applied) > len(known):
            raise ConfigError(
                f"{database.path} was written by a newer avyay ({schema.name} is at {applied[-1]})",
                hint="upgrade avyay (pip install -U avyay), or set AVYAY_HOME to another folder",
                code="schema_newer",
            )
        pending += [(schema, i, schema.migrations[i]) for i in range(len(applied), len(known))]
    return pending


def _apply(database: Database, migration: Migration) -> None:
    if callable(migration.apply):
        migration.apply(database)
    else:
        # executescript() would commit the open transaction first.
        for statement in _statements(migration.apply):
            database.execute(statement)


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        # A semicolon inside a string, a comment or a trigger's body does not complete the statement.
        if sqlite3.complete_statement(statement):
            if statement.strip(" \t\r\n;"):
                yield statement
            statement = ""
    if statement.strip(" \t\r\n;"):
        yield statement


def _broken_references(database: Database) -> list[tuple[str, int, str]]:
    return [(row[0], row[1], row[2]) for row in database.execute("PRAGMA foreign_key_check")]
