"""The retry budget: however badly the upstream does, tries stay near 1.1 times the requests."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.resilience.retry_budget import RetryBudget, RetryBudgetPolicy


@pytest.mark.parametrize("error_rate", [0.0, 0.05, 0.3, 0.9, 1.0])
def test_amplification_is_bounded(error_rate: float) -> None:
    rng, budget = random.Random(11), RetryBudget()
    requests, tries, now = 20_000, 0, 0.0
    for _ in range(requests):
        now += 0.001
        budget.deposit()
        tries += 1
        attempts = 1
        while rng.random() < error_rate and attempts < 4 and budget.withdraw(now):
            tries += 1
            attempts += 1
    assert tries <= 1.1 * requests + 10 + 0.1 * now
    assert tries / requests < 1.101
    if error_rate == 0.05:
        assert budget.refused == 0  # ordinary trouble is retried


def test_a_quiet_service_can_still_retry() -> None:
    budget = RetryBudget()
    assert sum(budget.withdraw(0.0) for _ in range(100)) == 10
    assert budget.refused == 90
    assert not budget.withdraw(9.0)
    assert budget.withdraw(10.0)
    assert budget.balance(1e6) == 10.0


def test_ten_requests_pay_for_one_retry() -> None:
    budget = RetryBudget(RetryBudgetPolicy(trickle=0.0, burst=5))
    while budget.withdraw(0.0):
        pass
    for _ in range(9):
        budget.deposit()
    assert not budget.withdraw(0.0)
    budget.deposit()
    assert budget.withdraw(0.0)
    budget.deposit(1000)
    assert budget.balance(0.0) == 5


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=200))
def test_the_bound_holds_for_any_order(steps: list[tuple[bool, float]]) -> None:
    policy = RetryBudgetPolicy(ratio=0.2, burst=3, trickle=0.5)
    budget = RetryBudget(policy)
    now, requests, retries = 0.0, 0, 0
    for is_request, wait in steps:
        now += wait
        if is_request:
            budget.deposit()
            requests += 1
        else:
            retries += budget.withdraw(now)
        assert retries <= 0.2 * requests + 3 + 0.5 * now + 1e-6


@pytest.mark.parametrize("wrong", [{"ratio": -1}, {"burst": 0}, {"trickle": -0.1}])
def test_a_policy_that_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetryBudgetPolicy(**wrong)
