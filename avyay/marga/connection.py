"""One connection to a provider, and the answers that are read from it: an asyncio protocol under httptools' parser."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import httptools

from avyay.marga.deadline import Deadline, TransportError

__all__ = ["Connection", "Pool", "Reply"]

_HIGH_WATER = 256 * 1024  # bytes of an answer held before its connection is no longer read
_HEAD_LIMIT = 64 * 1024


class Pool(Protocol):
    """Whose a connection is."""

    @property
    def idle_timeout(self) -> float:
        """Seconds between two bytes of an answer that has begun."""
        ...

    @property
    def inflate(self) -> bool:
        """Whether compressed answers are unpacked."""
        ...

    def give_back(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One connection and the answer it is reading. Also the parser's callbacks."""

    def __init__(self, pool: Pool, key: tuple[bool, str, int], loop: asyncio.AbstractEventLoop) -> None:
        self.key = key
        self.since = 0.0
        self.untouched = True  # whether nothing has come in since the request was sent
        self.once = False  # whether it serves a single request
        self._pool = pool
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        self._interim = False
        self._writable: asyncio.Future[None] | None = None  # while the other side does not read

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def request(self, data: bytes, deadline: Deadline | None) -> Reply:
        if self._transport is None:
            raise TransportError("broken", "the connection is closed")
        self.untouched = True
        reply = self._reply = Reply(self, self._loop, deadline, self._pool.idle_timeout)
        reply.inflate = self._pool.inflate
        reply.bodiless = data.startswith(b"HEAD ")
        self._transport.write(data)
        return reply

    def abort(self) -> None:
        """Close at once: the other side sees a reset and stops working."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._pool.forget(self)

    def release(self) -> None:
        """The answer is complete."""
        self._reply = None
        if self.usable and not self.once and self._parser is not None and self._parser.should_keep_alive():
            self.since = self._loop.time()
            self._pool.give_back(self)
        else:
            self.abort()

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    async def write(self, data: bytes) -> None:
        """Send more of the request's body, as fast as the other side takes it."""
        if self._transport is None:
            raise TransportError("broken", "the connection was closed in the middle of a request")
        self._transport.write(data)
        if self._writable is not None:
            await asyncio.shield(self._writable)

    # ------------------------------------------------------------ asyncio

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.untouched = False
        if self._reply is None or self._parser is None:
            self.abort()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the other side switches protocols")
        except httptools.HttpParserError as error:
            self._fail(f"the answer is no HTTP ({type(error).__name__})")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._parser = None  # it holds us as we hold it: without this only the collector could free the two
        self._pool.forget(self)
        self.resume_writing()
        reply, self._reply = self._reply, None
        if reply is not None:
            if error is None and reply.until_close:
                reply.complete()
            else:
                reply.fail(TransportError("broken", "the connection was closed in the middle of an answer"))

    def _fail(self, detail: str) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.fail(TransportError("broken", detail))
        self.abort()

    # ------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        self._interim = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reply is not None:
            self._reply.header(name, value)

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._interim = status < 200
        if self._reply is not None:
            if self._interim:
                self._reply.raw.clear()
                self._reply.headers.clear()  # 100 or 103: the answer is still to come
            else:
                self._reply.begin(status)
                if self._reply.bodiless:  # the parser knows nothing of HEAD, and would wait for the body
                    reply, self._reply = self._reply, None
                    reply.complete()
                    self.abort()

    def on_body(self, data: bytes) -> None:
        if self._reply is not None:
            self._reply.body(data)

    def on_message_complete(self) -> None:
        if self._interim:
            return
        if (reply := self._reply) is not None:
            reply.complete()
            if reply.settled:
                self.release()


class Reply:
    """An answer on a connection."""

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        deadline: Deadline | None,
        idle_timeout: float,
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.raw: list[tuple[bytes, bytes]] = []  # the headers as they came
        self.inflate = True
        self.bodiless = False
        self.until_close = False
        self._connection = connection
        self._loop = loop
        self._deadline = deadline
        self._idle_timeout = idle_timeout
        self._pieces: list[bytes] = []
        self._held = 0
        self._size = 0
        self._done = False
        self._paused = False
        self._error: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._inflate: Callable[[bytes], bytes] | None = None

    @property
    def ended(self) -> bool:
        """Whether all of it has been read."""
        return self._done and not self._pieces and self._error is None

    @property
    def settled(self) -> bool:
        """Whether the connection may be used for another request."""
        return self._done and self._error is None

    # ------------------------------------------------------------ from the connection

    def header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value)
        if self._size > _HEAD_LIMIT:
            raise ValueError("the head of the answer is too long")
        self.raw.append((name, value))
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def begin(self, status: int) -> None:
        self.status = status
        headers = self.headers
        self.until_close = "content-length" not in headers and "transfer-encoding" not in headers
        # We ask for no compression; a server that compresses all the same is understood.
        coding = headers.get("content-encoding", "") if self.inflate else ""
        if coding.lower() in ("gzip", "deflate"):
            self._inflate = zlib.decompressobj(wbits=47).decompress
            del headers["content-encoding"]
        self._wake()

    def body(self, data: bytes) -> None:
        if self._inflate is not None:
            try:
                data = self._inflate(data)
            except zlib.error:
                self.fail(TransportError("broken", "the answer is badly compressed"))
                return
        if not data:
            return
        self._pieces.append(data)
        self._held += len(data)
        if self._held > _HIGH_WATER and not self._paused:
            self._paused = True
            self._connection.pause()
        self._wake()

    def complete(self) -> None:
        self._done = True
        if self._paused:
            self._paused = False
            self._connection.resume()
        self._wake()

    def fail(self, error: TransportError) -> None:
        if not self._done:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if (waiter := self._waiter) is not None and not waiter.done():
            waiter.set_result(None)

    # ------------------------------------------------------------ for the reader

    async def write(self, data: bytes) -> None:
        """Send a piece of the request's body; waits while the other side does not read.

        Raises:
            TransportError: the connection is gone.
        """
        await self._connection.write(data)

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        timer = None
        if self._deadline is not None:
            self._deadline.watch(waiter)
        else:
            timer = self._loop.call_later(self._idle_timeout, _expire, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    async def head(self) -> None:
        while self.status == 0:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def piece(self) -> bytes:
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._done:
                return b""
            await self._wait()
        self._deadline = None  # the first byte is here: from now on only silence counts
        pieces, self._pieces, self._held = self._pieces, [], 0
        if self._paused:
            self._paused = False
            self._connection.resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes:
        parts = []
        while part := await self.piece():
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if not self._done:
            self._error = self._error or TransportError("broken", "closed")
            self._connection.abort()


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TransportError("timeout", "the answer stopped in the middle"))
