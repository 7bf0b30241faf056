"""What the queue's database keeps besides what owners of tasks write: the use of each day, guesses at tasks' files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avyay.clock import Clock
from avyay.engine.changes import alter, tell
from avyay.engine.database import QueueDatabase
from avyay.engine.schema import OPEN
from avyay.money import ZERO, Picodollars

__all__ = ["Bookkeeping", "DayUse"]


_GUESSED = "guessed"


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

    def unfiled(self, limit: int) -> Sequence[str]:
        """Ids of tasks that may be claimed, name no files, and were not looked at for a guess; first things first."""
        rows = self._db.execute(
            f"SELECT id FROM tasks WHERE {OPEN} AND owner IS NULL AND files = '[]' AND extra NOT LIKE ?"  # noqa: S608
            " ORDER BY priority DESC, number LIMIT ?",
            (f'%"{_GUESSED}"%', limit),
        )
        return [str(name) for (name,) in rows]

    def guess(self, name: str, files: Mapping[str, str]) -> bool:
        """Note which files a task that names none will likely touch, with the reason for each, or that nobody can tell.

        Returns whether it was noted: a task that was claimed meanwhile stays as it is.
        """
        with self._db.transaction() as db:
            # avyay: ignore[sql-injection] one of two constants
            row = db.execute(
                f"SELECT extra FROM tasks WHERE id = ? AND state = 'ready' AND files = '[]'{db.for_update}",  # noqa: S608
                (name,),
            ).fetchone()
            if row is None:
                return False
            extra = {**json.loads(row[0]), _GUESSED: dict(files)}
            own: dict[str, str | int] = {"files": json.dumps(list(files)), "extra": json.dumps(extra)}
            if files:
                told = ", ".join(f"{path} ({reason})" for path, reason in files.items())
                own["latest"] = tell(db, name, self._clock.now(), "guessed", (None, None), detail=told)
            alter(db, name, **own)
        return True

    def stuck(self) -> tuple[str, str] | None:
        """Who keeps all others from writing and does nothing, and what to do about it; None when nobody is known to."""
        return self._db.stuck()

    def probe(self) -> None:
        """Write nothing, in a transaction that could write.

        Raises:
            UnreachableError: somebody else holds the database.
        """
        with self._db.transaction():
            pass
