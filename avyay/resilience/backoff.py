"""Exponential backoff with full jitter that never calls back earlier than the other side asked.

Pure: randomness comes in as a function, delays go out as seconds. What the other side asked for is read from its
headers by `avyay.resilience.rate_headers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Backoff"]

_MOST_DOUBLINGS = 60  # beyond it the cap has long been reached, and 2.0**n would overflow


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before trying again.

    Args:
        base: Seconds; the first delay is drawn from 0 to this.
        cap: Seconds; no drawn delay is longer.
        attempts: Tries in all, the first included.
        patience: Seconds; when the other side asks for more than this, trying again is pointless.
    """

    base: float = 0.5
    cap: float = 30.0
    attempts: int = 4
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.base <= 0 or self.cap < self.base or self.attempts < 1 or self.patience < 0:
            raise ValueError("0 < base <= cap, attempts >= 1 and patience >= 0")

    def delay(self, failures: int, random: Callable[[], float], retry_after: float | None = None) -> float | None:
        """Seconds to wait after the `failures`-th failed try in a row (from 1), or None: stop trying.

        Without `retry_after` the delay is uniform between 0 and `min(cap, base * 2**(failures - 1))`: spread over the
        whole range, many clients do not come back together. With it, it is that plus up to `base` seconds, for the
        same reason.

        Args:
            failures: How many tries failed so far.
            random: Uniform in [0, 1), such as `random.Random(seed).random`.
            retry_after: Seconds the other side asked for.
        """
        if failures >= self.attempts:
            return None
        if retry_after is not None:
            return None if retry_after > self.patience else retry_after + random() * self.base
        return random() * min(self.cap, self.base * 2.0 ** min(max(failures - 1, 0), _MOST_DOUBLINGS))
