"""How the providers are doing: breakers, adaptive timeouts, ramps and retry budgets for each endpoint, and latencies.

The state of one process. Nothing here calls anybody: `watch.py` probes and checks, `dispatch.py` reports what calls
became.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from avyay.clock import Clock
from avyay.marga.transport import Deadline, TransportError
from avyay.marga.types import Candidate, Condition, Endpoint, Model
from avyay.resilience.breaker import Breaker, BreakerPolicy, BreakerState, Outcome, Transition
from avyay.resilience.ramp import Ramp
from avyay.resilience.rate_headers import RateLimit
from avyay.resilience.retry_budget import RetryBudget
from avyay.resilience.timeouts import AdaptiveTimeout, TimeoutPolicy

__all__ = ["CallKind", "EndpointHealth", "Health", "Place", "ProviderHealth", "Reporter", "kind_of"]

CallKind: TypeAlias = tuple[bool, int]
Place: TypeAlias = tuple[str, Endpoint]  # a provider and one of its endpoints
_MOST_REPORTED = 10_000
_MOST_MODELS = 2000  # whose latency and errors are averaged; callers may name models
_SMOOTHING = 0.1  # weight of the newest first-byte time and outcome in the averages


class Reporter(Protocol):
    """Passes on what calls became: to the process that keeps the breakers, and through it to the other workers."""

    def outcome(self, provider: str, endpoint: Endpoint, outcome: Outcome) -> None: ...

    def latency(self, provider: str, endpoint: Endpoint, kind: CallKind, seconds: float) -> None: ...

    def throttled(self, provider: str, endpoint: Endpoint, seconds: float | None) -> None: ...


@dataclass(slots=True)
class _Average:
    first_byte: float | None = None
    error_rate: float = 0.0


@dataclass(slots=True)
class EndpointHealth:
    """What is known of one endpoint of a provider."""

    provider: str
    endpoint: Endpoint
    breaker: Breaker
    policies: Mapping[bool, TimeoutPolicy]
    ramp: Ramp
    budget: RetryBudget
    timeouts: dict[CallKind, AdaptiveTimeout] = field(default_factory=dict)
    waiting: set[Deadline] = field(default_factory=set)  # calls that have had no first byte yet
    limits_read: bool = False  # whether an answer was looked at for stated rate limits
    served: Model | None = None  # the model it served last

    def timeout(self, kind: CallKind) -> AdaptiveTimeout:
        """The first-byte timeout for calls of a kind."""
        found = self.timeouts.get(kind)
        if found is None:
            found = self.timeouts[kind] = AdaptiveTimeout(self.policies[kind[0]])
        return found


@dataclass(slots=True)
class ProviderHealth:
    """What is known of one provider, besides its endpoints."""

    name: str
    endpoints: dict[Endpoint, EndpointHealth] = field(default_factory=dict)
    checked_at: float | None = None
    check_problem: str | None = None

    @property
    def up(self) -> bool:
        """Whether callers' requests may be sent to some endpoint of it."""
        return not self.endpoints or any(each.breaker.allow() for each in self.endpoints.values())


def kind_of(*, stream: bool, chars: int) -> CallKind:
    """Which calls are alike in their first-byte time: streams begin early, whole answers and long prompts late."""
    return stream, chars.bit_length() // 4


class Health:
    """The health of all providers.

    Args:
        providers: The endpoint that each is known to have; others come with the calls.
        policies: The breaker policy of each provider by name; others get the default.
        timeouts: First-byte timeouts of streams (True) and of whole answers (False).
        limits_declared: Names of the providers whose configuration states a rate limit.
        on_transition: Told of every change of a breaker.
    """

    def __init__(
        self,
        providers: Mapping[str, Endpoint],
        clock: Clock,
        *,
        policies: Mapping[str, BreakerPolicy] | None = None,
        timeouts: Mapping[bool, TimeoutPolicy] | None = None,
        limits_declared: frozenset[str] = frozenset(),
        on_transition: Callable[[EndpointHealth, Transition], None] | None = None,
    ) -> None:
        self.clock = clock
        self.on_transition = on_transition
        self.reporter: Reporter | None = None  # who keeps the breakers, when another process does
        self.on_revive: Callable[[Iterable[Place], float], Awaitable[bool]] | None = None
        self._averages: dict[str, _Average] = {}
        self._conditions: dict[str, Condition] = {}
        self._disturbed: set[Place] = set()
        self.version = 0  # changes whenever conditions do
        self._policies = policies or {}
        self._timeouts = timeouts or {True: TimeoutPolicy(), False: TimeoutPolicy()}
        self._limits_declared = limits_declared
        self._endpoints: dict[Place, EndpointHealth] = {}
        self.providers: dict[str, ProviderHealth] = {name: ProviderHealth(name) for name in providers}
        for name, endpoint in providers.items():
            self.at(name, endpoint)

    def at(self, provider: str, endpoint: Endpoint) -> EndpointHealth:
        """The health of an endpoint."""
        found = self._endpoints.get((provider, endpoint))
        if found is None:
            found = EndpointHealth(
                provider,
                endpoint,
                Breaker(self._policies.get(provider)),
                self._timeouts,
                Ramp(limit_declared=provider in self._limits_declared),
                RetryBudget(),
            )
            self._endpoints[provider, endpoint] = found
            self.providers[provider].endpoints[endpoint] = found
        return found

    def endpoints(self) -> tuple[EndpointHealth, ...]:
        """Every endpoint that is known."""
        return tuple(self._endpoints.values())

    async def revive(self, places: Iterable[Place], patience: float) -> bool:
        """Ask endpoints that were given up whether they are back, without waiting until a probe is due.

        Returns:
            Whether one of them is. Always False where nobody watches the providers.
        """
        return await self.on_revive(places, patience) if self.on_revive is not None else False

    @property
    def disturbed(self) -> frozenset[Place]:
        """The endpoints whose breaker is not closed."""
        return frozenset(self._disturbed)

    def state(self, provider: str, endpoint: Endpoint | None = None) -> BreakerState:
        """The state now of an endpoint's breaker, or of the worst one of a provider."""
        now = self.clock.monotonic()
        if endpoint is not None:
            return self.at(provider, endpoint).breaker.state(now)
        states = {each.breaker.state(now) for each in self.providers[provider].endpoints.values()}
        order = (BreakerState.OPEN, BreakerState.HALF_OPEN)
        return next((state for state in order if state in states), BreakerState.CLOSED)

    def conditions(
        self, candidates: Iterable[Candidate], endpoint_of: Callable[[Candidate], Endpoint]
    ) -> Mapping[str, Condition]:
        """How the candidates do just now, by name; those nothing is known of are left out."""
        if not self._disturbed:
            return self._conditions
        found = dict(self._conditions)
        for candidate in candidates:
            provider, endpoint = candidate.provider.name, endpoint_of(candidate)
            if (provider, endpoint) in self._disturbed:
                known = found.get(candidate.name) or Condition()
                found[candidate.name] = replace(known, state=self.state(provider, endpoint).value)
        return found

    def succeeded(
        self, health: EndpointHealth, candidate: Candidate, kind: CallKind, first_byte: float, *, generation: int
    ) -> None:
        """A call began to answer after `first_byte` seconds."""
        now = self.clock.monotonic()
        health.served = candidate.model
        health.timeout(kind).observe(first_byte, now)
        if self.reporter is None:
            self._note(health, health.breaker.record(Outcome.SUCCESS, now, generation))
        else:
            if generation == health.breaker.generation:
                self.reporter.outcome(health.provider, health.endpoint, Outcome.SUCCESS)
            self.reporter.latency(health.provider, health.endpoint, kind, first_byte)
        self._average(candidate, first_byte, failed=False)

    def failed(self, health: EndpointHealth, candidate: Candidate, outcome: Outcome, *, generation: int) -> None:
        """A call failed before its first byte, or its stream was cut by the provider."""
        if self.reporter is None:
            self._note(health, health.breaker.record(outcome, self.clock.monotonic(), generation))
        elif generation == health.breaker.generation:
            self.reporter.outcome(health.provider, health.endpoint, outcome)
        if outcome is Outcome.FAILURE:
            self._average(candidate, None, failed=True)

    def throttled(self, health: EndpointHealth, retry_after: float | None) -> None:
        """An endpoint answered 429."""
        health.ramp.throttled(self.clock.monotonic(), retry_after)
        if self.reporter is not None:
            self.reporter.throttled(health.provider, health.endpoint, retry_after)

    def limited(self, health: EndpointHealth, limits: Iterable[RateLimit]) -> None:
        """An answer's headers state these rate limits, if any."""
        health.limits_read = True
        health.ramp.observe(limits, self.clock.monotonic())

    # ------------------------------------------------------------ from other processes

    def report(self, provider: str, endpoint: Endpoint, outcome: Outcome, count: int = 1) -> None:
        """Calls of another process ended so."""
        if provider in self.providers:
            health = self.at(provider, endpoint)
            for _ in range(min(count, _MOST_REPORTED)):
                self._note(health, health.breaker.record(outcome, self.clock.monotonic()))

    def learn_latency(self, provider: str, endpoint: Endpoint, kind: CallKind, seconds: float) -> None:
        """A call of another process began to answer after so many seconds."""
        if provider in self.providers:
            self.at(provider, endpoint).timeout(kind).observe(seconds, self.clock.monotonic())

    def learn_throttled(self, provider: str, endpoint: Endpoint, retry_after: float | None) -> None:
        """Another process was answered 429."""
        if provider in self.providers:
            self.at(provider, endpoint).ramp.throttled(self.clock.monotonic(), retry_after)

    def mirror(self, provider: str, endpoint: Endpoint, *, is_open: bool, reason: str) -> None:
        """The breaker that another process keeps has changed."""
        health, now = self.at(provider, endpoint), self.clock.monotonic()
        change = health.breaker.trip(now, reason) if is_open else health.breaker.reset(now, reason)
        self._note(health, change)

    # ------------------------------------------------------------ from the watch

    def probed(self, health: EndpointHealth, ticket: int, outcome: Outcome, retry_after: float | None = None) -> None:
        """The probe of an endpoint ended."""
        self._note(health, health.breaker.record_probe(ticket, outcome, self.clock.monotonic(), retry_after))

    def revived(self, health: EndpointHealth) -> None:
        """An endpoint answered a probe that was sent before its time."""
        self._note(health, health.breaker.reset(self.clock.monotonic(), "it answered when all others were down"))

    def checked(self, name: str, problem: str | None) -> None:
        """A health check ended; a provider that does not even answer one is not given callers' requests."""
        provider, now = self.providers[name], self.clock.monotonic()
        provider.checked_at, provider.check_problem = self.clock.now(), problem
        if problem is not None:
            for health in provider.endpoints.values():
                self._note(health, health.breaker.record(Outcome.FAILURE, now))

    def _average(self, candidate: Candidate, first_byte: float | None, *, failed: bool) -> None:
        name = candidate.name
        average = self._averages.get(name)
        if average is None:
            if len(self._averages) >= _MOST_MODELS:
                oldest = next(iter(self._averages))
                del self._averages[oldest]
                self._conditions.pop(oldest, None)
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

    def _note(self, health: EndpointHealth, transition: Transition | None) -> None:
        if transition is None or transition.before is transition.after:
            return
        place = health.provider, health.endpoint
        self.version += 1
        if transition.after is BreakerState.CLOSED:
            self._disturbed.discard(place)
            for other in self._endpoints.values():
                other.ramp.stop(transition.at)
        elif transition.before is BreakerState.CLOSED:
            self._disturbed.add(place)
            # Whoever still waits for a first byte from there is better served elsewhere, at once.
            for deadline in list(health.waiting):
                deadline.fail(TransportError("timeout", f"given up: {transition.reason}"))
        if self.on_transition is not None:
            self.on_transition(health, transition)
