"""Trying candidates in order until one begins to answer: failover up to the first byte, never after it.

- A candidate whose breaker is open is passed over; a backup that takes over others' traffic is loaded by its ramp.
- A provider that timed out, refused the connection or the key is done with for this request: nobody waits for it twice.
- One that answered with an error may be tried once more after all others, within its retry budget.
- When a breaker opens, the calls still waiting for that provider's first byte leave it at once.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from avyay.clock import Clock
from avyay.errors import PolicyError
from avyay.marga.backends.base import Backend, Outgoing
from avyay.marga.health import EndpointHealth, Health, kind_of
from avyay.marga.transport import Deadline, Incoming, TransportError
from avyay.marga.types import Attempt, Candidate, Endpoint, Ranked
from avyay.marga.wire import (
    Failure,
    FailureKind,
    MalformedError,
    UntranslatableError,
    failure_from_exception,
    parse_error,
)
from avyay.resilience.backoff import Backoff
from avyay.resilience.breaker import Outcome, classify_status
from avyay.resilience.rate_headers import read_rate_limits, read_retry_after

__all__ = ["Accept", "Answer", "Dispatcher", "NoAnswerError", "RejectedError", "Render"]

# What the request itself is to blame for: it would fail everywhere.
_REQUEST_FAULTS = frozenset({"invalid_request", "untranslatable", "content_filter", "policy", "too_large"})
# What will not be otherwise a moment later, at this provider.
_LASTING = frozenset({"authentication", "billing", "permission", "not_found", "quota", "context_length"})
_PATIENCE = 10.0  # seconds a request waits for room on a ramp when its caller named no latency budget
_RETRIES = 2  # second tries of one request at most


class RejectedError(Exception):
    """What a candidate sent with a success status is no answer, or carries an error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


Render = Callable[[Candidate, Backend], Outgoing]
Accept = Callable[[Candidate, bytes, Mapping[str, str]], None]
EndpointOf = Callable[[Candidate], Endpoint]
Admit = Callable[[Candidate], Awaitable[None]]


class NoAnswerError(Exception):
    """No candidate answered. `failure` is the last one's; `attempts` is what was tried."""

    def __init__(self, failure: Failure, attempts: Sequence[Attempt], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.attempts = tuple(attempts)
        self.headers = headers or {}


@dataclass(slots=True)
class Answer:
    """A candidate has begun to answer with a success, and `accept` took it.

    `first` is the first piece of a stream, or the whole of an answer that is not streamed.
    """

    candidate: Candidate
    outgoing: Outgoing
    incoming: Incoming
    first: bytes
    attempts: list[Attempt]
    first_byte: float
    health: EndpointHealth
    generation: int

    def close(self) -> None:
        """Let go of the connection; cuts it when the answer is not over."""
        self.incoming.close()


@dataclass(slots=True)
class _Progress:
    """One request on its way through its candidates."""

    render: Render
    accept: Accept
    endpoint: EndpointOf
    stream: bool
    chars: int
    admit: Admit | None
    attempts: list[Attempt] = field(default_factory=list)
    done_with: set[str] = field(default_factory=set)  # providers that get no second try
    failing: set[str] = field(default_factory=set)  # providers that failed: others go first
    later: list[Ranked] = field(default_factory=list)  # candidates worth a second try, other models first
    last: NoAnswerError | None = None


class Dispatcher:
    """Opens calls at backends.

    Args:
        jitter: Random numbers in [0, 1).
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        health: Health,
        clock: Clock,
        *,
        backoff: Backoff | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._backends = backends
        self._health = health
        self._clock = clock
        self._backoff = backoff or Backoff(base=0.2, cap=5.0, attempts=_RETRIES + 1)
        self._jitter = jitter

    async def open(
        self,
        ranked: Sequence[Ranked],
        render: Render,
        *,
        accept: Accept,
        endpoint: EndpointOf,
        stream: bool,
        chars: int = 0,
        budget: float | None = None,
        displaced: bool = False,
        admit: Admit | None = None,
    ) -> Answer:
        """Try the candidates in order.

        Args:
            render: The call as a candidate is to receive it.
            accept: Looks at the first piece (of a whole answer: all of it) before the choice is final; what it raises
                as `RejectedError` counts as the candidate's failure.
            endpoint: Which part of its provider a candidate is called at.
            stream: Whether the answer is awaited in pieces.
            chars: Size of the prompt, for the timeout.
            budget: Seconds the caller gives it until the first byte.
            displaced: The first candidate already stands in for one that is down.
            admit: Asked before a candidate is called; a PolicyError passes it by.

        Raises:
            NoAnswerError: none of them answered, or one of them refused the request itself.
        """
        progress = _Progress(render, accept, endpoint, stream, chars, admit)
        held: list[Ranked] = []
        given_up: list[Ranked] = []
        for entry in ranked:
            health = self._at(entry, progress)
            if not health.breaker.allow():
                given_up.append(entry)
                continue
            if health.provider in progress.done_with:
                continue
            if health.provider in progress.failing:
                progress.later.append(entry)  # it has just failed: others first
                continue
            if displaced and not self._admits(health):
                held.append(entry)
                continue
            health.budget.deposit()
            if (answer := await self._try(entry, progress)) is not None:
                return answer
            displaced = True  # whoever comes now takes over another's request
        if held and (answer := await self._when_admitted(held, given_up, progress, budget)) is not None:
            return answer
        if given_up and (answer := await self._revive(given_up, progress, budget)) is not None:
            return answer
        return await self._again(progress)

    async def _revive(self, given_up: list[Ranked], progress: _Progress, budget: float | None) -> Answer | None:
        """Everybody else has failed: ask those that were given up whether they are back, before the caller hears no."""
        end = self._clock.monotonic() + (_PATIENCE if budget is None else budget)
        while given_up:
            places = {(entry.candidate.provider.name, progress.endpoint(entry.candidate)) for entry in given_up}
            if not await self._health.revive(places, end - self._clock.monotonic()):
                return None
            for entry in list(given_up):
                health = self._at(entry, progress)
                if health.provider in progress.done_with:
                    given_up.remove(entry)
                elif health.breaker.allow():
                    given_up.remove(entry)
                    health.budget.deposit()
                    if (answer := await self._try(entry, progress)) is not None:
                        return answer
        return None

    def _at(self, entry: Ranked, progress: _Progress) -> EndpointHealth:
        return self._health.at(entry.candidate.provider.name, progress.endpoint(entry.candidate))

    def _admits(self, health: EndpointHealth) -> bool:
        now = self._clock.monotonic()
        health.ramp.start(now)
        return health.ramp.admit(now)

    async def _when_admitted(
        self,
        held: list[Ranked],
        given_up: list[Ranked],
        progress: _Progress,
        budget: float | None,
    ) -> Answer | None:
        """Wait for room on a backup's ramp; when the caller's patience ends, send it all the same."""
        deadline = self._clock.monotonic() + (_PATIENCE if budget is None else budget * 0.8)
        while held:
            for entry in list(held):
                health = self._at(entry, progress)
                if health.provider in progress.done_with:
                    held.remove(entry)
                elif not health.breaker.allow():
                    held.remove(entry)
                    given_up.append(entry)
                elif self._clock.monotonic() >= deadline or self._admits(health):
                    held.remove(entry)
                    health.budget.deposit()
                    answer = await self._try(entry, progress)
                    if answer is not None:
                        return answer
            if held:
                await self._clock.sleep(0.02 + 0.08 * self._jitter())
        return None

    async def _again(self, progress: _Progress) -> Answer:
        """Second tries, with backoff and within the budgets of the providers."""
        for failures in range(1, _RETRIES + 1):
            retry_after = progress.last.failure.retry_after if progress.last is not None else None
            delay = self._backoff.delay(failures, self._jitter, retry_after)
            queue = [e for e in progress.later if e.candidate.provider.name not in progress.done_with]
            if delay is None or not queue:
                break
            now = self._clock.monotonic()
            entry = next((e for e in queue if self._may_retry(self._at(e, progress), now)), None)
            if entry is None:
                break
            progress.later.remove(entry)
            await self._clock.sleep(delay)
            if not self._at(entry, progress).breaker.allow():
                break
            if (answer := await self._try(entry, progress)) is not None:
                return answer
        raise progress.last or self._all_open()

    def _may_retry(self, health: EndpointHealth, now: float) -> bool:
        return health.breaker.allow() and health.budget.withdraw(now)

    def _all_open(self) -> NoAnswerError:
        now = self._clock.monotonic()
        waits = [health.breaker.retry_in(now) for health in self._health.endpoints()]
        failure = Failure(
            "unavailable",
            "Every provider that could answer is down.",
            code="all_providers_down",
            retry_after=max(1.0, round(min(waits, default=1.0), 1)),
        )
        return NoAnswerError(failure, [])

    async def _try(self, entry: Ranked, progress: _Progress) -> Answer | None:
        """One attempt; None when it failed in a way that lets others be tried.

        Raises:
            NoAnswerError: the request itself was refused.
        """
        candidate = entry.candidate
        name, model = candidate.provider.name, candidate.model.name
        health = self._at(entry, progress)
        try:
            if progress.admit is not None:
                await progress.admit(candidate)
            call = progress.render(candidate, self._backends[name])
        except (UntranslatableError, PolicyError) as error:
            progress.attempts.append(Attempt(name, model, error.code))
            progress.last = progress.last or NoAnswerError(failure_from_exception(error), progress.attempts)
            return None
        except MalformedError as error:
            raise NoAnswerError(failure_from_exception(error), progress.attempts) from error
        kind = kind_of(stream=progress.stream, chars=progress.chars)
        timeout = health.timeout(kind)
        generation = health.breaker.generation
        clock = self._clock
        started = clock.monotonic()
        deadline = Deadline()
        deadline.start(timeout.seconds(started))
        health.waiting.add(deadline)
        incoming: Incoming | None = None
        try:
            incoming = await self._backends[name].open(call, deadline)
            status = incoming.status
            if status < 400:
                first = await incoming.piece()
                if not progress.stream and first:
                    health.waiting.discard(deadline)  # it works: what is still to come is only slow
                    first += await incoming.read()
                progress.accept(candidate, first, incoming.headers)
                seconds = clock.monotonic() - started
                self._health.succeeded(health, candidate, kind, seconds, generation=generation)
                if health.ramp.active or not health.limits_read:
                    self._health.limited(health, read_rate_limits(incoming.headers, clock.now()))
                progress.attempts.append(Attempt(name, model, "ok", status, seconds))
                return Answer(candidate, call, incoming, first, progress.attempts, seconds, health, generation)
            body = await incoming.read()
            incoming.close()
        except TransportError as error:
            if incoming is not None:
                incoming.close()
            seconds = clock.monotonic() - started
            if error.fault == "timeout":
                timeout.observe_timeout()
                progress.done_with.add(name)
            else:
                progress.failing.add(name)
                progress.later.append(entry)
            self._health.failed(health, candidate, Outcome.FAILURE, generation=generation)
            progress.attempts.append(Attempt(name, model, error.fault, 0, seconds))
            fault: FailureKind = "timeout" if error.fault == "timeout" else "unavailable"
            progress.last = NoAnswerError(Failure(fault, f"{name} did not answer: {error}."), progress.attempts)
            return None
        except RejectedError as error:
            assert incoming is not None
            incoming.close()
            failure = error.failure
            outcome = Outcome.FAILURE if failure.retryable or failure.kind == "truncated" else Outcome.NEUTRAL
            self._health.failed(health, candidate, outcome, generation=generation)
            progress.attempts.append(Attempt(name, model, failure.kind, incoming.status, clock.monotonic() - started))
            progress.last = NoAnswerError(failure, progress.attempts, incoming.headers)
            if failure.kind in _REQUEST_FAULTS:
                raise progress.last from error
            progress.done_with.add(name)
            return None
        except BaseException:
            if incoming is not None:
                incoming.close()
            raise
        finally:
            deadline.cancel()
            health.waiting.discard(deadline)
        self._refused(entry, status, body, incoming.headers, progress, generation, clock.monotonic() - started)
        return None

    def _refused(
        self,
        entry: Ranked,
        status: int,
        body: bytes,
        headers: Mapping[str, str],
        progress: _Progress,
        generation: int,
        seconds: float,
    ) -> None:
        """An answer with an error status."""
        candidate = entry.candidate
        name = candidate.provider.name
        health = self._at(entry, progress)
        failure = parse_error(status, body, headers)
        if failure.kind in ("authentication", "billing", "permission"):
            # It is the router's key that was refused, not the caller's: the provider's words would mislead, and may
            # quote the key.
            said = f"{name} refused the router's key (HTTP {status}): set a valid one (a running router: restart it)."
            failure = Failure(failure.kind, said, status=502, code="provider_key_refused")
        self._health.failed(health, candidate, classify_status(status), generation=generation)
        progress.attempts.append(Attempt(name, candidate.model.name, failure.kind, status, seconds))
        progress.last = NoAnswerError(failure, progress.attempts, headers)
        wall = self._clock.now()
        if status == 429:
            self._health.throttled(health, read_retry_after(headers, wall))
        else:
            self._health.limited(health, read_rate_limits(headers, wall))
        if failure.kind in _REQUEST_FAULTS:
            raise progress.last
        if failure.kind in _LASTING:
            if failure.kind in ("authentication", "billing", "quota"):
                progress.done_with.add(name)  # the key is the provider's, not the model's
        else:
            progress.failing.add(name)
            progress.later.append(entry)
