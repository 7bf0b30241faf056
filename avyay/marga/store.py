"""The router's own database: one row for every call, with its decision, its attempts and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson

from avyay.db import Database, Migration, Schema, open_database
from avyay.db_insert import Insert
from avyay.errors import UsageError
from avyay.marga.types import BegunCall, CallRecord
from avyay.money import Picodollars
from avyay.ports import Bill

__all__ = [
    "CALL_COLUMNS",
    "GROUPINGS",
    "INSERT_CALL",
    "MARGA_SCHEMA",
    "CallStore",
    "Grouping",
    "MemoryStore",
    "SpendDay",
    "SqliteStore",
    "StatRow",
    "UsageTotal",
    "call_row",
    "row_of",
]

Grouping = Literal[
    "model", "provider", "tier", "key", "service", "customer", "session", "class", "status", "cache", "day", "hour"
]
GROUPINGS: Mapping[str, str] = {
    "model": "CASE WHEN model = '' THEN 'nobody' ELSE provider || '/' || model END",
    "provider": "CASE WHEN provider = '' THEN 'nobody' ELSE provider END",
    "tier": "tier",
    "key": "key",
    "service": "service",
    "customer": "customer",
    "session": "session",
    "class": "request_class",
    "status": "status",
    "cache": "coalesce(cache, 'none')",
    "day": "strftime('%Y-%m-%d', at, 'unixepoch')",  # UTC
    "hour": "strftime('%Y-%m-%d %H:00', at, 'unixepoch')",
}

MARGA_SCHEMA = Schema(
    "marga",
    (
        Migration(
            "0001_calls",
            """
            CREATE TABLE calls (
                id TEXT PRIMARY KEY,
                at REAL NOT NULL,
                status TEXT NOT NULL,
                dialect TEXT NOT NULL,
                stream INTEGER NOT NULL,
                provider TEXT NOT NULL,
                model TEXT NOT NULL,
                tier TEXT NOT NULL,
                decided_tier TEXT NOT NULL,
                complexity REAL NOT NULL,
                requested_model TEXT NOT NULL,
                request_class TEXT,
                input INTEGER NOT NULL,
                output INTEGER NOT NULL,
                cached INTEGER NOT NULL,
                cache_written INTEGER NOT NULL,
                reasoning INTEGER NOT NULL,
                estimated INTEGER NOT NULL,
                priced INTEGER NOT NULL,
                cost INTEGER NOT NULL,  -- picodollars
                key TEXT,
                service TEXT,
                customer TEXT,
                session TEXT,
                decide_seconds REAL NOT NULL,
                first_byte_seconds REAL,
                seconds REAL NOT NULL,
                state TEXT NOT NULL,
                attempts INTEGER NOT NULL,
                error TEXT,
                detail BLOB NOT NULL  -- JSON: reasons, candidates, features, conditions, hints, attempts, notes
            ) STRICT;
            CREATE INDEX calls_at ON calls (at);
            """,
        ),
        Migration(
            "0002_cache",
            """
            ALTER TABLE calls ADD COLUMN cache TEXT;  -- exact or semantic: answered from an earlier answer
            ALTER TABLE calls ADD COLUMN saved INTEGER NOT NULL DEFAULT 0;  -- picodollars that answer had cost
            """,
        ),
        # Numbers of the budgets' blocks that paid for it, with a space between.
        Migration("0003_blocks", "ALTER TABLE calls ADD COLUMN blocks TEXT"),
    ),
)
CALL_COLUMNS = (
    *("id", "at", "status", "dialect", "stream", "provider", "model", "tier", "decided_tier", "complexity"),
    *("requested_model", "request_class", "input", "output", "cached", "cache_written", "reasoning", "estimated"),
    *("priced", "cost", "key", "service", "customer", "session", "decide_seconds", "first_byte_seconds", "seconds"),
    *("state", "attempts", "error", "cache", "saved", "blocks", "detail"),
)
_CANDIDATES_KEPT = 20
INSERT_CALL = Insert("calls", CALL_COLUMNS)


@dataclass(frozen=True, slots=True)
class StatRow:
    """Totals of one group. Times in seconds, money in picodollars; `hits` came from the cache, at a price `saved`."""

    group: str
    calls: int
    errors: int
    input: int
    output: int
    cost: int
    estimated_cost: int
    p50: float
    p95: float
    hits: int = 0
    saved: int = 0


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What a key used on a day (UTC). Tokens as the providers count them, cost in picodollars.

    Without a key: calls of the command line, or of a daemon that asks for none.
    """

    day: str
    key: str | None
    calls: int
    input: int
    output: int
    cost: int
    estimated_cost: int


@dataclass(frozen=True, slots=True)
class SpendDay:
    """All calls of a day (UTC). Tokens as the providers count them, cost in picodollars."""

    day: str
    calls: int
    input: int
    output: int
    cost: int


class CallStore(Protocol):
    """Where calls are written."""

    def begin(self, call: BegunCall) -> None:
        """A call goes to a provider; again, when it goes to another one."""
        ...

    def record(self, call: CallRecord) -> None:
        """Keep a call."""
        ...


class MemoryStore:
    """Keeps calls in a list, for tests and for users who want no file."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []

    def begin(self, call: BegunCall) -> None:
        """What does not outlive the process needs no beginning."""

    def record(self, call: CallRecord) -> None:
        self.calls.append(call)


def call_row(call: CallRecord) -> tuple[Any, ...]:
    """A call as a row of `calls`."""
    decision = call.decision
    detail = {
        "reasons": decision.reasons,
        "candidates": [
            (r.candidate.provider.name, r.candidate.model.name, r.cost) for r in decision.ranked[:_CANDIDATES_KEPT]
        ],
        "features": decision.features,
        "conditions": decision.conditions,
        "hints": decision.hints,
        "attempts": call.attempts,
        "notes": call.notes,
    }
    return (
        decision.id,
        decision.at,
        call.status,
        call.dialect,
        int(call.stream),
        call.provider,
        call.model,
        call.tier,
        decision.tier,
        decision.complexity,
        decision.hints.model,
        decision.hints.request_class,
        call.input,
        call.output,
        call.cached,
        call.cache_written,
        call.reasoning,
        int(call.estimated),
        int(call.priced),
        int(call.cost),
        call.key,
        call.service,
        call.customer,
        call.session,
        decision.seconds,
        call.first_byte,
        call.seconds,
        call.state,
        len(call.attempts),
        call.error,
        call.cache,
        int(call.saved),
        " ".join(map(str, call.blocks)) or None,
        orjson.dumps(detail),
    )


def row_of(call: CallRecord) -> dict[str, Any]:
    """A call as `SqliteStore.call` gives it back."""
    row = dict(zip(CALL_COLUMNS, call_row(call), strict=True))
    return {**row, "detail": orjson.loads(row["detail"])}


class SqliteStore:
    """The calls in a SQLite file, written one transaction a call: for commands. Daemons write in groups.

    Args:
        page_cache: KiB SQLite may hold of the file, and may use for each sort; None: its own 2,000.
    """

    def __init__(self, path: Path, *, page_cache: int | None = None) -> None:
        self._database: Database = open_database(path, MARGA_SCHEMA, check_same_thread=False)
        if page_cache is not None:
            with self._database.errors():
                # avyay: ignore[sql-injection] a PRAGMA takes no parameters, and this is an int
                self._database.execute(f"PRAGMA cache_size = {-page_cache}")

    def begin(self, call: BegunCall) -> None:
        """Not kept: a command that is killed has answered nobody."""

    def record(self, call: CallRecord) -> None:
        with self._database.errors():
            self._database.execute(INSERT_CALL.sql(), call_row(call))

    def close(self) -> None:
        self._database.close()

    def calls(
        self, *, limit: int = 20, status: str | None = None, since: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """The newest calls first, of their details only the reasons."""
        names = tuple(name for name in CALL_COLUMNS if name != "detail")
        columns = f"{', '.join(names)}, json_extract(CAST(detail AS TEXT), '$.reasons')"
        where, values = ["1"], []
        if status is not None:
            where.append("status = ?")
            values.append(status)
        if since is not None:
            where.append("at >= ?")
            values.append(since)  # type: ignore[arg-type]
        sql = f"SELECT {columns} FROM calls WHERE {' AND '.join(where)} ORDER BY at DESC, id DESC LIMIT ?"  # noqa: S608
        with self._database.errors():
            for row in self._database.execute(sql, (*values, limit)):
                yield {**dict(zip(names, row, strict=False)), "reasons": orjson.loads(row[-1] or "[]")}

    def paid_from(self, block: int, *, since: float) -> tuple[Picodollars, Picodollars]:
        """What the calls cost since a time that a block of the budgets' ledger paid for, and the worst case of those
        that a killed router had under way.
        """
        with self._database.errors():
            cost, killed = self._database.execute(
                "SELECT coalesce(sum(cost), 0), coalesce(sum(CASE WHEN status = 'killed' THEN"
                " json_extract(CAST(detail AS TEXT), '$.held') END), 0)"
                " FROM calls WHERE at >= ? AND ' ' || blocks || ' ' LIKE ?",
                (since, f"% {block} %"),
            ).fetchone()
        return Picodollars(cost), Picodollars(killed)

    def columns(self, names: tuple[str, ...], *, since: float = 0.0) -> Iterator[tuple[Any, ...]]:
        """Some columns of every call since a time, oldest first."""
        if not set(names) <= set(CALL_COLUMNS):
            raise ValueError(f"no such columns: {set(names) - set(CALL_COLUMNS)}")
        with self._database.errors():
            # avyay: ignore[sql-injection] only names of CALL_COLUMNS come this far
            yield from self._database.execute(
                f"SELECT {', '.join(names)} FROM calls WHERE at >= ? ORDER BY at",  # noqa: S608
                (since,),
            )

    def buckets(
        self, column: Literal["provider", "request_class"], width: float, *, since: float, until: float
    ) -> Iterator[tuple[str, int, int, int, float | None, float]]:
        """(series, place, calls, errors, median seconds, USD) of every stretch of `width` seconds in which there were
        calls; stretch `place` begins at `place * width`. Answers from the cache are left out.
        """
        if column not in ("provider", "request_class"):
            raise ValueError(f"no series by {column}")
        sql = f"""
            WITH c AS (
                SELECT {column} AS series, CAST(at / ?1 AS INTEGER) AS place, seconds, cost,
                    status NOT IN ('ok', 'aborted', 'refused') AS failed
                FROM calls WHERE at >= ?2 AND at < ?3 AND cache IS NULL AND {column} <> ''),
            d AS (
                SELECT *, row_number() OVER (PARTITION BY series, place, failed ORDER BY seconds) AS nth,
                    count(*) OVER (PARTITION BY series, place, failed) AS size
                FROM c)
            SELECT series, place, count(*), sum(failed),
                max(CASE WHEN NOT failed AND nth = (size + 1) / 2 THEN seconds END), sum(cost) / 1e12
            FROM d GROUP BY series, place ORDER BY series, place"""  # noqa: S608
        with self._database.errors():
            yield from self._database.execute(sql, (width, since, until))

    def history(self, *, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """Every call since a time, oldest first, with its details."""
        sql = f"SELECT {', '.join(CALL_COLUMNS)} FROM calls WHERE at >= ? ORDER BY at, id"  # noqa: S608
        with self._database.errors():
            for row in self._database.execute(sql, (since,)):
                found = dict(zip(CALL_COLUMNS, row, strict=True))
                yield {**found, "detail": orjson.loads(found["detail"])}

    def usage(self, *, since: float, key: str | None = None, keyless: bool = False) -> list[UsageTotal]:
        """Totals by day and key since a time, newest first.

        Args:
            keyless: Calls without a key as well: on the owner's own machine they are the owner's.
        """
        sql = """
            SELECT date(at, 'unixepoch') AS day, key, count(*), sum(input), sum(output), sum(cost),
                sum(CASE WHEN estimated THEN cost ELSE 0 END)
            FROM calls WHERE at >= ?1 AND (?3 OR key IS NOT NULL) AND (?2 IS NULL OR key = ?2)
            GROUP BY day, key ORDER BY day DESC, key"""
        with self._database.errors():
            return [UsageTotal(*row) for row in self._database.execute(sql, (since, key, keyless))]

    def spend(self, *, since: float) -> list[SpendDay]:
        """Totals by day since a time, oldest first; embeddings, which no router chooses a model for, included."""
        sql = """
            SELECT date(at, 'unixepoch') AS day, count(*), sum(input), sum(output), sum(cost)
            FROM calls WHERE at >= ? GROUP BY day ORDER BY day"""
        with self._database.errors():
            return [SpendDay(*row) for row in self._database.execute(sql, (since,))]

    def decisions(
        self, *, since: float, until: float, key: str | None = None, after: str = "", limit: int = -1
    ) -> Iterator[tuple[str, str, float]]:
        """(id, key, when it began) of calls with a key that began in a span, by id; `limit` of them, `after` one."""
        sql = (
            "SELECT id, key, at FROM calls WHERE at >= ?1 AND at < ?2 AND key IS NOT NULL AND id > ?3"
            " AND (?4 IS NULL OR key = ?4) ORDER BY id LIMIT ?5"
        )
        with self._database.errors():
            yield from self._database.execute(sql, (since, until, after, key, limit))

    def call(self, part: str) -> dict[str, Any]:
        """One call with its details, by its id or by how that begins or ends.

        Raises:
            UsageError: there is none, or more than one.
        """
        sql = f"SELECT {', '.join(CALL_COLUMNS)} FROM calls WHERE"  # noqa: S608
        size = len(part)
        with self._database.errors():
            rows = self._database.execute(f"{sql} id = ?", (part,)).fetchall()
            if not rows:
                sql += " substr(id, 1, ?) = ? OR substr(id, -?) = ? LIMIT 2"
                rows = self._database.execute(sql, (size, part, size, part)).fetchall()
        if len(rows) != 1:
            what = "No decision" if not rows else "More than one decision"
            raise UsageError(f"{what} has an id that starts or ends with {part!r}.", hint="See: avyay marga decisions")
        found = dict(zip(CALL_COLUMNS, rows[0], strict=True))
        return {**found, "detail": orjson.loads(found["detail"])}

    def bill(self, by: str, name: str, *, since: float = 0.0) -> Bill:
        """What was charged to one customer, service, session or key.

        Raises:
            UsageError: no such grouping.
        """
        if by not in ("customer", "service", "session", "key"):
            raise UsageError(f"There are no bills by {by!r}.", hint="By customer, service, session or key.")
        sql = f"SELECT coalesce(sum(cost), 0), count(*) FROM calls WHERE at >= ? AND {by} = ?"  # noqa: S608
        with self._database.errors():
            cost, calls = self._database.execute(sql, (since, name)).fetchone()
        return Bill(Picodollars(cost), calls)

    def stats(self, by: str = "model", *, since: float | None = None) -> list[StatRow]:
        """Totals by group, the most expensive first.

        Raises:
            UsageError: no such grouping.
        """
        if by not in GROUPINGS:
            raise UsageError(f"Cannot group by {by!r}.", hint=f"Known: {', '.join(GROUPINGS)}.")
        # Percentiles by rank inside the group: the row at which half (95 %) of the calls are not slower.
        sql = f"""
            WITH c AS (
                SELECT coalesce({GROUPINGS[by]}, '(none)') AS grp, *,
                    row_number() OVER (PARTITION BY {GROUPINGS[by]} ORDER BY seconds) AS nth,
                    count(*) OVER (PARTITION BY {GROUPINGS[by]}) AS size
                FROM calls WHERE at >= ?)
            SELECT grp, count(*), sum(status NOT IN ('ok', 'aborted')), sum(input), sum(output), sum(cost),
                sum(CASE WHEN estimated THEN cost ELSE 0 END),
                max(CASE WHEN nth = (size + 1) / 2 THEN seconds END),
                max(CASE WHEN nth = (size * 95 + 99) / 100 THEN seconds END),
                count(cache), sum(saved)
            FROM c GROUP BY grp ORDER BY sum(cost) DESC, count(*) DESC"""  # noqa: S608
        with self._database.errors():
            return [StatRow(*row) for row in self._database.execute(sql, (since or 0.0,))]
