"""A provider on loopback that speaks every dialect, answers as scripted, and keeps what reached it.

A request finds its script by a marker in its text, so that probes, retries and concurrent cases never mix.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from avyay.errors import UsageError
from avyay.marga.conformance.scripted import Script, Tokens, stream, whole
from avyay.marga.conformance.seen import read_request
from avyay.marga.wire.model import Dialect

__all__ = ["MARKER", "Answer", "Arrived", "Upstream"]

MARKER = re.compile(rb"conformance-[0-9a-f]{12}")
_PATIENCE = 10.0  # seconds a held answer waits for its release at most

_DIALECTS: tuple[tuple[str, Dialect], ...] = (
    ("/chat/completions", "openai_chat"),
    ("/responses", "openai_responses"),
    ("/messages", "anthropic_messages"),
    ("/api/chat", "ollama_chat"),
    ("/api/generate", "ollama_generate"),
)
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@dataclass(slots=True)
class Answer:
    """How to answer one marker's requests.

    Attributes:
        status: With 400 and above the script is not used: the dialect's error envelope is sent.
        rewrite: Changes the bytes of a stream before they are sent.
        error_at: Part of the stream (0 to 1) after which an error event ends it.
        cut_at: Part of the answer after which the connection is closed.
        sizes: Bytes of each write, repeated; empty writes all at once.
        hold_at: Part of the answer (0: nothing yet) after which `release` is awaited.
        held, gone: Set when it waits, and when the client hung up before the end.
    """

    script: Script = field(default_factory=lambda: Script(text="Fine.", tokens=Tokens(3, output=2)))
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "scripted failure"
    rewrite: Callable[[Dialect, bytes], bytes] | None = None
    error_at: float | None = None
    cut_at: float | None = None
    sizes: Sequence[int] = ()
    hold_at: float | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request as it reached the provider. `dialect` is None for side endpoints."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    raw: bytes
    dialect: Dialect | None

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Upstream:
    """`async with Upstream() as upstream:`; requests are kept by marker in `arrived`, the rest in `others`."""

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.answers: dict[bytes, Answer] = {}
        self.arrived: dict[bytes, list[Arrived]] = {}
        self.others: list[Arrived] = []
        self.url = ""

    async def __aenter__(self) -> Upstream:
        try:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        except OSError as error:
            raise UsageError(
                f"Port {self._port} cannot be used: {error.strerror}.", hint="Choose another: --upstream-port PORT"
            ) from error
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (request := await _read(reader)) is not None:
                if not await self._serve(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, ValueError):
            pass  # a client that breaks off or sends no HTTP loses its connection, nothing else
        except asyncio.CancelledError:
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, request: Arrived, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False closes the connection."""
        found = MARKER.findall(request.raw)
        marker = found[-1] if found else b""
        if marker in self.answers:
            self.arrived.setdefault(marker, []).append(request)
        else:
            self.others.append(request)
        answer = self.answers.get(marker) or Answer()
        if request.dialect is None or request.path.endswith(("/count_tokens", "/embeddings", "/embed")):
            writer.write(_head(200, {}, _side(request)))
            await writer.drain()
            return True
        work = asyncio.ensure_future(self._answer(request, request.dialect, answer, writer))
        watch = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            answer.gone.set()
            work.cancel()
        watch.cancel()
        done, _ = await asyncio.gather(work, watch, return_exceptions=True)
        return done is True

    async def _answer(self, request: Arrived, dialect: Dialect, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        if answer.hold_at == 0:
            await _hold(answer)
        if not _readable(request, dialect):
            answer = Answer(status=400, message="the request cannot be read")
        if answer.status >= 400:
            body = _dump(_error(dialect, answer)).encode()
            writer.write(_head(answer.status, answer.headers, body))
            await writer.drain()
            return True
        streaming = request.body.get("stream", dialect.startswith("ollama"))
        if not streaming:
            body = whole(dialect, answer.script)
            if answer.rewrite is not None:
                body = answer.rewrite(dialect, body)
            head = _head(200, answer.headers, body)
            if answer.cut_at is not None:
                writer.write(head[: len(head) - len(body) + int(len(body) * answer.cut_at)])
                await writer.drain()
                return False
            writer.write(head)
            await writer.drain()
            return True
        return await self._stream(request, dialect, answer, writer)

    async def _stream(self, request: Arrived, dialect: Dialect, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        usage = dialect != "openai_chat" or bool((request.body.get("stream_options") or {}).get("include_usage"))
        data = stream(dialect, answer.script, usage=usage)
        if answer.rewrite is not None:
            data = answer.rewrite(dialect, data)
        broken = answer.cut_at if answer.cut_at is not None else answer.error_at
        if broken is not None:
            data = _events_until(dialect, data, broken)
        if answer.error_at is not None:
            data += _error_event(dialect, data, answer)
        kind = "application/x-ndjson" if dialect.startswith("ollama") else "text/event-stream"
        headers = {"content-type": kind, "transfer-encoding": "chunked", **answer.headers}
        writer.write(_status_line(200, headers))
        if answer.hold_at:
            first = _events_until(dialect, data, answer.hold_at)
            writer.write(_chunk(first))
            await writer.drain()
            await _hold(answer)
            data = data[len(first) :]
        for piece in _cut(data, answer.sizes):
            writer.write(_chunk(piece))
            await writer.drain()
            if answer.sizes:
                await asyncio.sleep(0)
        if answer.cut_at is not None:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _hold(answer: Answer) -> None:
    answer.held.set()
    try:
        await asyncio.wait_for(answer.release.wait(), _PATIENCE)
    except TimeoutError:
        pass


async def _read(reader: asyncio.StreamReader) -> Arrived | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    raw = await reader.readexactly(int(headers.get("content-length", 0)))
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            raw += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    path, _, query = target.partition("?")
    dialect = next((d for ending, d in _DIALECTS if path.endswith(ending)), None) if method == "POST" else None
    return Arrived(method, path, query, headers, raw, dialect)


def _readable(request: Arrived, dialect: Dialect) -> bool:
    """A request of wrong types is refused, as any provider would."""
    try:
        read_request(dialect, request.body)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return True


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _status_line(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _head(status: int, headers: dict[str, str], body: bytes) -> bytes:
    """A whole answer, head and body."""
    given = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    return _status_line(status, given) + body


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n" if data else b""


def _cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    if not sizes:
        return [data]
    out: list[bytes] = []
    at = 0
    while at < len(data):
        size = sizes[len(out) % len(sizes)]
        out.append(data[at : at + size])
        at += size
    return out


def _events_until(dialect: Dialect, data: bytes, part: float) -> bytes:
    """The first events of a stream, about `part` of them; never none and never all."""
    end = b"\n" if dialect.startswith("ollama") else b"\n\n"
    events = [event + end for event in data.split(end) if event]
    return b"".join(events[: min(len(events) - 1, max(1, round(len(events) * part)))])


def _error(dialect: Dialect, answer: Answer) -> dict[str, Any]:
    kind = _ERROR_TYPES.get(answer.status if answer.status >= 400 else 500, "api_error")
    if dialect == "anthropic_messages":
        return {"type": "error", "error": {"type": kind, "message": answer.message}, "request_id": "req_scripted"}
    if dialect.startswith("ollama"):
        return {"error": answer.message}
    kind = {"api_error": "server_error", "overloaded_error": "server_error"}.get(kind, kind)
    return {"error": {"message": answer.message, "type": kind, "param": None, "code": None}}


def _error_event(dialect: Dialect, sent: bytes, answer: Answer) -> bytes:
    """How each provider says in mid-stream that it failed."""
    if dialect == "openai_chat":
        return f"data: {_dump(_error(dialect, answer))}\n\n".encode()
    if dialect == "anthropic_messages":
        event = _dump({"type": "error", "error": {"type": "overloaded_error", "message": answer.message}})
        return f"event: error\ndata: {event}\n\n".encode()
    if dialect == "openai_responses":
        number = sent.count(b"\n\n")
        event = _dump(
            {
                "type": "error",
                "code": "server_error",
                "message": answer.message,
                "param": None,
                "sequence_number": number,
            }
        )
        return f"event: error\ndata: {event}\n\n".encode()
    return (_dump({"error": answer.message}) + "\n").encode()


def _side(request: Arrived) -> bytes:
    path = request.path
    if path.endswith("/count_tokens"):
        return b'{"input_tokens":42}'
    if path.endswith("/embeddings"):
        given = request.body.get("input")
        count = len(given) if isinstance(given, list) else 1
        data = [{"object": "embedding", "index": i, "embedding": [0.25, -0.5]} for i in range(count)]
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        return _dump({"object": "list", "data": data, "model": request.body["model"], "usage": usage}).encode()
    if path.endswith("/api/embed"):
        given = request.body.get("input")
        vectors = [[0.25, -0.5]] * (len(given) if isinstance(given, list) else 1)
        return _dump({"model": request.body["model"], "embeddings": vectors, "prompt_eval_count": 7}).encode()
    if path.endswith("/models"):
        return b'{"object":"list","data":[],"has_more":false}'
    if path.endswith("/api/tags"):
        return b'{"models":[]}'
    return b"{}"
