"""Where the judgement keeps what it learned: comparisons, the state of each class, every change with its evidence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Migration, Schema, open_database
from avyay.events.outbox import OUTBOX, append_event
from avyay.marga.anomalies import Anomaly
from avyay.marga.compare import Comparison
from avyay.marga.shadow import ClassChange, ClassState, ShadowPlan, observe
from avyay.ports import Event, Tier

__all__ = ["VerdictStore"]

_SCHEMA = Schema(
    "marga_verdicts",
    (
        Migration(
            "0001_verdicts",
            """
            CREATE TABLE comparisons (
                id INTEGER PRIMARY KEY,
                at REAL NOT NULL,
                decision TEXT NOT NULL,
                request_class TEXT NOT NULL,
                tier TEXT NOT NULL,
                model TEXT NOT NULL,
                reference TEXT NOT NULL,
                complexity REAL NOT NULL,
                features TEXT NOT NULL,  -- JSON: numbers only, for calibration
                degraded REAL NOT NULL,
                method TEXT NOT NULL,
                detail TEXT NOT NULL,
                cost INTEGER NOT NULL  -- picodollars, both answers and the judge
            ) STRICT;
            CREATE INDEX comparisons_at ON comparisons (at);
            CREATE TABLE classes (name TEXT PRIMARY KEY, state TEXT NOT NULL) STRICT;
            CREATE TABLE changes (id INTEGER PRIMARY KEY, at REAL NOT NULL, change TEXT NOT NULL) STRICT;
            """,
        ),
        Migration(
            "0002_shared",
            """
            CREATE TABLE spending (  -- of comparisons, by UTC day; what is reserved is under way
                day INTEGER PRIMARY KEY, spent INTEGER NOT NULL, reserved INTEGER NOT NULL
            ) STRICT;
            CREATE TABLE alarms (
                id INTEGER PRIMARY KEY,
                at REAL NOT NULL,
                series TEXT NOT NULL,
                signal TEXT NOT NULL,
                value REAL NOT NULL,
                expected REAL NOT NULL,
                deviations REAL NOT NULL,
                UNIQUE (series, signal, at)
            ) STRICT;
            CREATE INDEX comparisons_class ON comparisons (request_class, tier, at);
            """,
        ),
    ),
)


class VerdictStore:
    """A SQLite file beside the ledger, shared by all workers. Rates are small: a few comparisons a minute.

    Any thread may call; whatever reads and then writes does so in one transaction, so that workers never overtake one
    another.
    """

    def __init__(self, path: Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._database: Database = open_database(path, _SCHEMA, OUTBOX, check_same_thread=False)
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def version(self) -> int:
        """Changes whenever another process has written."""
        with self._lock, self._database.errors():
            return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def keep(
        self,
        at: float,
        decision: str,
        request_class: str,
        tier: Tier,
        models: tuple[str, str],
        complexity: float,
        features: dict[str, Any],
        found: Comparison,
        cost: int,
    ) -> None:
        """Keep a comparison of `models` (the cheaper, the reference)."""
        with self._lock, self._database.errors():
            self._database.execute(
                "INSERT INTO comparisons (at, decision, request_class, tier, model, reference, complexity, features,"
                " degraded, method, detail, cost) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    at,
                    decision,
                    request_class,
                    tier,
                    *models,
                    complexity,
                    orjson.dumps(features).decode(),
                    found.degraded,
                    found.method,
                    found.detail,
                    cost,
                ),
            )

    def spent(self, day: int) -> int:
        """Picodollars that comparisons of a UTC day have cost, with what is reserved for those under way."""
        with self._lock, self._database.errors():
            return self._spent(day)

    def _spent(self, day: int) -> int:
        row = self._database.execute("SELECT spent + reserved FROM spending WHERE day = ?", (day,)).fetchone()
        return int(row[0]) if row is not None else 0

    def reserve(self, day: int, amount: int, cap: int) -> bool:
        """Set money aside for a comparison, unless the day's cap would be passed: by all workers together.

        What a worker that died had reserved counts as spent until the day is over.
        """
        with self._lock, self._database.errors(), self._database.transaction():
            if self._spent(day) + amount > cap:
                return False
            self._database.execute(
                "INSERT INTO spending VALUES (?1, 0, ?2) ON CONFLICT (day) DO UPDATE SET reserved = reserved + ?2",
                (day, amount),
            )
        return True

    def settle(self, day: int, reserved: int, spent: int) -> None:
        """A comparison is over, and has cost so much."""
        with self._lock, self._database.errors(), self._database.transaction():
            self._database.execute(
                "UPDATE spending SET spent = spent + ?, reserved = max(0, reserved - ?) WHERE day = ?",
                (spent, reserved, day),
            )

    def observe(
        self, name: str, tier: Tier, degraded: float, plan: ShadowPlan, at: float
    ) -> tuple[ClassState, ClassChange | None]:
        """Add a comparison to what is known of a class, whichever worker made it."""
        with self._lock, self._database.errors(), self._database.transaction():
            row = self._database.execute("SELECT state FROM classes WHERE name = ?", (name,)).fetchone()
            before = ClassState.from_data(orjson.loads(row[0])) if row is not None else ClassState(name)
            state, change = observe(before, tier, degraded, plan, at)
            self._save(state, change)
        return state, change

    def qualities(self, *, since: float) -> dict[str, dict[Tier, tuple[int, float]]]:
        """By class and tier: how many comparisons, and how much of premium's quality they showed, 0..1."""
        found: dict[str, dict[Tier, tuple[int, float]]] = {}
        with self._lock, self._database.errors():
            rows = self._database.execute(
                "SELECT request_class, tier, count(*), 1 - avg(degraded) FROM comparisons WHERE at >= ?"
                " GROUP BY request_class, tier",
                (since,),
            ).fetchall()
        for name, tier, count, quality in rows:
            found.setdefault(name, {})[tier] = (count, quality)
        return found

    # ------------------------------------------------------------ alarms

    def alarm(self, anomaly: Anomaly) -> bool:
        """Keep an alarm, and tell of a new one in the same transaction; whether it is a new one."""
        with self._lock, self._database.transaction():
            new = bool(
                self._database.execute(
                    "INSERT OR IGNORE INTO alarms (at, series, signal, value, expected, deviations)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        anomaly.at,
                        anomaly.series,
                        anomaly.signal,
                        anomaly.value,
                        anomaly.expected,
                        min(anomaly.deviations, 1e9),
                    ),
                ).rowcount
            )
            if new:
                append_event(self._database, _alarm_event(anomaly), self._clock.now())
        return new

    def alarms(self, *, since: float = 0.0, limit: int = 100) -> list[Anomaly]:
        """The newest alarms first."""
        with self._lock, self._database.errors():
            rows = self._database.execute(
                "SELECT series, signal, at, value, expected, deviations FROM alarms WHERE at >= ?"
                " ORDER BY at DESC, id DESC LIMIT ?",
                (since, limit),
            ).fetchall()
        return [Anomaly(*row) for row in rows]

    def alarm_counts(self) -> dict[tuple[str, str], int]:
        """How many alarms by series and signal."""
        with self._lock, self._database.errors():
            rows = self._database.execute("SELECT series, signal, count(*) FROM alarms GROUP BY series, signal")
            return {(series, signal): count for series, signal, count in rows}

    # ------------------------------------------------------------ classes

    def states(self) -> dict[str, ClassState]:
        """Every class that was ever compared."""
        with self._lock, self._database.errors():
            rows = self._database.execute("SELECT name, state FROM classes ORDER BY name").fetchall()
        return {name: ClassState.from_data(orjson.loads(state)) for name, state in rows}

    def save(self, state: ClassState, change: ClassChange | None = None) -> None:
        """Keep a class's state, and its change in the same transaction."""
        with self._lock, self._database.errors(), self._database.transaction():
            self._save(state, change)

    def _save(self, state: ClassState, change: ClassChange | None) -> None:
        self._database.execute(
            "INSERT INTO classes (name, state) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET state = excluded.state",
            (state.name, orjson.dumps(state.as_data()).decode()),
        )
        if change is not None:
            self._database.execute(
                "INSERT INTO changes (at, change) VALUES (?, ?)", (change.at, orjson.dumps(asdict(change)).decode())
            )
            append_event(self._database, _change_event(change), change.at)

    def changes(self, *, limit: int = 50) -> list[ClassChange]:
        """The newest changes first."""
        with self._lock, self._database.errors():
            rows = self._database.execute("SELECT change FROM changes ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
        return [ClassChange(**orjson.loads(row[0])) for row in rows]

    def comparisons(self, *, limit: int = 50, request_class: str | None = None) -> Iterator[dict[str, Any]]:
        """The newest comparisons first."""
        columns = (
            *("at", "decision", "request_class", "tier", "model", "reference", "complexity", "features", "degraded"),
            *("method", "detail", "cost"),
        )
        sql = (
            f"SELECT {', '.join(columns)} FROM comparisons WHERE ?1 IS NULL OR request_class = ?1"  # noqa: S608
            " ORDER BY id DESC LIMIT ?2"
        )
        with self._lock, self._database.errors():
            rows = self._database.execute(sql, (request_class, limit)).fetchall()
        for row in rows:
            found = dict(zip(columns, row, strict=True))
            yield {**found, "features": orjson.loads(found["features"])}


def _change_event(change: ClassChange) -> Event:
    data = {
        "class": change.request_class,
        "before": change.before,
        "after": change.after,
        "comparisons": change.comparisons,
        "degraded": change.degraded,
        "evidence": change.evidence,
        "bound": change.bound,
    }
    return Event(f"marga.class.{'promoted' if change.promoted else 'demoted'}", data)


def _alarm_event(anomaly: Anomaly) -> Event:
    kind, _, name = anomaly.series.partition(" ")
    data = {
        kind: name,
        **{key: value for key, value in asdict(anomaly).items() if key != "series"},
        "deviations": min(anomaly.deviations, 1e9),
        "sentence": anomaly.sentence(),
    }
    return Event("marga.anomaly.found", data, once=f"{anomaly.series}/{anomaly.signal}/{anomaly.at:.0f}")
