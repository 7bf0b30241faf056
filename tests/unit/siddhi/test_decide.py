"""The decision core against exact answers, brute force and a small simulated world."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.errors import UsageError
from avyay.siddhi.decide import Buy, Decide, Policy, Rules
from avyay.siddhi.evidence import EProcess
from avyay.siddhi.prior import BetaMixture, BetaPrior, HierarchicalPrior
from avyay.siddhi.special import beta_cdf, log_gamma
from avyay.siddhi.stdio import converse
from avyay.siddhi.stopping import BAD, plan

RULES = Rules(cap=30.0, bar=0.05, gain=300.0)


@given(st.floats(1e-4, 1e5))
def test_log_gamma_is_the_standard_librarys(x: float) -> None:
    assert log_gamma(np.array([x]))[0] == pytest.approx(math.lgamma(x), rel=1e-12, abs=1e-12)


@given(st.floats(0.1, 500), st.floats(0.1, 3000), st.floats(0, 1))
def test_beta_cdf_is_scipys(a: float, b: float, x: float) -> None:
    assert beta_cdf(a, b, x) == pytest.approx(scipy.stats.beta.cdf(x, a, b), abs=1e-9)


class TestPlan:
    BELIEF = BetaMixture.of(BetaPrior(1.2, 30.0))

    def brute_force(self, n: int, s: int, horizon: int, price: float) -> float:
        a, b = 1.2 + s, 30.0 + n - s
        rate = a / (a + b)
        best = max(0.0, RULES.gain * (rate / RULES.bar - 1))
        if n < horizon:
            win, lose = self.brute_force(n + 1, s + 1, horizon, price), self.brute_force(n + 1, s, horizon, price)
            best = max(best, rate * win + (1 - rate) * lose - price)
        return best

    @pytest.mark.parametrize("price", [0.3, 0.6, 5.0])
    def test_it_is_the_optimum(self, price: float) -> None:
        found = plan(self.BELIEF, horizon=9, price=price, bar=RULES.bar, gain=RULES.gain)
        assert found.value == pytest.approx(self.brute_force(0, 0, 9, price), rel=1e-3)

    def test_without_money_it_goes_by_the_belief(self) -> None:
        found = plan(self.BELIEF, horizon=0, price=1.0, bar=RULES.bar, gain=RULES.gain)
        assert not found.wants_more(0, 0)
        assert found.verdict(0, 0) == "KILLED"
        hopeful = plan(BetaMixture.of(BetaPrior(6, 60)), horizon=0, price=1.0, bar=RULES.bar, gain=RULES.gain)
        assert hopeful.verdict(0, 0) == "VALIDATED"

    @settings(deadline=None, max_examples=40)
    @given(st.floats(0.3, 8), st.floats(5, 200), st.integers(0, 30), st.data())
    def test_the_grid_agrees_with_the_conjugate_posterior(
        self, a: float, b: float, n: int, data: st.DataObject
    ) -> None:
        s = data.draw(st.integers(0, n))
        found = plan(BetaMixture.of(BetaPrior(a, b)), horizon=n, price=1.0, bar=0.05, gain=300)
        assert found.mean[n, s] == pytest.approx((a + s) / (a + b + n), rel=0.01, abs=1e-4)
        assert found.bad[n, s] == pytest.approx(beta_cdf(a + s, b + n - s, BAD * 0.05), abs=0.03)

    def test_caution_wants_more_before_it_validates(self) -> None:
        hopeful = BetaMixture.of(BetaPrior(3, 55))  # expected 5.2 %, just above the bar, and bad in one case of three
        bold = plan(hopeful, horizon=60, price=0.1, bar=0.05, gain=300)
        careful = plan(hopeful, horizon=60, price=0.1, bar=0.05, gain=300, caution=0.5)
        assert bold.verdict(0, 0) == "VALIDATED"
        assert careful.verdict(0, 0) == "KILLED"
        assert careful.wants_more(0, 0)
        assert careful.worth[30, 5] > 0

    @settings(deadline=None)
    @given(st.integers(1, 40), st.floats(0.05, 5))
    def test_more_money_is_never_worth_less(self, horizon: int, price: float) -> None:
        values = [plan(self.BELIEF, horizon=h, price=price, bar=0.05, gain=300).value for h in (horizon, horizon + 3)]
        assert values[1] >= values[0] - 1e-9


class TestPrior:
    def test_a_mixture_of_one_is_conjugate(self) -> None:
        after = BetaMixture.of(BetaPrior(2, 38)).updated(20, 3)
        assert after.mean == pytest.approx(5 / 60)

    def test_the_stated_prior_is_what_is_believed_at_first(self) -> None:
        stated = BetaPrior(0.62, 20.0)
        belief = HierarchicalPrior(0.05, stated).belief("new")
        assert belief.mean == pytest.approx(stated.mean, rel=0.05)

    def test_segments_learn_from_their_own_and_a_little_from_others(self) -> None:
        prior = HierarchicalPrior(0.05)
        before = prior.belief("good").mean
        for _ in range(10):
            prior.learn("good", 40, 4)
            prior.learn("bad", 40, 0)
        assert prior.belief("good").mean > 0.07
        assert prior.belief("bad").mean < 0.02
        assert prior.belief("bad").mean < prior.belief("new").mean < prior.belief("good").mean
        assert before != prior.belief("good").mean

    def test_order_does_not_matter_and_no_clicks_teach_nothing(self) -> None:
        results = [("a", 30, 2), ("b", 12, 0), ("a", 5, 1), ("b", 50, 4), ("a", 0, 0)]
        means = []
        for order in (results, results[::-1]):
            prior = HierarchicalPrior(0.05)
            for result in order:
                prior.learn(*result)
            means.append(prior.belief("a").mean)
        assert means[0] == pytest.approx(means[1])

    @pytest.mark.parametrize("clicks, conversions", [(3, 4), (-1, 0), (2, -1)])
    def test_impossible_results_are_refused(self, clicks: int, conversions: int) -> None:
        with pytest.raises(ValueError, match="no result"):
            HierarchicalPrior(0.05).learn("a", clicks, conversions)


class TestEvidence:
    def test_it_is_a_supermartingale_at_and_below_the_bar(self) -> None:
        process = EProcess(0.05, HierarchicalPrior(0.05).belief("a"))
        assert process.value(0, 0) == pytest.approx(1)
        for n, s in [(0, 0), (10, 1), (40, 5), (60, 0)]:
            for rate in (0.05, 0.03, 0.001):
                expected = rate * process.value(n + 1, s + 1) + (1 - rate) * process.value(n + 1, s)
                assert expected <= process.value(n, s) + 1e-9

    def test_strict_mode_rarely_validates_at_the_bar(self) -> None:
        generator = random.Random(7)
        policy = Policy(RULES, "strict")
        validated = sum(play(policy, f"s{i % 4}", 0.5, 0.05, generator)[0] == "VALIDATED" for i in range(300))
        assert validated <= 300 * 0.05


def play(policy: Policy, segment: str, price: float, rate: float, generator: random.Random, overspend: float = 1.0):
    """One hypothesis on a platform that bills up to `overspend` times an order; (verdict, billed)."""
    test = policy.open(segment, price)
    while isinstance(step := test.next(), Buy):
        limit = step.usd * generator.uniform(1.0, overspend)
        clicks = int(limit / price + 1e-9)
        test.seen(
            clicks=test.clicks + clicks,
            conversions=test.conversions + sum(generator.random() < rate for _ in range(clicks)),
            billed=test.billed + min(limit, clicks * price),
        )
    policy.close(test)
    return step.verdict, test.billed


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.2, 40.0),
    st.floats(1.0, 3.0),
    st.floats(0, 0.5),
    st.sampled_from(["value", "strict"]),
)
def test_the_cap_holds_whatever_the_platform_bills(
    seed: int, price: float, overspend: float, rate: float, mode: str
) -> None:
    rules = Rules(cap=30.0, bar=0.05, gain=300.0, overspend=overspend)
    generator = random.Random(seed)
    policy = Policy(rules, mode, BetaPrior(1, 20))  # type: ignore[arg-type]
    _, billed = play(policy, "a", price, rate, generator, overspend)
    assert billed <= rules.cap + 1e-6


def test_learning_saves_money() -> None:
    """In a world of one hopeless and one splendid segment, later hypotheses hardly need clicks."""
    generator = random.Random(3)
    policy = Policy(RULES)
    billed = []
    wrong = 0
    for i in range(120):
        segment, rate = ("splendid", 0.15) if i % 2 else ("hopeless", 0.002)
        verdict, cost = play(policy, segment, 0.5, rate, generator)
        billed.append(cost)
        wrong += verdict != ("VALIDATED" if rate > 0.05 else "KILLED")
    assert sum(billed[-40:]) < sum(billed[:40])
    assert wrong <= 6


class TestStdio:
    START: ClassVar = {"type": "start", "cap_usd": 30, "bar": 0.05, "gain_usd": 300, "overspend": 1.0, "prior": None}

    def test_a_conversation(self) -> None:
        offer = {"type": "offer", "id": "h0", "segment": "s1", "cpc_usd": 0.6}
        first = json.loads(next(converse([json.dumps(self.START), json.dumps(offer)])))
        assert first["action"] == "buy"
        assert first["usd"] == pytest.approx(0.6, abs=0.001)
        nothing = {"type": "result", "id": "h0", "clicks_total": 0, "conversions_total": 0, "billed_total_usd": 0}
        lines = [json.dumps(m) for m in (self.START, offer, nothing, {"type": "end"})]
        answers = [json.loads(line) for line in converse(lines)]
        assert [answer["action"] for answer in answers] == ["buy", "decide"]
        assert "bar" in answers[1]["reason"]

    @pytest.mark.parametrize(
        "line, words",
        [
            ("{", "Line 2 is not JSON"),
            ("[]", "Line 2 is not a JSON object"),
            ('{"type": "offer", "id": "h"}', "'segment' is missing"),
            ('{"type": "offer", "id": "h", "segment": "s", "cpc_usd": "x"}', "Line 2: could not convert"),
            ('{"type": "offer", "id": "h", "segment": "s", "cpc_usd": 0}', "must cost something"),
            ('{"type": "result", "id": "h"}', "not under test"),
            ('{"type": "shout", "id": "h"}', "unknown type 'shout'"),
        ],
    )
    def test_faults_name_line_and_field(self, line: str, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            list(converse([json.dumps(self.START), line]))

    def test_an_offer_before_the_start(self) -> None:
        with pytest.raises(UsageError, match="before 'start'"):
            list(converse(['{"type": "offer", "id": "h"}']))


def test_decisions_say_why() -> None:
    step = Policy(RULES, stated=BetaPrior(0.1, 50)).open("a", 29.0).next()
    assert isinstance(step, Decide)
    assert "expected rate" in step.reason


def test_a_grid_is_increasing() -> None:
    means = HierarchicalPrior(0.05)._means
    assert all(x < y for x, y in pairwise(means))
