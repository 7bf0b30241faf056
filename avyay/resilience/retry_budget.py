"""A bound on retries as a share of first tries, so that a struggling provider is not finished off by our retrying.

A token bucket: each first try pays in `ratio` tokens, each retry takes one out. Over any stretch the tries sent are at
most `1 + ratio` times the requests, plus `burst` and `trickle` (which keep a quiet service able to retry at all). The
default allows 1.1 times. Keep one budget per provider: it bounds what that provider receives; failing over to another
one is that one's first try.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RetryBudget", "RetryBudgetPolicy"]


@dataclass(frozen=True, slots=True)
class RetryBudgetPolicy:
    """How much retrying is allowed.

    Args:
        ratio: Retries per first try.
        burst: The most retries that can be saved up, and what a new budget starts with.
        trickle: Retries a second that are free, however little traffic there is.
    """

    ratio: float = 0.1
    burst: float = 10.0
    trickle: float = 0.1

    def __post_init__(self) -> None:
        if self.ratio < 0 or self.burst < 1 or self.trickle < 0:
            raise ValueError("ratio and trickle are not negative, burst is at least 1")


class RetryBudget:
    """The bucket. Not thread-safe; `now` is of any monotonic clock, always the same one."""

    __slots__ = ("_balance", "_policy", "_refused", "_updated")

    def __init__(self, policy: RetryBudgetPolicy | None = None) -> None:
        self._policy = policy or RetryBudgetPolicy()
        self._balance = self._policy.burst
        self._updated: float | None = None
        self._refused = 0

    @property
    def refused(self) -> int:
        """Retries refused so far."""
        return self._refused

    def balance(self, now: float) -> float:
        """Retries in hand."""
        if self._updated is not None and now > self._updated:
            self._balance = min(self._policy.burst, self._balance + (now - self._updated) * self._policy.trickle)
        self._updated = now
        return self._balance

    def deposit(self, requests: int = 1) -> None:
        """A request goes out for the first time."""
        self._balance = min(self._policy.burst, self._balance + requests * self._policy.ratio)

    def withdraw(self, now: float) -> bool:
        """Whether a retry may go out; it is then paid for."""
        # The tolerance is for 0.1 ten times, which is a little less than 1.
        if self.balance(now) < 1.0 - 1e-9:
            self._refused += 1
            return False
        self._balance -= 1.0
        return True
