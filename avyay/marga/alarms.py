"""Judges each stretch of time when it is over, and tells of what its past does not explain: log, event, record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing

from avyay.clock import Clock
from avyay.config.marga import AnomalySettings
from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.marga.anomalies import Anomaly, Bucket, Sensitivity, filled, find_anomalies
from avyay.marga.records import series_between
from avyay.marga.store import SqliteStore
from avyay.marga.verdicts import VerdictStore

__all__ = ["AlarmWatch"]

_GRACE = 2.0  # seconds after the end of a stretch until its last rows are on disk
_MOST_SERIES = 2000  # request classes are named by callers


class AlarmWatch:
    """One for all workers.

    Args:
        calls: Opens the ledger, for one look.
        store: Where alarms are kept.
    """

    def __init__(
        self,
        settings: AnomalySettings,
        calls: Callable[[], SqliteStore],
        store: VerdictStore,
        clock: Clock,
    ) -> None:
        self._width = settings.bucket
        self._kept = max(2, int(settings.history // settings.bucket))
        self._sensitivity = Sensitivity(deviations=settings.deviations, ratio=settings.ratio)
        self._open_calls = calls
        self._store = store
        self._clock = clock
        self._log = get_logger("marga")
        self._series: dict[str, dict[int, Bucket]] = {}
        self._read_until: int | None = None

    def look(self) -> list[Anomaly]:
        """Judge the newest full stretch; tells of what is new in it. Waits for a disk.

        Raises:
            AvyayError: the ledger cannot be read, or the alarm not be kept.
        """
        end = int(self._clock.now() // self._width)
        first = end - self._kept
        begin = first if self._read_until is None else max(first, self._read_until)
        with closing(self._open_calls()) as calls:  # what it holds of the file is needed minutes apart
            series = series_between(calls, self._width, begin, end)
        for name, found in series.items():
            if name in self._series or len(self._series) < _MOST_SERIES:
                self._series.setdefault(name, {}).update(found)
        self._read_until = end
        new: list[Anomaly] = []
        for name, buckets in list(self._series.items()):
            for place in [place for place in buckets if place < first]:
                del buckets[place]
            if not buckets:
                del self._series[name]
            elif end - 1 in buckets:
                for anomaly in find_anomalies(name, filled(buckets.items(), self._width), self._sensitivity):
                    if self._store.alarm(anomaly):
                        new.append(anomaly)
                        self._tell(anomaly)
        return new

    def _tell(self, anomaly: Anomaly) -> None:
        self._log.warning("anomaly_found", series=anomaly.series, signal=anomaly.signal, sentence=anomaly.sentence())

    async def run(self) -> None:
        """Look after the end of every stretch, until cancelled."""
        while True:
            now = self._clock.now()
            await self._clock.sleep((now // self._width + 1) * self._width + _GRACE - now)
            try:
                await asyncio.to_thread(self.look)
            except AvyayError as error:
                self._log.error("anomalies_not_judged", error=error.message)
