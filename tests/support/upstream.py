"""A scripted provider on loopback that speaks the wire formats of OpenAI, Anthropic and Ollama, faults included.

Each request takes the next `Reply` of the script, or the default. Runs in a thread of its own, so that tests may be
synchronous, asynchronous or in other processes. What it was sent stands in `requests`.

The formats are written from the providers' documentation (platform.openai.com/docs/api-reference,
docs.anthropic.com/en/api/messages-streaming, github.com/ollama/ollama/blob/main/docs/api.md; read November 2026).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


@dataclass
class Reply:
    """What one request gets.

    fault: refuse (the connection is closed unanswered), hang (nothing until the client goes), garbage (200 with no
    JSON), cut (closed after `cut` pieces of the stream, or in the middle of the body).
    delay: seconds before the head. pause: seconds between two pieces.
    """

    text: str = "Hello from upstream."
    status: int = 200
    fault: str | None = None
    cut: int = 2
    delay: float = 0.0
    pause: float = 0.0
    input: int = 12
    output: int = 5
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0
    tool: tuple[str, str] | None = None  # name, arguments
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "scripted error"
    code: str | None = None
    service_tier: str | None = None  # that OpenAI says it served


@dataclass
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


class Upstream:
    """`with Upstream() as upstream:` then point a client at `upstream.url`."""

    def __init__(self) -> None:
        self.default = Reply()
        self.script: deque[Reply] = deque()
        self.by_path: dict[str, Reply] = {}  # what goes before the default, by how a path ends
        self.reply_to: Callable[[Request], Reply] | None = None  # instead of all of them
        self.requests: list[Request] = []
        self.gone = 0  # clients that went before the answer was over
        self.models = ["test-model"]
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Request]:
        """The requests that were completions, not health checks or listings."""
        return [request for request in self.requests if request.method == "POST"]

    def __enter__(self) -> Upstream:
        self._thread.start()
        self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            if self._server is not None:
                self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def down(self) -> None:
        """Stop listening: connections are refused."""

        async def close() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            for task in list(self._tasks):
                task.cancel()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(60)

    def up(self) -> None:
        """Listen again on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(60)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 26)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                if not await self._answer(request, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if request.method != "POST":
            _write(writer, 200, {}, json.dumps(self._listing(request.path)).encode())
            await writer.drain()
            return True
        own = next((reply for end, reply in self.by_path.items() if request.path.endswith(end)), self.default)
        reply = self.script.popleft() if self.script else own
        if self.reply_to is not None:
            reply = self.reply_to(request)
        if reply.fault == "refuse":
            return False
        work = asyncio.ensure_future(self._send(request, reply, writer))
        # A client that goes away is noticed at once, also while nothing is being sent.
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.gone += 1
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            return False
        early = gone.done()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        if early and work.exception() is not None:
            self.gone += 1
            return False
        return work.result() and not early

    def _listing(self, path: str) -> dict[str, Any]:
        if path.startswith("/api/tags"):
            return {"models": [{"name": name, "model": name, "size": 1} for name in self.models]}
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}

    async def _send(self, request: Request, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        if reply.delay:
            await asyncio.sleep(reply.delay)
        if reply.fault == "hang":
            await asyncio.sleep(3600)
        if reply.fault == "garbage":
            _write(writer, 200, {}, b"<html>it works!</html>")
            await writer.drain()
            return True
        if reply.status != 200:
            _write(writer, reply.status, reply.headers, _error(request.path, reply))
            await writer.drain()
            return True
        body = request.body
        stream = body.get("stream", request.path.startswith("/api/"))
        if not stream or "embed" in request.path or request.path.endswith("count_tokens"):
            data = json.dumps(_whole(request.path, body, reply)).encode()
            if reply.fault == "cut":
                writer.write(_head(200, {"content-length": str(len(data)), **reply.headers}) + data[: len(data) // 2])
                await writer.drain()
                return False
            _write(writer, 200, reply.headers, data)
            await writer.drain()
            return True
        kind = "application/x-ndjson" if request.path.startswith("/api/") else "text/event-stream"
        writer.write(_head(200, {"content-type": kind, "transfer-encoding": "chunked", **reply.headers}))
        sent = 0
        async for piece in _pieces(request.path, body, reply):
            if reply.fault == "cut" and sent == reply.cut:
                await writer.drain()
                return False
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            sent += 1
            if reply.pause:
                await asyncio.sleep(reply.pause)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    raw = await reader.readexactly(int(headers.get("content-length", 0)))
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            raw += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return Request(method, path, headers, raw)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Scripted')}"]
    lines += [f"{name}: {value}" for name, value in ({"content-type": "application/json"} | headers).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _write(writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes) -> None:
    writer.write(_head(status, {"content-length": str(len(body)), **headers}) + body)


def _error(path: str, reply: Reply) -> bytes:
    if path.startswith("/api/"):
        return json.dumps({"error": reply.message}).encode()
    kind = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}.get(
        reply.status, "api_error"
    )
    if "/messages" in path:
        error: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": reply.message}}
        return json.dumps(error).encode()
    return json.dumps({"error": {"message": reply.message, "type": kind, "param": None, "code": reply.code}}).encode()


def _chat_usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.input,
        "completion_tokens": reply.output,
        "total_tokens": reply.input + reply.output,
        "prompt_tokens_details": {"cached_tokens": reply.cached},
        "completion_tokens_details": {"reasoning_tokens": reply.reasoning},
    }


def _messages_usage(reply: Reply, output: int) -> dict[str, Any]:
    return {
        "input_tokens": reply.input - reply.cached - reply.cache_written,
        "output_tokens": output,
        "cache_read_input_tokens": reply.cached,
        "cache_creation_input_tokens": reply.cache_written,
    }


def _responses_usage(reply: Reply) -> dict[str, Any]:
    return {
        "input_tokens": reply.input,
        "input_tokens_details": {"cached_tokens": reply.cached},
        "output_tokens": reply.output,
        "output_tokens_details": {"reasoning_tokens": reply.reasoning},
        "total_tokens": reply.input + reply.output,
    }


def _ollama_tail(reply: Reply) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": "stop",
        "total_duration": 5_000_000,
        "load_duration": 1_000_000,
        "prompt_eval_count": reply.input,
        "prompt_eval_duration": 1_000_000,
        "eval_count": reply.output,
        "eval_duration": 3_000_000,
    }


def _response_object(body: dict[str, Any], reply: Reply, status: str) -> dict[str, Any]:
    text = {"type": "output_text", "text": reply.text, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    done = status == "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "model": body["model"],
        "output": [item] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": _responses_usage(reply) if done else None,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
    }


def _whole(path: str, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    model = body.get("model")
    if path.endswith("/embeddings"):
        inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [{"object": "embedding", "index": i, "embedding": [0.1, 0.2]} for i in range(len(inputs))]
        usage = {"prompt_tokens": reply.input, "total_tokens": reply.input}
        return {"object": "list", "data": vectors, "model": model, "usage": usage}
    if path.endswith("/count_tokens"):
        return {"input_tokens": reply.input}
    if "/messages" in path:
        content: list[dict[str, Any]] = [{"type": "text", "text": reply.text}]
        if reply.tool:
            name, arguments = reply.tool
            content.append({"type": "tool_use", "id": "toolu_1", "name": name, "input": json.loads(arguments)})
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": "tool_use" if reply.tool else "end_turn",
            "stop_sequence": None,
            "usage": _messages_usage(reply, reply.output),
        }
    if "/responses" in path:
        return _response_object(body, reply, "completed")
    if path.startswith("/api/"):
        key = {"response": reply.text} if "generate" in path else {"message": _ollama_message(reply)}
        return {"model": model, "created_at": "2026-11-01T00:00:00Z", **key, **_ollama_tail(reply)}
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.tool:
        message["tool_calls"] = [_tool_call(reply.tool)]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if reply.tool else "stop"}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [choice],
        "usage": _chat_usage(reply),
    }


def _tool_call(tool: tuple[str, str]) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": tool[0], "arguments": tool[1]}}


def _ollama_message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.tool:
        name, arguments = reply.tool
        message["tool_calls"] = [{"function": {"name": name, "arguments": json.loads(arguments)}}]
    return message


def _words(text: str) -> list[str]:
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def _sse(data: dict[str, Any], *, named: bool = False) -> bytes:
    event = f"event: {data['type']}\n" if named else ""
    return f"{event}data: {json.dumps(data)}\n\n".encode()


async def _pieces(path: str, body: dict[str, Any], reply: Reply) -> AsyncIterator[bytes]:
    if "/messages" in path:
        for event in _messages_events(body, reply):
            yield _sse(event, named=True)
    elif "/responses" in path:
        for number, event in enumerate(_responses_events(body, reply)):
            yield _sse({**event, "sequence_number": number}, named=True)
    elif path.startswith("/api/"):
        for chunk in _ollama_chunks(path, body, reply):
            yield json.dumps(chunk).encode() + b"\n"
    else:
        for chunk in _chat_chunks(body, reply):
            yield _sse(chunk)
        yield b"data: [DONE]\n\n"


def _chat_chunks(body: dict[str, Any], reply: Reply) -> list[dict[str, Any]]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": body["model"]}
    usage = bool((body.get("stream_options") or {}).get("include_usage"))

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "choices": [choice], **({"usage": None} if usage else {})}

    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": word}) for word in _words(reply.text)]
    if reply.tool:
        chunks.append(chunk({"tool_calls": [{"index": 0, **_tool_call(reply.tool)}]}))
    chunks.append(chunk({}, "tool_calls" if reply.tool else "stop"))
    if usage:
        chunks.append({**head, "choices": [], "usage": _chat_usage(reply)})
    return chunks


def _messages_events(body: dict[str, Any], reply: Reply) -> list[dict[str, Any]]:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _messages_usage(reply, 1),
    }
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
    ]
    events += [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        for word in _words(reply.text)
    ]
    events.append({"type": "content_block_stop", "index": 0})
    if reply.tool:
        name, arguments = reply.tool
        block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": arguments}
        events += [
            {"type": "content_block_start", "index": 1, "content_block": block},
            {"type": "content_block_delta", "index": 1, "delta": delta},
            {"type": "content_block_stop", "index": 1},
        ]
    stop = {"stop_reason": "tool_use" if reply.tool else "end_turn", "stop_sequence": None}
    events += [
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": reply.output}},
        {"type": "message_stop"},
    ]
    return events


def _responses_events(body: dict[str, Any], reply: Reply) -> list[dict[str, Any]]:
    begun, done = _response_object(body, reply, "in_progress"), _response_object(body, reply, "completed")
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    return [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **at, "part": part},
        *({"type": "response.output_text.delta", **at, "delta": word} for word in _words(reply.text)),
        {"type": "response.output_text.done", **at, "text": reply.text},
        {"type": "response.content_part.done", **at, "part": {**part, "text": reply.text}},
        {"type": "response.output_item.done", "output_index": 0, "item": done["output"][0]},
        {"type": "response.completed", "response": done},
    ]


def _ollama_chunks(path: str, body: dict[str, Any], reply: Reply) -> list[dict[str, Any]]:
    head = {"model": body["model"], "created_at": "2026-11-01T00:00:00Z"}

    def text(word: str) -> dict[str, Any]:
        return {"response": word} if "generate" in path else {"message": {"role": "assistant", "content": word}}

    chunks = [{**head, **text(word), "done": False} for word in _words(reply.text)]
    if reply.tool and "generate" not in path:
        message = {**_ollama_message(reply), "content": ""}
        chunks.append({**head, "message": message, "done": False})
    return [*chunks, {**head, **text(""), **_ollama_tail(reply)}]
