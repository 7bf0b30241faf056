"""How the providers are doing: breakers, adaptive timeouts, ramps, retry budgets and measured latencies, by provider.

The state of one process. Nothing here calls anybody: `watch.py` probes and checks, `dispatch.py` reports what calls
became.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from avyay.clock import Clock
from avyay.marga.transport import Deadline, TransportError
from avyay.marga.types import Candidate, Condition
from avyay.resilience.breaker import Breaker, BreakerPolicy, BreakerState, Outcome, Transition
from avyay.resilience.ramp import Ramp
from avyay.resilience.retry_budget import RetryBudget
from avyay.resilience.timeouts import AdaptiveTimeout, TimeoutPolicy

__all__ = ["Health", "ProviderHealth", "Reporter"]

_MOST_REPORTED = 10_000
_SMOOTHING = 0.1  # weight of the newest first-byte time and outcome in the averages


class Reporter(Protocol):
    """Passes outcomes on to the process that keeps the breakers."""

    def outcome(self, name: str, outcome: Outcome) -> None: ...


@dataclass(slots=True)
class _Average:
    first_byte: float | None = None
    error_rate: float = 0.0


@dataclass(slots=True)
class ProviderHealth:
    """What is known of one provider."""

    name: str
    breaker: Breaker
    policies: Mapping[bool, TimeoutPolicy]
    ramp: Ramp
    budget: RetryBudget
    timeouts: dict[tuple[bool, int], AdaptiveTimeout] = field(default_factory=dict)
    waiting: set[Deadline] = field(default_factory=set)  # calls that have had no first byte yet
    checked_at: float | None = None
    check_problem: str | None = None

    def timeout(self, *, stream: bool, chars: int) -> AdaptiveTimeout:
        """The first-byte timeout for requests of a kind: streams begin early, whole answers and long prompts late."""
        key = (stream, chars.bit_length() // 4)
        found = self.timeouts.get(key)
        if found is None:
            found = self.timeouts[key] = AdaptiveTimeout(self.policies[stream])
        return found


class Health:
    """The health of all providers.

    Args:
        policies: The breaker policy of each provider by name; others get the default.
        timeouts: First-byte timeouts of streams (True) and of whole answers (False).
        limits_declared: Names of the providers whose configuration states a rate limit.
        on_transition: Told of every change of a breaker.
    """

    def __init__(
        self,
        providers: Sequence[str],
        clock: Clock,
        *,
        policies: Mapping[str, BreakerPolicy] | None = None,
        timeouts: Mapping[bool, TimeoutPolicy] | None = None,
        limits_declared: frozenset[str] = frozenset(),
        on_transition: Callable[[str, Transition], None] | None = None,
    ) -> None:
        self.clock = clock
        self.on_transition = on_transition
        self.reporter: Reporter | None = None  # who keeps the breakers, when another process does
        self.on_revive: Callable[[Iterable[str], float], Awaitable[bool]] | None = None
        self._averages: dict[str, _Average] = {}
        self._conditions: dict[str, Condition] = {}
        self._disturbed: set[str] = set()
        self.version = 0  # changes whenever conditions do
        timeouts = timeouts or {True: TimeoutPolicy(), False: TimeoutPolicy()}
        self.providers: dict[str, ProviderHealth] = {
            name: ProviderHealth(
                name,
                Breaker((policies or {}).get(name)),
                timeouts,
                Ramp(limit_declared=name in limits_declared),
                RetryBudget(),
            )
            for name in providers
        }

    async def revive(self, names: Iterable[str], patience: float) -> bool:
        """Ask providers that were given up whether they are back, without waiting until a probe is due.

        Returns:
            Whether one of them is. Always False where nobody watches the providers.
        """
        return await self.on_revive(names, patience) if self.on_revive is not None else False

    @property
    def disturbed(self) -> frozenset[str]:
        """The providers whose breaker is not closed."""
        return frozenset(self._disturbed)

    def state(self, name: str) -> BreakerState:
        """The state of a provider's breaker now."""
        return self.providers[name].breaker.state(self.clock.monotonic())

    def conditions(self, candidates: Iterable[Candidate]) -> Mapping[str, Condition]:
        """How the candidates do just now, by name; those nothing is known of are left out."""
        if not self._disturbed:
            return self._conditions
        found = dict(self._conditions)
        for candidate in candidates:
            if candidate.provider.name in self._disturbed:
                known = found.get(candidate.name) or Condition()
                found[candidate.name] = replace(known, state=self.state(candidate.provider.name).value)
        return found

    def succeeded(self, candidate: Candidate, first_byte: float, timeout: AdaptiveTimeout, *, generation: int) -> None:
        """A call began to answer after `first_byte` seconds."""
        now = self.clock.monotonic()
        health = self.providers[candidate.provider.name]
        timeout.observe(first_byte, now)
        if self.reporter is None:
            self._note(health, health.breaker.record(Outcome.SUCCESS, now, generation))
        elif generation == health.breaker.generation:
            self.reporter.outcome(health.name, Outcome.SUCCESS)
        self._average(candidate, first_byte, failed=False)

    def failed(self, candidate: Candidate, outcome: Outcome, *, generation: int) -> None:
        """A call failed before its first byte, or its stream was cut by the provider."""
        health = self.providers[candidate.provider.name]
        if self.reporter is None:
            self._note(health, health.breaker.record(outcome, self.clock.monotonic(), generation))
        elif generation == health.breaker.generation:
            self.reporter.outcome(health.name, outcome)
        if outcome is Outcome.FAILURE:
            self._average(candidate, None, failed=True)

    def report(self, name: str, outcome: Outcome, count: int = 1) -> None:
        """Calls of another process ended so."""
        health = self.providers.get(name)
        if health is not None:
            for _ in range(min(count, _MOST_REPORTED)):
                self._note(health, health.breaker.record(outcome, self.clock.monotonic()))

    def mirror(self, name: str, *, is_open: bool, reason: str) -> None:
        """The breaker that another process keeps has changed."""
        health, now = self.providers[name], self.clock.monotonic()
        change = health.breaker.trip(now, reason) if is_open else health.breaker.reset(now, reason)
        self._note(health, change)

    def probed(self, name: str, ticket: int, outcome: Outcome, retry_after: float | None = None) -> None:
        """The probe of a provider ended."""
        health = self.providers[name]
        self._note(health, health.breaker.record_probe(ticket, outcome, self.clock.monotonic(), retry_after))

    def revived(self, name: str) -> None:
        """A provider answered a probe that was sent before its time."""
        health = self.providers[name]
        self._note(health, health.breaker.reset(self.clock.monotonic(), "it answered when all others were down"))

    def checked(self, name: str, problem: str | None) -> None:
        """A health check ended; a provider that does not even answer one is not given callers' requests."""
        health = self.providers[name]
        now = self.clock.monotonic()
        health.checked_at, health.check_problem = self.clock.now(), problem
        if problem is not None:
            self._note(health, health.breaker.record(Outcome.FAILURE, now))

    def _average(self, candidate: Candidate, first_byte: float | None, *, failed: bool) -> None:
        name = candidate.name
        average = self._averages.get(name)
        if average is None:
            average = self._averages[name] = _Average()
        if first_byte is not None:
            before = average.first_byte
            average.first_byte = first_byte if before is None else before + _SMOOTHING * (first_byte - before)
        average.error_rate += _SMOOTHING * ((1.0 if failed else 0.0) - average.error_rate)
        known = self._conditions.get(name)
        # A new condition only when it says something new: it is kept with each decision, and making it costs time.
        if (
            known is None
            or known.first_byte is None
            or average.first_byte is None
            or abs(average.first_byte - known.first_byte) > max(0.02, 0.2 * known.first_byte)
            or abs(average.error_rate - known.error_rate) > 0.02
        ):
            latency = None if average.first_byte is None else round(average.first_byte, 4)
            self.version += 1
            self._conditions[name] = Condition("closed", latency, round(average.error_rate, 3))

    def _note(self, health: ProviderHealth, transition: Transition | None) -> None:
        if transition is None or transition.before is transition.after:
            return
        name = health.name
        self.version += 1
        if transition.after is BreakerState.CLOSED:
            self._disturbed.discard(name)
            for other in self.providers.values():
                other.ramp.stop(transition.at)
        elif transition.before is BreakerState.CLOSED:
            self._disturbed.add(name)
            # Whoever still waits for a first byte from there is better served elsewhere, at once.
            for deadline in list(health.waiting):
                deadline.fail(TransportError("timeout", f"given up: {transition.reason}"))
        if self.on_transition is not None:
            self.on_transition(name, transition)
