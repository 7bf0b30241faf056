"""What a budget can tell apart, said before it is spent.

Exact: the sequential test of `strict` mode is walked through state by state, no simulation and no normal approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avyay.errors import PolicyError, UsageError
from avyay.siddhi.decide import Mode, Rules
from avyay.siddhi.evidence import EProcess
from avyay.siddhi.prior import BetaMixture, HierarchicalPrior, sceptical
from avyay.siddhi.special import log_gamma
from avyay.siddhi.stopping import plan

if TYPE_CHECKING:
    from avyay.siddhi.prior import Floats

__all__ = ["CannotDecideError", "Power", "assess", "expensive", "require_decidable"]

GOOD_POWER = 0.8
LEAST_POWER = 0.1
"""Below this a strict test would miss nine good hypotheses of ten: it is no test."""


class CannotDecideError(PolicyError):
    """No result that the money can buy would change the verdict."""

    default_code = "test_cannot_decide"


@dataclass(frozen=True, slots=True)
class Power:
    """What a test can do.

    Args:
        clicks: What the money buys at the worst, at this price and overspend.
        rate: The rate to be told from the bar.
        fixed: Chance of seeing it with all clicks bought and one look at the end (5 % false alarms at the bar).
        strict: The same chance for `strict` mode, which may look after every click.
        detectable: The smallest rate that one look finds with 80 %; None when there is none below 1.
        worth: What the test is worth in `value` mode beyond deciding at once, in US dollars.
        verdicts: What `value` mode can come to.
        decides: Whether the test can change the verdict.
        why: One sentence.
    """

    clicks: int
    rate: float
    fixed: float
    strict: float
    detectable: float | None
    worth: float
    verdicts: tuple[str, ...]
    decides: bool
    why: str


def assess(
    rules: Rules, price: float, *, rate: float | None = None, mode: Mode = "value", belief: BetaMixture | None = None
) -> Power:
    """Work out what a test can decide.

    Args:
        rules: The terms.
        price: US dollars a click.
        rate: The rate that should be told from the bar; twice the bar by default.
        mode: For which mode `decides` is meant.
        belief: What is believed beforehand; by default what is believed when nothing has been tested yet.

    Raises:
        UsageError: A number is out of range.
    """
    rate = 2 * rules.bar if rate is None else rate
    if not (0 < rules.bar < rate < 1) or price <= 0 or rules.cap <= 0 or rules.overspend < 1:
        raise UsageError(
            "A test needs a cap and a price above 0, an overspend of at least 1, and a rate between the bar and 1.",
            hint="For example: avyay siddhi power --cap 30 --price 0.50 --bar 0.03 --rate 0.06",
        )
    belief = belief or HierarchicalPrior(rules.bar, sceptical(rules.bar)).belief("")
    room = rules.cap / (price * rules.overspend)
    clicks = int(room + 1e-9)
    worth, verdicts = _value(belief, rules, price, clicks)
    strict = _strict_power(belief, rules, clicks, rate)
    fixed = _fixed_power(clicks, rules.bar, rate, rules.alpha)
    if mode == "strict":
        decides = strict >= LEAST_POWER
        why = (
            f"{clicks} clicks find a rate of {rate:.1%} with probability {strict:.2f}"
            if decides
            else f"{clicks} clicks find a rate of {rate:.1%} with probability {strict:.2f} only"
        )
    else:
        decides = worth > 0 and len(verdicts) > 1
        why = (
            f"the test is worth ${worth:.2f} more than deciding now"
            if decides
            else f"no result of {clicks} clicks at ${price:.2f} is worth their price: decide now ({verdicts[0]})"
        )
    return Power(clicks, rate, fixed, strict, _detectable(clicks, rules), worth, verdicts, decides, why)


def require_decidable(power: Power) -> Power:
    """The same power, if the test can decide.

    Raises:
        CannotDecideError: It cannot.
    """
    if not power.decides:
        raise CannotDecideError(
            f"This test cannot decide: {power.why}.",
            hint="Find cheaper clicks, raise the cap, or decide without a test.",
        )
    return power


def expensive(rules: Rules, price: float) -> str | None:
    """A warning when the money buys less than one expected sign-up at the bar; None when it buys more."""
    clicks = int(rules.cap / (price * rules.overspend) + 1e-9)
    if clicks * rules.bar >= 1:
        return None
    return (
        f"Clicks at ${price:.2f} are too expensive for ${rules.cap:.2f}: {clicks} of them bring"
        f" {clicks * rules.bar:.1f} sign-ups at the bar of {rules.bar:.1%}, which can hardly decide anything."
    )


def _value(belief: BetaMixture, rules: Rules, price: float, clicks: int) -> tuple[float, tuple[str, ...]]:
    horizon = min(clicks, 400)
    found = plan(belief, horizon=horizon, price=price, bar=rules.bar, gain=rules.gain, caution=rules.caution)
    now = max(0.0, float(found.worth[0, 0]))
    verdicts = {found.verdict(0, 0)}
    reached = {0}
    for n in range(found.horizon):
        reached = {s + more for s in reached if found.wants_more(n, s) for more in (0, 1)}
        verdicts |= {found.verdict(n + 1, s) for s in reached if not found.wants_more(n + 1, s)}
    return max(0.0, found.value - now), tuple(sorted(verdicts))


def _fixed_power(clicks: int, bar: float, rate: float, alpha: float) -> float:
    """One-sided exact binomial test against the bar."""
    null, alternative = _binomial(clicks, bar), _binomial(clicks, rate)
    tail = np.cumsum(null[::-1])[::-1]  # P(at least s)
    enough = np.flatnonzero(tail <= alpha)
    return min(1.0, float(alternative[enough[0] :].sum())) if enough.size else 0.0


def _detectable(clicks: int, rules: Rules) -> float | None:
    low, high = rules.bar, 1 - 1e-9
    if _fixed_power(clicks, rules.bar, high, rules.alpha) < GOOD_POWER:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        if _fixed_power(clicks, rules.bar, middle, rules.alpha) >= GOOD_POWER:
            high = middle
        else:
            low = middle
    return high


def _strict_power(belief: BetaMixture, rules: Rules, clicks: int, rate: float) -> float:
    process = EProcess(rules.bar, belief)
    going = np.array([1.0])
    found = 0.0
    for n in range(1, min(clicks, 1000) + 1):
        going = np.append(going, 0.0) * (1 - rate) + np.insert(going, 0, 0.0) * rate
        for s in range(n, -1, -1):  # evidence grows with s
            if process.value(n, s) < 1 / rules.alpha:
                break
            found += float(going[s])
            going[s] = 0.0
    return min(1.0, found)


def _binomial(clicks: int, rate: float) -> Floats:
    """P(s sign-ups in so many clicks), for every s."""
    s = np.arange(clicks + 1.0)
    n = np.full_like(s, clicks)
    log_ways = log_gamma(n + 1) - log_gamma(s + 1) - log_gamma(n - s + 1)
    ways: Floats = np.exp(log_ways + s * np.log(rate) + (n - s) * np.log1p(-rate))
    return ways
