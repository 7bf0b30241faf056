"""Trying candidates in order until one begins to answer: failover up to the first byte, never after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from avyay.clock import Clock
from avyay.marga.backends.base import Backend, Outgoing
from avyay.marga.transport import Incoming, TransportError
from avyay.marga.types import Attempt, Candidate, Ranked

__all__ = ["Answer", "Dispatcher", "NoAnswerError"]

# A status that says something about the request, which would be the same everywhere. All others are the provider's.
_REQUEST_FAULTS = frozenset({400, 413, 415, 422})


class NoAnswerError(Exception):
    """No candidate answered. `status` and `body` are the last provider's own words, when it had any."""

    def __init__(self, attempts: Sequence[Attempt], *, status: int = 0, body: bytes = b"", detail: str = "") -> None:
        super().__init__(detail or f"HTTP {status}")
        self.attempts = tuple(attempts)
        self.status = status
        self.body = body
        self.detail = detail


@dataclass(slots=True)
class Answer:
    """A candidate has begun to answer with a success: `first` is the first piece of its body."""

    candidate: Candidate
    incoming: Incoming
    first: bytes
    rest: AsyncIterator[bytes]
    attempts: list[Attempt] = field(default_factory=list)
    first_byte: float = 0.0

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, from its first byte.

        Raises:
            TransportError: it broke off.
        """
        yield self.first
        async for chunk in self.rest:
            yield chunk

    def close(self) -> None:
        self.incoming.close()


class Dispatcher:
    """Opens calls at backends.

    Args:
        first_byte_timeout: Seconds a candidate has to begin its answer.
    """

    def __init__(self, backends: Mapping[str, Backend], clock: Clock, *, first_byte_timeout: float = 120.0) -> None:
        self._backends = backends
        self._clock = clock
        self._first_byte_timeout = first_byte_timeout

    async def open(self, ranked: Sequence[Ranked], render: Callable[[Candidate, Backend], Outgoing]) -> Answer:
        """Try the candidates in order.

        Args:
            render: The call as a candidate is to receive it.

        Raises:
            NoAnswerError: none of them answered, or one of them refused the request itself.
        """
        attempts: list[Attempt] = []
        last = NoAnswerError(attempts, detail="there is no candidate")
        gone: set[str] = set()  # providers that cannot be reached: their other models cannot either
        for entry in ranked:
            candidate = entry.candidate
            if candidate.provider.name in gone:
                continue
            backend = self._backends[candidate.provider.name]
            call = render(candidate, backend)
            started = self._clock.monotonic()
            name, model = candidate.provider.name, candidate.model.name
            incoming: Incoming | None = None
            try:
                async with asyncio.timeout(self._first_byte_timeout):
                    incoming = await backend.open(call)
                    if incoming.status < 400:
                        rest = incoming.chunks()
                        first = await anext(rest, b"")
                        seconds = self._clock.monotonic() - started
                        attempts.append(Attempt(name, model, "ok", incoming.status, seconds))
                        return Answer(candidate, incoming, first, rest, attempts, seconds)
                    body = await incoming.read()
                    incoming.close()
                    status = incoming.status
            except (TransportError, TimeoutError) as error:
                if incoming is not None:
                    incoming.close()
                fault = error.fault if isinstance(error, TransportError) else "timeout"
                if fault == "connect":
                    gone.add(name)
                attempts.append(Attempt(name, model, fault, 0, self._clock.monotonic() - started))
                last = NoAnswerError(attempts, detail=f"{name}: {error or 'no answer in time'}")
                continue
            except BaseException:
                if incoming is not None:
                    incoming.close()
                raise
            attempts.append(Attempt(name, model, "status", status, self._clock.monotonic() - started))
            last = NoAnswerError(attempts, status=status, body=body, detail=f"{name} answered HTTP {status}")
            if status in (401, 403):
                gone.add(name)
            if status in _REQUEST_FAULTS:
                break
        last.attempts = tuple(attempts)
        raise last
