"""A small gateway that is right until it is told to sin; the kit must find every sin."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn

from avyay.http import async_client
from avyay.marga.conformance.kit import DEFAULT_MODELS
from avyay.marga.conformance.trial import PATHS
from avyay.marga.wire import (
    Dialect,
    Exchange,
    begin,
    default_target,
    forwarded_headers,
    load_body,
    parse_error,
    stream_content_type,
    truncated,
)
from avyay.serve.run import bind

CALLERS = {path: dialect for dialect, path in PATHS.items()}
UPSTREAMS = {name: dialect for dialect, name in DEFAULT_MODELS.items()}


def as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Sin:
    """What it does wrong. `body` changes the request upstream, `whole` and `piece` the bytes of the answer."""

    body: Callable[[dict[str, Any]], dict[str, Any]] = as_it_is
    whole: Callable[[bytes], bytes] = as_it_is
    piece: Callable[[bytes], bytes] = as_it_is
    upstream_piece: Callable[[bytes], bytes] = as_it_is
    headers: Callable[[dict[str, str]], dict[str, str]] = as_it_is
    buffers: bool = False
    deaf: bool = False  # does not notice that its caller has gone
    swallows: bool = False  # errors become answers
    completes: bool = False  # a broken stream gets an ending
    passes_key: bool = False
    fetches: bool = False


class Sinner:
    """The ASGI application."""

    def __init__(self, upstream: str, sin: Sin) -> None:
        self.upstream = upstream
        self.sin = sin
        self.http = async_client()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        raw = b""
        while (message := await receive())["type"] == "http.request":
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        work = asyncio.ensure_future(self.answer(scope, raw, send))
        gone = asyncio.ensure_future(self.gone(receive))
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not self.sin.deaf:
            work.cancel()
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await work

    @staticmethod
    async def gone(receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def answer(self, scope: Any, raw: bytes, send: Any) -> None:
        caller, sin = CALLERS[scope["path"]], self.sin
        body = load_body(raw)
        dialect = UPSTREAMS[body["model"]]
        target = default_target(dialect, body["model"], compatible=dialect == "openai_chat")
        exchange = begin(caller, raw, body, target, exchange_id="ex1", created=1)
        sent = json.dumps(sin.body(json.loads(exchange.body))).encode()
        if sin.fetches:
            for part in body["messages"][-1]["content"]:
                if part["type"] == "image_url":
                    await self.http.get(part["image_url"]["url"])
        headers = {"content-type": "application/json", "authorization": "Bearer sk-own"}
        if sin.passes_key:
            headers["authorization"] = dict(scope["headers"])[b"authorization"].decode()
        request = self.http.build_request("POST", self.upstream + PATHS[dialect], content=sent, headers=headers)
        reply = await self.http.send(request, stream=True)
        try:
            await self.pass_on(caller, exchange, reply, send)
        finally:
            await reply.aclose()

    async def pass_on(self, caller: Dialect, exchange: Exchange, reply: httpx2.Response, send: Any) -> None:
        sin = self.sin
        found = dict(forwarded_headers({k.lower(): v for k, v in reply.headers.items()}))
        if reply.status_code >= 400:
            failure = parse_error(reply.status_code, await reply.aread(), reply.headers)
            status = 200 if sin.swallows else failure.status
            await respond(send, status, exchange.error(failure), sin.headers(found))
        elif not exchange.streaming:
            await respond(send, 200, sin.whole(exchange.reply(await reply.aread()).body), sin.headers(found))
        else:
            head = [(name.encode(), value.encode()) for name, value in sin.headers(found).items()]
            head.append((b"content-type", stream_content_type(caller).encode()))
            await send({"type": "http.response.start", "status": 200, "headers": head})
            kept = b""
            async for out in self.stream(exchange, reply):
                kept += out
                if not sin.buffers:
                    await send({"type": "http.response.body", "body": out, "more_body": True})
            await send({"type": "http.response.body", "body": kept if sin.buffers else b""})

    async def stream(self, exchange: Exchange, reply: httpx2.Response) -> AsyncIterator[bytes]:
        pipe = exchange.stream()
        try:
            async for piece in reply.aiter_raw():
                if out := pipe.feed(self.sin.upstream_piece(piece)):
                    yield self.sin.piece(out)
            rest = pipe.close()
        except httpx2.RemoteProtocolError:
            rest = pipe.fail(truncated())
            if self.sin.completes:
                stop = {"index": 0, "delta": {}, "finish_reason": "stop"}
                last = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "model": "m", "choices": [stop]}
                rest = b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"
        if rest:
            yield self.sin.piece(rest)


async def respond(send: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    found = [(name.encode(), value.encode()) for name, value in headers.items()]
    found.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def sinning_gateway(upstream: str, sin: Sin) -> AsyncIterator[str]:
    """Run it in this event loop; yields its URL."""
    listener = bind("127.0.0.1", 0, name="sinner")
    app = Sinner(upstream, sin)
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None)
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        await app.http.aclose()
