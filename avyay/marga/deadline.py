"""How long a call waits for the other side, and what it is told when that has not answered."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

__all__ = ["LATE", "Deadline", "TransportError"]

TransportFault = Literal["connect", "timeout", "broken"]
LATE = 0.05  # seconds: a timer that comes later than this says that our own process was held up


class TransportError(Exception):
    """The other side could not be reached, said nothing in time, or broke off. `fault` says which."""

    def __init__(self, fault: TransportFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


class Deadline:
    """A handle by which a waiting call can be failed from outside: by its time, or because its provider is given up."""

    __slots__ = ("_future", "_timer", "error")

    def __init__(self) -> None:
        self.error: TransportError | None = None
        self._future: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Give the other side so many seconds from now; twice as many at most, if this process stands still meanwhile.

        An event loop that was held up runs its timers before it reads what has long arrived, or before it has even sent
        the request: that time is not the other side's.
        """
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._expire, loop, loop.time() + seconds, seconds)

    def cancel(self) -> None:
        """The other side has answered, or nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, future: asyncio.Future[Any]) -> None:
        """The call now waits for `future`."""
        if self.error is not None and not future.done():
            future.set_exception(self.error)
        self._future = future

    def fail(self, error: TransportError) -> None:
        """End the call's waiting with `error`."""
        self.error = error
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)

    def _expire(self, loop: asyncio.AbstractEventLoop, due: float, spare: float) -> None:
        late = loop.time() - due
        if late > LATE and spare > 0:
            more = min(late, spare)
            self._timer = loop.call_later(more, self._expire, loop, due + late + more, spare - more)
        else:
            self.fail(TransportError("timeout", "no answer in time"))
