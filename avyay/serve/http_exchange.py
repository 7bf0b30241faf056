"""One request and its answer over HTTP/1.1, as ASGI sees them."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Protocol

from avyay.log import get_logger

__all__ = ["STATUS_LINES", "Connection", "Exchange"]

STATUS_LINES: dict[int, bytes] = {
    int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_BODY_HELD = 64 * 1024  # bytes of a request held before its connection is no longer read


class Connection(Protocol):
    """What an exchange needs of the connection that it happens on.

    Attributes:
        writable: While the other side does not take what is written.
    """

    loop: asyncio.AbstractEventLoop
    transport: Any
    writable: asyncio.Future[None] | None

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Of every answer."""
        ...

    def resume_reading(self) -> None:
        """Take more of the request's body."""
        ...

    async def drain(self) -> None:
        """Wait until the other side takes what is written."""
        ...

    def answered(self, exchange: Exchange) -> None:
        """An answer is complete."""
        ...

    def close(self) -> None:
        """Close once what was written has left."""
        ...


class Exchange:
    """One request and its answer, as ASGI sees them."""

    __slots__ = (
        "_body",
        "_chunked",
        "_complete",
        "_delivered",
        "_expects",
        "_flush",
        "_gone",
        "_head",
        "_left",
        "_protocol",
        "_scope",
        "_size",
        "_started",
        "_waiter",
        "keep_alive",
        "more_body",
    )

    def __init__(self, protocol: Connection, scope: dict[str, Any], *, expects: bool) -> None:
        self.keep_alive = True
        self.more_body = True  # of the request, from the connection
        self._protocol = protocol
        self._scope = scope
        self._expects = expects
        self._body: list[bytes] = []
        self._size = 0
        self._delivered = False  # whether the application has the whole request
        self._waiter: asyncio.Future[None] | None = None
        self._gone = False
        self._started = False
        self._complete = False
        self._head = b""  # of the answer, until it leaves with the first piece of its body
        self._flush: asyncio.Handle | None = None
        self._chunked = False
        self._left: int | None = 0  # bytes of the announced length still to come; None: until the connection closes

    # ------------------------------------------------------------ from the connection

    def take(self, body: bytes) -> bool:
        """A piece of the request's body; whether enough of it is held now."""
        if self._complete:
            return False  # nobody will read it
        self._body.append(body)
        self._size += len(body)
        self._wake()
        return self._size > _BODY_HELD

    def end_of_body(self) -> None:
        """The request is here."""
        self.more_body = False
        self._wake()

    def lose(self) -> None:
        """The connection is gone."""
        self._gone = True
        self._wake()

    def give_up(self) -> bool:
        """Nobody can understand the rest of the request; whether that may be said."""
        if self._started:
            return False
        self.lose()
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._protocol.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # ------------------------------------------------------------ ASGI

    async def run(self, app: Any) -> None:
        """Run the application; what it leaves undone is made good."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:  # noqa: BLE001 - whatever it is, the daemon lives on
            get_logger("serve").exception("application_failed", path=self._scope["path"])
        if self._complete or self._gone:
            return
        if self._started:
            self._flush_head()
            self._protocol.close()  # what was announced will not come
            return
        self.keep_alive = False
        text = b"Internal Server Error"
        head = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
        await self.send({"type": "http.response.start", "status": 500, "headers": head})
        await self.send({"type": "http.response.body", "body": text})

    async def receive(self) -> dict[str, Any]:
        """The next piece of the request, or word that the caller is gone or answered."""
        if self._expects:
            self._expects = False
            if not self._started and not self._gone:
                self._protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._gone or self._complete or self._body or (not self.more_body and not self._delivered)):
            await self._wait()
        if self._gone or self._complete:
            return {"type": "http.disconnect"}
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body, self._size = [], 0
        if self.more_body:
            self._protocol.resume_reading()
        else:
            self._delivered = True
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """The head of the answer, then its body."""
        if self._protocol.writable is not None and not self._gone:
            await self._protocol.drain()
        if self._gone:
            return
        if not self._started:
            self._start(message["status"], message.get("headers", ()))
        elif not self._complete:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError("the answer is complete")

    def _start(self, status: int, headers: Any) -> None:
        protocol = self._protocol
        self._started = True
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]  # 529 is Anthropic's own
        length = None
        fields = [*protocol.default_headers, *headers]
        breaks = len(fields) + 2
        for name, value in fields:
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and value.lower() == b"close":
                self.keep_alive = False
        if length is not None:
            self._left = length
        elif self._scope["http_version"] == "1.0":
            self._left, self.keep_alive = None, False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
            breaks += 1
        if length is None and self._left is not None and status not in (204, 304):
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
            breaks += 1
        lines.append(b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
            raise RuntimeError("a line break or a NUL in a header")
        self._head = head
        self._flush = protocol.loop.call_soon(self._flush_head)

    def _flush_head(self) -> None:
        """The body is not at hand: the head goes alone."""
        head, self._head = self._head, b""
        if head and not self._gone:
            self._protocol.transport.write(head)

    def _send_body(self, body: bytes, more: bool) -> None:
        head = self._head
        if head:
            self._head = b""
            assert self._flush is not None
            self._flush.cancel()
        if self._scope["method"] == "HEAD":
            data = head
            self._left = 0
        elif self._chunked:
            data = b"%b%x\r\n%b\r\n" % (head, len(body), body) if body else head
            if not more:
                data += b"0\r\n\r\n"
        else:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0:
                    raise RuntimeError("the answer is longer than its content-length")
            data = head + body if head else body
        if data:
            self._protocol.transport.write(data)
        if not more:
            if self._left:
                raise RuntimeError("the answer is shorter than its content-length")
            self._complete = True
            self._wake()
            self._protocol.answered(self)
