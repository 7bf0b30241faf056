"""The decision policy: what to buy next for a hypothesis, and when to call it.

Two modes stand side by side. `value` maximises expected money: it buys while another click is worth its price and
then takes the better verdict. `strict` validates only on evidence that stays valid under any stopping, so that at
most `alpha` of the hypotheses with a rate at the bar are ever validated; what it cannot decide is PROMISING.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avyay.siddhi.evidence import EProcess
from avyay.siddhi.prior import BetaMixture, BetaPrior, HierarchicalPrior
from avyay.siddhi.stopping import Plan, Verdict, plan

__all__ = ["Buy", "Decide", "Mode", "Policy", "Rules", "Test"]

Mode = Literal["value", "strict"]

LOOKAHEAD = 120  # clicks
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
        caution: Value mode: share of the gain that validating a rate well below the bar costs besides.
    """

    cap: float
    bar: float
    gain: float
    overspend: float = 1.0
    alpha: float = 0.05
    caution: float = 0.5


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
        self._belief = belief
        self._plan_from()
        self.evidence = EProcess(rules.bar, belief) if mode == "strict" else None

    def _plan_from(self) -> None:
        """Plan from here on, at most `LOOKAHEAD` clicks far: a longer look costs its square and changes little."""
        self._start = (self.clicks, self.conversions)
        self.plan: Plan = plan(
            self._belief.updated(*self._start),
            horizon=min(LOOKAHEAD, self._affordable()),
            price=self.price,
            bar=self.rules.bar,
            gain=self.rules.gain,
            caution=self.rules.caution,
        )

    def _affordable(self) -> int:
        """Clicks that can still be ordered one by one so that even the worst bill stays under the cap.

        An order for one click is billed at most `overspend` times its price, but a fraction of a click is never billed,
        so below an overspend of 2 one click costs its price; the last order must leave room for the worst case.
        """
        room = self.rules.cap - self.billed
        worst = self.price * self.rules.overspend
        if room < worst - _SLACK:
            return 0
        expected = self.price if self.rules.overspend < 2 else self.price * (1 + self.rules.overspend) / 2
        return 1 + int((room - worst + _SLACK) / expected)

    def next(self) -> Buy | Decide:
        """What to do now."""
        if self.evidence is not None:
            evidence = self.evidence.value(self.clicks, self.conversions)
            if evidence >= 1 / self.rules.alpha:
                return Decide("VALIDATED", f"evidence {evidence:.1f} against a rate at or below the bar")
        affordable = 0 if self.stalled else self._affordable()
        ahead = self.plan.horizon - (self.clicks - self._start[0])
        if ahead < 0 or (affordable and ahead == 0):  # one order may bring more clicks than were looked at
            self._plan_from()
        n, s = self.clicks - self._start[0], self.conversions - self._start[1]
        mean = float(self.plan.mean[n, s])
        # Strict mode spends where validating would pay; evidence, not value, ends its test.
        wanted = self.plan.wants_more(n, s) or (self.mode == "strict" and mean > self.rules.bar)
        if affordable and wanted:
            # A little over the price: prices are rounded, and an order just short of one click buys none.
            room = (self.rules.cap - self.billed) / self.rules.overspend
            return Buy(round(min(room, self.price + 1e-4), 6))
        found = (
            f"expected rate {mean:.2%} after {self.clicks} clicks, bar {self.rules.bar:.2%}, well below it with"
            f" probability {self.plan.bad[n, s]:.2f}"
        )
        if self.mode == "strict":
            return Decide("PROMISING" if mean > self.rules.bar else "KILLED", found)
        return Decide(self.plan.verdict(n, s), found)

    def seen(self, *, clicks: int, conversions: int, billed: float) -> None:
        """Take in what an order brought: totals so far, US dollars."""
        if not (self.clicks <= clicks and self.conversions <= conversions <= clicks):
            raise ValueError(f"{conversions} conversions of {clicks} clicks cannot follow what was seen before")
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
