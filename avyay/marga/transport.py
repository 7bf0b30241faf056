"""The router's way out: HTTP/1.1 on the data plane, straight on asyncio and httptools.

A client library costs more here than all the router's own work (figures in benchmarks/gateway.py), and none lets a
waiting call be failed from outside, which is how calls leave a provider the moment its breaker opens. Everything a
network can do wrong becomes one `TransportError`. Redirects are answers like any other, and nothing is retried but a
request that met a kept-alive connection in the moment the other side closed it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from avyay.marga.connection import Connection, Reply
from avyay.marga.deadline import LATE, Deadline, TransportError

__all__ = ["Deadline", "Endpoint", "Incoming", "Transport", "TransportError"]


class Incoming(Protocol):
    """An answer whose head has arrived. Header names are in lower case."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes:
        """The rest of the body, whole.

        Raises:
            TransportError: it broke off.
        """
        ...

    async def piece(self) -> bytes:
        """What has arrived of the body, at least one byte; empty at its end. The same errors."""
        ...

    def close(self) -> None:
        """Let go: a finished answer's connection is used again, an unfinished one's is cut at once."""
        ...


class Endpoint:
    """Where requests of one kind go, with the part of their head that never changes."""

    __slots__ = ("head", "host", "key", "port", "tls")

    def __init__(self, method: str, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self.tls = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.tls else 80)
        self.key = (self.tls, self.host, self.port)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a line break in a header")
        self.head = ("\r\n".join(lines) + "\r\n").encode("latin-1")


class Transport:
    """One pool of connections, made in the event loop that first uses it.

    Args:
        connect_timeout: Seconds to connect, TLS included.
        idle_timeout: Seconds between two bytes of an answer that has begun.
        keep_alive: Seconds an unused connection is kept.
        idle_limit: Unused connections kept for one place.
        inflate: Whether compressed answers are unpacked; who only passes them on leaves them as they are.
    """

    def __init__(
        self,
        *,
        connect_timeout: float = 5.0,
        idle_timeout: float = 300.0,
        keep_alive: float = 30.0,
        idle_limit: int = 256,
        tls: ssl.SSLContext | None = None,
        inflate: bool = True,
    ) -> None:
        self.connect_timeout = connect_timeout
        self.idle_timeout = idle_timeout
        self._keep_alive = keep_alive
        self._idle_limit = idle_limit
        self._tls = tls
        self.inflate = inflate
        self._idle: dict[tuple[bool, str, int], deque[Connection]] = {}
        self._all: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._all)

    async def send(
        self,
        endpoint: Endpoint,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: Deadline | None = None,
    ) -> Reply:
        """Send a request and wait for the head of its answer.

        Raises:
            TransportError: there is none.
        """
        head = endpoint.head
        if headers:
            for name, value in headers.items():
                head += f"{name}: {value}\r\n".encode("latin-1", "replace")
        data = head + b"\r\n" if body is None else b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        return await self.exchange(endpoint, data, deadline)

    async def exchange(self, endpoint: Endpoint, data: bytes, deadline: Deadline | None = None) -> Reply:
        """`send` for a request that is bytes already, head and body. The same errors."""
        while True:
            connection = self._take(endpoint.key)
            reused = connection is not None
            if connection is None:
                connection = await self._connect(endpoint)
            try:
                reply = connection.request(data, deadline)
                await reply.head()
                return reply
            except TransportError:
                fresh = connection.untouched
                connection.abort()
                if not (reused and fresh) or (deadline is not None and deadline.error is not None):
                    raise
            except BaseException:
                connection.abort()
                raise

    async def begin(self, endpoint: Endpoint, head: bytes, deadline: Deadline | None = None) -> Reply:
        """Send a request's head over a new connection; its body follows by the reply's `write`.

        A body that passes through cannot be sent a second time, so no connection is used that may just be closing.

        Raises:
            TransportError: no connection.
        """
        self._here()
        connection = await self._connect(endpoint)
        connection.once = True
        return connection.request(head, deadline)

    def _here(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._idle.clear()  # another loop's connections are of no use to this one
            self._all.clear()
            self._loop = loop
        return loop

    def _take(self, key: tuple[bool, str, int]) -> Connection | None:
        loop = self._here()
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            if connection.usable and loop.time() - connection.since < self._keep_alive:
                return connection
            connection.abort()
        return None

    async def _connect(self, endpoint: Endpoint) -> Connection:
        loop = asyncio.get_running_loop()
        context = None
        if endpoint.tls:
            context = self._tls = self._tls or ssl.create_default_context()
        try:
            connection = await self._open(endpoint, context, loop)
        except TimeoutError as error:
            raise TransportError("connect", "no connection in time") from error
        except (OSError, ssl.SSLError, UnicodeError) as error:
            raise TransportError("connect", f"no connection ({type(error).__name__})") from error
        self._all.add(connection)
        return connection

    async def _open(
        self, endpoint: Endpoint, context: ssl.SSLContext | None, loop: asyncio.AbstractEventLoop, *, again: bool = True
    ) -> Connection:
        began = loop.time()
        try:
            async with asyncio.timeout(self.connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, endpoint.key, loop),
                    endpoint.host,
                    endpoint.port,
                    ssl=context,
                    server_hostname=endpoint.host if context is not None else None,
                )
            return connection
        except TimeoutError:
            if not again or loop.time() - began - self.connect_timeout < LATE:
                raise
        return await self._open(endpoint, context, loop, again=False)  # it was we who were held up

    def give_back(self, connection: Connection) -> None:
        """A connection is free again."""
        idle = self._idle.setdefault(connection.key, deque())
        if len(idle) >= self._idle_limit:
            connection.abort()
        else:
            idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if (idle := self._idle.get(connection.key)) and connection in idle:
            idle.remove(connection)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._loop is asyncio.get_running_loop():
            for connection in list(self._all):
                connection.abort()
            await asyncio.sleep(0)  # lets the transports say goodbye before the loop may close
        self._all.clear()
        self._idle.clear()
