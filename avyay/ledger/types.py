"""What a ledger talks about: scopes, reservations, balances, and the refusal."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import Enum

from avyay.errors import PolicyError
from avyay.money import ZERO, Picodollars, format_usd

__all__ = [
    "Balance",
    "BudgetExceededError",
    "Entry",
    "Reservation",
    "ReservationState",
    "Scope",
    "daily",
    "monthly",
]


@dataclass(frozen=True, slots=True)
class Scope:
    """One budget a reservation must fit into.

    Args:
        key: Identifies it for good; a period belongs into the key, see `daily` and `monthly`.
        cap: The most that may be spent and reserved together; None counts without limiting.
        resets_at: Seconds since the epoch when a fresh budget begins, for messages; None when never.
    """

    key: str
    cap: Picodollars | None
    resets_at: float | None = None


def daily(key: str, cap: Picodollars | None, now: float, zone: tzinfo = UTC) -> Scope:
    """The scope of the day that `now` (seconds since the epoch) falls in: "key:abc/day:2026-11-21"."""
    today = datetime.fromtimestamp(now, zone).date()
    return Scope(f"{key}/day:{today.isoformat()}", cap, _midnight(today + timedelta(days=1), zone))


def monthly(key: str, cap: Picodollars | None, now: float, zone: tzinfo = UTC) -> Scope:
    """The scope of the month that `now` falls in: "key:abc/month:2026-11"."""
    first = datetime.fromtimestamp(now, zone).date().replace(day=1)
    return Scope(f"{key}/month:{first:%Y-%m}", cap, _midnight((first + timedelta(days=32)).replace(day=1), zone))


class BudgetExceededError(PolicyError):
    """A reservation does not fit; nothing was reserved in any scope."""

    default_code = "budget_exceeded"

    def __init__(self, balance: Balance, asked: Picodollars) -> None:
        resets = (
            None
            if balance.resets_at is None
            else datetime.fromtimestamp(balance.resets_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        super().__init__(
            f"The budget {balance.key} does not allow {format_usd(asked)}: {format_usd(balance.spent)} spent and"
            f" {format_usd(balance.reserved)} reserved of {format_usd(balance.cap or ZERO)}.",
            hint=f"Wait until {resets}, when it resets, or raise the cap." if resets else "Raise the cap.",
        )
        self.balance = balance
        self.asked = asked


class ReservationState(Enum):
    """How far a reservation got."""

    OPEN = "open"  # held, its call is under way
    UNKNOWN = "unknown"  # held, nobody knows how its call ended
    SETTLED = "settled"  # what it cost is known and spent
    RELEASED = "released"  # its call was never made


@dataclass(frozen=True, slots=True)
class Reservation:
    """A claim on budgets.

    Args:
        id: The ledger's number for it.
        key: The caller's idempotency key.
        scopes: The keys of its scopes.
        held: What counts as reserved now.
        spent: What it spent so far.
        state: See `ReservationState`.
        owner: For a block, who draws from it in memory; None for a plain reservation.
        created_at: Seconds since the epoch.
        expires_at: When `expire` may call it unknown; None for never.
        note: The latest remark on it.
        outstanding: Of a block, what was drawn for calls under way when its owner last wrote; held, or spent since.
    """

    id: int
    key: str
    scopes: tuple[str, ...]
    held: Picodollars
    spent: Picodollars
    state: ReservationState
    owner: str | None
    created_at: float
    expires_at: float | None
    note: str | None
    outstanding: Picodollars = ZERO


@dataclass(frozen=True, slots=True)
class Balance:
    """Where a scope stands; `cap` and `resets_at` are those of the latest reservation."""

    key: str
    spent: Picodollars
    reserved: Picodollars
    cap: Picodollars | None
    resets_at: float | None

    @property
    def remaining(self) -> Picodollars | None:
        """What can still be reserved, never negative; None without a cap."""
        return None if self.cap is None else Picodollars(max(0, self.cap - self.spent - self.reserved))


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the append-only journal: what a reservation's held and spent amounts changed by."""

    at: float
    kind: str
    held: Picodollars
    spent: Picodollars
    note: str | None


def _midnight(day: date, zone: tzinfo) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
