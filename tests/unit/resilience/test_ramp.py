"""The failover ramp: a limited backup is loaded in steps and never beyond, an unlimited one at once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.resilience.ramp import Ramp, RampPolicy
from avyay.resilience.rate_headers import RateLimit


def admitted(ramp: Ramp, now: float, requests: int = 1000) -> int:
    return sum(ramp.admit(now) for _ in range(requests))


def started(at: float = 0.0) -> Ramp:
    ramp = Ramp(limit_declared=True)
    ramp.start(at)
    return ramp


@pytest.mark.parametrize(
    ("second", "share"), [(0, 0.1), (9.9, 0.1), (10, 0.25), (19.9, 0.25), (20, 0.5), (29.9, 0.5), (30, 1.0), (1e6, 1.0)]
)
def test_the_steps(second: float, share: float) -> None:
    ramp = started()
    assert ramp.share(second) == share
    assert admitted(ramp, second) == pytest.approx(1000 * share, abs=1)


def test_the_first_request_is_admitted_and_then_every_tenth() -> None:
    ramp = started()
    assert [ramp.admit(0.0) for _ in range(21)] == ([True] + [False] * 9) * 2 + [True]


def test_a_chance_decides_when_given() -> None:
    ramp = started()
    assert ramp.admit(0.0, chance=0.099)
    assert not ramp.admit(0.0, chance=0.1)
    draw = random.Random(3).random
    assert 420 < sum(ramp.admit(25.0, chance=draw()) for _ in range(1000)) < 580


def test_a_backup_without_a_known_limit_takes_all_at_once() -> None:
    ramp = Ramp()
    ramp.start(0.0)
    assert admitted(ramp, 0.0) == 1000
    assert ramp.next_step_in(0.0) == 0.0


def test_its_first_429_makes_the_limit_known() -> None:
    ramp = Ramp()
    ramp.start(0.0)
    ramp.throttled(25.0, retry_after=2.0)
    assert ramp.limit_known
    assert admitted(ramp, 26.9) == 0
    assert ramp.next_step_in(26.5) == 0.5
    assert ramp.share(27.0) == 0.25  # one step below the half it had
    assert ramp.share(37.0) == 0.5


def test_many_429s_of_one_moment_are_one_step_back() -> None:
    ramp = started()
    for _ in range(50):
        ramp.throttled(25.0)
    assert ramp.share(25.0) == 0.25
    ramp.throttled(31.0)
    assert ramp.share(31.0) == 0.1
    ramp.throttled(40.0)
    assert ramp.share(40.0) == 0.1


def test_nonsense_in_retry_after_cannot_lock_it_out() -> None:
    ramp = started()
    ramp.throttled(0.0, retry_after=1e9)
    assert ramp.share(29.9) == 0.0
    assert ramp.share(30.0) == 0.1


def test_headers_make_a_limit_known_and_hold_back_when_it_is_used_up() -> None:
    ramp = Ramp()
    ramp.observe([], 0.0)
    assert not ramp.limit_known
    ramp.observe([RateLimit("requests", 100, 40, 12.0)], 0.0)
    assert ramp.limit_known
    assert ramp.admit(0.0)  # known, but no ramp is under way and some is left
    ramp.start(0.0)
    ramp.observe([RateLimit("tokens", 1000, 0, 3.0)], 1.0)
    assert admitted(ramp, 3.9) == 0
    assert ramp.share(4.0) == 0.1


def test_a_primary_that_comes_and_goes_does_not_throw_it_back() -> None:
    ramp = started()
    ramp.stop(25.0)
    assert not ramp.active
    assert ramp.share(26.0) == 1.0
    ramp.start(40.0)
    assert ramp.share(40.0) == 0.5
    ramp.stop(45.0)
    ramp.start(76.0)  # cold again
    assert ramp.share(76.0) == 0.1


def test_starting_twice_is_starting_once() -> None:
    ramp = started()
    ramp.start(25.0)
    assert ramp.share(25.0) == 0.5
    ramp.stop(26.0)
    ramp.stop(60.0)
    ramp.start(61.0)
    assert ramp.share(61.0) == 0.1


@given(st.lists(st.floats(0, 0.4), max_size=300))
def test_never_more_than_the_shares_allow(waits: list[float]) -> None:
    ramp = started()
    now, allowed, sent = 0.0, 1.0, 0
    for wait in waits:
        now += wait
        allowed += ramp.share(now)
        sent += ramp.admit(now)
        assert sent <= allowed + 1e-6
        assert sent >= allowed - 2
        assert 0 < ramp.next_step_in(now) <= 10 or now >= 30


@pytest.mark.parametrize(
    "wrong", [{"shares": ()}, {"shares": (0.5, 0.1, 1.0)}, {"shares": (0.5,)}, {"shares": (0.0, 1.0)}, {"duration": 0}]
)
def test_a_policy_that_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        RampPolicy(**wrong)  # type: ignore[arg-type]


def test_one_step_is_all_at_once() -> None:
    ramp = Ramp(RampPolicy(shares=(1.0,)), limit_declared=True)
    ramp.start(0.0)
    assert admitted(ramp, 0.0, 10) == 10
