"""Statistics that may be looked at after every observation: a test, intervals, and a check of proportions. Pure.

All hold at any stopping time, so nobody has to fix a sample size beforehand or is punished for looking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

__all__ = [
    "Interval",
    "Moments",
    "SequentialTest",
    "TestPlan",
    "confidence_sequence",
    "difference_sequence",
    "expected_samples",
    "mad",
    "ratio_mismatch",
    "robust_z",
]


# ---------------------------------------------------------------- a sequential test of a proportion


@dataclass(frozen=True, slots=True)
class TestPlan:
    """Wald's test of a rate: is it `good` or less, or `bad` or more?

    Attributes:
        good: Rate at or below which the test says "bad" in at most `false_alarm` of all runs.
        bad: Rate at or above which it says "good" in at most `miss` of all runs.
    """

    __test__ = False  # not a test case

    good: float
    bad: float
    false_alarm: float = 0.01
    miss: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.good < self.bad < 1:
            raise ValueError("0 < good < bad < 1 must hold")
        if not (0 < self.false_alarm < 0.5 and 0 < self.miss < 0.5):
            raise ValueError("error rates lie between 0 and 0.5")

    @property
    def upper(self) -> float:
        """Log likelihood ratio at which the rate is called bad. By Ville's inequality good runs get here too seldom."""
        return math.log(1 / self.false_alarm)

    @property
    def lower(self) -> float:
        """The same for good."""
        return math.log(self.miss)

    def step(self, bad: float) -> float:
        """The log likelihood ratio of one observation; `bad` is 0..1, how far the observation is a failure."""
        return bad * math.log(self.bad / self.good) + (1 - bad) * math.log((1 - self.bad) / (1 - self.good))


@dataclass(frozen=True, slots=True)
class SequentialTest:
    """The state of one test: observations so far, failures among them, and the evidence."""

    __test__ = False

    count: int = 0
    failures: float = 0.0
    evidence: float = 0.0

    def observe(self, bad: float, plan: TestPlan) -> SequentialTest:
        """The state after one more observation, 0 (as good) to 1 (a failure)."""
        bad = min(1.0, max(0.0, bad))
        return replace(
            self, count=self.count + 1, failures=self.failures + bad, evidence=self.evidence + plan.step(bad)
        )

    def verdict(self, plan: TestPlan) -> str | None:
        """`bad`, `good`, or None while it cannot be told."""
        if self.evidence >= plan.upper:
            return "bad"
        if self.evidence <= plan.lower:
            return "good"
        return None

    @property
    def rate(self) -> float:
        return self.failures / self.count if self.count else 0.0


def expected_samples(plan: TestPlan, rate: float) -> float:
    """About how many observations the test needs when the true rate is `rate` (Wald's approximation)."""
    drift = rate * math.log(plan.bad / plan.good) + (1 - rate) * math.log((1 - plan.bad) / (1 - plan.good))
    if abs(drift) < 1e-9:
        return math.inf
    return (plan.upper if drift > 0 else plan.lower) / drift


# ---------------------------------------------------------------- always-valid intervals


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of a stream (Welford), enough for an interval."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> Moments:
        count = self.count + 1
        mean = self.mean + (value - self.mean) / count
        return Moments(count, mean, self.squares + (value - self.mean) * (value - mean))

    @property
    def variance(self) -> float:
        return self.squares / (self.count - 1) if self.count > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and where it lies."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def confidence_sequence(moments: Moments, *, error: float = 0.05, tuned_for: int = 500) -> Interval:
    """An interval for the mean that covers it at every sample size at once, with probability 1 - error.

    Robbins' normal mixture with the variance estimated: exact for normal data of known variance, asymptotic otherwise
    (Waudby-Smith and others, 2021); below 30 observations it is therefore the whole line.

    Args:
        tuned_for: The number of observations at which it is narrowest.
    """
    n = moments.count
    if n < 30:
        return Interval(moments.mean, -math.inf, math.inf)
    width = math.sqrt(moments.variance * _mixture(n, error, tuned_for) / n)
    return Interval(moments.mean, moments.mean - width, moments.mean + width)


def _mixture(n: int, error: float, tuned_for: int) -> float:
    """The squared half-width in units of variance / n."""
    # Width is least near tuned_for when rho^2 = (-2 ln a + ln(-2 ln a) + 1) / tuned_for.
    log = -2 * math.log(error)
    rho2 = (log + math.log(log) + 1) / tuned_for
    return (n * rho2 + 1) / (n * rho2) * (log + math.log(n * rho2 + 1))


def difference_sequence(a: Moments, b: Moments, *, error: float = 0.05, tuned_for: int = 500) -> Interval:
    """An always-valid interval for mean(b) - mean(a) of two independent streams."""
    difference = b.mean - a.mean
    if min(a.count, b.count) < 30:
        return Interval(difference, -math.inf, math.inf)
    # One sequence each at half the error: holds whatever the order in which the two streams grew.
    left = confidence_sequence(a, error=error / 2, tuned_for=tuned_for)
    right = confidence_sequence(b, error=error / 2, tuned_for=tuned_for)
    return Interval(difference, right.low - left.high, right.high - left.low)


def ratio_mismatch(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """Evidence against the planned shares: an e-value; 1000 or more means assignment is broken.

    A Bayes factor of a uniform prior on the shares against the plan (Lindon and Malek, 2020): under the plan it exceeds
    x at any time with probability at most 1 / x, however often it is looked at.
    """
    names = list(shares)
    total = sum(counts.get(name, 0) for name in names)
    if total == 0 or len(names) < 2:
        return 1.0
    # The prior leans to the plan with the weight of 100 observations, so that small breaks are found as well.
    prior = {name: 100 * shares[name] for name in names}
    log = math.lgamma(sum(prior.values())) - math.lgamma(sum(prior.values()) + total)
    for name in names:
        seen = counts.get(name, 0)
        log += math.lgamma(prior[name] + seen) - math.lgamma(prior[name]) - seen * math.log(shares[name])
    return math.exp(min(700.0, log))


# ---------------------------------------------------------------- robust location and scale


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation, scaled to agree with the standard deviation of normal data."""
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values)


def robust_z(value: float, history: Sequence[float], *, floor: float = 0.0) -> float:
    """How many robust deviations `value` lies above the median of `history`.

    Args:
        floor: The least deviation: below it a difference is of no interest, however steady the history was.
    """
    scale = max(mad(history), floor)
    distance = value - median(history)
    return distance / scale if scale > 0 else math.copysign(math.inf, distance) if distance else 0.0
