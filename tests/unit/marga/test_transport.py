"""The transport against a server that sends exactly the bytes it is told to, however they are cut."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upstream import Reply, Upstream

from avyay.marga.transport import Deadline, Endpoint, Transport, TransportError

CHAT = b'{"model": "m", "messages": []}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"


class Script:
    """A server that answers each request with the next list of pieces; None closes, a float waits."""

    def __init__(self, *answers: list[bytes | float | None]) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.requests: list[bytes] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
                self.requests.append(head + await reader.readexactly(size))
                for piece in self.answers.pop(0):
                    if piece is None:
                        return
                    if isinstance(piece, float):
                        await asyncio.sleep(piece)
                        continue
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError, IndexError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def run(script: Script, work: Callable[[Transport, Endpoint], Awaitable[None]], **options: float) -> None:
    async def main() -> None:
        server = await asyncio.start_server(script, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport = Transport(**options)  # type: ignore[arg-type]
        try:
            await work(transport, Endpoint("POST", f"http://127.0.0.1:{port}/path?x=1", {"authorization": "Bearer k"}))
        finally:
            await transport.aclose()
            server.close()
            for task in script.tasks:
                task.cancel()
            await asyncio.gather(*script.tasks, return_exceptions=True)
            await asyncio.sleep(0)

    asyncio.run(main())


def cut(data: bytes, places: list[int]) -> list[bytes | float | None]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


BODY = b"some text that is neither short nor long"
ENCODINGS = {
    "length": HEAD + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY),
    "chunked": HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nsome \r\n23\r\n" + BODY[5:] + b"\r\n0\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    + HEAD
    + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY),
    "gzip": HEAD
    + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(gzip.compress(BODY, mtime=0))
    + gzip.compress(BODY, mtime=0),
}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(ENCODINGS)), st.lists(st.integers(0, 400), max_size=12))
def test_however_the_bytes_are_cut(encoding: str, places: list[int]) -> None:
    script = Script(cut(ENCODINGS[encoding], places), cut(ENCODINGS[encoding], places))

    async def work(transport: Transport, endpoint: Endpoint) -> None:
        for _ in range(2):
            reply = await transport.send(endpoint, b"question", {"x-more": "1"})
            assert (reply.status, reply.headers["content-type"]) == (200, "text/plain")
            assert await reply.read() == BODY
            reply.close()
        assert script.connections == 1  # kept alive

    run(script, work)
    assert script.requests[0].startswith(b"POST /path?x=1 HTTP/1.1\r\n")
    assert b"authorization: Bearer k\r\nx-more: 1\r\ncontent-length: 8\r\n\r\nquestion" in script.requests[0]


def test_a_body_until_the_connection_closes() -> None:
    async def work(transport: Transport, endpoint: Endpoint) -> None:
        reply = await transport.send(endpoint, b"")
        assert await reply.read() == BODY

    run(Script([HEAD + b"\r\n" + BODY, None]), work)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ([None], "broken"),
        ([b"HTTP/1.1 200 OK\r\ncontent-le", None], "broken"),
        ([b"SSH-2.0-OpenSSH_9\r\n\r\n"], "broken"),
        ([b"HTTP/1.1 200 OK\r\n" + b"x: some value\r\n" * 30_000], "broken"),
        ([HEAD + b"content-length: 100\r\n\r\nshort", None], "broken"),
        ([HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"], "broken"),
        ([HEAD + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nnope"], "broken"),
        ([HEAD + b"content-length: 100\r\n\r\nshort", 60.0], "timeout"),
    ],
)
def test_what_goes_wrong(answer: list[bytes | float | None], fault: str) -> None:
    async def work(transport: Transport, endpoint: Endpoint) -> None:
        with pytest.raises(TransportError) as caught:
            await (await transport.send(endpoint, b"x")).read()
        assert caught.value.fault == fault
        assert transport.connections <= 1

    async def closing(transport: Transport, endpoint: Endpoint) -> None:
        await work(transport, endpoint)
        await transport.aclose()
        assert transport.connections == 0

    run(Script(answer), closing, idle_timeout=0.1)


def test_refused() -> None:
    async def main() -> None:
        transport = Transport()
        with pytest.raises(TransportError) as caught:
            await transport.send(Endpoint("GET", "http://127.0.0.1:1/", {}))
        assert caught.value.fault == "connect"

    asyncio.run(main())


def test_a_connection_closed_while_idle_is_replaced() -> None:
    whole = ENCODINGS["length"]
    script = Script([whole, None], [whole])

    async def work(transport: Transport, endpoint: Endpoint) -> None:
        for _ in range(2):
            reply = await transport.send(endpoint, b"x")
            assert await reply.read() == BODY
        assert script.connections == 2

    run(script, work)


def test_a_deadline_fails_a_waiting_call() -> None:
    async def work(transport: Transport, endpoint: Endpoint) -> None:
        deadline = Deadline()
        asyncio.get_running_loop().call_later(0.02, deadline.fail, TransportError("timeout", "given up"))
        with pytest.raises(TransportError, match="given up"):
            await transport.send(endpoint, b"x", None, deadline)
        assert transport.connections == 0

    run(Script([60.0]), work)


@pytest.mark.parametrize("held_up", [True, False], ids=["we are held up", "the other side is silent"])
def test_time_in_which_we_are_held_up_is_not_the_other_sides(held_up: bool) -> None:
    """libuv runs its timers before it reads: what came meanwhile must not be taken for silence."""

    async def work(url: str) -> None:
        transport, deadline = Transport(), Deadline()
        request = asyncio.ensure_future(
            transport.send(Endpoint("POST", f"{url}/v1/chat/completions", {}), CHAT, None, deadline)
        )
        deadline.start(0.2)
        if held_up:
            asyncio.get_running_loop().call_soon(time.sleep, 0.6)
            assert (await request).status == 200
        else:
            with pytest.raises(TransportError, match="no answer in time"):
                await request
        deadline.cancel()
        await transport.aclose()

    with Upstream() as upstream:
        if not held_up:
            upstream.default = Reply(fault="hang")
        new_loop = pytest.importorskip("uvloop").new_event_loop
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(work(upstream.url))


def test_a_slow_reader_holds_the_sender_back() -> None:
    block = b"z" * 65_536
    head = HEAD + b"content-length: %d\r\n\r\n" % (64 * len(block))

    async def work(transport: Transport, endpoint: Endpoint) -> None:
        reply = await transport.send(endpoint, b"x")
        await asyncio.sleep(0.05)
        assert reply._held < 1 << 21
        assert len(await reply.read()) == 64 * len(block)

    run(Script([head, *([block] * 64)]), work)


def test_headers_cannot_be_smuggled() -> None:
    with pytest.raises(ValueError, match="line break"):
        Endpoint("GET", "http://x/", {"a": "b\r\nc: d"})
