"""Budgets that hold: reserve the worst case before spending, settle what it really cost afterwards.

A scope is any key with a cap ("key:abc/day:2026-11-21", "hypothesis:7", "total"). A reservation holds its amount in all
of its scopes or in none. What is reserved counts as spent until it is settled or released; when nobody knows how a call
ended, it keeps counting (`mark_unknown`, `expire`) until somebody finds out (`reconcile`).

`Ledger` is durable: every method is one SQLite transaction, so any number of threads and processes may share the file
and a `kill -9` loses nothing that was returned. `BlockLedger` draws from reserved blocks in memory, where a transaction
per call is too slow.
"""

from avyay.ledger.alerts import BudgetAlerts, budget_event
from avyay.ledger.blocks import BlockLedger, Draw
from avyay.ledger.durable import Ledger
from avyay.ledger.schema import LEDGER_SCHEMA
from avyay.ledger.types import (
    Balance,
    BudgetExceededError,
    Entry,
    Reservation,
    ReservationState,
    Scope,
    daily,
    monthly,
)

__all__ = [
    "LEDGER_SCHEMA",
    "Balance",
    "BlockLedger",
    "BudgetAlerts",
    "BudgetExceededError",
    "Draw",
    "Entry",
    "Ledger",
    "Reservation",
    "ReservationState",
    "Scope",
    "budget_event",
    "daily",
    "monthly",
]
