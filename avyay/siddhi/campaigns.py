"""The governor's own record of campaigns: one row each, moved on only by compare-and-set, so that two never disagree.

    PLANNED -> RESERVED -> CREATED -> STARTING -> RUNNING
                  |           |          |           |
                  +-----------+----------+-----------+--> STOPPED -> CLOSING -> CLOSED

STARTING is written before the platform is told to start: from then on only a removal at the platform frees the money.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from avyay.clock import Clock
from avyay.db import Database, Migration, Schema, Synchronous, open_database
from avyay.errors import UsageError
from avyay.money import Picodollars

__all__ = ["CAMPAIGN_SCHEMA", "CampaignRow", "Campaigns", "Phase"]

CAMPAIGN_SCHEMA = Schema(
    "siddhi_campaigns",
    (
        Migration(
            "0001_campaigns",
            """
            CREATE TABLE siddhi_installation (prefix TEXT NOT NULL);
            CREATE TABLE siddhi_halt (reason TEXT NOT NULL, at REAL NOT NULL);
            CREATE TABLE siddhi_campaigns (
                number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, hypothesis TEXT NOT NULL,
                platform TEXT NOT NULL, ordered INTEGER NOT NULL, worst INTEGER NOT NULL, phase TEXT NOT NULL,
                remote TEXT, ends_at REAL NOT NULL, changed_at REAL NOT NULL, removed_at REAL,
                billed INTEGER NOT NULL DEFAULT 0, clicks INTEGER NOT NULL DEFAULT 0
            );
            CREATE INDEX siddhi_campaigns_by_phase ON siddhi_campaigns (phase);
            CREATE TABLE siddhi_alarms (
                number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, campaign TEXT NOT NULL, words TEXT NOT NULL
            );
            """,
        ),
    ),
)


class Phase(StrEnum):
    """How far a campaign got, as far as we know."""

    PLANNED = "planned"  # a name, no money
    RESERVED = "reserved"  # its worst case is reserved; the platform may have been asked to make it
    CREATED = "created"  # the platform made it, paused
    STARTING = "starting"  # the platform may have been told to start it
    RUNNING = "running"  # it spends
    STOPPED = "stopped"  # it was told to pause
    CLOSING = "closing"  # to be removed, or removed and waiting for the last bill
    CLOSED = "closed"  # settled


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """A campaign as the governor remembers it. `billed` and `clicks` are those last read from the platform."""

    name: str
    hypothesis: str
    platform: str
    ordered: Picodollars
    worst: Picodollars
    phase: Phase
    remote: str | None
    ends_at: float
    changed_at: float
    removed_at: float | None
    billed: Picodollars
    clicks: int


_COLUMNS = "name, hypothesis, platform, ordered, worst, phase, remote, ends_at, changed_at, removed_at, billed, clicks"


class Campaigns:
    """The table. Thread-safe; processes share the file."""

    def __init__(
        self, path: Path, clock: Clock, *, synchronous: Synchronous = "FULL", busy_timeout: float = 10.0
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._database = open_database(
            path, CAMPAIGN_SCHEMA, synchronous=synchronous, busy_timeout=busy_timeout, check_same_thread=False
        )
        with self._write() as database:
            row = database.execute("SELECT prefix FROM siddhi_installation").fetchone()
            if row is None:
                # Two installations may share an ad account: neither may touch the other's campaigns.
                row = (f"avyay-{secrets.token_hex(4)}-",)
                database.execute("INSERT INTO siddhi_installation VALUES (?)", row)
        self.prefix: str = row[0]

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def _write(self) -> Iterator[Database]:
        with self._lock, self._database.transaction() as database:
            yield database

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._database.errors():
            return self._database.execute(query, values).fetchall()

    def plan(self, hypothesis: str, platform: str, ordered: Picodollars, worst: Picodollars, ends_at: float) -> str:
        """A new row; returns the campaign's name, unique for good."""
        with self._write() as database:
            number = database.execute(
                "INSERT INTO siddhi_campaigns (hypothesis, platform, ordered, worst, phase, ends_at, changed_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (hypothesis, platform, ordered, worst, Phase.PLANNED, ends_at, self._clock.now()),
            ).lastrowid
            name = f"{self.prefix}{hypothesis}-{number}"
            database.execute("UPDATE siddhi_campaigns SET name = ? WHERE number = ?", (name, number))
        return name

    def move(self, name: str, after: Phase, *before: Phase, remote: str | None = None, halted_ok: bool = True) -> bool:
        """Compare and set: to `after` if it is in one of `before`. Returns whether it was.

        Args:
            halted_ok: False refuses while everything is halted.
        """
        marks = ", ".join("?" * len(before))
        halt = "" if halted_ok else " AND NOT EXISTS (SELECT 1 FROM siddhi_halt)"
        with self._write() as database:
            changed = database.execute(
                f"UPDATE siddhi_campaigns SET phase = ?, changed_at = ?, remote = coalesce(?, remote)"  # noqa: S608
                f" WHERE name = ? AND phase IN ({marks}){halt}",
                (after, self._clock.now(), remote, name, *before),
            )
            return changed.rowcount == 1

    def removed(self, name: str) -> None:
        """The platform has removed it: from now on only late bills can come."""
        with self._write() as database:
            database.execute(
                "UPDATE siddhi_campaigns SET removed_at = ? WHERE name = ? AND removed_at IS NULL",
                (self._clock.now(), name),
            )

    def read(self, name: str, billed: Picodollars, clicks: int) -> None:
        """Write down what the platform's books say now."""
        with self._write() as database:
            database.execute(
                "UPDATE siddhi_campaigns SET billed = ?, clicks = ? WHERE name = ? AND (billed, clicks) != (?, ?)",
                (billed, clicks, name, billed, clicks),
            )

    def get(self, name: str) -> CampaignRow:
        """One campaign.

        Raises:
            UsageError: There is none of this name.
        """
        found = self._rows(f"SELECT {_COLUMNS} FROM siddhi_campaigns WHERE name = ?", name)  # noqa: S608
        if not found:
            raise UsageError(f"There is no campaign {name!r}.", hint="See: avyay siddhi ads")
        return _row(found[0])

    def all(self, *, hypothesis: str | None = None, unfinished: bool = False) -> list[CampaignRow]:
        """All campaigns in the order they were planned."""
        where, values = ["name IS NOT NULL"], []
        if hypothesis is not None:
            where.append("hypothesis = ?")
            values.append(hypothesis)
        if unfinished:
            where.append("phase != 'closed'")
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM siddhi_campaigns WHERE {' AND '.join(where)} ORDER BY number",  # noqa: S608
            *values,
        )
        return [_row(row) for row in rows]

    def halt(self, reason: str) -> None:
        """From now on nothing starts."""
        with self._write() as database:
            database.execute("DELETE FROM siddhi_halt")
            database.execute("INSERT INTO siddhi_halt VALUES (?, ?)", (reason, self._clock.now()))

    def resume(self) -> None:
        """Things may start again."""
        with self._write() as database:
            database.execute("DELETE FROM siddhi_halt")

    def halted(self) -> str | None:
        """Why nothing may start; None when things may."""
        rows = self._rows("SELECT reason FROM siddhi_halt")
        return rows[0][0] if rows else None

    def alarm(self, campaign: str, words: str) -> None:
        """Record something that should never have happened; the same words once."""
        with self._write() as database:
            known = database.execute(
                "SELECT 1 FROM siddhi_alarms WHERE campaign = ? AND words = ?", (campaign, words)
            ).fetchone()
            if known is None:
                database.execute(
                    "INSERT INTO siddhi_alarms (at, campaign, words) VALUES (?, ?, ?)",
                    (self._clock.now(), campaign, words),
                )

    def alarms(self) -> list[str]:
        """Every alarm, oldest first."""
        return [f"{campaign}: {words}" for campaign, words in self._rows("SELECT campaign, words FROM siddhi_alarms")]


def _row(row: tuple[Any, ...]) -> CampaignRow:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return CampaignRow(**{**values, "phase": Phase(values["phase"])})
