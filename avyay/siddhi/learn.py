"""From counts to a verdict: are the data fit to judge by, what does the policy say, what was learned before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from avyay.siddhi.decide import Buy, Decide, Mode, Policy, Rules, Test
from avyay.siddhi.machine import State
from avyay.siddhi.prior import sceptical
from avyay.siddhi.types import Event

__all__ = ["LARGEST_GAP", "Counts", "Finished", "finished_tests", "gap", "judge", "policy_from"]

LARGEST_GAP = 0.2
"""Billed clicks and seen visits may differ by this share of the larger; beyond it no verdict is given."""
_FEW = 5  # below so many clicks a share says nothing


@dataclass(frozen=True, slots=True)
class Counts:
    """What a test has brought so far. `billed` in US dollars; `clicks` as billed, `visits` as seen."""

    clicks: int
    visits: int
    conversions: int
    billed: float
    bought: bool = True

    @property
    def trials(self) -> int:
        """People who could have signed up: the clicks paid for, or the visits when traffic was brought."""
        return max(self.clicks if self.bought else self.visits, self.conversions)


@dataclass(frozen=True, slots=True)
class Finished:
    """An earlier test to learn from."""

    segment: str
    clicks: int
    conversions: int


def gap(counts: Counts) -> str | None:
    """Why the data cannot be judged by; None when they can."""
    if not counts.bought:
        return None
    most = max(counts.clicks, counts.visits)
    difference = abs(counts.clicks - counts.visits)
    if most < _FEW or difference <= LARGEST_GAP * most:
        return None
    return (
        f"{counts.clicks} clicks were billed but {counts.visits} visits seen, {difference / most:.0%} apart: no verdict"
        f" above {LARGEST_GAP:.0%}"
    )


def finished_tests(histories: Iterable[tuple[str, Iterable[Event]]]) -> list[Finished]:
    """The tests that ended in a verdict, from the histories of hypotheses given with their segments.

    Counts run through all rounds of a hypothesis, so only its last verdict teaches.
    """
    found = []
    for segment, events in histories:
        verdicts: list[Any] = [e.data for e in events if e.before is State.ANALYZING and "trials" in e.data]
        if verdicts:
            found.append(Finished(segment, int(verdicts[-1]["trials"]), int(verdicts[-1]["conversions"])))
    return found


def policy_from(rules: Rules, mode: Mode, earlier: Iterable[Finished]) -> Policy:
    """The policy after all earlier tests."""
    policy = Policy(rules, mode, sceptical(rules.bar))
    for one in earlier:
        policy.prior.learn(one.segment, one.clicks, one.conversions)
    return policy


def judge(policy: Policy, segment: str, price: float, counts: Counts, *, over: bool) -> Buy | Decide:
    """What to do about a test that stands at `counts`.

    Args:
        over: Nothing more can come: the order is used up, its time has passed, or somebody stopped it.
    """
    test: Test = policy.open(segment, price)
    test.seen(clicks=counts.trials, conversions=counts.conversions, billed=counts.billed)
    test.stalled = over
    return test.next()
