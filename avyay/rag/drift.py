"""Whether answers have become worse of late: the newest ones against those before them.

Documents age, alerts get new names, people ask about new systems; nothing breaks, and answers slowly miss. Three signs
are watched: how confident retrieval is, how often nothing is found, how often people say that it did not help.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Drift", "Observation", "Sign", "detect_drift"]

RECENT = 100  # answers held against those before them
LEAST = 50  # fewer on either side say nothing
Z = 3.0  # standard errors apart: by chance about once in 700 looks
VERDICTS_LEAST = 15


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer: retrieval's confidence (0..1), whether anything was found, the verdict if there is one."""

    confidence: float
    found: bool
    verdict: bool | None = None


@dataclass(frozen=True, slots=True)
class Sign:
    """A figure then and now; `z` is the change in standard errors, negative for worse."""

    name: str
    before: float
    recent: float
    z: float

    @property
    def alarm(self) -> bool:
        return self.z <= -Z


@dataclass(frozen=True, slots=True)
class Drift:
    """`enough` says whether there are answers enough to tell; without, there is no alarm."""

    enough: bool
    signs: tuple[Sign, ...]

    @property
    def alarm(self) -> bool:
        """Whether any sign got worse by more than chance explains."""
        return any(sign.alarm for sign in self.signs)


def detect_drift(observations: Sequence[Observation]) -> Drift:
    """Compare the newest answers with the earlier ones; `observations` are oldest first."""
    before, recent = observations[:-RECENT], observations[-RECENT:]
    if len(before) < LEAST or len(recent) < LEAST:
        return Drift(False, ())
    signs = [
        _sign("confidence", [one.confidence for one in before], [one.confidence for one in recent]),
        _sign("found", [float(one.found) for one in before], [float(one.found) for one in recent]),
    ]
    voted = [[float(one.verdict) for one in side if one.verdict is not None] for side in (before, recent)]
    if min(map(len, voted)) >= VERDICTS_LEAST:
        signs.append(_sign("helped", *voted))
    return Drift(True, tuple(signs))


def _sign(name: str, before: Sequence[float], recent: Sequence[float]) -> Sign:
    """Welch's statistic. A side without variance gets that of one differing answer: 0 of 100 is no certainty."""
    means = [sum(side) / len(side) for side in (before, recent)]
    error = math.sqrt(
        sum(
            max(sum((value - mean) ** 2 for value in side) / (len(side) - 1), 1 / len(side) ** 2) / len(side)
            for side, mean in zip((before, recent), means, strict=True)
        )
    )
    return Sign(name, means[0], means[1], (means[1] - means[0]) / error)
