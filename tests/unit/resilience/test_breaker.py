"""The breaker: its rules one by one, then against a model, then in a thousand random outages."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from avyay.resilience.breaker import (
    Breaker,
    BreakerPolicy,
    BreakerSnapshot,
    BreakerState,
    Outcome,
    Transition,
    classify_status,
)

SUCCESS, FAILURE, NEUTRAL = Outcome.SUCCESS, Outcome.FAILURE, Outcome.NEUTRAL
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def tripped(policy: BreakerPolicy | None = None, at: float = 100.0) -> Breaker:
    breaker = Breaker(policy)
    for _ in range(breaker.policy.failure_threshold):
        breaker.record(FAILURE, at)
    assert breaker.state(at) is OPEN
    return breaker


def probe(breaker: Breaker, now: float) -> int:
    ticket = breaker.take_probe(now)
    assert ticket is not None
    return ticket


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, SUCCESS), (204, SUCCESS), (304, SUCCESS), (400, NEUTRAL), (401, NEUTRAL), (403, NEUTRAL), (404, NEUTRAL),
     (408, FAILURE), (409, FAILURE), (413, NEUTRAL), (422, NEUTRAL), (429, FAILURE), (499, NEUTRAL), (500, FAILURE),
     (502, FAILURE), (503, FAILURE), (504, FAILURE), (529, FAILURE)],
)  # fmt: skip
def test_what_a_status_says(status: int, outcome: Outcome) -> None:
    assert classify_status(status) is outcome


def test_five_failures_in_a_row_trip() -> None:
    breaker = Breaker()
    for second in range(4):
        assert breaker.record(FAILURE, second) is None
        assert breaker.allow()
    change = breaker.record(FAILURE, 4.0)
    assert change == Transition(CLOSED, OPEN, 4.0, "5 failures in a row")
    assert not breaker.allow()
    assert breaker.retry_in(4.0) == 30.0


def test_a_success_breaks_the_row_and_a_neutral_outcome_does_not() -> None:
    breaker = Breaker()
    for outcome in (FAILURE, FAILURE, FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE, NEUTRAL, FAILURE, FAILURE):
        assert breaker.record(outcome, 0.0) is None
    assert breaker.record(FAILURE, 0.0) is not None


def test_any_number_of_client_errors_never_trips() -> None:
    breaker = Breaker()
    for _ in range(1000):
        breaker.record(classify_status(400), 0.0)
    assert breaker.allow()
    assert breaker.error_rate(0.0) == (0, 0)


def test_more_than_half_failed_in_the_window_trips_after_the_minimum() -> None:
    breaker = Breaker(BreakerPolicy(failure_threshold=100, minimum_requests=10))
    for number in range(5):
        assert breaker.record(SUCCESS, number) is None
        assert breaker.record(FAILURE, number) is None
    assert breaker.error_rate(9.0) == (5, 10)  # exactly half is not more than half
    change = breaker.record(FAILURE, 9.0)
    assert change is not None
    assert change.reason == "6 of 11 requests failed within 60 s"


def test_what_left_the_window_no_longer_counts() -> None:
    breaker = Breaker(BreakerPolicy(failure_threshold=100, minimum_requests=10))
    for _ in range(9):
        breaker.record(FAILURE, 1000.0)
    assert breaker.error_rate(1055.0) == (9, 9)
    assert breaker.error_rate(1061.0) == (0, 0)
    assert breaker.record(FAILURE, 1061.0) is None


def test_half_open_admits_one_probe_and_no_request() -> None:
    breaker = tripped()
    assert breaker.take_probe(129.9) is None
    assert breaker.state(130.0) is HALF_OPEN
    assert not breaker.allow()
    probe(breaker, 130.0)
    assert breaker.take_probe(130.0) is None
    assert breaker.state(131.0) is HALF_OPEN
    assert not breaker.allow()


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 422])
def test_a_probe_that_is_answered_closes_even_with_a_refusal(status: int) -> None:
    breaker = tripped()
    change = breaker.record_probe(probe(breaker, 130.0), classify_status(status), 130.5)
    assert change == Transition(HALF_OPEN, CLOSED, 130.5, "the probe was answered")
    assert breaker.allow()
    assert breaker.error_rate(130.5) == (0, 0)  # old failures must not trip it again


@pytest.mark.parametrize("status", [408, 409, 429, 500, 529])
def test_a_probe_that_fails_opens_anew(status: int) -> None:
    breaker = tripped()
    change = breaker.record_probe(probe(breaker, 130.0), classify_status(status), 131.0)
    assert change == Transition(HALF_OPEN, OPEN, 131.0, "the probe failed")
    assert breaker.take_probe(160.9) is None
    probe(breaker, 161.0)


@pytest.mark.parametrize(("retry_after", "wait"), [(None, 30), (5.0, 30), (90.0, 90), (1e9, 300), (-1.0, 30)])
def test_a_failed_probe_honours_retry_after_within_bounds(retry_after: float | None, wait: float) -> None:
    breaker = tripped()
    breaker.record_probe(probe(breaker, 130.0), FAILURE, 130.0, retry_after)
    assert breaker.retry_in(130.0) == wait


def test_a_probe_that_never_reports_does_not_hold_the_breaker_open() -> None:
    breaker = tripped()
    lost = probe(breaker, 130.0)
    assert breaker.take_probe(139.9) is None
    second = probe(breaker, 140.0)
    assert breaker.record_probe(lost, SUCCESS, 141.0) is None  # too late: another one is under way
    assert breaker.record_probe(second, SUCCESS, 141.0) is not None


def test_an_abandoned_probe_is_due_again_at_once() -> None:
    breaker = tripped()
    breaker.abandon_probe(probe(breaker, 130.0))
    breaker.record_probe(probe(breaker, 130.0), SUCCESS, 130.0)
    assert breaker.allow()


def test_calls_that_outlive_a_change_do_not_count() -> None:
    breaker = Breaker()
    old = breaker.generation
    for _ in range(5):
        breaker.record(FAILURE, 0.0, old)
    for outcome in (SUCCESS, FAILURE):
        assert breaker.record(outcome, 1.0, old) is None  # nothing reopens, closes or prolongs
    assert breaker.retry_in(0.0) == 30.0
    breaker.record_probe(probe(breaker, 30.0), SUCCESS, 30.0)
    for _ in range(50):
        assert breaker.record(FAILURE, 31.0, old) is None
    assert breaker.allow()


def test_by_hand() -> None:
    breaker = Breaker()
    assert breaker.reset(0.0) is None
    assert breaker.trip(0.0, "the key is revoked") is not None
    assert breaker.trip(1.0, "again") is None
    assert breaker.reason == "the key is revoked"
    assert breaker.reset(2.0) == Transition(OPEN, CLOSED, 2.0, "reset by hand")


@pytest.mark.parametrize(
    "wrong",
    [
        {"failure_threshold": 0},
        {"window_size": 0},
        {"error_rate_threshold": 1.5},
        {"buckets": 0},
        {"probe_timeout": -1},
    ],
)
def test_a_policy_that_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        BreakerPolicy(**wrong)  # type: ignore[arg-type]


def test_a_clock_that_falls_back_does_not_hold_it_open() -> None:
    breaker = tripped(at=1_000_000.0)
    assert breaker.state(5.0) is OPEN
    assert breaker.retry_in(5.0) == 30.0
    probe(breaker, 35.0)


def test_a_snapshot_moves_to_another_clock() -> None:
    breaker = tripped(at=1000.0)
    data = json.loads(json.dumps(breaker.snapshot(1010.0).to_json()))
    moved = Breaker.restore(breaker.policy, BreakerSnapshot.from_json(data), now=7.0)
    assert moved.retry_in(7.0) == 20.0
    assert moved.reason == "5 failures in a row"
    closed = Breaker()
    closed.record(FAILURE, 1000.0)
    closed.record(SUCCESS, 1030.0)
    moved = Breaker.restore(closed.policy, closed.snapshot(1040.0), now=40.0)
    assert moved.error_rate(40.0) == (1, 2)
    assert moved.error_rate(62.5) == (0, 1)
    other_buckets = BreakerPolicy(buckets=3)
    assert Breaker.restore(other_buckets, closed.snapshot(1040.0)).error_rate(1040.0) == (0, 0)


steps = st.lists(
    st.tuples(st.sampled_from([SUCCESS, FAILURE, NEUTRAL]), st.floats(0.01, 40), st.booleans()), max_size=60
)


@given(steps, st.integers(0, 60))
def test_a_restored_breaker_goes_on_as_if_nothing_happened(script: list[tuple[Outcome, float, bool]], cut: int) -> None:
    policy = BreakerPolicy(failure_threshold=3, minimum_requests=4, window_size=30, recovery_timeout=10, buckets=6)
    first = second = Breaker(policy)
    now = 0.0
    for number, (outcome, wait, lost) in enumerate(script):
        if number == cut:
            second = Breaker.restore(policy, BreakerSnapshot.from_json(first.snapshot(now).to_json()))
        now += wait
        seen = []
        for breaker in (first, second) if second is not first else (first,):
            ticket = breaker.take_probe(now)
            change = breaker.record(outcome, now)
            if ticket is not None and not lost:
                change = breaker.record_probe(ticket, outcome, now)
            seen.append((ticket, change, breaker.snapshot(now)))
        assert seen[0] == seen[-1]


class BreakerModel(RuleBasedStateMachine):
    """The breaker against the plainest description of it: lists of what happened, re-read at every step."""

    POLICY = BreakerPolicy(
        failure_threshold=4,
        minimum_requests=6,
        error_rate_threshold=0.5,
        window_size=20,
        buckets=4,
        recovery_timeout=10,
        probe_timeout=3,
        longest_open=25,
    )

    @initialize(start=st.floats(0, 1e6))
    def begin(self, start: float) -> None:
        self.breaker = Breaker(self.POLICY)
        self.now = start
        self.row = 0
        self.calls: list[tuple[int, bool]] = []
        self.open_until: float | None = None
        self.probe: tuple[int, float] | None = None
        self.stale: list[int] = []

    def slice(self, at: float) -> int:
        return int(at // 5)

    def window(self) -> list[bool]:
        return [ok for at, ok in self.calls if self.slice(self.now) - at < 4]

    @rule(seconds=st.one_of(st.floats(0, 6), st.sampled_from([3.0, 10.0, 25.0, 100.0])))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(outcome=st.sampled_from([SUCCESS, FAILURE, FAILURE, NEUTRAL]))
    def call(self, outcome: Outcome) -> None:
        change = self.breaker.record(outcome, self.now)
        if self.open_until is not None or outcome is NEUTRAL:
            assert change is None
            return
        self.calls.append((self.slice(self.now), outcome is SUCCESS))
        self.row = 0 if outcome is SUCCESS else self.row + 1
        window = self.window()
        failed = window.count(False)
        trips = outcome is FAILURE and (self.row >= 4 or (len(window) >= 6 and failed > len(window) / 2))
        assert (change is not None) == trips
        if trips:
            self.open_until = self.now + 10
            self.probe = None

    @rule()
    def take(self) -> None:
        ticket = self.breaker.take_probe(self.now)
        due = self.open_until is not None and self.now >= self.open_until
        free = self.probe is None or self.now >= self.probe[1]
        assert (ticket is not None) == (due and free)
        if ticket is not None:
            if self.probe is not None:
                self.stale.append(self.probe[0])
            self.probe = (ticket, self.now + 3)

    @precondition(lambda self: self.probe is not None)
    @rule(outcome=st.sampled_from([SUCCESS, FAILURE, NEUTRAL]), retry_after=st.sampled_from([None, 1.0, 20.0, 1e6]))
    def answer(self, outcome: Outcome, retry_after: float | None) -> None:
        assert self.probe is not None
        change = self.breaker.record_probe(self.probe[0], outcome, self.now, retry_after)
        assert change is not None
        self.stale.append(self.probe[0])
        self.probe = None
        if outcome is FAILURE:
            self.open_until = self.now + max(10, min(retry_after or 0, 25))
        else:
            self.open_until, self.row, self.calls = None, 0, []

    @precondition(lambda self: self.stale)
    @rule(outcome=st.sampled_from([SUCCESS, FAILURE]))
    def answer_late(self, outcome: Outcome) -> None:
        before = self.breaker.snapshot(self.now)
        assert self.breaker.record_probe(self.stale[0], outcome, self.now) is None
        assert self.breaker.snapshot(self.now) == before

    @precondition(lambda self: self.probe is not None)
    @rule()
    def abandon(self) -> None:
        assert self.probe is not None
        self.breaker.abandon_probe(self.probe[0])
        self.stale.append(self.probe[0])
        self.probe = None

    @rule()
    def restart(self) -> None:
        snapshot = BreakerSnapshot.from_json(json.loads(json.dumps(self.breaker.snapshot(self.now).to_json())))
        self.breaker = Breaker.restore(self.POLICY, snapshot)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "breaker"):
            return
        state = self.breaker.state(self.now)
        if self.open_until is None:
            assert state is CLOSED
            window = self.window()
            assert self.breaker.error_rate(self.now) == (window.count(False), len(window))
        else:
            assert state is (HALF_OPEN if self.now >= self.open_until else OPEN)
            assert self.breaker.retry_in(self.now) <= 25
        assert self.breaker.allow() == (state is CLOSED)


TestBreakerModel = BreakerModel.TestCase
TestBreakerModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def outage(seed: int) -> None:
    """One provider with random faults, probed once a second by an unreliable prober; it must come back each time."""
    rng = random.Random(seed)
    policy = BreakerPolicy(
        failure_threshold=rng.randint(1, 8),
        error_rate_threshold=rng.uniform(0, 0.9),
        window_size=rng.uniform(5, 90),
        recovery_timeout=rng.uniform(1, 40),
        probe_timeout=rng.uniform(1, 15),
        longest_open=rng.uniform(1, 60),
        minimum_requests=rng.randint(1, 20),
    )
    breaker = Breaker(policy)
    now = rng.uniform(0, 1e7)
    faults: list[Callable[[], int | None]] = [
        lambda: 500,
        lambda: 429,
        lambda: None,  # hangs: neither the call nor the probe is ever reported
        lambda: rng.choice([200, 503]),
        lambda: rng.choice([400, 500]),
        lambda: 529 if rng.random() < 0.3 else 200,
    ]
    late: list[tuple[float, int]] = []
    for _ in range(rng.randint(1, 5)):
        answer, lasts = rng.choice(faults), rng.uniform(0, 120)
        until = now + lasts
        while now < until:
            now += rng.uniform(0.05, 1.5)
            if breaker.allow():
                generation, status = breaker.generation, answer()
                if status is None:
                    late.append((now + 5, generation))
                else:
                    breaker.record(classify_status(status), now, generation)
            while late and late[0][0] <= now:
                breaker.record(FAILURE, now, late.pop(0)[1])
            if (ticket := breaker.take_probe(now)) is not None and rng.random() < 0.8:  # else: the prober died
                status = answer()
                if status is not None:
                    retry_after = rng.choice([None, 1.0, 1e9])
                    breaker.record_probe(ticket, classify_status(status), now, retry_after)
    # The provider is well again: within one wait and one lost probe the breaker must be closed, and stay so.
    deadline = now + max(policy.recovery_timeout, policy.longest_open) + policy.probe_timeout + 2
    while not breaker.allow():
        assert now <= deadline, (seed, policy, breaker.snapshot(now))
        now += 1.0
        if (ticket := breaker.take_probe(now)) is not None:
            breaker.record_probe(ticket, SUCCESS, now)
    generation = breaker.generation
    for _ in range(200):
        now += 0.5
        breaker.record(SUCCESS, now, generation)
        assert breaker.allow()


def test_no_stuck_breaker_in_a_thousand_random_outages() -> None:
    for seed in range(1000):
        outage(seed)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1000, 2**32))
def test_nor_in_those_hypothesis_finds(seed: int) -> None:
    outage(seed)
