"""The decision policy: what to buy next for a hypothesis, and when to call it.

Two modes stand side by side. `value` maximises expected money: it buys while another click is worth its price and then
takes the better verdict. `strict` validates only on evidence that stays valid under any stopping, so that at most `alpha`
of the hypotheses with a rate at the bar are ever validated; what it cannot decide is PROMISING.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avyay.siddhi.evidence import EProcess
from avyay.siddhi.prior import BetaMixture, BetaPrior, HierarchicalPrior
from avyay.siddhi.stopping import Plan, Verdict, plan

__all__ = ["Buy", "Decide", "Mode", "Policy", "Rules", "Test"]

Mode = Literal["value", "strict"]

_SLACK = 1e-6  # US dollars: rounding in a bill must not look like a broken cap


@dataclass(frozen=True, slots=True)
class Rules:
    """The terms of a series of tests, in US dollars.

    Args:
        cap: What may be billed for one hypothesis, whatever happens.
        bar: The conversion rate from which a hypothesis is worth building.
        gain: Won by validating one at twice the bar, lost by validating one at zero.
        overspend: A platform may bill up to this many times an order.
        alpha: Strict mode: share of hypotheses at the bar that may be validated.
    """

    cap: float
    bar: float
    gain: float
    overspend: float = 1.0
    alpha: float = 0.05


@dataclass(frozen=True, slots=True)
class Buy:
    """Order clicks for this much."""

    usd: float


@dataclass(frozen=True, slots=True)
class Decide:
    """Call the test."""

    verdict: Verdict
    reason: str


class Test:
    """One hypothesis under test: its belief, its plan and what was billed so far."""

    __test__ = False  # not a test case of pytest's

    def __init__(self, rules: Rules, mode: Mode, segment: str, price: float, belief: BetaMixture) -> None:
        if price <= 0:
            raise ValueError("a click must cost something")
        self.rules = rules
        self.mode = mode
        self.segment = segment
        self.price = price
        self.clicks = 0
        self.conversions = 0
        self.billed = 0.0
        self.stalled = False
        self.plan: Plan = plan(belief, horizon=self._affordable(), price=price, bar=rules.bar, gain=rules.gain)
        self.evidence = EProcess(rules.bar, belief) if mode == "strict" else None

    def _affordable(self) -> int:
        """Clicks that can still be ordered one by one so that even the worst bill stays under the cap.

        An order for one click is billed at most `overspend` times its price, but a fraction of a click is never billed, so
        below an overspend of 2 one click costs its price; the last order must leave room for the worst case.
        """
        room = self.rules.cap - self.billed if hasattr(self, "billed") else self.rules.cap
        if room < self.price * self.rules.overspend - _SLACK:
            return 0
        expected = self.price if self.rules.overspend < 2 else self.price * (1 + self.rules.overspend) / 2
        return 1 + int((room - self.price * self.rules.overspend + _SLACK) / expected)

    def next(self) -> Buy | Decide:
        """What to do now."""
        strict = self.evidence is not None and self.evidence.value(self.clicks, self.conversions)
        if strict and strict >= 1 / self.rules.alpha:
            return Decide("VALIDATED", f"evidence {strict:.1f} against a rate at or below the bar")
        can_buy = not self.stalled and self._affordable() > 0 and self.clicks < self.plan.horizon
        if can_buy and self._worth_another_click():
            # A little over the price: prices are rounded, and an order just short of one click buys none.
            room = (self.rules.cap - self.billed) / self.rules.overspend
            return Buy(round(min(room, self.price + 1e-4), 6))
        mean = float(self.plan.mean[min(self.clicks, self.plan.horizon), self.conversions])
        found = f"expected rate {mean:.2%} after {self.clicks} clicks, bar {self.rules.bar:.2%}"
        if self.mode == "strict":
            verdict: Verdict = "PROMISING" if mean > self.rules.bar else "KILLED"
            return Decide(verdict, found)
        return Decide(self.plan.verdict(self.clicks, self.conversions), found)

    def _worth_another_click(self) -> bool:
        if self.mode == "strict":
            # Money is spent where validating would pay; evidence, not value, ends the test.
            return self.plan.wants_more(self.clicks, self.conversions) or (
                self.plan.mean[self.clicks, self.conversions] > self.rules.bar
            )
        return self.plan.wants_more(self.clicks, self.conversions)

    def seen(self, *, clicks: int, conversions: int, billed: float) -> None:
        """Take in what an order brought: totals so far, US dollars."""
        self.stalled = clicks == self.clicks
        self.clicks, self.conversions, self.billed = clicks, conversions, billed


class Policy:
    """Decides a series of hypotheses and learns from each for the next."""

    def __init__(self, rules: Rules, mode: Mode = "value", stated: BetaPrior | None = None) -> None:
        self.rules = rules
        self.mode = mode
        self.prior = HierarchicalPrior(rules.bar, stated)

    def open(self, segment: str, price: float) -> Test:
        """Begin the test of a hypothesis."""
        return Test(self.rules, self.mode, segment, price, self.prior.belief(segment))

    def close(self, test: Test) -> None:
        """Learn from a finished test."""
        self.prior.learn(test.segment, test.clicks, test.conversions)
