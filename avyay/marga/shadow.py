"""Shadow evaluation: is the cheap tier good enough for a class of requests? Sampling, evidence, promotion. Pure.

A sample of what a cheaper tier answers is also asked of the premium one, off the request's path. Each comparison feeds
a sequential test of that class and tier; a class whose answers degrade too often moves up one tier, one whose lower
tier has recovered moves down again. Every move carries the evidence for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from avyay.marga.sequential import SequentialTest, TestPlan, expected_samples
from avyay.marga.types import TIERS
from avyay.ports import Tier

__all__ = [
    "DEFAULT_TEST",
    "UNCLASSED",
    "ClassChange",
    "ClassState",
    "ShadowPlan",
    "observe",
    "raised",
    "sampled",
    "share_of",
    "tiers_to_ask",
]


UNCLASSED = "default"  # the class of requests that name none
DEFAULT_TEST = TestPlan(good=0.05, bad=0.10, false_alarm=0.01, miss=0.05)


@dataclass(frozen=True, slots=True)
class ShadowPlan:
    """How much is watched, and when a class moves.

    Attributes:
        share: Of the requests a tier below premium answers, this many are asked of premium as well.
        daily_budget: Picodollars a day the second answers may cost.
        test: The test of a class and tier. With the defaults a class whose answers degrade in at most 5 % of cases is
            promoted by mistake in at most 1 % of tests; one at 10 % or more is missed in at most 5 %.
    """

    share: float = 0.05
    daily_budget: int = 1_000_000_000_000
    test: TestPlan = DEFAULT_TEST

    def samples_to_promote(self, rate: float) -> float:
        """About how many comparisons a class that degrades at this rate needs until it is promoted."""
        return expected_samples(self.test, rate)


def share_of(salt: str, key: str) -> float:
    """A number in [0, 1) that is the same for the same key, everywhere and always."""
    digest = hashlib.blake2b(key.encode(), key=salt.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def sampled(plan: ShadowPlan, decision_id: str, tier: Tier) -> bool:
    """Whether this request is compared while the budget lasts. The same id always gives the same answer."""
    return tier != "premium" and share_of("shadow", decision_id) < plan.share


@dataclass(frozen=True, slots=True)
class ClassState:
    """What is known of one request class.

    Attributes:
        floor: The lowest tier it is sent to.
        tests: The running test by tier.
        tests_done: How many tests have ended, with either verdict.
    """

    name: str
    floor: Tier = "local"
    tests: Mapping[Tier, SequentialTest] = field(default_factory=dict)
    tests_done: int = 0
    changed_at: float | None = None

    def as_data(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "floor": self.floor,
            "tests_done": self.tests_done,
            "changed_at": self.changed_at,
            "tests": {
                tier: {"count": test.count, "failures": test.failures, "evidence": test.evidence}
                for tier, test in self.tests.items()
            },
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ClassState:
        tests: dict[Tier, SequentialTest] = {tier: SequentialTest(**test) for tier, test in data["tests"].items()}
        return cls(data["name"], data["floor"], tests, data["tests_done"], data["changed_at"])


@dataclass(frozen=True, slots=True)
class ClassChange:
    """A class moved, and why. `evidence` is a log likelihood ratio; it passed `bound`."""

    request_class: str
    before: Tier
    after: Tier
    at: float
    tested: Tier
    comparisons: int
    degraded: float
    evidence: float
    bound: float

    @property
    def promoted(self) -> bool:
        return TIERS.index(self.after) > TIERS.index(self.before)

    def sentence(self) -> str:
        verb = "promoted" if self.promoted else "demoted"
        return (
            f"{self.request_class} {verb} from {self.before} to {self.after}: {self.degraded:.1%} of {self.comparisons}"
            f" answers of {self.tested} were worse than premium's (log evidence {self.evidence:+.2f},"
            f" bound {self.bound:+.2f})"
        )


def tiers_to_ask(floor: Tier, served: Tier) -> tuple[Tier, ...]:
    """Which tiers a sampled request is compared at: the one that served it, and the one below a raised floor."""
    tiers = [served]
    below = TIERS.index(floor) - 1
    if below >= 0 and TIERS[below] not in tiers:
        tiers.append(TIERS[below])
    return tuple(tier for tier in tiers if tier != "premium")


def raised(tier: Tier, floor: Tier) -> Tier:
    """The tier a request of a class goes to when its complexity says `tier`."""
    return TIERS[max(TIERS.index(tier), TIERS.index(floor))]


def observe(
    state: ClassState, tier: Tier, degraded: float, plan: ShadowPlan, at: float
) -> tuple[ClassState, ClassChange | None]:
    """The state after one comparison.

    Args:
        tier: Whose answer was compared with premium's.
        degraded: 0 (as good or better) to 1 (worse).
    """
    test = state.tests.get(tier, SequentialTest()).observe(degraded, plan.test)
    verdict = test.verdict(plan.test)
    tests = {**state.tests, tier: test}
    if verdict is None:
        return replace(state, tests=tests), None
    floor, place = TIERS.index(state.floor), TIERS.index(tier)
    tests[tier] = SequentialTest()  # the question was answered: the next one starts afresh
    after = floor
    if verdict == "bad" and place >= floor:
        after = place + 1
    elif verdict == "good" and place == floor - 1:
        after = place
    state = replace(state, tests=tests, tests_done=state.tests_done + 1)
    if after == floor:
        return state, None
    bound = plan.test.upper if verdict == "bad" else plan.test.lower
    change = ClassChange(state.name, TIERS[floor], TIERS[after], at, tier, test.count, test.rate, test.evidence, bound)
    return replace(state, floor=TIERS[after], changed_at=at), change
