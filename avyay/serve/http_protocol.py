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

from avyay.serve.http_exchange import STATUS_LINES, Exchange

__all__ = ["HttpProtocol"]

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
        self._waiting: deque[Exchange] = deque()  # pipelined requests, behind the one that is being answered
        self._answering: Exchange | None = None
        self._reading: Exchange | None = None
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
        for exchange in (self._answering, self._reading, *self._waiting):
            if exchange is not None:
                exchange.lose()
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
        exchange = Exchange(self, scope, expects=self._expects)
        exchange.keep_alive = version != "1.0" and parser.should_keep_alive()
        self._reading = exchange
        if self._answering is None:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
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

    # ------------------------------------------------------------ for the exchanges

    def _start(self, exchange: Exchange) -> None:
        self._answering = exchange
        task = self.loop.create_task(exchange.run(self._app))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def answered(self, exchange: Exchange) -> None:
        """An answer is complete."""
        self._state.total_requests += 1
        self._answering = None
        if not exchange.keep_alive:
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
                % (STATUS_LINES[status], len(text), text)
            )
        self.close()


def _address(found: Any) -> tuple[str, int] | None:
    """Host and port of a socket's name; None for what has none."""
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) and len(found) >= 2 else None
