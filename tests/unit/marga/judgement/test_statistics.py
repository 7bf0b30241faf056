"""What the statistics promise, by simulation with fixed seeds and by property."""

from __future__ import annotations

import asyncio
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.marga.anomalies import Bucket, buckets_of, find_anomalies
from avyay.marga.compare import compare, compare_texts, judge_prompt, read_verdict
from avyay.marga.experiments import Arm, ArmResult, Experiment, assign, record, report
from avyay.marga.sequential import (
    Moments,
    SequentialTest,
    TestPlan,
    confidence_sequence,
    expected_samples,
    ratio_mismatch,
    robust_z,
)
from avyay.marga.shadow import ClassState, ShadowPlan, observe, raised, sampled, tiers_to_ask

PLAN = ShadowPlan()


def run_test(plan: TestPlan, rate: float, rng: random.Random, most: int = 20_000) -> tuple[str | None, int]:
    state = SequentialTest()
    while state.count < most:
        state = state.observe(float(rng.random() < rate), plan)
        if verdict := state.verdict(plan):
            return verdict, state.count
    return None, most


def test_error_rates_of_the_sequential_test_are_as_stated() -> None:
    rng = random.Random(1)
    runs = 600
    good = [run_test(PLAN.test, 0.05, rng)[0] for _ in range(runs)]
    bad = [run_test(PLAN.test, 0.10, rng) for _ in range(runs)]
    assert good.count("bad") / runs <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / runs)
    assert [v for v, _ in bad].count("good") / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    promoted = [count for verdict, count in bad if verdict == "bad"]
    assert sum(promoted) / len(promoted) <= 1.25 * expected_samples(PLAN.test, 0.10)


@given(st.lists(st.floats(0, 1), max_size=60))
def test_a_test_counts_what_it_saw(values: list[float]) -> None:
    state = SequentialTest()
    for value in values:
        state = state.observe(value, PLAN.test)
    assert state.count == len(values)
    assert state.failures == pytest.approx(sum(values))
    assert state.evidence == pytest.approx(sum(PLAN.test.step(v) for v in values))


@pytest.mark.parametrize("arguments", [(0.1, 0.05), (0.0, 0.1), (0.1, 1.0), (0.05, 0.1, 0.6), (0.05, 0.1, 0.01, 0.0)])
def test_senseless_plans_are_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        TestPlan(*arguments)


def test_exactly_the_degraded_class_is_promoted_and_comes_back() -> None:
    """Scripted models of known quality: share of answers that are worse than premium's, by class and tier."""
    quality = {
        "extract": {"local": 0.02, "medium": 0.01},
        "classify": {"local": 0.04, "medium": 0.02},
        "reason": {"local": 0.30, "medium": 0.03},
        "contract": {"local": 0.40, "medium": 0.25},
    }
    outcomes = []
    comparisons_until = []
    for seed in range(40):
        rng = random.Random(seed)
        states = {name: ClassState(name) for name in quality}
        seen = dict.fromkeys(quality, 0)
        for request in range(12_000):
            name = rng.choice(list(quality))
            state = states[name]
            served = raised("local", state.floor)
            if not sampled(PLAN, f"{seed}-{request}", served):
                continue
            for tier in tiers_to_ask(state.floor, served):
                degraded = float(rng.random() < quality[name][tier])
                before = states[name].floor
                states[name], change = observe(states[name], tier, degraded, PLAN, float(request))
                seen[name] += 1
                if change is not None and change.promoted and before == "local":
                    comparisons_until.append((name, seen[name]))
        outcomes.append({name: state.floor for name, state in states.items()})
    assert all(o["reason"] == "medium" and o["contract"] == "premium" for o in outcomes)
    false_alarms = sum(o["extract"] != "local" for o in outcomes) + sum(o["classify"] != "local" for o in outcomes)
    assert false_alarms <= 2  # 80 classes, each through several tests at 1 %
    needed = [count for name, count in comparisons_until if name == "reason"]
    assert sum(needed) / len(needed) <= 1.25 * PLAN.samples_to_promote(0.30) + 3


def test_a_class_that_recovers_is_demoted_with_evidence() -> None:
    rng = random.Random(5)
    state, changes = ClassState("c"), []
    for count in range(4000):
        rate = 0.3 if count < 200 else 0.01
        for tier in tiers_to_ask(state.floor, raised("local", state.floor)):
            state, change = observe(state, tier, float(rng.random() < rate), PLAN, float(count))
            if change:
                changes.append(change)
    assert state.floor == "local"
    assert changes[0].promoted
    assert not changes[-1].promoted
    assert "promoted from local to medium" in changes[0].sentence()
    assert changes[0].evidence >= changes[0].bound
    assert ClassState.from_data(json.loads(json.dumps(state.as_data()))) == state


@given(st.lists(st.tuples(st.sampled_from(["local", "medium"]), st.floats(0, 1)), max_size=300))
def test_a_class_moves_one_tier_at_a_time_and_never_past_the_ends(steps: list[tuple[str, float]]) -> None:
    tiers = ("local", "medium", "premium")
    state = ClassState("c")
    for tier, degraded in steps:
        before = state.floor
        state, change = observe(state, tier, degraded, PLAN, 0.0)  # type: ignore[arg-type]
        assert (change is not None) == (state.floor != before)
        if change is not None and not change.promoted:
            assert tiers.index(before) - tiers.index(state.floor) == 1


def test_sampling_is_stable_and_near_its_share() -> None:
    chosen = [i for i in range(20_000) if sampled(PLAN, f"dec_{i}", "local")]
    assert abs(len(chosen) / 20_000 - 0.05) < 0.006
    assert not any(sampled(PLAN, f"dec_{i}", "premium") for i in chosen)


# ---------------------------------------------------------------- comparison


@pytest.mark.parametrize(
    ("cheap", "reference", "degraded", "method"),
    [
        ("Paris", "paris.", 0.0, "exact"),
        ("London", "Paris", 1.0, "exact"),
        ("The answer is Paris.", "Paris", 0.0, "contained"),
        ("42", "The answer is 42", 0.0, "value"),
        ("", "Paris", 1.0, "exact"),
        ('{"a": 1, "b": [2]}', '```json\n{"b": [2], "a": 1}\n```', 0.0, "json"),
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5, "json"),
        ("sorry", '{"a": 1}', 1.0, "json"),
    ],
)
def test_answers_that_need_no_judge(cheap: str, reference: str, degraded: float, method: str) -> None:
    found = compare_texts(cheap, reference)
    assert found is not None
    assert (found.degraded, found.method) == (degraded, method)


LONG = "The handshake has three steps because both sides must learn that the other one hears them."
SHORT = "It has three steps so that each side confirms the other can both send and receive data on the line."


async def judged(replies: list[str]) -> float | None:
    asked: list[str] = []

    async def ask(prompt: str) -> str:
        asked.append(prompt)
        return replies[len(asked) - 1]

    found = await compare("Why three?", SHORT, LONG, ask=ask)
    assert asked[0] == judge_prompt("Why three?", SHORT, LONG)
    assert asked[1] == judge_prompt("Why three?", LONG, SHORT)
    return found.degraded if found else None


@pytest.mark.parametrize(
    ("replies", "degraded"),
    [
        (["B", "A"], 1.0),
        (["A", "B"], 0.0),
        (["A", "A"], 0.0),
        (["B", "TIE"], 0.5),
        (["TIE", "TIE"], 0.0),
        (["B", "?"], None),
    ],
)
def test_a_judge_is_asked_in_both_orders(replies: list[str], degraded: float | None) -> None:
    assert asyncio.run(judged(replies)) == degraded


def test_a_verdict_is_one_word() -> None:
    assert read_verdict("A") == "A"
    assert read_verdict("**TIE**.") == "TIE"
    assert read_verdict("A or B, hard to say") is None


# ---------------------------------------------------------------- experiments


EXPERIMENT = Experiment("e", "classify", (Arm("control", "medium", 0.5), Arm("cheap", "local", 0.5)))


def test_assignment_is_stable_and_near_its_shares() -> None:
    units = [f"session-{i}" for i in range(4000)]
    arms = [assign(EXPERIMENT, unit).name for unit in units]
    assert arms == [assign(EXPERIMENT, unit).name for unit in units]
    assert abs(arms.count("cheap") / 4000 - 0.5) < 0.03
    other = Experiment("other", "classify", EXPERIMENT.arms)
    both = sum(assign(other, u).name == a for u, a in zip(units, arms, strict=True))
    assert abs(both / 4000 - 0.5) < 0.03  # two experiments do not line up


def test_intervals_cover_at_every_look() -> None:
    rng = random.Random(3)
    missed = 0
    for _ in range(150):
        moments, ok = Moments(), True
        for _ in range(800):
            moments = moments.add(rng.expovariate(1.0))
            interval = confidence_sequence(moments)
            ok = ok and interval.low <= 1.0 <= interval.high
        missed += not ok
    assert missed / 150 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_a_real_difference_is_seen_and_an_imagined_one_is_not() -> None:
    rng = random.Random(9)
    results = {"control": ArmResult(), "cheap": ArmResult()}
    for i in range(3000):
        arm = assign(EXPERIMENT, f"u{i}").name
        cost = 0.010 if arm == "control" else 0.002
        results[arm] = record(results[arm], cost=cost * rng.uniform(0.5, 1.5), latency=rng.gauss(1, 0.3), quality=0.9)
    found = report(EXPERIMENT, results)
    assert found.sound
    assert found.differences["cheap"]["cost"].high < 0
    assert not found.differences["cheap"]["latency"].excludes_zero
    assert sum(found.assigned.values()) == 3000


def test_broken_assignment_is_noticed_and_sound_assignment_is_not() -> None:
    shares = {"a": 0.5, "b": 0.5}
    assert ratio_mismatch({"a": 5000, "b": 5050}, shares) < 1000
    assert ratio_mismatch({"a": 4500, "b": 5500}, shares) > 1000
    assert ratio_mismatch({}, shares) == 1.0
    rng = random.Random(2)
    alarms = 0
    for _ in range(100):
        counts = {"a": 0, "b": 0}
        worst = 0.0
        for step in range(1500):
            counts["a" if rng.random() < 0.5 else "b"] += 1
            if step % 25 == 0:
                worst = max(worst, ratio_mismatch(counts, shares))
        alarms += worst >= 1000
    assert alarms == 0


@pytest.mark.parametrize(
    "arms",
    [
        (Arm("a", "x", 1.0),),
        (Arm("a", "x", 0.5), Arm("a", "y", 0.5)),
        (Arm("a", "x", 0.5), Arm("b", "y", 0.6)),
    ],
)
def test_senseless_experiments_are_refused(arms: tuple[Arm, ...]) -> None:
    with pytest.raises(ValueError):
        Experiment("e", "c", arms)


# ---------------------------------------------------------------- anomalies


def hours(days: int, rng: random.Random, **last: float) -> list[Bucket]:
    """Hourly buckets with days, nights and noise; the last one as told."""
    out = []
    for hour in range(days * 24):
        busy = 1 + math.sin(hour / 24 * 2 * math.pi) * 0.6
        calls = int(100 * busy + rng.gauss(0, 8))
        out.append(Bucket(hour * 3600.0, calls, sum(rng.random() < 0.01 for _ in range(calls)),
                          0.8 * busy + rng.gauss(0, 0.04), calls * 0.01 * rng.uniform(0.9, 1.1)))  # fmt: skip
    end = out[-1]
    out[-1] = Bucket(end.start, end.calls, int(last.get("errors", end.errors)), last.get("latency", end.latency),
                     last.get("spend", end.spend))  # fmt: skip
    return out


def test_no_alarm_on_the_tide_of_the_day() -> None:
    rng = random.Random(4)
    series = hours(30, rng)
    alarms = [a for end in range(48, len(series)) for a in find_anomalies("p", series[:end])]
    assert len(alarms) <= 3  # of 672 hours and three signals


@pytest.mark.parametrize(
    ("last", "signal"), [({"latency": 6.0}, "latency"), ({"errors": 40}, "error_rate"), ({"spend": 9.0}, "spend")]
)
def test_an_alarm_on_what_is_new(last: dict[str, float], signal: str) -> None:
    found = find_anomalies("openai", hours(20, random.Random(6), **last))
    assert [a.signal for a in found] == [signal]
    assert "openai" in found[0].sentence()


def test_little_is_said_of_little() -> None:
    assert find_anomalies("p", []) == []
    assert find_anomalies("p", hours(1, random.Random(1))[:5]) == []
    assert robust_z(5.0, [5.0, 5.0, 5.0]) == 0.0
    assert robust_z(6.0, [5.0, 5.0, 5.0]) == math.inf


def test_buckets_have_no_holes() -> None:
    calls = [(0.0, False, 1.0, 0.1), (10.0, True, 9.0, 0.0), (7300.0, False, 3.0, 0.2)]
    found = buckets_of(calls, 3600.0)
    assert [(b.calls, b.errors, b.latency) for b in found] == [(2, 1, 1.0), (0, 0, None), (1, 0, 3.0)]
