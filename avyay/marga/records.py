"""Reading the ledger: totals, percentiles, decisions and alarms, for people and for agents. Nothing is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from avyay.clock import Clock
from avyay.marga.anomalies import Anomaly, Bucket, Sensitivity, filled, find_anomalies
from avyay.marga.store import SqliteStore, StatRow

__all__ = ["Records", "series_between"]

_DAY = 86_400.0
_SERIES: tuple[tuple[str, Literal["provider", "request_class"]], ...] = (
    ("provider", "provider"),
    ("class", "request_class"),
)
_LATENCIES = {"decision": "decide_seconds", "first_byte": "first_byte_seconds", "total": "seconds"}


class Records:
    """What the router did. `calls` is opened when first needed."""

    def __init__(self, calls: Callable[[], SqliteStore], clock: Clock) -> None:
        self._calls = calls
        self._clock = clock

    def stats(self, by: str = "model", *, hours: float = 24.0) -> list[StatRow]:
        """Totals by group over the last hours.

        Raises:
            UsageError: no such grouping.
        """
        return self._calls().stats(by, since=self._clock.now() - hours * 3600)

    def latency(self, *, hours: float = 24.0) -> dict[str, dict[str, float | None]]:
        """p50, p95 and p99 in seconds of deciding, of the first byte and of whole calls."""
        columns: dict[str, list[float]] = {name: [] for name in _LATENCIES}
        for row in self._calls().columns(tuple(_LATENCIES.values()), since=self._clock.now() - hours * 3600):
            for name, value in zip(_LATENCIES, row, strict=True):
                if value is not None:
                    columns[name].append(value)
        return {name: _percentiles(values) for name, values in columns.items()}

    def decisions(self, *, limit: int = 20, status: str | None = None, hours: float = 24.0) -> list[dict[str, Any]]:
        """The newest calls first, without any text."""
        return list(self._calls().calls(limit=limit, status=status, since=self._clock.now() - hours * 3600))

    def explain(self, decision: str) -> dict[str, Any]:
        """One decision with its reasons, its attempts and its cost.

        Raises:
            UsageError: there is none, or more than one.
        """
        return self._calls().call(decision)

    def anomalies(
        self, *, days: float = 14.0, width: float = 3600.0, sensitivity: Sensitivity | None = None
    ) -> list[Anomaly]:
        """Alarms of the newest complete bucket, by provider and by request class."""
        now = self._clock.now()
        end = int(now // width)  # the running bucket is not full: it would look like a lull
        first = int((now - days * _DAY) // width)
        series = series_between(self._calls(), width, first, end)
        found: list[Anomaly] = []
        for name in sorted(series):
            if end - 1 in series[name]:
                found += find_anomalies(name, filled(series[name].items(), width), sensitivity)
        return found


def series_between(calls: SqliteStore, width: float, first: int, end: int) -> dict[str, dict[int, Bucket]]:
    """Buckets by series and place, from `first` up to and without `end`."""
    series: dict[str, dict[int, Bucket]] = defaultdict(dict)
    for prefix, column in _SERIES:
        rows = calls.buckets(column, width, since=first * width, until=end * width)
        for name, place, count, errors, latency, spend in rows:
            series[f"{prefix} {name}"][place] = Bucket(place * width, count, errors, latency, spend)
    return series


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    if not ordered:
        return {"p50": None, "p95": None, "p99": None}
    return {f"p{p}": ordered[min(len(ordered) - 1, (len(ordered) * p + 99) // 100 - 1)] for p in (50, 95, 99)}
