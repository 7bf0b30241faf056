"""Rows into a table: one statement for many of them, and whether a row or the disk is to blame for an error."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal, TypeAlias

from avyay.db import Database
from avyay.errors import AvyayError

__all__ = ["Insert", "Row", "Value", "insert_one_by_one", "insert_rows", "is_fault_of_a_row"]

Value: TypeAlias = str | bytes | int | float | None

# Rows per INSERT statement; what does not fill one is padded. Every statement makes the thread give up the interpreter
# lock about four times, and beside a busy event loop each time costs up to a switch interval (5 ms) to get it back: one
# statement per table and commit keeps the delay of a row within tens of milliseconds there. Steps are small because the
# padding is bound and scanned like any row, and end early because SQLite keeps about 100 bytes a variable of each.
_CHUNKS = (8, 16, 24, 32, 48, 64, 96, 128)
_MOST_VARIABLES = 30_000
# Troubles of the disk or of a neighbour, which may pass; every other error is the fault of a row.
_PASSING = frozenset(
    (
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT,
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Insert:
    """Where rows go: `Insert("calls", ("id", "model", "cost"))`. Make one per table and keep it.

    Args:
        table: A constant of the program, never user input, like the columns.
        columns: In the order of each row's values.
        conflict: What happens to a row that breaks a UNIQUE constraint: "ABORT" rejects that row alone.
    """

    table: str
    columns: tuple[str, ...]
    conflict: Literal["ABORT", "IGNORE", "REPLACE"] = "ABORT"

    def sql(self) -> str:
        """The statement for one row."""
        return f"{self._into()} VALUES ({', '.join('?' * len(self.columns))})"

    def sql_many(self, rows: int) -> str:
        """The statement for up to so many rows: their values, padding, and last the number of rows that are real."""
        # LIMIT, because SQLite compiles a statement anew each time a value in its WHERE is bound.
        row = f"({', '.join('?' * len(self.columns))})"
        return f"{self._into()} SELECT * FROM (VALUES {', '.join([row] * rows)}) LIMIT ?"  # noqa: S608 - constants

    def _into(self) -> str:
        return f"INSERT OR {self.conflict} INTO {self.table} ({', '.join(self.columns)})"


_sql_many = lru_cache(maxsize=64)(Insert.sql_many)


Row: TypeAlias = tuple[Insert, Sequence[Value]]


def insert_rows(database: Database, batch: Iterable[Row]) -> None:
    """Insert rows, grouped by table (which may put a child before its parent); inside the caller's transaction."""
    groups: dict[Insert, list[Sequence[Value]]] = {}
    for insert, row in batch:
        groups.setdefault(insert, []).append(row)
    for insert, rows in groups.items():
        _insert(database, insert, rows)


def insert_one_by_one(database: Database, batch: Iterable[Row]) -> tuple[int, str]:
    """Insert what is possible and leave the rest out; how many those were, and what the last one lacked.

    Raises:
        sqlite3.Error: no row is to blame.
    """
    rejected, reason = 0, ""
    for insert, row in batch:
        database.execute("SAVEPOINT one_row")
        try:
            database.execute(insert.sql(), row)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            if not is_fault_of_a_row(error):
                raise
            database.execute("ROLLBACK TO one_row")
            rejected += 1
            reason = f"{insert.table}: {error}"
        database.execute("RELEASE one_row")
    return rejected, reason


def _insert(database: Database, insert: Insert, rows: list[Sequence[Value]]) -> None:
    width = len(insert.columns)
    largest = max((size for size in _CHUNKS if size * width <= _MOST_VARIABLES), default=1)
    for at in range(0, len(rows), largest):
        part = rows[at : at + largest]
        if len(part) == 1:
            database.execute(insert.sql(), part[0])
            continue
        size = next(size for size in (*_CHUNKS, largest) if size >= len(part))
        values = list(chain.from_iterable(part))
        values += [0] * ((size - len(part)) * width)  # binding None costs several times as much
        values.append(len(part))
        database.execute(_sql_many(insert, size), values)


def is_fault_of_a_row(error: BaseException | None) -> bool:
    """Whether SQLite or Python would not take a row: anything else may pass."""
    if isinstance(error, AvyayError):
        error = error.__cause__
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return code is None or code & 0xFF not in _PASSING
    # What Python refuses to bind: an integer beyond 64 bits, a lone surrogate.
    return isinstance(error, ValueError | OverflowError)
