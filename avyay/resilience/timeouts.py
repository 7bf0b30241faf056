"""An adaptive first-byte timeout per provider: a multiple of the latency usually seen, between a floor and a ceiling.

Latencies are counted in a histogram of logarithmic buckets over two half-windows, so an observation costs the same
whatever the traffic, and old ones are forgotten. A call that timed out took longer than we know; ignoring it would
keep the timeout too short for a provider that merely became slow, counting it would wait ever longer for a dead one. So
timeouts count only once the provider answers again: then the timeout may double. Pure; not thread-safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["AdaptiveTimeout", "TimeoutPolicy"]

_SMALLEST = 0.001
_PER_OCTAVE = 8
_BUCKETS = 20 * _PER_OCTAVE  # 1 ms to about 17 minutes, each bucket 9 % wide


@dataclass(frozen=True, slots=True)
class TimeoutPolicy:
    """How the timeout follows the latencies.

    Args:
        floor: Seconds; never less.
        ceiling: Seconds; never more.
        initial: Seconds, until `minimum_samples` were seen.
        quantile: The share of answers that `multiplier` refers to.
        multiplier: The timeout is this times the quantile.
        minimum_samples: Answers needed before they count.
        window: Seconds an answer is remembered, at least half of it.
    """

    floor: float = 1.0
    ceiling: float = 60.0
    initial: float = 15.0
    quantile: float = 0.99
    multiplier: float = 3.0
    minimum_samples: int = 20
    window: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.initial <= self.ceiling:
            raise ValueError("0 < floor <= initial <= ceiling")
        if not 0 < self.quantile < 1 or self.multiplier < 1 or self.minimum_samples < 1 or self.window <= 0:
            raise ValueError("quantile in (0, 1), multiplier >= 1, minimum_samples >= 1, window > 0")


class AdaptiveTimeout:
    """The first-byte timeout of one provider (or of one kind of request at it). `now` is monotonic seconds."""

    __slots__ = ("_current", "_observations", "_pending", "_policy", "_previous", "_rotated", "_timeout", "_total")

    def __init__(self, policy: TimeoutPolicy | None = None) -> None:
        self._policy = policy or TimeoutPolicy()
        self._current = [0] * _BUCKETS
        self._previous = [0] * _BUCKETS
        self._observations = 0  # in the current half-window
        self._total = 0  # in both
        self._pending = 0
        self._rotated: float | None = None
        self._timeout = self._policy.initial

    def seconds(self, now: float) -> float:
        """How long to wait for the first byte."""
        if self._rotated is not None and now - self._rotated >= self._policy.window / 2:
            self._rotate(now)
        return self._timeout

    def observe(self, latency: float, now: float) -> None:
        """A first byte came after `latency` seconds; the provider lives, so earlier timeouts count now."""
        if self._rotated is None:
            self._rotated = now
        elif now - self._rotated >= self._policy.window / 2:
            self._rotate(now)
        if self._pending:
            # Recorded so that, if they weigh enough, the timeout doubles.
            self._count(2.0 * self._timeout / self._policy.multiplier, self._pending)
            self._pending = 0
            self._count(latency, 1)
            self._recompute()
            return
        self._count(latency, 1)
        # Every answer while there are few, then now and then: a quantile over 160 buckets is not free.
        if self._total <= 2 * self._policy.minimum_samples or not self._observations & 31:
            self._recompute()

    def observe_timeout(self) -> None:
        """No first byte came within `seconds()`."""
        self._pending += 1

    def quantile(self, share: float) -> float | None:
        """The latency that `share` of the remembered answers did not exceed (rounded up by at most 9 %)."""
        if not self._total:
            return None
        wanted = math.ceil(share * self._total)
        seen = 0
        for bucket in range(_BUCKETS):
            seen += self._current[bucket] + self._previous[bucket]
            if seen >= wanted:
                return _SMALLEST * math.exp2((bucket + 1) / _PER_OCTAVE)
        return None

    def _count(self, latency: float, times: int) -> None:
        bucket = int(math.log2(latency / _SMALLEST) * _PER_OCTAVE) if latency > _SMALLEST else 0
        self._current[min(bucket, _BUCKETS - 1)] += times
        self._observations += times
        self._total += times

    def _rotate(self, now: float) -> None:
        # After a silence longer than the window nothing is left to remember.
        stale = self._rotated is not None and now - self._rotated >= self._policy.window
        self._previous = [0] * _BUCKETS if stale else self._current
        self._total = 0 if stale else self._observations
        self._current = [0] * _BUCKETS
        self._observations = 0
        self._rotated = now
        self._recompute()

    def _recompute(self) -> None:
        policy = self._policy
        if self._total < policy.minimum_samples:
            # Too little to go by; what was learnt before still beats the initial guess.
            return
        usual = self.quantile(policy.quantile)
        if usual is not None:
            self._timeout = min(policy.ceiling, max(policy.floor, policy.multiplier * usual))
