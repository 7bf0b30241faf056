"""Failing over without breaking the backup: a backup with a rate limit is loaded in steps, 10, 25, 50, 100 %.

Only traffic that failed over is metered, never the backup's own. What is not admitted goes on to the next provider or
waits: that is the router's choice. A backup whose limit nobody declared and nobody ever met takes all at once; the
moment it answers 429 its limit is known, and the load steps back. Pure: time comes in as seconds of one monotonic
clock. Constant time per call; not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from avyay.resilience.rate_headers import RateLimit

__all__ = ["Ramp", "RampPolicy"]


@dataclass(frozen=True, slots=True)
class RampPolicy:
    """The steps.

    Args:
        shares: Shares of the failed-over traffic admitted, rising to 1.
        duration: Seconds from the start until the last share is reached; each step takes an equal part.
    """

    shares: tuple[float, ...] = (0.10, 0.25, 0.50, 1.0)
    duration: float = 30.0

    def __post_init__(self) -> None:
        if not self.shares or self.shares[-1] != 1.0 or list(self.shares) != sorted(self.shares) or self.shares[0] <= 0:
            raise ValueError("shares rise from above 0 to 1")
        if self.duration <= 0:
            raise ValueError("duration is positive")

    @property
    def step(self) -> float:
        """Seconds spent on each share but the last."""
        return self.duration / max(1, len(self.shares) - 1)


class Ramp:
    """What one backup takes over from others.

    Args:
        policy: The steps.
        limit_declared: Whether the configuration states a rate limit for it.
    """

    __slots__ = ("_blocked_until", "_credit", "_elapsed", "_limit_known", "_policy", "_started", "_stepped_back")

    def __init__(self, policy: RampPolicy | None = None, *, limit_declared: bool = False) -> None:
        self._policy = policy or RampPolicy()
        self._limit_known = limit_declared
        self._started: float | None = None
        self._elapsed: tuple[float, float] | None = None
        self._credit = 0.0
        self._blocked_until: float | None = None
        self._stepped_back: float | None = None

    @property
    def limit_known(self) -> bool:
        """Whether its rate limit was declared or observed."""
        return self._limit_known

    @property
    def active(self) -> bool:
        """Whether traffic is failing over to it."""
        return self._started is not None

    def start(self, now: float) -> None:
        """Traffic begins to fail over; nothing when it does already.

        After a pause shorter than the ramp it goes on where it stopped: the backup is still warm, and a primary that
        comes and goes must not throw it back to the first step each time.
        """
        if self._started is not None:
            return
        self._started = now
        if self._elapsed is not None:
            stopped, elapsed = self._elapsed
            if 0 <= now - stopped <= self._policy.duration:
                self._started = now - elapsed
        # A first request is admitted at once: the caller has nowhere better to go.
        self._credit = 1.0 - self._policy.shares[0]

    def stop(self, now: float) -> None:
        """The others are back."""
        if self._started is not None:
            self._elapsed = (now, max(0.0, now - self._started))
            self._started = None

    def share(self, now: float) -> float:
        """The share of failed-over traffic admitted now, 0 to 1."""
        if self._blocked_until is not None:
            if now < self._blocked_until:
                return 0.0
            self._blocked_until = None
        if not self._limit_known or self._started is None:
            return 1.0
        shares = self._policy.shares
        return shares[min(int(max(0.0, now - self._started) / self._policy.step), len(shares) - 1)]

    def admit(self, now: float, chance: float | None = None) -> bool:
        """Whether one more failed-over request may go to the backup.

        Args:
            now: When.
            chance: A number in [0, 1) that decides, drawn at random or hashed from a session so that it stays where it
                is. Without it requests are admitted evenly: one in ten means every tenth.
        """
        share = self.share(now)
        if share >= 1.0:
            return True
        if chance is not None:
            return chance < share
        self._credit += share
        if self._credit < 1.0 - 1e-9:
            return False
        self._credit -= 1.0
        return True

    def next_step_in(self, now: float) -> float:
        """Seconds until more is admitted; 0 when all is. For a request that may wait within its latency budget."""
        if self._blocked_until is not None and now < self._blocked_until:
            return self._blocked_until - now
        if self.share(now) >= 1.0 or self._started is None:
            return 0.0
        step = self._policy.step
        return step - max(0.0, now - self._started) % step

    def throttled(self, now: float, retry_after: float | None = None) -> None:
        """The backup answered 429: its limit is known now, nothing goes there until `retry_after` (seconds) is over,
        and the ramp goes on from one step below. 429s of requests that were already under way count once."""
        self._limit_known = True
        if retry_after is not None:
            # Bounded, so that a nonsensical header cannot lock a backup out.
            until = now + min(max(0.0, retry_after), self._policy.duration)
            self._blocked_until = max(until, self._blocked_until or until)
        if self._started is None:
            return
        step = self._policy.step
        if self._stepped_back is not None and 0 <= now - self._stepped_back < step / 2:
            return
        self._stepped_back = now
        level = min(int(max(0.0, now - self._started) / step), len(self._policy.shares) - 1)
        resume = max(now, self._blocked_until or now)
        self._started = resume - max(0, level - 1) * step

    def observe(self, limits: Iterable[RateLimit], now: float) -> None:
        """What the backup's headers state: a limit is known once stated, and a used-up one holds traffic back."""
        for limit in limits:
            if limit.limit is not None or limit.remaining is not None:
                self._limit_known = True
            if limit.exhausted and limit.reset_after:
                until = now + min(limit.reset_after, self._policy.duration)
                self._blocked_until = max(until, self._blocked_until or until)
