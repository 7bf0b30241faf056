"""Budgets that are nearly used up, or are: told once for each scope and cap, in the transaction that remembers it.

What a scope has spent is durable already, so nothing is lost between two looks: whoever looks next finds it.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Migration, Schema, open_database
from avyay.events.outbox import OUTBOX, append_event
from avyay.ledger.durable import Ledger
from avyay.ledger.schema import LEDGER_SCHEMA
from avyay.money import ZERO, Picodollars, usd_string
from avyay.ports import Event

__all__ = ["BudgetAlerts", "budget_event"]

_ALERTS = Schema(
    "ledger_alerts",
    (
        Migration(
            "0001_alerts",
            "CREATE TABLE ledger_alerts (scope TEXT NOT NULL, cap INTEGER NOT NULL, verb TEXT NOT NULL,"
            " at REAL NOT NULL, PRIMARY KEY (scope, cap, verb)) STRICT, WITHOUT ROWID",
        ),
    ),
)
_FORGET = 2 * 86_400.0  # seconds after a period's end that its budget is no news any more
_LOOK = """
    WITH verbs (verb, share) AS (VALUES ('neared', ?1), ('exhausted', 1.0)),
         scopes AS (
             SELECT key, cap, resets_at,
                 spent + CASE WHEN ?2 AND key NOT LIKE 'hypothesis:%' THEN reserved
                    ELSE coalesce((SELECT value FROM json_each(?4) AS lost WHERE lost.key = ledger_scopes.key), 0) END
                    AS used
             FROM ledger_scopes WHERE cap > 0)
    SELECT key, used, cap, resets_at, verb FROM scopes, verbs
    WHERE used >= cap * share AND (resets_at IS NULL OR resets_at > ?3)
        AND NOT EXISTS (SELECT 1 FROM ledger_alerts a
            WHERE a.scope = scopes.key AND a.cap = scopes.cap AND a.verb = verbs.verb)
    ORDER BY key, share
"""


def budget_event(component: str, verb: str, key: str, used: int, cap: int, resets_at: float | None) -> Event:
    """`component.budget.neared` or `.exhausted`.

    Args:
        used, cap: Picodollars.
        resets_at: Unix seconds.
    """
    data: dict[str, Any] = {
        "budget": key,
        "spent_usd": usd_string(Picodollars(used)),
        "cap_usd": usd_string(Picodollars(cap) if cap else ZERO),
        "used": round(used / cap, 4) if cap else 1.0,
        "resets_at": resets_at,
    }
    return Event(f"{component}.budget.{verb}", data, once=f"{key}/{cap}")


class BudgetAlerts:
    """Looks at the ledger in a file. Thread-safe; any number of processes may look.

    Args:
        component: Whose budgets they are.
        near: Share of a cap, 0..1, from which it is told to be near.
        reserved: Whether what is held for what may come counts as used. What one hypothesis holds never does: an order
            is made as large as its cap allows. Blocks whose process is gone always count: nobody can use them.
    """

    def __init__(
        self, path: Path, component: str, *, near: float = 0.8, reserved: bool = False, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._component, self._near, self._reserved, self._clock = component, near, reserved, clock
        self._lock = threading.Lock()
        self._ledger = Ledger(path, clock=clock)
        self._database = open_database(path, LEDGER_SCHEMA, OUTBOX, _ALERTS, check_same_thread=False)

    def look(self) -> int:
        """Tell of budgets that have come near their cap, or reached it, since the last look; says how many.

        Raises:
            AvyayError: the ledger cannot be read, or the event not be kept; the next look does it.
        """
        now = self._clock.now()
        values = (self._near, self._reserved, now - _FORGET, json.dumps(self._lost()))
        with self._lock, self._database.errors():
            if self._database.execute(_LOOK, values).fetchone() is None:
                return 0
            with self._database.transaction() as database:
                rows = database.execute(_LOOK, values).fetchall()
                for key, used, cap, resets_at, verb in rows:
                    append_event(database, budget_event(self._component, verb, key, used, cap, resets_at), now)
                    database.execute("INSERT INTO ledger_alerts VALUES (?, ?, ?, ?)", (key, cap, verb, now))
        return len(rows)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()
            self._ledger.close()

    def _lost(self) -> dict[str, int]:
        """What processes that are gone hold, by scope: they may have spent it all."""
        found: dict[str, int] = {}
        for block in self._ledger.orphaned_blocks():
            for scope in block.scopes:
                found[scope] = found.get(scope, 0) + block.held
        return found
