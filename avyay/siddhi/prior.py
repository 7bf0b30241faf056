"""What earlier hypotheses teach about the next one: a hierarchy of conversion rates, learned as results come in.

Rates inside a segment vary around the segment's mean, segment means vary around the grand mean:

    segment mean ~ Beta(m·κb, (1-m)·κb)        rate ~ Beta(mean·κw, (1-mean)·κw)        conversions ~ Binomial

`m`, `κb` and `κw` are unknown too. All of it is kept on a grid, so the posterior is exact up to the grid and an update
costs one vector operation: no sampling, no optimiser, the same answer on every machine. Data-dependent stopping does
not bias it, since the likelihood of (clicks, conversions) does not depend on why the clicks ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avyay.siddhi.special import log_beta

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["BetaMixture", "BetaPrior", "HierarchicalPrior", "sceptical"]

_MEANS = 48  # grid points for a segment's mean
_WITHIN = np.geomspace(8.0, 400.0, 8)  # κw: how alike the rates of one segment are
_BETWEEN = np.geomspace(4.0, 300.0, 7)  # κb: how alike the segments are
_NEGLIGIBLE = 1e-5  # share of the whole below which a mixture component is dropped


@dataclass(frozen=True, slots=True)
class BetaPrior:
    """A belief about a rate: Beta(a, b)."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)


@dataclass(frozen=True)
class BetaMixture:
    """A belief about a rate: component j is Beta(a[j], b[j]) with probability weights[j]."""

    weights: Floats
    a: Floats
    b: Floats

    @classmethod
    def of(cls, prior: BetaPrior) -> BetaMixture:
        """The mixture with one component."""
        return cls(np.ones(1), np.array([prior.a]), np.array([prior.b]))

    @property
    def mean(self) -> float:
        return float(self.weights @ (self.a / (self.a + self.b)))

    def log_likelihood(self, clicks: int, conversions: int) -> Floats:
        """Log-probability of one particular sequence of outcomes under each component."""
        return log_beta(self.a + conversions, self.b + clicks - conversions) - log_beta(self.a, self.b)

    def updated(self, clicks: int, conversions: int) -> BetaMixture:
        """The belief after seeing `conversions` in `clicks`."""
        log_weights = np.log(self.weights) + self.log_likelihood(clicks, conversions)
        return BetaMixture(_normalised(log_weights), self.a + conversions, self.b + clicks - conversions)


def sceptical(bar: float) -> BetaPrior:
    """What to believe of an idea before anybody was asked: worth 20 clicks, on average at 0.6 of the bar.

    Most ideas fail; without any data a hypothesis must not look validated.
    """
    return BetaPrior(12 * bar, 20 - 12 * bar)


class HierarchicalPrior:
    """Learns from finished hypotheses; gives the belief about the next one of a segment.

    Args:
        typical: A rate around which the grand mean is looked for when nothing else is known (the bar).
        stated: The marginal prior somebody states. Its mean is taken as the grand mean, and κb and κw are kept
            to pairs that give the marginal variance it states; how the variance divides is still learned.
    """

    def __init__(self, typical: float, stated: BetaPrior | None = None) -> None:
        if not 0 < typical < 1:
            raise ValueError("the typical rate must lie between 0 and 1")
        centre = stated.mean if stated else typical
        self._means = _mean_grid(centre)
        if stated is None:
            # The grand mean is unknown: log-uniform from a tenth of the bar to thrice the bar.
            grand = np.geomspace(0.1 * typical, min(0.5, 3.0 * typical), 9)
            self._hyper = np.array([(m, kb, kw) for m in grand for kb in _BETWEEN for kw in _WITHIN])
        else:
            self._hyper = np.array(_matching(stated))
        self._within = np.unique(self._hyper[:, 2])
        self._level = np.searchsorted(self._within, self._hyper[:, 2])
        self._log_hyperprior = np.full(len(self._hyper), -np.log(len(self._hyper)))
        self._log_means = np.stack([_log_beta_density(self._means, m * kb, (1 - m) * kb) for m, kb, _ in self._hyper])
        self._a = self._means[None, :] * self._within[:, None]  # (κw, mean)
        self._b = (1 - self._means[None, :]) * self._within[:, None]
        self._log_norm = log_beta(self._a, self._b)
        self._segments: dict[str, Floats] = {}
        self._evidence: dict[str, Floats] = {}

    def learn(self, segment: str, clicks: int, conversions: int) -> None:
        """Take in a finished hypothesis.

        Raises:
            ValueError: more conversions than clicks, or a negative count.
        """
        if not 0 <= conversions <= clicks:
            raise ValueError(f"{conversions} conversions of {clicks} clicks is no result")
        if clicks == 0:
            return
        seen = self._segments.setdefault(segment, np.zeros_like(self._a))
        seen += log_beta(self._a + conversions, self._b + clicks - conversions) - self._log_norm
        self._evidence[segment] = _log_sum(self._log_means + seen[self._level], axis=1)

    def belief(self, segment: str) -> BetaMixture:
        """The belief about the rate of the next hypothesis of `segment`."""
        log_hyper = self._log_hyperprior + sum(self._evidence.values(), np.zeros(len(self._hyper)))
        seen = self._segments.get(segment)
        joint = log_hyper[:, None] + self._log_means
        if seen is not None:
            joint = joint + seen[self._level] - self._evidence[segment][:, None]
        share = np.exp(joint - joint.max())
        weights = np.zeros_like(self._a)
        np.add.at(weights, self._level, share)
        weights /= weights.sum()
        keep = weights > _NEGLIGIBLE
        kept = weights[keep]
        return BetaMixture(kept / kept.sum(), self._a[keep], self._b[keep])


def _mean_grid(centre: float) -> Floats:
    """Points for a segment's mean: dense where conversion rates live, out to where they hardly do."""
    return np.geomspace(max(1e-4, centre / 60), min(0.7, centre * 12), _MEANS)


def _matching(stated: BetaPrior) -> list[tuple[float, float, float]]:
    """(m, κb, κw) whose marginal variance is that of the stated Beta: Var = v1 + (m(1-m) - v1) / (κw + 1)."""
    m, strength = stated.mean, stated.a + stated.b
    spread = m * (1 - m)
    variance = spread / (strength + 1)
    pairs = []
    for kb in np.geomspace(strength * 1.08, strength * 60, 14):
        between = spread / (kb + 1)
        kw = (spread - between) / (variance - between) - 1
        if 1 < kw < 4000:
            pairs.append((m, float(kb), float(kw)))
    return pairs or [(m, strength * 50, strength)]


def _log_beta_density(x: Floats, a: float, b: float) -> Floats:
    """Normalised over the points of a grid that is even in log x."""
    log_density = a * np.log(x) + (b - 1) * np.log1p(-x)
    return log_density - _log_sum(log_density, axis=0)


def _log_sum(values: Floats, axis: int) -> Floats:
    top = values.max(axis=axis, keepdims=True)
    total: Floats = np.log(np.exp(values - top).sum(axis=axis)) + np.squeeze(top, axis=axis)
    return total


def _normalised(log_weights: Floats) -> Floats:
    weights = np.exp(log_weights - log_weights.max())
    total: Floats = weights / weights.sum()
    return total
