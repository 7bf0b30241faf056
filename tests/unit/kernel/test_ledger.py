"""The durable ledger: caps hold across threads, processes and kill -9; nothing is lost, nothing counted twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from avyay.clock import FakeClock
from avyay.errors import ExitCode, UsageError
from avyay.ledger import (
    BudgetExceededError,
    Ledger,
    Reservation,
    ReservationState,
    Scope,
    daily,
    monthly,
)
from avyay.money import DOLLAR, Picodollars, parse_usd

DAY = Scope("key:abc/day:2026-11-21", Picodollars(10), resets_at=1_795_392_000.0)
TOTAL = Scope("total", Picodollars(15))
COUNTED = Scope("service:chat", None)


def pico(amount: int) -> Picodollars:
    return Picodollars(amount)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(now=1_795_300_000.0)


@pytest.fixture
def ledger(tmp_path: Path, clock: FakeClock) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "budget.db", synchronous="OFF", clock=clock)
    yield ledger
    assert ledger.problems() == []
    ledger.close()


def standing(ledger: Ledger, scope: Scope = DAY) -> tuple[int, int]:
    balance = ledger.balance(scope.key)
    return balance.spent, balance.reserved


def test_reserve_then_settle(ledger: Ledger) -> None:
    reservation = ledger.reserve([DAY, TOTAL, COUNTED], pico(6), "call-1")
    assert (reservation.held, reservation.spent, reservation.state) == (6, 0, ReservationState.OPEN)
    assert [standing(ledger, scope) for scope in (DAY, TOTAL, COUNTED)] == [(0, 6)] * 3
    settled = ledger.settle(reservation, pico(4), note="2 tokens fewer")
    assert (settled.held, settled.spent, settled.state) == (0, 4, ReservationState.SETTLED)
    assert [standing(ledger, scope) for scope in (DAY, TOTAL, COUNTED)] == [(4, 0)] * 3
    assert ledger.balance(DAY.key).remaining == 6
    assert ledger.balance(COUNTED.key).remaining is None
    assert [(entry.kind, entry.held, entry.spent) for entry in ledger.journal(settled)] == [
        ("reserve", 6, 0),
        ("settle", -6, 4),
    ]


def test_a_refusal_names_scope_cap_spent_and_reset_and_reserves_nothing(ledger: Ledger) -> None:
    ledger.settle(ledger.reserve([DAY], pico(7), "a"), pico(7))
    ledger.reserve([DAY], pico(2), "b")
    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve([TOTAL, DAY], pico(2), "c")
    error = caught.value
    assert error.code == "budget_exceeded"
    assert error.exit_code is ExitCode.POLICY
    assert (error.balance.key, error.balance.cap, error.balance.spent, error.balance.reserved) == (DAY.key, 10, 7, 2)
    assert (error.asked, error.balance.resets_at) == (2, DAY.resets_at)
    assert "2026-11-23T00:00:00Z" in (error.hint or "")
    assert standing(ledger, TOTAL) == (0, 0)
    assert ledger.find("c") is None


def test_the_cap_can_be_reached_exactly(ledger: Ledger) -> None:
    ledger.reserve([DAY], pico(10), "a")
    ledger.reserve([DAY], pico(0), "free")
    with pytest.raises(BudgetExceededError):
        ledger.reserve([DAY], pico(1), "b")


def test_the_cap_given_now_applies(ledger: Ledger) -> None:
    ledger.reserve([DAY], pico(10), "a")
    ledger.reserve([Scope(DAY.key, pico(12))], pico(2), "b")
    with pytest.raises(BudgetExceededError, match="does not allow"):
        ledger.reserve([Scope(DAY.key, pico(5))], pico(1), "c")
    assert ledger.balance(DAY.key).resets_at is None


def test_one_key_is_one_reservation(ledger: Ledger) -> None:
    first = ledger.reserve([DAY, TOTAL], pico(6), "call")
    assert ledger.reserve([DAY, TOTAL], pico(6), "call") == first
    assert standing(ledger) == (0, 6)
    settled = ledger.settle(first, pico(1))
    assert ledger.reserve([DAY, TOTAL], pico(6), "call") == settled
    for scopes, amount in (([DAY, TOTAL], 5), ([DAY], 6), ([TOTAL, DAY], 6)):
        with pytest.raises(UsageError) as caught:
            ledger.reserve(scopes, pico(amount), "call")
        assert caught.value.code == "idempotency_key_reused"


def test_settling_twice(ledger: Ledger) -> None:
    reservation = ledger.reserve([DAY], pico(6), "call")
    assert ledger.settle(reservation, pico(3)) == ledger.settle(reservation, pico(3))
    with pytest.raises(UsageError, match="already settled"):
        ledger.settle(reservation, pico(4))
    with pytest.raises(UsageError, match="cannot be released"):
        ledger.release(reservation)
    assert standing(ledger) == (3, 0)


def test_releasing(ledger: Ledger) -> None:
    reservation = ledger.reserve([DAY], pico(6), "call")
    assert ledger.release(reservation).state is ReservationState.RELEASED
    assert ledger.release(reservation).state is ReservationState.RELEASED
    assert standing(ledger) == (0, 0)
    with pytest.raises(UsageError, match="already released"):
        ledger.settle(reservation, pico(1))


def test_an_unknown_outcome_keeps_counting_until_it_is_reconciled(ledger: Ledger) -> None:
    reservation = ledger.mark_unknown(ledger.reserve([DAY], pico(10), "call"), note="the connection broke")
    assert (reservation.state, reservation.note) == (ReservationState.UNKNOWN, "the connection broke")
    with pytest.raises(BudgetExceededError):
        ledger.reserve([DAY], pico(1), "next")
    with pytest.raises(UsageError):
        ledger.release(reservation)
    assert [one.key for one in ledger.pending()] == ["call"]
    assert ledger.reconcile(reservation, pico(4), note="invoice").state is ReservationState.SETTLED
    assert standing(ledger) == (4, 0)
    assert ledger.pending() == []


def test_expiry_frees_nothing(ledger: Ledger, clock: FakeClock) -> None:
    ledger.reserve([DAY], pico(4), "short", lifetime=60)
    ledger.reserve([DAY], pico(4), "endless")
    ledger.settle(ledger.reserve([DAY], pico(1), "done", lifetime=60), pico(1))
    clock.advance(59)
    assert ledger.expire() == []
    clock.advance(1)
    assert [(one.key, one.state) for one in ledger.expire()] == [("short", ReservationState.UNKNOWN)]
    assert ledger.expire() == []
    assert standing(ledger) == (1, 8)


def test_a_late_bill_corrects_a_settlement(ledger: Ledger) -> None:
    settled = ledger.settle(ledger.reserve([DAY], pico(6), "call"), pico(3))
    ledger.reconcile(settled, pico(5))
    ledger.reconcile(settled, pico(5))
    assert standing(ledger) == (5, 0)
    released = ledger.release(ledger.reserve([DAY], pico(2), "never sent, they said"))
    ledger.reconcile(released, pico(2))
    assert standing(ledger) == (7, 0)


def test_what_was_overspent_is_spent(ledger: Ledger) -> None:
    ledger.settle(ledger.reserve([DAY], pico(9), "call"), pico(18))
    assert standing(ledger) == (18, 0)
    assert ledger.balance(DAY.key).remaining == 0
    with pytest.raises(BudgetExceededError):
        ledger.reserve([DAY], pico(1), "next")


def test_bad_requests(ledger: Ledger) -> None:
    for scopes, amount in (([DAY], -1), ([], 1), ([DAY, DAY], 1)):
        with pytest.raises(UsageError):
            ledger.reserve(scopes, pico(amount), "call")
    reservation = ledger.reserve([DAY], pico(1), "call")
    for change in (ledger.settle, ledger.reconcile):
        with pytest.raises(UsageError, match="less than nothing"):
            change(reservation, pico(-1))


def test_sums_beyond_the_column_are_refused(ledger: Ledger) -> None:
    ledger.reserve([COUNTED], pico(9_000_000 * DOLLAR), "a")
    with pytest.raises(UsageError, match="million"):
        ledger.reserve([COUNTED], pico(9_000_000 * DOLLAR), "b")
    assert standing(ledger, COUNTED) == (0, 9_000_000 * DOLLAR)


def test_the_journal_is_append_only(ledger: Ledger) -> None:
    ledger.reserve([DAY], pico(1), "call")
    intruder = sqlite3.connect(ledger.path, isolation_level=None)
    for statement in ("DELETE FROM ledger_entries", "UPDATE ledger_entries SET spent = 0"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            intruder.execute(statement)
    intruder.close()


def test_tampering_is_found(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "budget.db", synchronous="OFF")
    ledger.reserve([DAY], pico(5), "call")
    intruder = sqlite3.connect(ledger.path, isolation_level=None)
    intruder.execute("UPDATE ledger_scopes SET reserved = 0")
    intruder.execute("UPDATE ledger_reservations SET held = 1")
    intruder.close()
    assert len(ledger.problems()) == 2
    ledger.close()


def test_reading(ledger: Ledger) -> None:
    assert standing(ledger) == (0, 0)
    ledger.reserve([DAY, TOTAL], pico(1), "call")
    assert [balance.key for balance in ledger.balances()] == [DAY.key, TOTAL.key]
    assert [balance.key for balance in ledger.balances("key:")] == [DAY.key]
    found = ledger.find("call")
    assert found is not None
    assert found.scopes == (DAY.key, TOTAL.key)


def test_days_and_months() -> None:
    now = datetime(2026, 12, 31, 23, 30, tzinfo=UTC).timestamp()
    day = daily("key:abc", DOLLAR, now)
    assert day == Scope("key:abc/day:2026-12-31", DOLLAR, datetime(2027, 1, 1, tzinfo=UTC).timestamp())
    month = monthly("key:abc", None, now)
    assert month == Scope("key:abc/month:2026-12", None, datetime(2027, 1, 1, tzinfo=UTC).timestamp())
    berlin = ZoneInfo("Europe/Berlin")
    assert daily("k", None, now, berlin).key == "k/day:2027-01-01"
    spring = datetime(2026, 3, 29, 12, tzinfo=berlin).timestamp()  # a day of 23 hours
    assert daily("k", None, spring, berlin).resets_at == datetime(2026, 3, 30, tzinfo=berlin).timestamp()
    assert monthly("k", None, spring, berlin).resets_at == datetime(2026, 4, 1, tzinfo=berlin).timestamp()


def test_200_concurrent_reservations_never_pass_the_cap(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "budget.db", synchronous="OFF")

    def one(number: int) -> bool:
        try:
            reservation = ledger.reserve(
                [Scope("day", pico(100)), Scope("total", pico(150))], pico(3), f"call-{number}"
            )
        except BudgetExceededError:
            return False
        balance = ledger.balance("day")
        assert balance.reserved + balance.spent <= 100
        ledger.settle(reservation, pico(2 if number % 2 else 3))
        return True

    with ThreadPoolExecutor(32) as pool:
        admitted = sum(pool.map(one, range(200)))
    balance = ledger.balance("day")
    assert balance.reserved == 0
    # Whoever was refused last saw up to 31 others under way, each of whom may have given back one of three.
    assert 97 - 31 < balance.spent <= 100
    assert 23 <= admitted <= 50
    assert ledger.problems() == []
    ledger.close()


SPENDER = """
import sys
from pathlib import Path
from avyay.ledger import BudgetExceededError, Ledger, Scope
from avyay.money import Picodollars
path, name, cap = sys.argv[1:]
ledger = Ledger(Path(path), synchronous="NORMAL")
number = 0
while True:
    number += 1
    try:
        reservation = ledger.reserve([Scope("day", Picodollars(int(cap)))], Picodollars(3), f"{name}-{number}")
    except BudgetExceededError:
        break
    print("reserved", reservation.key, flush=True)
    if number % 3:
        ledger.settle(reservation, Picodollars(2))
        print("settled", reservation.key, flush=True)
"""


def spender(path: Path, name: str, cap: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(path), name, str(cap)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.environ["PATH"]},
    )


def test_two_processes_share_one_cap(tmp_path: Path) -> None:
    path = tmp_path / "budget.db"
    processes = [spender(path, name, 300) for name in ("one", "two")]
    told = [line.split() for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    ledger = Ledger(path)
    balance = ledger.balance("day")
    settled = sum(word == "settled" for word, _ in told)
    open_ones = sum(word == "reserved" for word, _ in told) - settled
    assert (balance.spent, balance.reserved) == (2 * settled, 3 * open_ones)
    assert 297 < balance.spent + balance.reserved <= 300
    assert ledger.problems() == []
    ledger.close()


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "budget.db"
    process = spender(path, "doomed", 10**9)
    assert process.stdout is not None
    told = [process.stdout.readline().split() for _ in range(60)]
    process.send_signal(signal.SIGKILL)
    told += [line.split() for line in process.stdout.read().splitlines()]
    process.wait(60)
    process.stdout.close()
    ledger = Ledger(path, synchronous="OFF")
    for line in told:
        if len(line) < 2 or (found := ledger.find(line[1])) is None:
            assert line is told[-1]  # cut in the middle of a line
            continue
        assert found.state is ReservationState.SETTLED or line[0] == "reserved"
    assert ledger.problems() == []
    ledger.close()


class LedgerModel(RuleBasedStateMachine):
    """The ledger against a dictionary."""

    CAPS: ClassVar[dict[str, int | None]] = {"a": 20, "b": 35, "c": None}

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.path = Path(self.folder.name) / "budget.db"
        self.ledger = Ledger(self.path, synchronous="OFF", clock=self.clock)
        self.model: dict[str, tuple[Reservation, int, int, str, bool]] = {}  # held, spent, state, mortal
        self.overrun = dict.fromkeys(self.CAPS, 0)

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    def sums(self, scope: str) -> tuple[int, int]:
        mine = [one for one in self.model.values() if scope in one[0].scopes]
        return sum(one[2] for one in mine), sum(one[1] for one in mine)

    @rule(
        names=st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True),
        amount=st.integers(0, 12),
        mortal=st.booleans(),
    )
    def reserve(self, names: list[str], amount: int, mortal: bool) -> None:
        scopes = [Scope(name, None if (cap := self.CAPS[name]) is None else pico(cap)) for name in names]
        fits = all(scope.cap is None or amount <= max(0, scope.cap - sum(self.sums(scope.key))) for scope in scopes)
        key = f"r{len(self.model)}"
        try:
            reservation = self.ledger.reserve(scopes, pico(amount), key, lifetime=10 if mortal else None)
        except BudgetExceededError:
            assert not fits
            return
        assert fits
        self.model[key] = (reservation, amount, 0, "open", mortal)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), actual=st.integers(0, 15), how=st.sampled_from(["settle", "release", "unknown", "reconcile"]))
    def finish(self, data: st.DataObject, actual: int, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        reservation, held, spent, state, mortal = self.model[key]
        allowed = {
            "settle": state in ("open", "unknown") or (state == "settled" and spent == actual),
            "release": state in ("open", "released"),
            "unknown": True,
            "reconcile": True,
        }[how]
        call = {
            "settle": lambda: self.ledger.settle(reservation, pico(actual)),
            "release": lambda: self.ledger.release(reservation),
            "unknown": lambda: self.ledger.mark_unknown(reservation),
            "reconcile": lambda: self.ledger.reconcile(reservation, pico(actual)),
        }[how]
        try:
            after = call()
        except UsageError:
            assert not allowed
            return
        assert allowed
        if how in ("settle", "reconcile"):
            for scope in reservation.scopes:
                self.overrun[scope] += max(0, actual - held - spent)
            self.model[key] = (reservation, 0, actual, "settled", mortal)
        elif how == "release":
            self.model[key] = (reservation, 0, 0, "released", mortal)
        elif state == "open":
            self.model[key] = (reservation, held, spent, "unknown", mortal)
        assert (after.held, after.spent, after.state.value) == self.model[key][1:4]

    @rule()
    def expire(self) -> None:
        self.clock.advance(10)
        overdue = {key for key, one in self.model.items() if one[3] == "open" and one[4]}
        assert {one.key for one in self.ledger.expire()} == overdue
        for key in overdue:
            reservation, held, spent, _, mortal = self.model[key]
            self.model[key] = (reservation, held, spent, "unknown", mortal)

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.path, synchronous="OFF", clock=self.clock)

    @invariant()
    def agrees(self) -> None:
        for name, cap in self.CAPS.items():
            balance = self.ledger.balance(name)
            assert (balance.spent, balance.reserved) == self.sums(name)
            if cap is not None:
                assert balance.spent + balance.reserved <= cap + self.overrun[name]
        assert self.ledger.problems() == []
        assert {one.key for one in self.ledger.pending()} == {
            key for key, one in self.model.items() if one[3] in ("open", "unknown")
        }


TestLedgerModel = LedgerModel.TestCase
TestLedgerModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_amounts_show_as_dollars_in_messages(ledger: Ledger) -> None:
    scope = Scope("day", parse_usd("5"))
    ledger.reserve([scope], parse_usd("4.90"), "a")
    with pytest.raises(
        BudgetExceededError, match=r"does not allow \$0\.15: \$0\.00 spent and \$4\.90 reserved of \$5\.00"
    ):
        ledger.reserve([scope], parse_usd("0.15"), "b")
