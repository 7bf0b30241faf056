"""Calibration: learns what is there to learn, and refuses what is not better."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.errors import UsageError
from avyay.marga.calibrate import Calibrated, Label, UserModel, apgr, calibrate, load_calibration, read_labels


def traffic(count: int, *, signal: bool) -> list[Label]:
    """Requests of two classes; where there is a signal, one class gains much from a stronger model."""
    rng = random.Random(2)
    out = []
    for i in range(count):
        name = rng.choice(["extract", "plan"])
        tools = float(rng.random() < 0.5)
        chance = (0.05 + 0.5 * (name == "plan") + 0.3 * tools * (name == "plan")) if signal else 0.3
        features = {"complexity": rng.random(), "last_user_chars": rng.random() * 8, "tools": tools}
        out.append(Label(features, float(rng.random() < chance), f"g{i % (count // 2)}", name))
    return out


def test_what_is_there_is_learned_and_adopted() -> None:
    found = calibrate(traffic(600, signal=True))
    assert found.adopted
    assert found.apgr["learned"] > found.apgr["scorer"] + 0.1
    assert found.apgr["random"] == pytest.approx(0.5)
    assert all(low > 0 for _, low, _ in found.over.values())
    assert found.model is not None
    assert found.local_below is not None
    assert found.premium_from is not None
    text = json.dumps(
        {"model": found.model.as_data(), "local_below": found.local_below, "premium_from": found.premium_from}
    )
    at_work = load_calibration(text)
    easy = at_work.rate(0.5, {"tools": 0}, "extract")
    hard = at_work.rate(0.5, {"tools": 3}, "plan")
    assert easy + 0.1 < hard


def test_noise_is_not_adopted() -> None:
    found = calibrate(traffic(400, signal=False))
    assert not found.adopted
    assert found.model is None
    assert "not surely better" in found.why


def test_no_gain_is_said() -> None:
    labels = [Label({"complexity": i / 200}, 0.0, str(i)) for i in range(200)]
    assert "gains nothing" in calibrate(labels).why


def test_too_little_is_refused() -> None:
    with pytest.raises(UsageError, match="too few"):
        calibrate(traffic(20, signal=True))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0, 1))
def test_a_constant_scores_as_random_does(gains: list[float], score: float) -> None:
    found = apgr([score] * len(gains), gains)
    assert math.isnan(found) or found == pytest.approx(0.5)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_calibrated_scores_keep_the_order_of_gains(values: list[float]) -> None:
    model = UserModel(("complexity",), (0.0,), (1.0,), (1.0,), 0.0, {})
    at_work = Calibrated(model, 0.1, 0.4)
    gains = sorted(values)
    scores = [at_work.rate(value, {}, None) for value in gains]
    assert scores == sorted(scores)
    assert all(0 <= score <= 1 for score in scores)
    for gain, score in zip(gains, scores, strict=True):
        if abs(gain - 0.1) > 1e-5:
            assert (score >= 0.3) == (gain >= 0.1)


@pytest.mark.parametrize("line", ["{", "{}", '{"gain": 1, "prompt": 3}', '{"weak": "x", "strong": 1, "prompt": "a"}'])
def test_lines_that_are_no_labels(line: str) -> None:
    def score(row: dict[str, object]) -> tuple[dict[str, object], float]:
        if not isinstance(row.get("prompt"), str):
            raise UsageError("no prompt")
        return {}, 0.5

    with pytest.raises(UsageError, match="Line 1"):
        read_labels([line], score)


def test_a_damaged_file_is_named() -> None:
    with pytest.raises(UsageError, match="calibration"):
        load_calibration("{}")
