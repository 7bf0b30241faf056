"""Who has stopped breathing: leases judged by the dispatcher's monotonic clock alone.

A lease is lost when its heartbeat counter has not moved for the timeout, on the clock of the dispatcher that watches.
Wall clocks are never compared: a laptop that wakes an hour late, or an NTP step, expires nothing. A dispatcher that
starts grants every lease it finds one full timeout before it judges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["HEARTBEAT", "TIMEOUT", "Breath", "LeaseWatch"]

HEARTBEAT = 20.0
"""Seconds between two heartbeats of a healthy owner."""

TIMEOUT = 60.0
"""Seconds without a heartbeat (three missed) after which a lease is lost."""


@dataclass(frozen=True, slots=True)
class Breath:
    """What the queue knows of an active task's owner."""

    task: str
    fence: int
    beats: int


class LeaseWatch:
    """Remembers when each lease was last seen to breathe.

    Args:
        timeout: Seconds without a heartbeat after which a lease is lost.
        suspend_gap: A pause between two looks longer than this means that this machine slept: every lease then gets a
            fresh timeout, since heartbeats may be waiting to be delivered.
    """

    def __init__(self, timeout: float = TIMEOUT, suspend_gap: float = 2 * TIMEOUT) -> None:
        self.timeout = timeout
        self.suspend_gap = suspend_gap
        self._seen: dict[tuple[str, int], tuple[int, float]] = {}
        self._looked: float | None = None

    def forgive(self) -> None:
        """The queue could not be written: nobody's heartbeat could, so every lease gets a fresh timeout."""
        self._looked = None

    def look(self, breaths: Iterable[Breath], now: float) -> list[Breath]:
        """Take in the present heartbeats; returns the leases that are lost.

        Args:
            now: The monotonic clock, seconds.
        """
        slept = self._looked is None or now - self._looked > self.suspend_gap
        self._looked = now
        lost: list[Breath] = []
        current: dict[tuple[str, int], tuple[int, float]] = {}
        for breath in breaths:
            key = (breath.task, breath.fence)
            beats, since = self._seen.get(key, (-1, now))
            if breath.beats != beats or slept:
                since = now
            current[key] = (breath.beats, since)
            if now - since >= self.timeout:
                lost.append(breath)
        self._seen = current
        return lost
