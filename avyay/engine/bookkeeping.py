"""What the queue's database keeps besides tasks and their history: what all dispatchers used up on each day."""

from __future__ import annotations

from dataclasses import dataclass

from avyay.clock import Clock
from avyay.engine.database import QueueDatabase
from avyay.money import ZERO, Picodollars

__all__ = ["Bookkeeping", "DayUse"]


@dataclass(frozen=True, slots=True)
class DayUse:
    """What all dispatchers of a queue used up on a day (UTC).

    Args:
        seconds: Agent time; two agents side by side count twice.
        spent: What agents that no router bills charged by their own count.
    """

    seconds: float = 0.0
    spent: Picodollars = ZERO


class Bookkeeping:
    """The part of a queue that keeps accounts; mixed into `avyay.engine.queue.Queue`."""

    _db: QueueDatabase
    _clock: Clock

    def book(self, day: str, seconds: float, spent: Picodollars = ZERO) -> None:
        """Add to what was used up on a day, written as 2026-11-21."""
        with self._db.transaction() as db:
            db.execute(
                "INSERT INTO days (day, seconds, picodollars) VALUES (?, ?, ?) ON CONFLICT (day)"
                " DO UPDATE SET seconds = days.seconds + excluded.seconds,"
                " picodollars = days.picodollars + excluded.picodollars",
                (day, seconds, spent),
            )

    def used(self, day: str) -> DayUse:
        """What was booked on a day."""
        row = self._db.execute("SELECT seconds, picodollars FROM days WHERE day = ?", (day,)).fetchone()
        return DayUse() if row is None else DayUse(float(row[0]), Picodollars(int(row[1])))

    def probe(self) -> None:
        """Write nothing, in a transaction that could write.

        Raises:
            UnreachableError: somebody else holds the database.
        """
        with self._db.transaction():
            pass
