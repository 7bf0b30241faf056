"""A three-state circuit breaker that cannot stay open by mistake.

    CLOSED ──(N failures in a row, or an error rate in the window)──> OPEN ──(recovery timeout)──> HALF_OPEN
       ^                                                               ^                              │
       └──────────────────────── the probe was answered ───────────────┼── the probe failed ──────────┘

HALF_OPEN admits one probe and nothing else. The probe is a known-good minimal request that the caller of `take_probe`
makes up, never a caller's own request: that one may be refused for its content and say nothing about the provider.
For the same reason a 4xx answer to the probe counts as a sign of life.

Pure: every method is told the time, in seconds of any monotonic clock, as long as it is always the same one. Not
thread-safe; all methods take constant time (a fixed number of window buckets at most).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

__all__ = [
    "Breaker",
    "BreakerPolicy",
    "BreakerSnapshot",
    "BreakerState",
    "Outcome",
    "Transition",
    "classify_status",
]


class BreakerState(Enum):
    """What the breaker lets through."""

    CLOSED = "closed"  # everything
    OPEN = "open"  # nothing
    HALF_OPEN = "half_open"  # one probe


class Outcome(Enum):
    """What a finished call says about the other side."""

    SUCCESS = "success"
    FAILURE = "failure"  # 5xx, 408, 409, 429, no connection, no answer in time, a stream cut by the provider
    NEUTRAL = "neutral"  # the caller's own fault: any other 4xx; it counts neither for nor against


_COUNTED_4XX = frozenset({408, 409, 429})


def classify_status(status: int) -> Outcome:
    """What an HTTP status says about the provider. Exceptions are for the caller to class: a timeout or a refused
    connection is a FAILURE, a cancellation by our own client is NEUTRAL."""
    if status < 400:
        return Outcome.SUCCESS
    if status >= 500 or status in _COUNTED_4XX:
        return Outcome.FAILURE
    return Outcome.NEUTRAL


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When to trip and when to try again.

    Args:
        failure_threshold: Failures in a row that trip; a NEUTRAL outcome in between changes nothing.
        recovery_timeout: Seconds OPEN before a probe is due.
        error_rate_threshold: Trips when more than this share of the window's calls failed.
        window_size: Seconds of the error-rate window, counted in `buckets` slices, so exact to one slice.
        minimum_requests: Calls in the window before the error rate counts.
        probe_timeout: Seconds after which an unanswered probe is given up and another one is due.
        longest_open: Seconds; bounds what a Retry-After on a failed probe can ask for.
        buckets: Slices of the window.
    """

    failure_threshold: int = 5
    recovery_timeout: float = 30.0
    error_rate_threshold: float = 0.5
    window_size: float = 60.0
    minimum_requests: int = 10
    probe_timeout: float = 10.0
    longest_open: float = 300.0
    buckets: int = 12

    def __post_init__(self) -> None:
        if min(self.failure_threshold, self.minimum_requests, self.buckets) < 1:
            raise ValueError("failure_threshold, minimum_requests and buckets are at least 1")
        if min(self.recovery_timeout, self.window_size, self.probe_timeout) <= 0:
            raise ValueError("recovery_timeout, window_size and probe_timeout are positive")
        if not 0 <= self.error_rate_threshold <= 1:
            raise ValueError("error_rate_threshold is between 0 and 1")


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state, for logs, traces and the ramp."""

    before: BreakerState
    after: BreakerState
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """Everything a breaker knows, as plain values: stored with decisions, sent to other workers, replayed.

    Times are of the clock the breaker was told; `taken_at` lets `Breaker.restore` move them to another one.
    """

    taken_at: float
    open: bool
    consecutive: int
    open_until: float
    probe: int | None
    probe_deadline: float
    tickets: int
    epoch: int
    successes: tuple[int, ...]
    failures: tuple[int, ...]
    generation: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for any JSON codec."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BreakerSnapshot:
        """The inverse of `to_json`.

        Raises:
            TypeError: A field is missing or unknown.
        """
        fields = dict(data)
        for name in ("successes", "failures"):
            if name in fields:
                fields[name] = tuple(int(count) for count in fields[name])
        return cls(**fields)


class Breaker:
    """The state machine of one provider's endpoint.

    A caller asks `allow()`, keeps `generation`, makes its call and reports it with `record`. Whoever sees
    `take_probe` return a ticket sends the probe and reports with `record_probe` (or `abandon_probe`); a ticket whose
    holder dies expires after `probe_timeout`.
    """

    __slots__ = (
        "_bad",
        "_consecutive",
        "_epoch",
        "_failures",
        "_generation",
        "_good",
        "_open",
        "_open_until",
        "_policy",
        "_probe",
        "_probe_deadline",
        "_reason",
        "_successes",
        "_tickets",
        "_width",
    )

    def __init__(self, policy: BreakerPolicy | None = None) -> None:
        self._policy = policy or BreakerPolicy()
        self._width = self._policy.window_size / self._policy.buckets
        self._open = False
        self._open_until = 0.0
        self._probe: int | None = None
        self._probe_deadline = 0.0
        self._tickets = 0
        self._generation = 0
        self._reason = ""
        self._forget(0)

    @property
    def policy(self) -> BreakerPolicy:
        return self._policy

    @property
    def generation(self) -> int:
        """Changes with every trip and recovery: outcomes of calls admitted under another one no longer count."""
        return self._generation

    @property
    def reason(self) -> str:
        """Why it last changed its state, in words."""
        return self._reason

    def allow(self) -> bool:
        """Whether a caller's request may go out: in CLOSED only."""
        return not self._open

    def state(self, now: float) -> BreakerState:
        """The state at `now`; HALF_OPEN from the moment a probe is due."""
        if not self._open:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if now >= self._due(now) else BreakerState.OPEN

    def retry_in(self, now: float) -> float:
        """Seconds until a probe is due; 0 when one is due or in flight, or when CLOSED. For `Retry-After`."""
        return max(0.0, self._due(now) - now) if self._open else 0.0

    def error_rate(self, now: float) -> tuple[int, int]:
        """(failures, calls) in the window."""
        self._rotate(now)
        return self._bad, self._bad + self._good

    def record(self, outcome: Outcome, now: float, generation: int | None = None) -> Transition | None:
        """Report a finished call.

        Args:
            outcome: How it ended.
            now: When.
            generation: `generation` at the time it was admitted. Calls that outlived a change of state are not
                counted: they say nothing about the provider now.

        Returns:
            The change this caused, if any.
        """
        if self._open or outcome is Outcome.NEUTRAL or (generation is not None and generation != self._generation):
            return None
        slot = self._rotate(now)
        if outcome is Outcome.SUCCESS:
            self._consecutive = 0
            self._successes[slot] += 1
            self._good += 1
            return None
        self._consecutive += 1
        self._failures[slot] += 1
        self._bad += 1
        policy, calls = self._policy, self._bad + self._good
        if self._consecutive >= policy.failure_threshold:
            return self._trip(now, f"{self._consecutive} failures in a row")
        if calls >= policy.minimum_requests and self._bad > policy.error_rate_threshold * calls:
            return self._trip(now, f"{self._bad} of {calls} requests failed within {policy.window_size:g} s")
        return None

    def take_probe(self, now: float) -> int | None:
        """A ticket for the one probe HALF_OPEN admits, or None when none is due or one is in flight."""
        if not self._open or now < self._due(now):
            return None
        if self._probe is not None and now < self._probe_deadline:
            return None
        self._tickets += 1
        self._probe = self._tickets
        self._probe_deadline = now + self._policy.probe_timeout
        return self._probe

    def record_probe(
        self, ticket: int, outcome: Outcome, now: float, retry_after: float | None = None
    ) -> Transition | None:
        """Report the probe: SUCCESS and NEUTRAL (it answered, if only 400) close, FAILURE opens anew.

        Args:
            ticket: From `take_probe`; a ticket that expired meanwhile is ignored.
            outcome: How the probe ended.
            now: When.
            retry_after: Seconds the provider asked to be left alone; prolongs OPEN up to `longest_open`.
        """
        if not self._open or ticket != self._probe:
            return None
        self._probe = None
        if outcome is Outcome.FAILURE:
            wait = max(self._policy.recovery_timeout, min(retry_after or 0.0, self._policy.longest_open))
            self._open_until = now + wait
            self._reason = "the probe failed"
            return Transition(BreakerState.HALF_OPEN, BreakerState.OPEN, now, self._reason)
        return self._close(now, BreakerState.HALF_OPEN, "the probe was answered")

    def abandon_probe(self, ticket: int) -> None:
        """Give the ticket back unused (the prober was cancelled): another probe is due at once."""
        if ticket == self._probe:
            self._probe = None

    def trip(self, now: float, reason: str) -> Transition | None:
        """Open by hand, for a reason known from elsewhere; nothing when it is open already."""
        return None if self._open else self._trip(now, reason)

    def reset(self, now: float, reason: str = "reset by hand") -> Transition | None:
        """Close by hand; nothing when it is closed already."""
        return self._close(now, self.state(now), reason) if self._open else None

    def snapshot(self, now: float) -> BreakerSnapshot:
        """All state as plain values."""
        return BreakerSnapshot(
            taken_at=now,
            open=self._open,
            consecutive=self._consecutive,
            open_until=self._open_until,
            probe=self._probe,
            probe_deadline=self._probe_deadline,
            tickets=self._tickets,
            epoch=self._epoch,
            successes=tuple(self._successes),
            failures=tuple(self._failures),
            generation=self._generation,
            reason=self._reason,
        )

    @classmethod
    def restore(cls, policy: BreakerPolicy, snapshot: BreakerSnapshot, now: float | None = None) -> Breaker:
        """A breaker that goes on where `snapshot` was taken.

        Args:
            policy: Its policy; with another number of buckets the window starts empty.
            snapshot: From `snapshot`.
            now: The present on this process's clock, when that is another clock than the snapshot's; all times move
                by the difference. Without it both clocks are the same (Linux and macOS: one per boot).
        """
        breaker = cls(policy)
        shift = 0.0 if now is None else now - snapshot.taken_at
        breaker._open = snapshot.open
        breaker._consecutive = snapshot.consecutive
        breaker._open_until = snapshot.open_until + shift
        breaker._probe = snapshot.probe
        breaker._probe_deadline = snapshot.probe_deadline + shift
        breaker._tickets = snapshot.tickets
        breaker._generation = snapshot.generation
        breaker._reason = snapshot.reason
        if len(snapshot.successes) == len(snapshot.failures) == policy.buckets:
            # Slots are addressed by epoch modulo their number, so a shift of the epoch turns the ring.
            turn = round(shift / breaker._width)
            breaker._epoch = snapshot.epoch + turn
            for slot in range(policy.buckets):
                breaker._successes[(slot + turn) % policy.buckets] = snapshot.successes[slot]
                breaker._failures[(slot + turn) % policy.buckets] = snapshot.failures[slot]
            breaker._good, breaker._bad = sum(snapshot.successes), sum(snapshot.failures)
        return breaker

    def _due(self, now: float) -> float:
        # A clock that fell back (another boot, a snapshot restored without its time) must not hold the breaker open.
        if self._open_until - now > max(self._policy.longest_open, self._policy.recovery_timeout):
            self._open_until = now + self._policy.recovery_timeout
        if self._probe_deadline - now > self._policy.probe_timeout:
            self._probe_deadline = now + self._policy.probe_timeout
        return self._open_until

    def _trip(self, now: float, reason: str) -> Transition:
        self._open = True
        self._open_until = now + self._policy.recovery_timeout
        self._probe = None
        self._generation += 1
        self._reason = reason
        return Transition(BreakerState.CLOSED, BreakerState.OPEN, now, reason)

    def _close(self, now: float, before: BreakerState, reason: str) -> Transition:
        self._open = False
        self._probe = None
        self._generation += 1
        self._reason = reason
        self._forget(int(now // self._width))
        return Transition(before, BreakerState.CLOSED, now, reason)

    def _forget(self, epoch: int) -> None:
        self._successes = [0] * self._policy.buckets
        self._failures = [0] * self._policy.buckets
        self._good = self._bad = self._consecutive = 0
        self._epoch = epoch

    def _rotate(self, now: float) -> int:
        """Drop the slices that left the window; the current slice's place."""
        epoch = int(now // self._width)
        size = self._policy.buckets
        behind = epoch - self._epoch
        if behind:
            # A clock that fell back by more than the window starts afresh, by less goes on in its own slice.
            if behind <= -size:
                behind = size
            if behind > 0:
                for step in range(1, min(behind, size) + 1):
                    slot = (epoch - min(behind, size) + step) % size
                    self._good -= self._successes[slot]
                    self._bad -= self._failures[slot]
                    self._successes[slot] = self._failures[slot] = 0
                self._epoch = epoch
            else:
                epoch = self._epoch
        return epoch % size
