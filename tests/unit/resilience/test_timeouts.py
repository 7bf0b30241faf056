"""The adaptive timeout: near what is usual, longer for the slow, not for the dead."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.resilience.timeouts import AdaptiveTimeout, TimeoutPolicy

POLICY = TimeoutPolicy(floor=0.5, ceiling=60, initial=15, quantile=0.99, multiplier=3, minimum_samples=20, window=600)


def test_the_initial_guess_holds_until_enough_was_seen() -> None:
    timeout = AdaptiveTimeout(POLICY)
    for _ in range(19):
        timeout.observe(0.5, 0.0)
    assert timeout.seconds(0.0) == 15
    timeout.observe(0.5, 0.0)
    assert 1.5 <= timeout.seconds(0.0) <= 1.5 * 1.1


def test_floor_and_ceiling() -> None:
    fast, slow = AdaptiveTimeout(POLICY), AdaptiveTimeout(POLICY)
    for _ in range(100):
        fast.observe(0.0, 0.0)
        slow.observe(5000.0, 0.0)
    assert fast.seconds(0.0) == 0.5
    assert slow.seconds(0.0) == 60


def test_one_straggler_in_a_thousand_does_not_matter() -> None:
    timeout = AdaptiveTimeout(POLICY)
    for number in range(1000):
        timeout.observe(14.0 if number % 1000 == 7 else 0.4, 0.0)
    assert timeout.seconds(0.0) < 1.4


def test_a_dead_provider_is_not_waited_for_longer_and_longer() -> None:
    timeout = AdaptiveTimeout(POLICY)
    for _ in range(100):
        timeout.observe(1.0, 0.0)
    usual = timeout.seconds(0.0)
    for _ in range(1000):
        timeout.observe_timeout()
    assert timeout.seconds(10.0) == usual


def test_a_provider_that_became_slow_gets_more_time() -> None:
    timeout, now, latency = AdaptiveTimeout(POLICY), 0.0, 20.0
    for _ in range(100):
        timeout.observe(0.5, now)
    rounds = 0
    while timeout.seconds(now) < latency:
        now += 30
        rounds += 1
        for _ in range(5):  # what trips the breaker
            timeout.observe_timeout()
        timeout.observe(0.6, now)  # the minimal probe is answered
    assert rounds <= 5


def test_old_latencies_are_forgotten() -> None:
    timeout = AdaptiveTimeout(POLICY)
    for _ in range(100):
        timeout.observe(10.0, 0.0)
    assert timeout.seconds(0.0) > 29
    for second in range(0, 900, 3):
        timeout.observe(0.5, float(second))
    assert timeout.seconds(900.0) < 2
    assert timeout.seconds(90_000.0) < 2  # a pause is no reason to forget what was learnt
    assert timeout.quantile(0.5) is None


@given(st.lists(st.floats(0.001, 500), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_are_right_to_a_bucket(latencies: list[float], share: float) -> None:
    timeout = AdaptiveTimeout(POLICY)
    for latency in latencies:
        timeout.observe(latency, 0.0)
    exact = sorted(latencies)[max(0, -int(-share * len(latencies) // 1) - 1)]
    found = timeout.quantile(share)
    assert found is not None
    assert exact * 0.999 <= found <= exact * 1.1


def test_it_covers_nearly_all_answers_of_a_heavy_tail() -> None:
    rng, timeout = random.Random(5), AdaptiveTimeout(POLICY)
    cut = 0
    for number in range(20_000):
        latency = rng.lognormvariate(0.0, 0.6)
        now = number * 0.1
        if number > 100 and latency > timeout.seconds(now):
            timeout.observe_timeout()
            cut += 1
        else:
            timeout.observe(latency, now)
    assert cut < 20


@pytest.mark.parametrize("wrong", [{"floor": 0}, {"initial": 100}, {"quantile": 1}, {"multiplier": 0.5}, {"window": 0}])
def test_a_policy_that_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        TimeoutPolicy(**wrong)  # type: ignore[arg-type]
