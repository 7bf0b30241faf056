"""Backoff: spread over the whole range, never earlier than asked."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.resilience.backoff import Backoff


def test_the_range_doubles_up_to_the_cap() -> None:
    backoff = Backoff(base=1, cap=10, attempts=100)
    almost_one = 1 - 2**-53
    assert [round(backoff.delay(n, lambda: almost_one) or 0) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert backoff.delay(99, lambda: 0.0) == 0.0
    assert backoff.delay(99, lambda: 0.5) == 5.0


def test_tries_are_bounded() -> None:
    assert Backoff(attempts=3).delay(2, random.Random(1).random) is not None
    assert Backoff(attempts=3).delay(3, random.Random(1).random) is None
    assert Backoff(attempts=1).delay(1, random.Random(1).random, retry_after=0) is None


def test_asking_for_too_long_ends_it() -> None:
    backoff = Backoff(base=0.5, patience=20)
    assert backoff.delay(1, lambda: 0.5, retry_after=20) == 20.25
    assert backoff.delay(1, lambda: 0.5, retry_after=20.1) is None


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True), st.floats(0.01, 5), st.floats(5, 100))
def test_delays_stay_within_bounds(failures: int, draw: float, base: float, cap: float) -> None:
    backoff = Backoff(base=base, cap=cap, attempts=20_000, patience=1000)
    free = backoff.delay(failures, lambda: draw)
    assert free is not None
    assert 0 <= free <= min(cap, base * 2.0 ** min(failures - 1, 60))
    asked = backoff.delay(failures, lambda: draw, retry_after=7.0)
    assert asked is not None
    assert 7.0 <= asked <= 7.0 + base


def test_the_jitter_is_full() -> None:
    draw = random.Random(7).random
    delays = [Backoff(base=1, cap=60, attempts=9).delay(4, draw) or 0 for _ in range(2000)]
    assert min(delays) < 0.1 < 7.9 < max(delays) < 8
    assert 3.8 < sum(delays) / len(delays) < 4.2


@pytest.mark.parametrize("wrong", [{"base": 0}, {"cap": 0.1}, {"attempts": 0}, {"patience": -1}])
def test_a_policy_that_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Backoff(**wrong)  # type: ignore[arg-type]
