"""The server's side of a connection, with the patience of a door: heads must come soon and stay small.

The parser is strict about framing (it refuses a request with two lengths, or with a length and chunks); what it does
not know is how long a client may take for a head, for a body and for reading an answer, and how much of a line that
never ends is worth keeping.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from avyay.serve.http_protocol import HttpProtocol

__all__ = ["DoorLimits", "door_protocol"]

_MOST_HEADERS = 100
_SLOWEST = 500.0  # bytes a second of a body, on the average: a byte now and then is no progress
_SPARE = 5.0  # seconds more than the application's own patience with a silent body, which says so in its words


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Bytes of a request's line and headers, seconds to send them, connections at once.

    Attributes:
        body_timeout: Seconds for a body, beside those that its size takes.
        send_timeout: Seconds a client may not read.
    """

    head: int = 65_536
    head_timeout: float = 10.0
    connections: int = 4_096
    body_timeout: float = 30.0
    send_timeout: float = 120.0


def door_protocol(limits: DoorLimits) -> type[HttpProtocol]:
    """A protocol class with these limits."""

    class Door(HttpProtocol):
        """One connection."""

        _unread = 0  # bytes since the last complete head or body
        _within = False  # whether a body is being read
        _head_timer: asyncio.TimerHandle | None = None
        _body_timer: asyncio.TimerHandle | None = None
        _body_began = 0.0
        _body_size = 0
        _stuck_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            if len(self._state.connections) > limits.connections:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                self._await_head()

        def connection_lost(self, error: Exception | None) -> None:
            self._head_is_here()
            self._body_is_here()
            self._is_read()
            super().connection_lost(error)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._is_not_read()

        def resume_writing(self) -> None:
            self._is_read()
            super().resume_writing()

        def close(self) -> None:
            super().close()
            self._is_not_read()  # what is still to be sent is waited for, but not for ever

        def data_received(self, data: bytes) -> None:
            if not self._within:
                self._unread += len(data)
                if self._head_timer is None and self._answering is None:
                    self._await_head()
            super().data_received(data)
            if self._within and self._body_timer is None and self._parser is not None:
                self._body_timer = self.loop.call_later(limits.body_timeout + _SPARE, self._look_at_body)
            # What is left unread now is a head without an end: complete heads and bodies have reset the count.
            if not self._within and self._unread > limits.head:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

        def on_headers_complete(self) -> None:
            self._head_is_here()
            self._unread, self._within = 0, True
            if self._head_size > limits.head or len(self._headers) > _MOST_HEADERS:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                raise ValueError("the head of the request is too large")
            self._body_began, self._body_size = self.loop.time(), 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._body_size += len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._unread, self._within = 0, False
            self._body_is_here()
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

        def _body_is_here(self) -> None:
            if self._body_timer is not None:
                self._body_timer.cancel()
                self._body_timer = None

        def _look_at_body(self) -> None:
            now = self.loop.time()
            if self._read_paused:  # it is we who do not read
                self._body_began, self._body_size = now, 0
            left = self._body_began + limits.body_timeout + _SPARE + self._body_size / _SLOWEST - now
            if left > 0:
                self._body_timer = self.loop.call_later(left, self._look_at_body)
            elif self._answering is None:
                self.close()  # it has its answer, and goes on and on
            else:
                self._body_timer = None
                self._refuse(HTTPStatus.REQUEST_TIMEOUT)

        def _is_not_read(self) -> None:
            if self._stuck_timer is None and self.transport is not None:
                self._stuck_timer = self.loop.call_later(limits.send_timeout, self.transport.abort)

        def _is_read(self) -> None:
            if self._stuck_timer is not None:
                self._stuck_timer.cancel()
                self._stuck_timer = None

    return Door
