"""HTTP/1.1 for uvicorn's server, written for small messages: a third of the cost of uvicorn's own protocol class.

Head and body of an answer leave in one packet, headers are checked together, and a connection has one timer for all its
requests. No WebSocket, no upgrade, no proxies' headers: nothing a daemon of ours speaks. The figures are in
docs/decisions/0002-router-data-plane.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import httptools

from avyay.log import get_logger

__all__ = ["HttpProtocol"]

_STATUS_LINES: dict[int, bytes] = {
    int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_BODY_HELD = 64 * 1024  # bytes of a request held before its connection is no longer read
_HEAD_LIMIT = 64 * 1024  # bytes of the head of a request
_FRAMING = frozenset({b"host", b"expect", b"transfer-encoding", b"content-length"})


class HttpProtocol(asyncio.Protocol):
    """One connection. The arguments and `shutdown` are what `uvicorn.Config(http=...)` asks for."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        if not config.loaded:
            config.load()
        self._app = config.loaded_app
        self._state = server_state
        self._app_state = app_state
        self._keep_alive = float(config.timeout_keep_alive)
        self.loop: asyncio.AbstractEventLoop = _loop or asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._waiting: deque[_Cycle] = deque()  # pipelined requests, behind the one that is being answered
        self._answering: _Cycle | None = None
        self._reading: _Cycle | None = None
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ending = False
        self._refusal: HTTPStatus | None = None  # said once those before it have their answers
        self._read_paused = False
        self.writable: asyncio.Future[None] | None = None  # while the other side does not take what we write
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._expects = False
        self._hosts = 0
        self._coding: list[bytes] = []  # Transfer-Encoding, as often as it came
        self._length = b""
        self._body_to_come = b""  # how the body is framed that the parser takes for another protocol
        self._resuming = False
        self.transport: Any = None
        self.server: tuple[str, int] | None = None
        self.client: tuple[str, int] | None = None

    # ------------------------------------------------------------ asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._state.connections.add(self)
        self.server = _address(transport.get_extra_info("sockname"))
        self.client = _address(transport.get_extra_info("peername"))
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(self._keep_alive, self._look_at_idleness)

    def connection_lost(self, error: Exception | None) -> None:
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        for cycle in (self._answering, self._reading, *self._waiting):
            if cycle is not None:
                cycle.lose()
        self._waiting.clear()
        self._answering = self._reading = self._parser = None  # they hold us as we hold them

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._ending or self._refusal is not None:
            return
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST)

    def _feed(self, data: bytes) -> bytes:
        """Parse; what is left when a request offered to speak something else.

        We speak nothing else, so the request is answered as it stands. But the parser takes its body for that other
        protocol, and would take it for the next request: it is told anew how the body is framed.
        """
        try:
            self._parser.feed_data(data)
            return b""
        except httptools.HttpParserUpgrade as offer:
            rest = data[offer.args[0] :]
        if self._ending or self._parser is None or self._refusal is not None:
            return b""
        if self._body_to_come:
            self._parser = httptools.HttpRequestParser(self)
            self._resuming = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\n" + self._body_to_come + b"\r\n\r\n")
        return rest

    def pause_writing(self) -> None:
        if self.writable is None:
            self.writable = self.loop.create_future()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def shutdown(self) -> None:
        """The server ends: after the answer under way, or now when there is none."""
        if self._answering is None:
            self.transport.close()
        else:
            self._answering.keep_alive = False

    # ------------------------------------------------------------ httptools

    def on_message_begin(self) -> None:
        self._url, self._headers, self._head_size, self._expects = b"", [], 0, False
        self._hosts, self._coding, self._length = 0, [], b""

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._measure(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _FRAMING:
            self._note(name, value)
        self._headers.append((name, value))
        self._measure(len(name) + len(value))

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif name == b"transfer-encoding":
            self._coding.append(value)
        else:
            self._length = value

    def _check(self, method: bytes, version: str) -> None:
        """What the parser lets pass and no two parties need to read alike (RFC 9112 2.3, 3.2, 6.1)."""
        codings = [one.strip().lower() for one in self._coding]
        fine = self._hosts == 1 or (not self._hosts and version == "1.0")
        if version not in ("1.1", "1.0"):
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        elif method == b"CONNECT":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        elif not fine or (codings and (version == "1.0" or codings != [b"chunked"])):
            self._refuse(HTTPStatus.BAD_REQUEST)
        else:
            return
        raise ValueError("the request is not one that everybody reads alike")

    def _measure(self, size: int) -> None:
        self._head_size += size
        if self._head_size > _HEAD_LIMIT:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise ValueError("the head of the request is too long")

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        parser = self._parser
        method, version = parser.get_method(), parser.get_http_version()
        self._check(method, version)
        url = httptools.parse_url(self._url)
        if url.fragment is not None:
            self._refuse(HTTPStatus.BAD_REQUEST)
            raise ValueError("a request's target has no fragment")
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "root_path": "",
            "method": method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "headers": self._headers,
            "state": self._app_state.copy() if self._app_state else {},
        }
        self._headers = []  # what comes after the body is no header, and must not pass for one
        if parser.should_upgrade():
            framing = b"transfer-encoding: chunked" if self._coding else b"content-length: " + self._length
            self._body_to_come = framing if self._coding or self._length.strip(b"0") else b""
        cycle = _Cycle(self, scope, expects=self._expects)
        cycle.keep_alive = version != "1.0" and parser.should_keep_alive()
        self._reading = cycle
        if self._answering is None:
            self._start(cycle)
        else:
            self._waiting.append(cycle)
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        if self._reading is not None and self._reading.take(body):
            self.pause_reading()

    def on_message_complete(self) -> None:
        if self._body_to_come and not self._resuming:
            return  # it is still to come
        self._body_to_come, self._resuming = b"", False
        if self._reading is not None:
            self._reading.end_of_body()
            self._reading = None

    # ------------------------------------------------------------ for the cycles

    def _start(self, cycle: _Cycle) -> None:
        self._answering = cycle
        task = self.loop.create_task(cycle.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def answered(self, cycle: _Cycle) -> None:
        """An answer is complete."""
        self._state.total_requests += 1
        self._answering = None
        if not cycle.keep_alive:
            self.close()
            return
        self._idle_since = self.loop.time()
        if self._waiting:
            self._start(self._waiting.popleft())
        elif self._refusal is not None:
            self._say(self._refusal)
            return
        if not self._waiting:
            self.resume_reading()  # also what is left of a request that nobody read to its end

    def close(self) -> None:
        """Close once what was written has left."""
        self._ending = True
        if self.transport is not None:
            self.transport.close()

    async def drain(self) -> None:
        """Wait until the other side takes what is written."""
        if self.writable is not None:
            await self.writable

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Of every answer: the date."""
        found: list[tuple[bytes, bytes]] = self._state.default_headers
        return found

    def pause_reading(self) -> None:
        if not self._read_paused:
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()

    def _look_at_idleness(self) -> None:
        idle = self.loop.time() - self._idle_since
        if self._answering is None and idle >= self._keep_alive:
            self.close()
            return
        wait = self._keep_alive if self._answering is not None else self._keep_alive - idle
        self._timer = self.loop.call_later(wait, self._look_at_idleness)

    def _refuse(self, status: HTTPStatus) -> None:
        """The request is no HTTP: say so once those before it are answered, and hang up."""
        if self._ending or self._refusal is not None:
            return
        reading, self._reading = self._reading, None
        if self._answering is None or (reading is self._answering and reading.give_up()):
            self._say(status)  # where its head was fine, nothing has been said to it
        elif reading is self._answering:
            self.close()  # in the middle of its answer
        else:
            if reading is not None and reading in self._waiting:
                self._waiting.remove(reading)
            self._refusal = status
            self.pause_reading()

    def _say(self, status: HTTPStatus) -> None:
        """Answer without the application, and hang up."""
        if not self.transport.is_closing():
            text = status.phrase.encode()
            self.transport.write(
                b"%bcontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (_STATUS_LINES[status], len(text), text)
            )
        self.close()


class _Cycle:
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

    def __init__(self, protocol: HttpProtocol, scope: dict[str, Any], *, expects: bool) -> None:
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
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]  # 529 is Anthropic's own
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


def _address(found: Any) -> tuple[str, int] | None:
    """Host and port of a socket's name; None for what has none."""
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) and len(found) >= 2 else None
