"""Budgets near their caps are told once for each period and cap, by whoever looks, after whatever crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from outbox import told

from avyay.clock import FakeClock
from avyay.ledger import BlockLedger, BudgetAlerts, Ledger, Scope, daily
from avyay.money import DOLLAR, Picodollars


def dollars(amount: float) -> Picodollars:
    return Picodollars(int(amount * DOLLAR))


def spend(ledger: Ledger, scope: Scope, amount: float, key: str) -> None:
    ledger.settle(ledger.reserve([scope], dollars(amount), key), dollars(amount))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_once_near_and_once_exhausted_in_each_period(tmp_path: Path, clock: FakeClock) -> None:
    ledger = Ledger(tmp_path / "budgets.db", clock=clock)
    alerts = [BudgetAlerts(tmp_path / "budgets.db", "marga", near=0.5, clock=clock) for _ in range(2)]

    def look() -> int:
        return sum(one.look() for one in alerts)

    def today() -> Scope:
        return daily("all", dollars(10), clock.now())

    spend(ledger, today(), 4.9, "a")
    assert look() == 0
    spend(ledger, today(), 0.1, "b")
    assert look() == 1
    spend(ledger, today(), 5, "c")
    assert [look(), look()] == [1, 0]
    clock.advance(86_400)
    spend(ledger, today(), 10, "d")  # both at once, in order
    assert look() == 2
    names = [name for name, _ in told(tmp_path / "budgets.db")]
    assert names == ["marga.budget.neared", "marga.budget.exhausted"] * 2
    data = told(tmp_path / "budgets.db")[0][1]
    assert (data["used"], data["spent_usd"], data["cap_usd"]) == (0.5, "5", "10")
    for one in (*alerts, ledger):
        one.close()


def test_what_was_spent_before_a_crash_is_told_by_the_next(tmp_path: Path, clock: FakeClock) -> None:
    ledger = Ledger(tmp_path / "budgets.db", clock=clock)
    spend(ledger, daily("all", dollars(1), clock.now()), 0.9, "a")
    ledger.close()  # nobody looked
    for expected in (1, 0):
        alerts = BudgetAlerts(tmp_path / "budgets.db", "marga", clock=clock)
        assert alerts.look() == expected
        alerts.close()


def test_a_period_long_over_is_no_news_and_a_raised_cap_is(tmp_path: Path, clock: FakeClock) -> None:
    ledger = Ledger(tmp_path / "budgets.db", clock=clock)
    alerts = BudgetAlerts(tmp_path / "budgets.db", "siddhi", clock=clock)
    spend(ledger, daily("old", dollars(1), clock.now()), 0.9, "a")
    spend(ledger, Scope("total", dollars(1)), 0.9, "b")
    spend(ledger, Scope("free", None), 9, "c")
    clock.advance(4 * 86_400)
    assert alerts.look() == 1
    spend(ledger, Scope("total", dollars(10)), 7.5, "d")
    assert alerts.look() == 1
    assert [data["budget"] for _, data in told(tmp_path / "budgets.db")] == ["total", "total"]
    alerts.close()
    ledger.close()


def test_what_is_held_counts_where_asked_but_not_of_one_hypothesis(tmp_path: Path, clock: FakeClock) -> None:
    ledger = Ledger(tmp_path / "budget.db", clock=clock)
    ledger.reserve([Scope("total", dollars(10)), Scope("hypothesis:h1", dollars(9))], dollars(9), "order")
    spending, holding = (
        BudgetAlerts(tmp_path / "budget.db", "siddhi", reserved=held, clock=clock) for held in (False, True)
    )
    assert spending.look() == 0
    assert holding.look() == 1
    assert told(tmp_path / "budget.db")[0][1]["budget"] == "total"
    for one in (spending, holding, ledger):
        one.close()


def test_what_a_dead_process_holds_counts(tmp_path: Path, clock: FakeClock) -> None:
    """Nobody knows what it spent of it, and nobody can use it."""
    path = tmp_path / "budgets.db"
    ledger = Ledger(path, clock=clock)
    scope = daily("all", dollars(10), clock.now())
    alerts = BudgetAlerts(path, "marga", clock=clock)
    with BlockLedger(Ledger(path, clock=clock), block=dollars(9)) as living:
        living.settle(living.draw_blocking([scope], dollars(9)), dollars(1))
        assert alerts.look() == 0  # its owner lives, and may give it back
    ledger.open_block(scope, dollars(8), dollars(8), "block:gone:1", "gone")
    assert alerts.look() == 1
    ((name, data),) = told(path)
    assert (name, data["used"]) == ("marga.budget.neared", 0.9)
    alerts.close()
    ledger.close()
