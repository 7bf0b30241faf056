"""Alarms on latency, error rate and spend: against the series' own past, not against fixed numbers. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeAlias

from avyay.marga.sequential import robust_z

__all__ = ["Anomaly", "Bucket", "Sensitivity", "Signal", "buckets_of", "filled", "find_anomalies"]

Signal: TypeAlias = Literal["latency", "error_rate", "spend"]
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """When a bucket is an alarm.

    Attributes:
        deviations: Robust deviations above the expected value.
        ratio: And at least so many times the expected value: a steady series must not alarm for a trifle.
        history: Earlier buckets needed before anything is said.
        calls: Calls a bucket needs for its latency or error rate to count.
        error_floor: An error rate below this is none.
        spend_floor: USD below which a bucket's spend is none.
    """

    deviations: float = 6.0
    ratio: float = 1.5
    history: int = 12
    calls: int = 10
    error_floor: float = 0.05
    spend_floor: float = 0.01


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a series did in one stretch of time. Latency is the median in seconds, spend in USD."""

    start: float
    calls: int
    errors: int
    latency: float | None
    spend: float


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A value that its own past does not explain."""

    series: str
    signal: Signal
    at: float
    value: float
    expected: float
    deviations: float

    def sentence(self) -> str:
        shown = {"latency": "{:.2f} s", "error_rate": "{:.1%}", "spend": "${:.4f}"}[self.signal].format
        name = self.signal.replace("_", " ")
        return f"{self.series}: {name} {shown(self.value)}, expected about {shown(self.expected)}"


def buckets_of(calls: Iterable[tuple[float, bool, float, float]], width: float) -> list[Bucket]:
    """Buckets from (time, failed, seconds, USD), gaps included as empty buckets."""
    rows: dict[int, list[tuple[bool, float, float]]] = defaultdict(list)
    for at, failed, seconds, spend in calls:
        rows[int(at // width)].append((failed, seconds, spend))
    if not rows:
        return []
    out = []
    for place in range(min(rows), max(rows) + 1):
        members = rows.get(place, [])
        times = [seconds for failed, seconds, _ in members if not failed]
        out.append(
            Bucket(
                place * width,
                len(members),
                sum(failed for failed, _, _ in members),
                median(times) if times else None,
                sum(spend for _, _, spend in members),
            )
        )
    return out


def filled(found: Iterable[tuple[int, Bucket]], width: float, *, last: int | None = None) -> list[Bucket]:
    """Buckets in order of place, with empty ones in the gaps and up to place `last`."""
    known = dict(found)
    if not known:
        return []
    places = range(min(known), max(max(known), last if last is not None else max(known)) + 1)
    return [known.get(place) or Bucket(place * width, 0, 0, None, 0.0) for place in places]


def find_anomalies(series: str, buckets: Sequence[Bucket], sensitivity: Sensitivity | None = None) -> list[Anomaly]:
    """Alarms of the newest bucket.

    The past that counts is the same time of day on earlier days where there is enough of it (traffic has days and
    nights), else all earlier buckets. Median and MAD, so that an earlier incident does not hide the next.
    """
    limits = sensitivity or Sensitivity()
    if len(buckets) < 2:
        return []
    now, past = buckets[-1], buckets[:-1]
    width = buckets[1].start - buckets[0].start
    found: list[Anomaly] = []

    def check(signal: Signal, value: float | None, history: list[tuple[float, float]], floor: float) -> None:
        if value is None:
            return
        season = [v for start, v in history if _same_time(start, now.start, width)]
        values = season if len(season) >= limits.history else [v for _, v in history]
        if len(values) < limits.history:
            return
        expected = median(values)
        score = robust_z(value, values, floor=max(floor, 0.05 * expected))
        if score >= limits.deviations and value >= limits.ratio * expected + (floor if expected == 0 else 0.0):
            found.append(Anomaly(series, signal, now.start, value, expected, score))

    if now.calls >= limits.calls:
        enough = [b for b in past if b.calls >= limits.calls]
        latencies = [(b.start, b.latency) for b in enough if b.latency is not None]
        check("latency", now.latency, latencies, 0.01)
        rate = now.errors / now.calls
        if rate >= limits.error_floor:
            rates = [(b.start, b.errors / b.calls) for b in enough]
            check("error_rate", rate, rates, limits.error_floor / limits.deviations)
    if now.spend >= limits.spend_floor:
        check("spend", now.spend, [(b.start, b.spend) for b in past], limits.spend_floor / limits.deviations)
    return found


def _same_time(a: float, b: float, width: float) -> bool:
    apart = abs(a - b) % _DAY
    return min(apart, _DAY - apart) <= max(width, 1800.0)
