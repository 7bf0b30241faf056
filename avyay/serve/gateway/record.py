"""The row of a request: kept before the last byte of its answer leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from avyay.clock import Clock
from avyay.serve.gateway.usage import UsageJournal

__all__ = ["Record"]

Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Record:
    """What is known of a request so far, and the way its answer takes out.

    Attributes:
        key: The caller's; without one there is no row, for strangers fill no disk.
        endpoint: The scope it asks for.
        decision: The router's id for it, once its answer has begun.
        ended: With which status, once it has.
        seconds: How long it took.
    """

    __slots__ = (
        "_began", "_clock", "_journal", "_number", "_send", "_status", "_told", "decision", "ended", "endpoint", "key",
        "seconds",
    )  # fmt: skip

    def __init__(self, journal: UsageJournal, clock: Clock, began: float, send: Send) -> None:
        self._journal = journal
        self._clock = clock
        self._began = began
        self._send = send
        self._number = 0
        self._status = 0
        self._told = False
        self.key: str | None = None
        self.endpoint = ""
        self.decision: str | None = None
        self.ended: int | None = None
        self.seconds = 0.0

    @property
    def started(self) -> bool:
        """Whether an answer has begun."""
        return self._status != 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's `send`."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif not message.get("more_body", False):
            self.end(self._status)
        elif self._number and not self._told:
            self._told = True
            self._journal.answered(self._number, self.decision)
        await self._send(message)

    def passes(self) -> None:
        """The request goes to a component."""
        if self.key is not None:
            self._number = self._journal.begin(self._began, self.key, self.endpoint)

    def end(self, status: int) -> None:
        """The request is over; only the first word on it counts."""
        if self.ended is None:
            self.ended = status
            self.seconds = self._clock.now() - self._began
            if self.key is not None:
                self._journal.add(
                    self._began, self.key, self.endpoint, status, self.decision, self.seconds, self._number
                )
