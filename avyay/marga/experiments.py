"""A/B experiments on a request class: who gets which arm, whether assignment is sound, and what differs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from avyay.config.marga import ExperimentSettings
from avyay.marga.sequential import Interval, Moments, confidence_sequence, difference_sequence, ratio_mismatch
from avyay.marga.shadow import share_of

__all__ = [
    "METRICS",
    "Arm",
    "ArmResult",
    "Experiment",
    "Metric",
    "Report",
    "assign",
    "experiment_of",
    "record",
    "report",
    "results_of",
]

Metric: TypeAlias = Literal["cost", "latency", "quality"]
METRICS: tuple[Metric, ...] = ("cost", "latency", "quality")
_BROKEN = 1000.0  # evidence against the planned shares from which no result is believed


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering: a model name or a tier, and its share of the traffic."""

    name: str
    target: str
    share: float


@dataclass(frozen=True, slots=True)
class Experiment:
    """Arms that divide a request class. The first arm is what the others are compared with."""

    name: str
    request_class: str
    arms: tuple[Arm, ...]
    error: float = 0.05

    def __post_init__(self) -> None:
        if len(self.arms) < 2:
            raise ValueError("an experiment needs at least two arms")
        if len({arm.name for arm in self.arms}) != len(self.arms):
            raise ValueError("two arms have one name")
        if any(arm.share <= 0 for arm in self.arms) or abs(sum(arm.share for arm in self.arms) - 1) > 1e-9:
            raise ValueError("the shares of the arms must be positive and add up to 1")


def experiment_of(settings: ExperimentSettings) -> Experiment:
    """An experiment as configured."""
    arms = tuple(Arm(arm.name, arm.target, arm.share) for arm in settings.arms)
    return Experiment(settings.name, settings.request_class, arms)


def assign(experiment: Experiment, unit: str) -> Arm:
    """The arm of a unit (a session, else a customer, else the request): the same one every time."""
    place = share_of(f"experiment:{experiment.name}", unit)
    total = 0.0
    for arm in experiment.arms:
        total += arm.share
        if place < total:
            return arm
    return experiment.arms[-1]


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What one arm brought so far. Cost in USD, latency in seconds, quality 0..1."""

    assigned: int = 0
    metrics: Mapping[Metric, Moments] = field(default_factory=dict)


def record(result: ArmResult, **values: float) -> ArmResult:
    """The result after one more request; a metric that was not measured is left out."""
    metrics = dict(result.metrics)
    for metric in METRICS:
        if metric in values:
            metrics[metric] = metrics.get(metric, Moments()).add(values[metric])
    return replace(result, assigned=result.assigned + 1, metrics=metrics)


@dataclass(frozen=True, slots=True)
class Report:
    """What an experiment shows now. Valid whenever it is read.

    Attributes:
        means: By arm and metric, with its interval.
        differences: By arm (not the first) and metric: arm minus first arm.
        mismatch: Evidence that assignment is not as planned; from 1000 on it is not `sound`, and nothing else
            counts.
    """

    experiment: str
    assigned: Mapping[str, int]
    means: Mapping[str, Mapping[Metric, Interval]]
    differences: Mapping[str, Mapping[Metric, Interval]]
    mismatch: float

    @property
    def sound(self) -> bool:
        return self.mismatch < _BROKEN


def report(experiment: Experiment, results: Mapping[str, ArmResult]) -> Report:
    """Read an experiment. The error is divided among all comparisons, so the whole table holds together."""
    arms = experiment.arms
    base = results.get(arms[0].name, ArmResult())
    error = experiment.error / ((len(arms) - 1) * len(METRICS))
    means: dict[str, dict[Metric, Interval]] = {}
    differences: dict[str, dict[Metric, Interval]] = {}
    for arm in arms:
        own = results.get(arm.name, ArmResult()).metrics
        means[arm.name] = {m: confidence_sequence(own[m], error=experiment.error) for m in METRICS if m in own}
        if arm is not arms[0]:
            differences[arm.name] = {
                m: difference_sequence(base.metrics[m], own[m], error=error)
                for m in METRICS
                if m in own and m in base.metrics
            }
    counts = {arm.name: results.get(arm.name, ArmResult()).assigned for arm in arms}
    mismatch = ratio_mismatch(counts, {arm.name: arm.share for arm in arms})
    return Report(experiment.name, counts, means, differences, mismatch)


def results_of(
    experiment: Experiment, rows: Iterable[Mapping[str, Any]], quality: Mapping[str, float]
) -> dict[str, ArmResult]:
    """What the ledger holds of an experiment: rows with their parsed `detail`, oldest first.

    Args:
        quality: 0..1 by decision, where an answer was compared.
    """
    results = {arm.name: ArmResult() for arm in experiment.arms}
    for row in rows:
        name, arm = row["detail"]["features"].get("experiment") or (None, None)
        if name != experiment.name or arm not in results:
            continue
        values: dict[str, float] = {}
        if row["status"] == "ok":
            values = {"cost": row["cost"] / 1e12, "latency": row["seconds"]}
        if row["id"] in quality:
            values["quality"] = quality[row["id"]]
        results[arm] = record(results[arm], **values)
    return results
