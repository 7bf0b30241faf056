"""A provider inside this process: answers at once, or as told. For tests and demonstrations, without a network."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from avyay.marga.backends.base import Outgoing
from avyay.marga.tokens import estimate_tokens
from avyay.marga.transport import Deadline, Transport, TransportError
from avyay.marga.types import Dialect, Model, Provider

__all__ = ["FakeAnswer", "FakeBackend"]


@dataclass(frozen=True, slots=True)
class FakeAnswer:
    """What the next call gets.

    Attributes:
        text: Streamed word by word.
        status: Other than 200: an error with `text` as its message.
        fault: Instead of an answer: connect, timeout or broken.
        cut: The stream breaks off after this many pieces.
        delay: Seconds before the first byte.
    """

    text: str = "ok"
    status: int = 200
    fault: str | None = None
    cut: int | None = None
    delay: float = 0.0
    input: int | None = None
    output: int | None = None
    headers: Mapping[str, str] | None = None


class FakeBackend:
    """Speaks OpenAI chat. Answers what `script` holds, one entry a call, and then repeats the last user message."""

    dialects: tuple[Dialect, ...] = ("openai_chat",)

    def __init__(self, provider: Provider, transport: Transport | None = None) -> None:
        self.provider = provider
        self.script: deque[FakeAnswer] = deque()
        self.calls: list[dict[str, Any]] = []

    async def open(self, call: Outgoing, deadline: Deadline | None = None) -> _FakeIncoming:
        request = orjson.loads(call.body)
        self.calls.append(request)
        answer = self.script.popleft() if self.script else FakeAnswer(_echo(request))
        if answer.delay:
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()
            timer = loop.call_later(answer.delay, _wake, waiter)
            if deadline is not None:
                deadline.watch(waiter)
            try:
                await waiter
            finally:
                timer.cancel()
        if answer.fault is not None:
            raise TransportError(answer.fault, "scripted fault")  # type: ignore[arg-type]
        return _FakeIncoming(answer, request)

    async def list_models(self) -> tuple[Model, ...]:
        return self.provider.models

    async def check(self) -> None:
        return None


def _echo(request: dict[str, Any]) -> str:
    texts = [m["content"] for m in request.get("messages", ()) if m.get("role") == "user"]
    return f"You said: {texts[-1] if texts else ''}"


class _FakeIncoming:
    def __init__(self, answer: FakeAnswer, request: dict[str, Any]) -> None:
        self.status = answer.status
        self.headers: Mapping[str, str] = dict(answer.headers or {})
        self.closed = False
        self._answer = answer
        self._request = request
        self._chunks = self._produce()

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self._chunks])

    async def piece(self) -> bytes:
        return await anext(self._chunks, b"")

    async def _produce(self) -> AsyncIterator[bytes]:
        answer, model = self._answer, self._request.get("model")
        if answer.status != 200:
            yield orjson.dumps({"error": {"message": answer.text, "type": "fake", "code": None, "param": None}})
            return
        prompt = sum(estimate_tokens(str(m.get("content"))) for m in self._request.get("messages", ()))
        usage = {
            "prompt_tokens": prompt if answer.input is None else answer.input,
            "completion_tokens": estimate_tokens(answer.text) if answer.output is None else answer.output,
        }
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        head = {"id": "chatcmpl-fake", "created": 0, "model": model}
        if not self._request.get("stream"):
            message = {"role": "assistant", "content": answer.text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            yield orjson.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        head["object"] = "chat.completion.chunk"
        pieces = answer.text.split(" ")
        for index, piece in enumerate(pieces):
            if answer.cut == index:
                raise TransportError("broken", "scripted cut")
            delta = {"content": piece if index == 0 else f" {piece}"}
            yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            await asyncio.sleep(0)
        yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (self._request.get("stream_options") or {}).get("include_usage"):
            yield _event({**head, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def close(self) -> None:
        self.closed = True


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
