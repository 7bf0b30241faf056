"""The server's side of a connection, with the patience of a door: heads must come soon and stay small.

The parser is strict about framing (it refuses a request with two lengths, or with a length and chunks); what it does
not know is how long a client may take for a head, and how much of a line that never ends is worth keeping.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from avyay.serve.http_protocol import HttpProtocol

__all__ = ["DoorLimits", "door_protocol"]

_MOST_HEADERS = 100


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Bytes of a request's line and headers, seconds to send them, connections at once."""

    head: int = 65_536
    head_timeout: float = 10.0
    connections: int = 4_096


def door_protocol(limits: DoorLimits) -> type[HttpProtocol]:
    """A protocol class with these limits."""

    class Door(HttpProtocol):
        """One connection."""

        _unread = 0  # bytes since the last complete head or body
        _within = False  # whether a body is being read
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            if len(self._state.connections) > limits.connections:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                self._await_head()

        def connection_lost(self, error: Exception | None) -> None:
            self._head_is_here()
            super().connection_lost(error)

        def data_received(self, data: bytes) -> None:
            if not self._within:
                self._unread += len(data)
                if self._head_timer is None and self._answering is None:
                    self._await_head()
            super().data_received(data)
            # What is left unread now is a head without an end: complete heads and bodies have reset the count.
            if not self._within and self._unread > limits.head:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

        def on_headers_complete(self) -> None:
            self._head_is_here()
            self._unread, self._within = 0, True
            if self._head_size > limits.head or len(self._headers) > _MOST_HEADERS:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                raise ValueError("the head of the request is too large")
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._unread, self._within = 0, False
            super().on_message_complete()

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(limits.head_timeout, self._head_is_late)

        def _head_is_here(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _head_is_late(self) -> None:
            self._head_timer = None
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    return Door
