"""The durable ledger: every method is one SQLite transaction, atomic across all scopes of a reservation."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Schema, Synchronous, open_database
from avyay.db_gaps import is_held, liveness_file
from avyay.errors import InternalError, UsageError
from avyay.ledger.schema import LEDGER_SCHEMA
from avyay.ledger.types import Balance, BudgetExceededError, Entry, Reservation, ReservationState, Scope
from avyay.money import ZERO, Picodollars, total

__all__ = ["Ledger"]


class Ledger:
    """The durable ledger of one component. Thread-safe; share the file between processes, not the object.

    Args:
        path: The SQLite file.
        schemas: Other tables to keep in the same file.
        synchronous: FULL survives a power cut; NORMAL, about 30 times faster, the death of any process.
        busy_timeout: Seconds to wait for other processes.
        clock: Wall time for records and expiry.

    Raises:
        AvyayError: As `avyay.db.open_database`; every method may also raise what `avyay.db.database_error` words.
    """

    def __init__(
        self,
        path: Path,
        *schemas: Schema,
        synchronous: Synchronous = "FULL",
        busy_timeout: float = 10.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = path
        self.clock = clock
        self._lock = threading.Lock()
        self._database = open_database(
            path,
            LEDGER_SCHEMA,
            *schemas,
            synchronous=synchronous,
            busy_timeout=busy_timeout,
            check_same_thread=False,
        )

    def close(self) -> None:
        """Close the file. Reservations stay as they are."""
        with self._lock:
            self._database.close()

    def reserve(
        self, scopes: Sequence[Scope], worst_case: Picodollars, key: str, *, lifetime: float | None = None
    ) -> Reservation:
        """Hold `worst_case` in every scope, or in none.

        Args:
            scopes: Distinct keys; the caps given here are the ones that apply.
            worst_case: The most the call can cost, not negative. Nothing always fits, even into a budget used up.
            key: Idempotency key: asking again with it returns the reservation of the first time, in its present state.
            lifetime: Seconds after which `expire` may call the outcome unknown.

        Raises:
            BudgetExceededError: It does not fit; the first scope in order that refuses is named.
            UsageError: A negative amount, no or repeated scopes, or the key belongs to something else.
        """
        keys = tuple(scope.key for scope in scopes)
        if worst_case < 0 or not keys or len(set(keys)) != len(keys):
            raise UsageError("a reservation needs an amount that is not negative, and distinct scopes")
        now = self.clock.now()
        with self._transaction() as database:
            existing = self._find(database, "key = ?", key)
            if existing:
                return _same(existing[0], keys, worst_case, database)
            for scope in scopes:
                balance = _refresh(database, scope)
                if balance.remaining is not None and worst_case > balance.remaining:
                    raise BudgetExceededError(balance, worst_case)
            expires = None if lifetime is None else now + lifetime
            number = _insert(database, key, keys, worst_case, now, expires_at=expires, owner=None)
            return self._get(database, number)

    def settle(self, reservation: Reservation, actual: Picodollars, *, note: str | None = None) -> Reservation:
        """The call is over and cost `actual`: the rest of what was held is free again. Again with the same: nothing.

        More than was held is recorded all the same, for it is spent: a scope may then be over its cap, and refuses.

        Raises:
            UsageError: It is already settled with another amount or released (`reconcile` corrects that).
        """
        _not_negative(actual)
        with self._transaction() as database:
            current = self._get(database, reservation.id)
            if current.state is ReservationState.SETTLED and current.spent == actual:
                return current
            if current.state not in _HELD:
                raise UsageError(
                    f"reservation {current.key} is already {current.state.value}",
                    hint="use reconcile to correct it",
                    code="already_settled",
                )
            return self._change(database, current, "settle", ZERO, actual, ReservationState.SETTLED, note)

    def release(self, reservation: Reservation, *, note: str | None = None) -> Reservation:
        """The call was never made: all that was held is free again. Again: nothing.

        Raises:
            UsageError: It is settled, or its outcome is unknown (`reconcile` decides that, with evidence).
        """
        with self._transaction() as database:
            current = self._get(database, reservation.id)
            if current.state is ReservationState.RELEASED:
                return current
            if current.state is not ReservationState.OPEN:
                raise UsageError(
                    f"reservation {current.key} is {current.state.value} and cannot be released",
                    hint="use reconcile when it is known what it cost",
                    code="not_open",
                )
            return self._change(database, current, "release", ZERO, current.spent, ReservationState.RELEASED, note)

    def mark_unknown(self, reservation: Reservation, *, note: str | None = None) -> Reservation:
        """Nobody knows whether the call took effect: it keeps counting until `reconcile`. Again: nothing."""
        with self._transaction() as database:
            current = self._get(database, reservation.id)
            if current.state is not ReservationState.OPEN:
                return current
            return self._change(
                database, current, "unknown", current.held, current.spent, ReservationState.UNKNOWN, note
            )

    def expire(self) -> list[Reservation]:
        """Call every open reservation past its lifetime unknown, and return those. None of them stops counting."""
        now = self.clock.now()
        with self._transaction() as database:
            overdue = self._find(database, "state = 'open' AND expires_at <= ?", now)
            return [
                self._change(database, one, "expire", one.held, one.spent, ReservationState.UNKNOWN, None)
                for one in overdue
            ]

    def reconcile(self, reservation: Reservation, actual: Picodollars, *, note: str | None = None) -> Reservation:
        """The other side's books say it cost `actual` in all: settle it, or correct what was settled or released."""
        _not_negative(actual)
        with self._transaction() as database:
            current = self._get(database, reservation.id)
            if current.state is ReservationState.SETTLED and current.spent == actual:
                return current
            return self._change(database, current, "reconcile", ZERO, actual, ReservationState.SETTLED, note)

    def find(self, key: str) -> Reservation | None:
        """The reservation with this idempotency key."""
        with self._transaction(immediate=False) as database:
            return next(iter(self._find(database, "key = ?", key)), None)

    def pending(self) -> list[Reservation]:
        """All reservations that still hold something, oldest first: open, unknown, and blocks."""
        with self._transaction(immediate=False) as database:
            return self._find(database, "state IN ('open', 'unknown')")

    def balance(self, key: str) -> Balance:
        """Where the scope stands; zero for one never used."""
        with self._transaction(immediate=False) as database:
            return _balance(database, key)

    def balances(self, prefix: str = "") -> list[Balance]:
        """All scopes whose key begins with `prefix`, by key."""
        with self._transaction(immediate=False) as database:
            rows = database.execute(
                "SELECT key, spent, reserved, cap, resets_at FROM ledger_scopes"
                " WHERE substr(key, 1, ?) = ? ORDER BY key",
                (len(prefix), prefix),
            )
            return [Balance(*row) for row in rows]

    def journal(self, reservation: Reservation) -> list[Entry]:
        """All that ever happened to a reservation."""
        with self._transaction(immediate=False) as database:
            rows = database.execute(
                "SELECT at, kind, held, spent, note FROM ledger_entries WHERE reservation_id = ? ORDER BY id",
                (reservation.id,),
            )
            return [Entry(*row) for row in rows]

    def problems(self) -> list[str]:
        """What does not add up, as sentences; empty when reservations, journal and balances agree."""
        with self._transaction(immediate=False) as database:
            found = [
                f"scope {key}: {spent} spent and {reserved} reserved, but its reservations say {s} and {r}"
                for key, spent, reserved, s, r in database.execute(
                    "SELECT s.key, s.spent, s.reserved, coalesce(sum(r.spent), 0) AS a, coalesce(sum(r.held), 0) AS b"
                    " FROM ledger_scopes s LEFT JOIN ledger_holds h ON h.scope = s.key"
                    " LEFT JOIN ledger_reservations r ON r.id = h.reservation_id"
                    " GROUP BY s.key HAVING s.spent != a OR s.reserved != b"
                )
            ]
            found += [
                f"reservation {key} holds {held} and spent {spent}, but its journal says {h} and {s}"
                for key, held, spent, h, s in database.execute(
                    "SELECT r.key, r.held, r.spent, coalesce(sum(e.held), 0) AS a, coalesce(sum(e.spent), 0) AS b"
                    " FROM ledger_reservations r LEFT JOIN ledger_entries e ON e.reservation_id = r.id"
                    " WHERE r.owner IS NULL OR r.state != 'open'"
                    " GROUP BY r.id HAVING r.held != a OR r.spent != b"
                )
            ]
        return found

    def open_block(self, scope: Scope, need: Picodollars, want: Picodollars, key: str, owner: str) -> Reservation:
        """Hold as much of one scope as there is, up to `want`, for `owner` to draw from in memory.

        Raises:
            BudgetExceededError: Not even `need` is left.
        """
        with self._transaction() as database:
            balance = _refresh(database, scope)
            granted = want if balance.remaining is None else min(want, balance.remaining)
            if granted < need:
                raise BudgetExceededError(balance, need)
            number = _insert(
                database, key, (scope.key,), Picodollars(granted), self.clock.now(), expires_at=None, owner=owner
            )
            return self._get(database, number)

    def resize_block(
        self,
        number: int,
        scope: Scope,
        *,
        spent: Picodollars,
        held: Picodollars,
        grow_to: Picodollars = ZERO,
        outstanding: Picodollars = ZERO,
    ) -> tuple[Reservation, Balance]:
        """Write down what a block's owner knows, and grow the block as far as the cap allows. Safe to repeat.

        Args:
            number: The block's id.
            scope: Its scope, with the cap that applies now.
            spent: What was drawn and settled since the block was opened, in all.
            held: What must stay held: drawn but not settled, and undrawn.
            grow_to: Hold up to this much instead, if it is more.
            outstanding: What of it is drawn for calls under way.

        Returns:
            The block and its scope afterwards.

        Raises:
            UsageError: It is no longer open: somebody reconciled it, taking its owner for dead.
        """
        with self._transaction() as database:
            current = self._get(database, number)
            if current.state is not ReservationState.OPEN:
                raise UsageError(f"block {current.key} is already {current.state.value}", code="block_closed")
            balance = _refresh(database, scope)
            if grow_to > held:
                free = grow_to
                if balance.cap is not None:
                    others = balance.spent - current.spent + balance.reserved - current.held
                    free = Picodollars(balance.cap - others - spent)
                held = max(held, min(grow_to, free))
            if (spent, held) != (current.spent, current.held):
                current = self._change(database, current, None, held, spent, ReservationState.OPEN, None)
            if outstanding != current.outstanding:
                database.execute("UPDATE ledger_reservations SET outstanding = ? WHERE id = ?", (outstanding, number))
                current = replace(current, outstanding=outstanding)
            return current, _balance(database, scope.key)

    def close_block(self, number: int, *, spent: Picodollars, outstanding: Picodollars) -> Reservation:
        """Its owner is done with a block: what was never drawn is free again. Safe to repeat.

        Args:
            number: The block's id.
            spent: What was drawn and settled, in all.
            outstanding: What was drawn and never settled; if any, the block stays held by that much, and unknown.
        """
        with self._transaction() as database:
            current = self._get(database, number)
            if current.state is not ReservationState.OPEN:
                return current
            state = ReservationState.UNKNOWN if outstanding else ReservationState.SETTLED
            return self._change(database, current, "close", outstanding, spent, state, None)

    def orphaned_blocks(self) -> list[Reservation]:
        """Open blocks whose owner's process is gone: all they held counts as spent until `reconcile`."""
        return [
            block
            for block in self.pending()
            if block.owner is not None and not is_held(liveness_file(self.path, block.owner))
        ]

    @contextmanager
    def _transaction(self, *, immediate: bool = True) -> Iterator[Database]:
        with self._lock, self._database.transaction(immediate=immediate) as database:
            yield database

    def _get(self, database: Database, number: int) -> Reservation:
        found = self._find(database, "id = ?", number)
        if not found:
            raise UsageError(f"there is no reservation {number} in {self.path}", code="no_reservation")
        return found[0]

    def _find(self, database: Database, where: str, *values: str | float) -> list[Reservation]:
        rows = database.execute(
            "SELECT id, key, held, spent, state, owner, created_at, expires_at, note, outstanding"  # noqa: S608 - constant clauses
            f" FROM ledger_reservations WHERE {where} ORDER BY id",
            values,
        ).fetchall()
        return [
            Reservation(
                row[0], row[1], _scopes_of(database, row[0]), row[2], row[3], ReservationState(row[4]), *row[5:]
            )
            for row in rows
        ]

    def _change(
        self,
        database: Database,
        current: Reservation,
        kind: str | None,
        held: Picodollars,
        spent: Picodollars,
        state: ReservationState,
        note: str | None,
    ) -> Reservation:
        """The one place where amounts move: reservation, journal (unless `kind` is None) and scopes together."""
        held_by, spent_by = held - current.held, spent - current.spent
        database.execute(
            "UPDATE ledger_reservations SET held = ?, spent = ?, state = ?, note = coalesce(?, note) WHERE id = ?",
            (held, spent, state.value, note, current.id),
        )
        if kind is not None:
            journalled = (current.held, current.spent)
            if current.owner is not None:
                # A block changes every few seconds; only its opening and its end are worth a line.
                journalled = database.execute(
                    "SELECT sum(held), sum(spent) FROM ledger_entries WHERE reservation_id = ?", (current.id,)
                ).fetchone()
            delta = (held - journalled[0], spent - journalled[1])
            _journal(database, current.id, self.clock.now(), kind, *delta, note)
        for key in current.scopes:
            _add(database, key, held_by, spent_by)
        return self._get(database, current.id)


_HELD = frozenset((ReservationState.OPEN, ReservationState.UNKNOWN))


def _insert(
    database: Database,
    key: str,
    scopes: Iterable[str],
    amount: Picodollars,
    now: float,
    *,
    expires_at: float | None,
    owner: str | None,
) -> int:
    number = database.execute(
        "INSERT INTO ledger_reservations (key, held, owner, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
        (key, amount, owner, now, expires_at),
    ).lastrowid
    if number is None:
        raise InternalError("a reservation was inserted without a number")
    _journal(database, number, now, "reserve", amount, 0, None)
    for position, scope in enumerate(scopes):
        database.execute("INSERT INTO ledger_holds VALUES (?, ?, ?)", (number, position, scope))
        _add(database, scope, amount, 0)
    return number


def _journal(database: Database, number: int, now: float, kind: str, held: int, spent: int, note: str | None) -> None:
    database.execute(
        "INSERT INTO ledger_entries (reservation_id, at, kind, held, spent, note) VALUES (?, ?, ?, ?, ?, ?)",
        (number, now, kind, held, spent, note),
    )


def _add(database: Database, scope: str, held: int, spent: int) -> None:
    balance = _balance(database, scope)
    # Added here, not in SQL, where a sum beyond 64 bits silently becomes a float.
    values = (
        total((balance.reserved, Picodollars(held))),
        total((balance.spent, Picodollars(spent))),
        scope,
    )
    database.execute("UPDATE ledger_scopes SET reserved = ?, spent = ? WHERE key = ?", values)


def _refresh(database: Database, scope: Scope) -> Balance:
    """The scope's balance under the cap that applies now."""
    database.execute(
        "INSERT INTO ledger_scopes (key, cap, resets_at) VALUES (?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET cap = excluded.cap, resets_at = excluded.resets_at"
        " WHERE cap IS NOT excluded.cap OR resets_at IS NOT excluded.resets_at",
        (scope.key, scope.cap, scope.resets_at),
    )
    return _balance(database, scope.key)


def _balance(database: Database, key: str) -> Balance:
    row = database.execute(
        "SELECT key, spent, reserved, cap, resets_at FROM ledger_scopes WHERE key = ?", (key,)
    ).fetchone()
    return Balance(*row) if row else Balance(key, ZERO, ZERO, None, None)


def _scopes_of(database: Database, number: int) -> tuple[str, ...]:
    rows = database.execute("SELECT scope FROM ledger_holds WHERE reservation_id = ? ORDER BY position", (number,))
    return tuple(row[0] for row in rows)


def _same(existing: Reservation, scopes: tuple[str, ...], amount: Picodollars, database: Database) -> Reservation:
    (first,) = database.execute(
        "SELECT held FROM ledger_entries WHERE reservation_id = ? ORDER BY id LIMIT 1", (existing.id,)
    ).fetchone()
    if existing.scopes != scopes or first != amount:
        raise UsageError(
            f"the idempotency key {existing.key} belongs to another reservation",
            hint="make a new key for a new call",
            code="idempotency_key_reused",
        )
    return existing


def _not_negative(amount: Picodollars) -> None:
    if amount < 0:
        raise UsageError("a call cannot cost less than nothing")
