"""Which of several processes have given no sign of life for too long: stopped, blocked, waiting for what never comes.

A process that hangs keeps its connections and its locks, and nothing tells it from one that works but its silence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["START", "Watchdog", "awake_or_asleep"]

Who = TypeVar("Who")

START = 10  # a start may take so many times as long: databases are migrated, an index is opened
_TICKS = 20  # looks in one period
_LATE = 3  # a look that comes by more than this part of a period too late: we were away ourselves


@dataclass(slots=True)
class _Life:
    heard: float
    patience: float


class Watchdog(Generic[Who]):
    """Notes signs of life, and names who gave none.

    Args:
        patience: Seconds of silence; 0: never too long.
        clock: Seconds, also those in which the machine slept.
    """

    def __init__(self, patience: float, *, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or awake_or_asleep
        self._patience = patience
        self._looked = self._clock()
        self._lives: dict[Who, _Life] = {}

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        return min(1.0, self._patience / _TICKS)

    def begin(self, who: Who) -> None:
        """Watch a process that starts."""
        self._lives[who] = _Life(self._clock(), self._patience * START)

    def heard(self, who: Who, *, serving: bool = True) -> None:
        """It gave a sign of life; `serving`: its start is over."""
        if (life := self._lives.get(who)) is not None:
            life.heard = self._clock()
            life.patience = self._patience if serving else life.patience

    def end(self, who: Who) -> None:
        """It has ended."""
        self._lives.pop(who, None)

    def look(self) -> list[Who]:
        """Who has been silent for too long; each is named once in a period.

        A look that comes late names nobody: the machine slept, or we were stopped ourselves, and what was said
        meanwhile is still to be read. Everybody gets one more period then.
        """
        now = self._clock()
        away = now - self._looked > self.interval + self._patience / _LATE
        self._looked = now
        silent = [] if away else [who for who, life in self._lives.items() if now - life.heard > life.patience]
        for who, life in self._lives.items():
            if away or who in silent:
                life.heard = now
        return silent

    async def run(self, silent: Callable[[Who], None]) -> None:
        """Look again and again, until cancelled."""
        self._looked = self._clock()
        while self._patience:
            await asyncio.sleep(self.interval)
            for who in self.look():
                silent(who)


def awake_or_asleep() -> float:
    """Seconds from an arbitrary start, also those in which the machine slept, where the system counts them."""
    number = getattr(time, "CLOCK_BOOTTIME", None)  # Linux; elsewhere a sleep does not count, which is as well
    return time.monotonic() if number is None else time.clock_gettime(number)
