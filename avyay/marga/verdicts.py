"""Where the judgement keeps what it learned: comparisons, the state of each class, every change with its evidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from avyay.db import Database, Migration, Schema, open_database
from avyay.marga.compare import Comparison
from avyay.marga.shadow import ClassChange, ClassState
from avyay.ports import Tier

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
    ),
)


class VerdictStore:
    """A SQLite file beside the ledger. Rates are small: a few comparisons a minute."""

    def __init__(self, path: Path) -> None:
        self._database: Database = open_database(path, _SCHEMA, check_same_thread=False)

    def close(self) -> None:
        self._database.close()

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
        with self._database.errors():
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

    def spent_since(self, at: float) -> int:
        """Picodollars that comparisons have cost."""
        with self._database.errors():
            row = self._database.execute(
                "SELECT coalesce(sum(cost), 0) FROM comparisons WHERE at >= ?", (at,)
            ).fetchone()
        return int(row[0])

    def states(self) -> dict[str, ClassState]:
        """Every class that was ever compared."""
        with self._database.errors():
            rows = self._database.execute("SELECT name, state FROM classes ORDER BY name").fetchall()
        return {name: ClassState.from_data(orjson.loads(state)) for name, state in rows}

    def save(self, state: ClassState, change: ClassChange | None = None) -> None:
        """Keep a class's state, and its change in the same transaction."""
        with self._database.errors(), self._database.transaction():
            self._database.execute(
                "INSERT INTO classes (name, state) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET state = excluded.state",
                (state.name, orjson.dumps(state.as_data()).decode()),
            )
            if change is not None:
                self._database.execute(
                    "INSERT INTO changes (at, change) VALUES (?, ?)", (change.at, orjson.dumps(asdict(change)).decode())
                )

    def changes(self, *, limit: int = 50) -> list[ClassChange]:
        """The newest changes first."""
        with self._database.errors():
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
        with self._database.errors():
            for row in self._database.execute(sql, (request_class, limit)):
                found = dict(zip(columns, row, strict=True))
                yield {**found, "features": orjson.loads(found["features"])}
