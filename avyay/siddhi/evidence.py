"""Evidence that stays valid however often one looks: an e-process against "the rate is at most the bar".

For any alternative p > bar the ratio (p/bar)^s ((1-p)/(1-bar))^f is a supermartingale under every rate at most the bar,
and so is a mixture of them. By Ville's inequality it passes 1/alpha with probability at most alpha, whenever one stops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from avyay.siddhi.prior import BetaMixture, Floats

__all__ = ["EProcess"]

_POINTS = 64


class EProcess:
    """A mixture over alternatives above the bar, fixed before the first click of a hypothesis.

    Args:
        belief: What was believed beforehand; its part above the bar weighs the alternatives. It affects the power only:
            the error rate holds whatever it says.
    """

    def __init__(self, bar: float, belief: BetaMixture) -> None:
        self.bar = bar
        top = min(0.95, bar * 8)
        self._rates: Floats = bar + (top - bar) * (np.arange(_POINTS) + 0.5) / _POINTS
        x = self._rates[:, None]
        log_density = (belief.a - 1) * np.log(x) + (belief.b - 1) * np.log1p(-x) - _log_norm(belief)
        density = (np.exp(log_density) * belief.weights).sum(axis=1)
        # An alternative pays in proportion to how far it stands above the bar: those are the ones worth finding.
        density = density * (self._rates - bar) + 1e-12
        self._log_weights = np.log(density / density.sum())

    def value(self, clicks: int, conversions: int) -> float:
        """The evidence against "at most the bar" after so many clicks; 1 before the first."""
        log_ratio = conversions * np.log(self._rates / self.bar) + (clicks - conversions) * np.log(
            (1 - self._rates) / (1 - self.bar)
        )
        joint = self._log_weights + log_ratio
        top = joint.max()
        return float(np.exp(top) * np.exp(joint - top).sum())


def _log_norm(belief: BetaMixture) -> Floats:
    from avyay.siddhi.special import log_beta

    return log_beta(belief.a, belief.b)
