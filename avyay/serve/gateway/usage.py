"""What the gateway counts: requests and errors per key, endpoint and day. Tokens and money are the router's alone.

Every request is a row, written in groups off the hot path; a trigger adds it to its day's totals, so the two cannot
disagree. Rows are kept for some weeks, to be compared with the router's ledger by decision id; totals stay.

A row is *acknowledged* with the last byte of its answer: before that byte leaves, a line stands in a spool that
survives the process (`avyay.db_journal`). What a killed process left there is taken over, once, by another worker or by
whoever opens the database next; a request that was under way becomes a row with status 500.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Migration, Schema, open_database
from avyay.db_insert import Insert, Value
from avyay.db_journal import Journal, JournalTable, try_take_over
from avyay.db_writer import WriterState
from avyay.errors import AvyayError
from avyay.log import get_logger

__all__ = ["UsageJournal", "UsageReader", "UsageRow", "day_of", "recover"]

USAGE_SCHEMA = Schema(
    "usage",
    (
        Migration(
            "0001_usage",
            """
            CREATE TABLE requests (
                at REAL NOT NULL,
                day TEXT NOT NULL,
                key TEXT NOT NULL,
                endpoint TEXT NOT NULL,
                status INTEGER NOT NULL,  -- 499: the caller went before the answer was over
                error INTEGER NOT NULL,
                decision TEXT,  -- the router's id, where it decided something
                seconds REAL NOT NULL
            ) STRICT;
            CREATE INDEX requests_at ON requests (at);
            CREATE TABLE days (
                day TEXT NOT NULL,
                key TEXT NOT NULL,
                endpoint TEXT NOT NULL,
                requests INTEGER NOT NULL,
                errors INTEGER NOT NULL,
                decided INTEGER NOT NULL,
                PRIMARY KEY (day, key, endpoint)
            ) STRICT, WITHOUT ROWID;
            """,
        ),
        Migration(
            "0002_totals",
            # A function, because the statement holds semicolons of its own.
            lambda database: _add_trigger(database),
        ),
    ),
)
_COLUMNS = ("at", "day", "key", "endpoint", "status", "error", "decision", "seconds")
_INSERT = Insert("requests", _COLUMNS)
_PRUNED_AT_ONCE = 5_000


def _add_trigger(database: Any) -> None:
    database.execute(
        """
        CREATE TRIGGER requests_total AFTER INSERT ON requests BEGIN
            INSERT INTO days (day, key, endpoint, requests, errors, decided)
            VALUES (new.day, new.key, new.endpoint, 1, new.error, new.decision IS NOT NULL)
            ON CONFLICT (day, key, endpoint) DO UPDATE SET
                requests = requests + 1,
                errors = errors + excluded.errors,
                decided = decided + excluded.decided;
        END
        """
    )


@dataclass(frozen=True, slots=True)
class UsageRow:
    """A day's total of a key at an endpoint. `decided` are those the router has a decision for."""

    day: str
    key: str
    endpoint: str
    requests: int
    errors: int
    decided: int


@lru_cache(maxsize=8)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86_400, UTC).strftime("%Y-%m-%d")


def day_of(at: float) -> str:
    """The day of a time, in UTC."""
    return _day(int(at // 86_400))


def _unfinished(begun: Sequence[Any], answered: Sequence[Any] | None, now: float) -> list[Value]:
    """The row of a request whose answer a killed process did not end."""
    at, key, endpoint = begun
    return [at, day_of(at), key, endpoint, 500, 1, answered[0] if answered else None, max(0.0, now - at)]


_TABLE = JournalTable(USAGE_SCHEMA, _INSERT, _unfinished)


class UsageJournal:
    """Writes what happened, without ever keeping a request waiting."""

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self._journal = Journal(path, _TABLE, clock)
        self._log = get_logger("gateway")
        self.refused = 0

    @property
    def unspooled(self) -> int:
        """Lines that did not get into the spool: a `kill -9` could have lost them."""
        return self._journal.unspooled

    def begin(self, at: float, key: str, endpoint: str) -> int:
        """A request goes to a component; a number for `answered` and `add`."""
        return self._journal.begin((at, key, endpoint))

    def answered(self, number: int, decision: str | None) -> None:
        """The answer to it has begun, and is not over."""
        self._journal.note(number, (decision,))

    def add(
        self, at: float, key: str, endpoint: str, status: int, decision: str | None, seconds: float, number: int = 0
    ) -> None:
        """A request is over. A disk that fails does not fail the request: what did not fit is counted."""
        try:
            self._journal.add((at, day_of(at), key, endpoint, status, int(status >= 400), decision, seconds), number)
        except AvyayError as error:
            self.refused += 1
            self._log.error("usage_not_recorded", error=error.message)

    def state(self) -> WriterState:
        """How its disk does."""
        return self._journal.state()

    def flush(self) -> None:
        """Wait until all of it is committed."""
        self._journal.flush()

    def close(self) -> None:
        """Commit what is in memory, and what killed workers have left.

        Raises:
            UnreachableError: it could not be; the next start finds it in the spool.
        """
        self._journal.close()


def recover(path: Path, now: float) -> None:
    """Write what killed processes have left. What fails is said, and tried next time."""
    try_take_over(path, _TABLE, now)


class UsageReader:
    """Reads what was counted."""

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        recover(path, clock.now())
        self._database: Database = open_database(path, USAGE_SCHEMA, check_same_thread=False)

    def close(self) -> None:
        self._database.close()

    def days(self, *, since: str, key: str | None = None) -> list[UsageRow]:
        """Totals from a day on, newest first."""
        with self._database.errors():
            rows = self._database.execute(
                "SELECT day, key, endpoint, requests, errors, decided FROM days"
                " WHERE day >= ?1 AND (?2 IS NULL OR key = ?2) ORDER BY day DESC, key, endpoint",
                (since, key),
            )
            return [UsageRow(*row) for row in rows]

    def decisions(self, *, since: float, until: float, key: str | None = None) -> Iterator[tuple[str, str, float]]:
        """(decision, key, when it began) of requests that began in a span, by decision."""
        with self._database.errors():
            yield from self._database.execute(
                "SELECT decision, key, at FROM requests WHERE at >= ?1 AND at < ?2 AND decision IS NOT NULL"
                " AND (?3 IS NULL OR key = ?3) ORDER BY decision",
                (since, until, key),
            )

    def gone(self, *, since: float, until: float) -> dict[str, int]:
        """Requests to the router that ended without an answer, by key."""
        with self._database.errors():
            rows = self._database.execute(
                "SELECT key, count(*) FROM requests WHERE at >= ? AND at < ? AND decision IS NULL"
                " AND status IN (499, 500, 502, 504) AND endpoint LIKE 'marga:%' GROUP BY key",
                (since, until),
            )
            return dict(rows.fetchall())

    def prune(self, before: float) -> int:
        """Forget single requests older than a time; totals stay."""
        gone = 0
        while True:
            with self._database.transaction() as database:
                done = database.execute(
                    "DELETE FROM requests WHERE rowid IN (SELECT rowid FROM requests WHERE at < ? LIMIT ?)",
                    (before, _PRUNED_AT_ONCE),
                ).rowcount
            gone += done
            if done < _PRUNED_AT_ONCE:
                return gone
