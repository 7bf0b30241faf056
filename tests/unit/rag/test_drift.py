"""The drift alarm: silent on noise, loud on a real change, mute when there is too little to tell."""

from __future__ import annotations

import random

import pytest

from avyay.rag.drift import RECENT, Observation, detect_drift


def observed(count: int, *, confidence: float, found: float, helped: float, seed: int) -> list[Observation]:
    chance = random.Random(seed)
    return [
        Observation(
            min(1.0, max(0.0, chance.gauss(confidence, 0.15))),
            chance.random() < found,
            chance.random() < helped if chance.random() < 0.5 else None,
        )
        for _ in range(count)
    ]


def test_noise_raises_no_alarm() -> None:
    alarms = sum(
        detect_drift(observed(500, confidence=0.6, found=0.9, helped=0.8, seed=seed)).alarm for seed in range(100)
    )
    assert alarms <= 3


@pytest.mark.parametrize(
    "sign, worse",
    [
        ("confidence", {"confidence": 0.5, "found": 0.9, "helped": 0.8}),
        ("found", {"confidence": 0.6, "found": 0.6, "helped": 0.8}),
        ("helped", {"confidence": 0.6, "found": 0.9, "helped": 0.3}),
    ],
)
def test_each_sign_raises_the_alarm(sign: str, worse: dict[str, float]) -> None:
    before = observed(400, confidence=0.6, found=0.9, helped=0.8, seed=1)
    drift = detect_drift([*before, *observed(RECENT, **worse, seed=2)])
    assert [one.name for one in drift.signs if one.alarm] == [sign]
    assert not detect_drift([*observed(400, **worse, seed=3), *before[:RECENT]]).alarm  # better is no alarm


def test_everything_found_and_then_nothing() -> None:
    before = [Observation(0.6, True)] * 300
    assert not detect_drift([*before, *[Observation(0.6, True)] * 100]).alarm
    assert not detect_drift([*before, *[Observation(0.6, True)] * 99, Observation(0.6, False)]).alarm
    assert detect_drift([*before, *[Observation(0.6, False)] * 100]).alarm


@pytest.mark.parametrize("count", [0, 1, RECENT, RECENT + 49])
def test_too_little_to_tell(count: int) -> None:
    drift = detect_drift([Observation(0.1, False)] * count)
    assert (drift.enough, drift.alarm) == (False, False)
