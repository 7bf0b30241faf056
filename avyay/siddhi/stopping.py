"""When to stop buying clicks: backward induction over (clicks, conversions) for a belief that is a mixture of Betas.

The worth of validating is gain·(rate/bar - 1), of killing 0, and each further click costs money. Validating a rate well
below the bar is charged `caution` times the gain besides: half a year spent on building what nobody wants costs more
than the money in the formula, and without the charge a policy that only counts money validates one in ten of them
wherever a segment does well on average. One click is the finest decision there is, so that is the step: a plan in
larger steps is never better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from avyay.siddhi.special import log_beta

if TYPE_CHECKING:
    from avyay.siddhi.prior import BetaMixture, Floats

__all__ = ["BAD", "Plan", "Verdict", "plan"]

Verdict = Literal["VALIDATED", "KILLED", "PROMISING"]

BAD = 0.8
"""A rate of at most this share of the bar is bad; between it and the bar an error costs little."""
_POINTS = 240
_LEAST = 5000.0  # the grid of rates begins so many times below the bar


@dataclass(frozen=True)
class Plan:
    """What to do in every state that the money can reach, after n clicks with s conversions.

    `buy[n, s]` says whether another click is worth its price, `worth[n, s]` what validating there is worth in US
    dollars, `mean[n, s]` is the expected rate and `bad[n, s]` the probability of a bad one; `value` is what the
    hypothesis is worth before the first click, in US dollars.
    """

    buy: np.ndarray
    worth: Floats
    mean: Floats
    bad: Floats
    value: float

    @property
    def horizon(self) -> int:
        """The most clicks the money buys."""
        return len(self.buy) - 1

    def wants_more(self, clicks: int, conversions: int) -> bool:
        """Whether to buy another click; never beyond the horizon."""
        return clicks < self.horizon and bool(self.buy[clicks, conversions])

    def verdict(self, clicks: int, conversions: int) -> Verdict:
        """The better of validating and killing."""
        return "VALIDATED" if self.worth[clicks, conversions] > 0 else "KILLED"


def plan(belief: BetaMixture, *, horizon: int, price: float, bar: float, gain: float, caution: float = 0.0) -> Plan:
    """Solve the stopping problem.

    Args:
        horizon: Clicks the money buys at most; 0 when it buys none.
        price: US dollars a click.
        bar: The rate from which a hypothesis is worth building.
        gain: US dollars won by validating one at twice the bar.
        caution: Share of the gain that validating a bad rate costs besides.
    """
    mean, bad = _posterior(belief, horizon, bar)
    worth = gain * (mean / bar - 1 - caution * bad)
    value = np.maximum(worth[horizon, : horizon + 1], 0.0)
    buy = np.zeros((horizon + 1, horizon + 1), dtype=bool)
    for n in range(horizon - 1, -1, -1):
        rate = mean[n, : n + 1]
        going_on = rate * value[1 : n + 2] + (1 - rate) * value[: n + 1] - price
        stopping = np.maximum(worth[n, : n + 1], 0.0)
        buy[n, : n + 1] = going_on > stopping
        value = np.maximum(going_on, stopping)
    return Plan(buy, worth, mean, bad, float(value[0]))


def _posterior(belief: BetaMixture, horizon: int, bar: float) -> tuple[Floats, Floats]:
    """E[rate] and P(rate is bad) given n clicks with s conversions, for all s <= n <= horizon, as [n, s]."""
    logits = np.linspace(np.log(bar / _LEAST), np.log(0.99 / 0.01), _POINTS)
    rates = 1 / (1 + np.exp(-logits))
    log_rate, log_miss = np.log(rates), np.log1p(-rates)
    # The density in logits is x^a (1-x)^b / B(a, b); what lies below the grid counts at its lowest point.
    mass = np.exp(np.outer(belief.a, log_rate) + np.outer(belief.b, log_miss) - log_beta(belief.a, belief.b)[:, None])
    mass *= logits[1] - logits[0]
    mass[:, 0] += np.maximum(0.0, 1 - mass.sum(axis=1))
    log_prior = np.log(belief.weights @ mass + 1e-300)
    bad_rates = rates <= BAD * bar
    mean = np.zeros((horizon + 1, horizon + 1))
    bad = np.zeros((horizon + 1, horizon + 1))
    for n in range(horizon + 1):
        s = np.arange(n + 1)[:, None]
        log_share = log_prior + s * log_rate + (n - s) * log_miss
        share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        mean[n, : n + 1] = share @ rates
        bad[n, : n + 1] = share[:, bad_rates].sum(axis=1)
    return mean, bad
