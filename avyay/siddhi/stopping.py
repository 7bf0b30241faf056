"""When to stop buying clicks: backward induction over (clicks, conversions) for a belief that is a mixture of Betas.

The worth of validating is gain·(rate/bar - 1), of killing 0, and each further click costs money. One click is the
finest decision there is, so that is the step: a plan in larger steps is never better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from avyay.siddhi.prior import BetaMixture, Floats

__all__ = ["Plan", "Verdict", "plan"]

Verdict = Literal["VALIDATED", "KILLED", "PROMISING"]


@dataclass(frozen=True)
class Plan:
    """What to do in every state that the money can reach.

    `buy[n, s]` says whether another click is worth its price after n clicks with s conversions; `mean[n, s]` is the
    expected rate there; `value` is what the hypothesis is worth before the first click, in US dollars.
    """

    buy: np.ndarray
    mean: Floats
    value: float
    bar: float

    @property
    def horizon(self) -> int:
        """The most clicks the money buys."""
        return len(self.buy) - 1

    def wants_more(self, clicks: int, conversions: int) -> bool:
        """Whether to buy another click; never beyond the horizon."""
        return clicks < self.horizon and bool(self.buy[clicks, conversions])

    def verdict(self, clicks: int, conversions: int) -> Verdict:
        """The better of validating and killing."""
        return "VALIDATED" if self.mean[clicks, conversions] > self.bar else "KILLED"


def plan(belief: BetaMixture, *, horizon: int, price: float, bar: float, gain: float) -> Plan:
    """Solve the stopping problem.

    Args:
        horizon: Clicks the money buys at most; 0 when it buys none.
        price: US dollars a click.
        bar: The rate from which a hypothesis is worth building.
        gain: US dollars won by validating one at twice the bar.
    """
    mean = _posterior_means(belief, horizon)
    worth = gain * (mean / bar - 1)
    value = np.maximum(worth[horizon, : horizon + 1], 0.0)
    buy = np.zeros((horizon + 1, horizon + 1), dtype=bool)
    for n in range(horizon - 1, -1, -1):
        rate = mean[n, : n + 1]
        going_on = rate * value[1 : n + 2] + (1 - rate) * value[: n + 1] - price
        stopping = np.maximum(worth[n, : n + 1], 0.0)
        buy[n, : n + 1] = going_on > stopping
        value = np.maximum(going_on, stopping)
    return Plan(buy, mean, float(value[0]), bar)


def _posterior_means(belief: BetaMixture, horizon: int) -> Floats:
    """E[rate | n clicks, s conversions] for all s <= n <= horizon, as mean[n, s]."""
    steps = np.arange(horizon)[:, None]
    log_a = np.vstack([np.zeros(len(belief.a)), np.cumsum(np.log(belief.a + steps), axis=0)])  # log (a)_s
    log_b = np.vstack([np.zeros(len(belief.b)), np.cumsum(np.log(belief.b + steps), axis=0)])
    log_ab = np.vstack([np.zeros(len(belief.a)), np.cumsum(np.log(belief.a + belief.b + steps), axis=0)])
    log_weights = np.log(belief.weights)
    mean = np.zeros((horizon + 1, horizon + 1))
    for n in range(horizon + 1):
        s = np.arange(n + 1)
        log_share = log_weights + log_a[s] + log_b[n - s] - log_ab[n]
        share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
        rates = (belief.a + s[:, None]) / (belief.a + belief.b + n)
        mean[n, : n + 1] = (share * rates).sum(axis=1) / share.sum(axis=1)
    return mean
