"""HTTP/1.1 on the wire: whatever way the bytes are cut, each request gets its answer, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from daemon import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.serve.http_protocol import HttpProtocol
from avyay.serve.run import bind


class Echo:
    """Answers with what it was sent; paths ask for more."""

    def __init__(self) -> None:
        self.gone = 0
        self.bodies: list[bytes] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        path = scope["path"]
        start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
        if path == "/early":
            await send({**start, "status": 401, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"no"})
            return
        if path == "/529":
            await send({**start, "status": 529, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            return
        if path == "/fails":
            raise ValueError("a bug")
        if path == "/injects":
            await send({**start, "headers": [(b"x-name", b"a\r\nx-evil: b"), (b"content-length", b"0")]})
            return
        if path == "/waits":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone += 1
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        self.headers.append(scope["headers"])
        text = b"%b %b %b" % (scope["method"].encode(), path.encode(), body)
        if path == "/chunks":
            await send(start)
            for at in range(0, len(text), 5):
                await send({"type": "http.response.body", "body": text[at : at + 5], "more_body": True})
                await asyncio.sleep(0)
            await send({"type": "http.response.body"})
        elif path == "/head-first":
            await send(start)
            await asyncio.sleep(0.05)
            await send({"type": "http.response.body", "body": text})
        else:
            await send({**start, "headers": [(b"content-length", b"%d" % len(text))]})
            await send({"type": "http.response.body", "body": text})


class Server:
    def __init__(self) -> None:
        self.app = Echo()
        self._listener = bind("127.0.0.1", 0, name="test")
        self.port = self._listener.getsockname()[1]
        config = uvicorn.Config(self.app, http=HttpProtocol, ws="none", log_config=None, timeout_graceful_shutdown=5)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started)

    def _run(self) -> None:
        asyncio.run(self.server.serve(sockets=[self._listener]))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def talk(self, *pieces: bytes, end: bytes | None = None) -> bytes:
        """Send the pieces one by one; everything that comes back until `end`, or until the server hangs up."""
        with self.connect() as caller:
            for piece in pieces:
                caller.sendall(piece)
                if len(pieces) > 1:
                    time.sleep(0.001)
            return read(caller, end)


def read(caller: socket.socket, end: bytes | None = None) -> bytes:
    got = b""
    while end is None or not got.endswith(end):
        part = caller.recv(65536)
        if not part:
            break
        got += part
    return got


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.server.should_exit = True
    running.thread.join(60)
    assert not running.thread.is_alive()


def bodies(raw: bytes) -> list[bytes]:
    """The bodies of answers with a length or in chunks."""
    found = []
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if b"content-length" in fields:
            size = int(fields[b"content-length"])
            body, raw = raw[:size], raw[size:]
        else:
            body = b""
            while True:
                length, _, raw = raw.partition(b"\r\n")
                size = int(length, 16)
                piece, raw = raw[:size], raw[size + 2 :]
                body += piece
                if not size:
                    break
        found.append(body)
    return found


def post(path: str, body: bytes, *, close: bool = False, chunked: bool = False, upgrade: bool = False) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n" + ("Connection: close\r\n" if close else "")
    if upgrade:  # as Java's client does with every request in clear text
        head += "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    if not chunked:
        return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
    return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\nX-Late: 1\r\n\r\n"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pipelined_requests_cut_anywhere_are_answered_in_order(server: Server, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    requests, expected = b"", []
    for number in range(count):
        body = data.draw(st.binary(max_size=60))
        path = data.draw(st.sampled_from(["/a", "/chunks", "/b%20c"]))
        chunked, upgrade = data.draw(st.booleans()), data.draw(st.booleans())
        requests += post(path, body, close=number == count - 1, chunked=chunked, upgrade=upgrade)
        expected.append(b"POST %b %b" % (path.replace("%20", " ").encode(), body))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(requests) - 1), max_size=4)))
    pieces = [requests[a:b] for a, b in zip([0, *cuts], [*cuts, len(requests)], strict=True)]
    server.app.headers.clear()
    assert bodies(server.talk(*pieces)) == expected
    assert b"x-late" not in {name for headers in server.app.headers for name, _ in headers}


def test_a_connection_is_used_again(server: Server) -> None:
    with server.connect() as caller:
        for number in range(3):
            caller.sendall(post("/a", b"%d!" % number))
            assert read(caller, b"!").startswith(b"HTTP/1.1 200 OK\r\n")


def test_head_leaves_with_the_body_or_alone(server: Server) -> None:
    with server.connect() as caller:
        caller.sendall(post("/a", b"!"))
        assert caller.recv(65536).endswith(b"POST /a !")  # one packet
        caller.sendall(post("/head-first", b"!"))
        assert caller.recv(65536).endswith(b"\r\n\r\n")  # the head does not wait for the body


def test_head_and_http_1_0(server: Server) -> None:
    got = server.talk(b"HEAD /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"content-length: 8\r\n" in got
    assert got.endswith(b"\r\n\r\n")
    got = server.talk(b"GET /chunks HTTP/1.0\r\n\r\n")
    assert b"transfer-encoding" not in got
    assert got.endswith(b"\r\n\r\nGET /chunks ")


def test_expect_continue(server: Server) -> None:
    with server.connect() as caller:
        caller.sendall(b"POST /a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert caller.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(b"hi")
        assert read(caller, b"hi").endswith(b"POST /a hi")


def test_a_body_nobody_reads_is_dropped(server: Server) -> None:
    with server.connect() as caller:
        caller.sendall(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        assert b" 401 " in read(caller, b"no")
        caller.sendall(b"x" * 1_000_000 + post("/a", b"next"))
        assert read(caller, b"next").endswith(b"POST /a next")


def test_a_large_body_is_held_back_not_lost(server: Server) -> None:
    body = bytes(range(256)) * 8192
    got = server.talk(post("/a", body, close=True))
    assert bodies(got) == [b"POST /a " + body]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"POST /a HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /a HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"GET /a HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /a HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /a HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", b"400"),
        (b"GET /a HTTP/2.0\r\nhost: x\r\n\r\n", b"505"),
        (b"GET /a\r\n\r\n", b"505"),
        (b"GET /a#b HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\nGET /a HTTP/1.1\r\nhost: x\r\n\r\n", b"405"),
        (b"POST /a HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        *(
            (b"POST /a HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n3\r\nabc\r\n0\r\n\r\n" % coding, b"400")
            for coding in (
                b"transfer-encoding: xchunked",
                b"transfer-encoding: gzip, chunked",
                b"transfer-encoding: identity\r\ntransfer-encoding: chunked",
                b"transfer-encoding: chunked;q=1",
                b"transfer-encoding: identity",
            )
        ),
        (b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nabc\r\n", b"400"),
        (b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n", b"400"),
    ],
    ids=[
        *("nonsense", "two-lengths", "negative-length", "long-header", "long-url", "no-host", "two-hosts", "http-2"),
        *("http-0.9", "fragment", "connect", "chunks-of-1.0", "coding", "gzip", "two-codings", "coding-with-a-word"),
        *("identity", "huge-chunk", "wrong-chunk"),
    ],
)
def test_what_is_no_http_is_refused(server: Server, raw: bytes, status: bytes) -> None:
    assert server.talk(raw).split(b" ")[1] == status
    assert b" 200 " in server.talk(post("/a", b"", close=True))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_no_http_behind_requests_is_refused_once_they_are_answered(server: Server, data: st.DataObject) -> None:
    """Also where it comes while the first of them is still at work."""
    paths = data.draw(st.lists(st.sampled_from(["/a", "/chunks", "/head-first"]), min_size=1, max_size=3))
    requests = b"".join(post(path, b"%d" % number) for number, path in enumerate(paths))
    status, garbage = data.draw(
        st.sampled_from(
            [
                (b"400", b"NONSENSE\r\n\r\n"),
                (b"400", b"GET /a HTTP/1.1\r\n\r\n"),
                (b"505", b"GET /a HTTP/2.0\r\nhost: x\r\n\r\n"),
                (b"400", b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n"),
            ]
        )
    )
    cut = data.draw(st.integers(1, len(requests)))
    behind = data.draw(st.sampled_from([b"", post("/a", b"never")]))
    before = len(server.app.bodies)
    got = server.talk(requests[:cut], requests[cut:] + garbage + behind)
    *answers, refusal = bodies(got)
    assert answers == [b"POST %b %d" % (path.encode(), number) for number, path in enumerate(paths)]
    assert b"HTTP/1.1 %b " % status in got
    assert got.endswith(b"connection: close\r\n\r\n" + refusal)
    assert b"never" not in server.app.bodies[before:]


def test_a_caller_that_leaves_behind_what_is_no_http_is_let_go(server: Server) -> None:
    connections = len(server.server.server_state.connections)
    with server.connect() as caller:
        caller.sendall(post("/head-first", b"") + b"NONSENSE\r\n\r\n")
    wait_for(lambda: len(server.server.server_state.connections) <= connections)


def test_an_upgrade_is_not_taken(server: Server) -> None:
    got = server.talk(b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", end=b"GET /a ")
    assert got.startswith(b"HTTP/1.1 200 OK")


def test_a_body_behind_an_offered_upgrade_is_no_request(server: Server) -> None:
    """A proxy takes it for a body: answered as a request of its own, it would get the next caller's place."""
    inner = post("/b%20c", b"smuggled")
    head, _, body = post("/a", inner, upgrade=True).partition(b"\r\n\r\n")
    last = post("/a", b"next", close=True)
    for pieces in (
        [head + b"\r\n\r\n", body, last],
        [head + b"\r\n\r\n" + body, last],
        [head + b"\r\n\r\n" + body + last],
    ):
        assert bodies(server.talk(*pieces)) == [b"POST /a " + inner, b"POST /a next"]


def test_a_status_without_a_name(server: Server) -> None:
    assert server.talk(post("/529", b"", close=True)).startswith(b"HTTP/1.1 529 \r\n")


def test_faults_of_the_application(server: Server) -> None:
    got = server.talk(post("/fails", b""))
    assert got.startswith(b"HTTP/1.1 500 ")
    got = server.talk(post("/injects", b""))
    assert b"evil" not in got


def test_a_caller_that_leaves_is_noticed(server: Server) -> None:
    before = server.app.gone
    with server.connect() as caller:
        caller.sendall(post("/waits", b""))
        time.sleep(0.05)
    wait_for(lambda: server.app.gone == before + 1)
    with server.connect() as caller:
        caller.sendall(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf")
        time.sleep(0.05)
    wait_for(lambda: server.app.gone == before + 2)


def test_the_answer_under_way_is_finished_before_the_server_ends() -> None:
    own = Server()
    with own.connect() as idle, own.connect() as caller:
        caller.sendall(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nh")
        time.sleep(0.05)
        own.server.should_exit = True
        assert idle.recv(10) == b""  # nothing was under way there
        caller.sendall(b"i")
        got = read(caller)
    assert got.endswith(b"POST /a hi")
    assert b"connection: close" in got
    own.thread.join(60)
    assert not own.thread.is_alive()
