"""One case under way: it asks the gateway, looks at what reached the provider and what came back, and notes faults."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx2

from avyay.marga.conformance.asking import Ask, Turn, request_body
from avyay.marga.conformance.observed import Observed, read_stream, read_whole
from avyay.marga.conformance.scripted import Script, Tokens
from avyay.marga.conformance.seen import Seen, read_request
from avyay.marga.conformance.upstream import Answer, Arrived, Upstream
from avyay.marga.wire.model import Dialect

__all__ = ["NAMES", "PATHS", "Bench", "Got", "NotExpressibleError", "Trial", "stop_word"]

PATHS: Final[dict[Dialect, str]] = {
    "openai_chat": "/v1/chat/completions",
    "openai_responses": "/v1/responses",
    "anthropic_messages": "/v1/messages",
    "ollama_chat": "/api/chat",
    "ollama_generate": "/api/generate",
}
NAMES: Final[dict[str, Dialect]] = {
    "chat": "openai_chat",
    "responses": "openai_responses",
    "messages": "anthropic_messages",
    "ollama": "ollama_chat",
    "generate": "ollama_generate",
}
_STOPS: Final[dict[Dialect, dict[str, tuple[str, ...]]]] = {
    "openai_chat": {
        "end": ("stop",),
        "tool_use": ("tool_calls",),
        "max_tokens": ("length",),
        "refusal": ("content_filter",),
    },
    "anthropic_messages": {
        "end": ("end_turn",),
        "tool_use": ("tool_use",),
        "max_tokens": ("max_tokens",),
        "refusal": ("refusal",),
    },
    "openai_responses": {
        "end": ("completed",),
        "tool_use": ("completed",),
        "max_tokens": ("incomplete:max_output_tokens",),
        "refusal": ("incomplete:content_filter", "completed"),
    },
    "ollama_chat": {"end": ("stop",), "tool_use": ("stop",), "max_tokens": ("length",), "refusal": ("stop",)},
    "ollama_generate": {"end": ("stop",), "tool_use": ("stop",), "max_tokens": ("length",), "refusal": ("stop",)},
}


class NotExpressibleError(Exception):
    """The caller's dialect has no words for what the case asks: the case does not apply."""


def stop_word(dialect: Dialect, reason: str) -> tuple[str, ...]:
    """The words with which a dialect may say why an answer ended."""
    return _STOPS[dialect][reason]


@dataclass(frozen=True, slots=True)
class Bench:
    """The gateway under test, and the provider behind it.

    Attributes:
        urls: Where the gateway is; one for each upstream dialect, usually the same.
        models: The gateway's model name for each upstream dialect.
        avyay: The gateway writes our headers.
        priced: Its models cost what `--self` configures.
        patience: Seconds in which what should happen at once must have happened.
        known: Breaches of form that a pair's plainest answer shows already: counted there and not in every case.
    """

    http: httpx2.AsyncClient
    urls: Mapping[Dialect, str]
    key: str | None
    upstream: Upstream
    models: Mapping[Dialect, str]
    avyay: bool = False
    priced: bool = False
    patience: float = 5.0
    known: dict[tuple[Dialect, Dialect], frozenset[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Got:
    """What came back."""

    status: int
    headers: dict[str, str]
    raw: bytes
    complete: bool = True  # False: the connection broke before the answer's end

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass(slots=True)
class Trial:
    """One case: a caller's dialect, an upstream's, and the faults found so far."""

    bench: Bench
    caller: Dialect
    upstream: Dialect
    problems: list[str] = field(default_factory=list)
    label: str = ""

    def expect(self, holds: bool, otherwise: str) -> bool:
        if not holds:
            self.problems.append(f"{self.label}: {otherwise}" if self.label else otherwise)
        return holds

    def equal(self, found: Any, wanted: Any, what: str) -> bool:
        return self.expect(found == wanted, f"{what}: {_short(found)} instead of {_short(wanted)}")

    @property
    def url(self) -> str:
        return self.bench.urls[self.upstream]

    # ------------------------------------------------------------ asking

    def prepare(self, ask: Ask, *, stream: bool) -> tuple[bytes, dict[str, Any]]:
        """The request's body, marked; the marker is how the upstream finds its answer."""
        marker = f"conformance-{uuid.uuid4().hex[:12]}"
        marked = replace(ask, turns=_marked(ask.turns, marker))
        try:
            body = request_body(self.caller, self.bench.models[self.upstream], marked, stream=stream)
        except ValueError as error:
            raise NotExpressibleError from error
        return marker.encode(), body

    def headers(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        found = {"content-type": "application/json", **(extra or {})}
        key = self.bench.key or "sk-conformance"
        found["authorization"] = f"Bearer {key}"
        if self.caller == "anthropic_messages":
            found |= {"x-api-key": key, "anthropic-version": "2023-06-01"}
        return found

    async def send(
        self,
        ask: Ask,
        answer: Answer | None = None,
        *,
        stream: bool,
        headers: Mapping[str, str] | None = None,
        query: str = "",
    ) -> tuple[Got, Arrived | None]:
        """Send a request; returns what came back and what reached the provider last."""
        marker, body = self.prepare(ask, stream=stream)
        self.bench.upstream.answers[marker] = answer or Answer()
        try:
            got = await self.post(PATHS[self.caller] + query, json.dumps(body, ensure_ascii=False).encode(), headers)
        finally:
            self.bench.upstream.answers.pop(marker)
            arrived = self.bench.upstream.arrived.pop(marker, [])
        return got, arrived[-1] if arrived else None

    async def post(self, path: str, raw: bytes, headers: Mapping[str, str] | None = None) -> Got:
        raw_answer = bytearray()
        request = self.bench.http.build_request("POST", self.url + path, content=raw, headers=self.headers(headers))
        response = await self.bench.http.send(request, stream=True)
        complete = True
        try:
            async for piece in response.aiter_bytes():
                raw_answer += piece
        except httpx2.RemoteProtocolError:
            complete = False
        finally:
            await response.aclose()
        return Got(response.status_code, _headers(response), bytes(raw_answer), complete)

    async def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Got:
        response = await self.bench.http.request(method, self.url + path, headers=self.headers(headers))
        return Got(response.status_code, _headers(response), response.content)

    @asynccontextmanager
    async def opened(
        self, ask: Ask, answer: Answer, *, stream: bool
    ) -> AsyncIterator[tuple[asyncio.Task[httpx2.Response], bytes]]:
        """A request whose answer is being held; leaving closes the connection."""
        marker, body = self.prepare(ask, stream=stream)
        self.bench.upstream.answers[marker] = answer
        request = self.bench.http.build_request(
            "POST",
            self.url + PATHS[self.caller],
            content=json.dumps(body).encode(),
            headers={**self.headers(), "connection": "close"},
        )
        task = asyncio.ensure_future(self.bench.http.send(request, stream=True))
        try:
            yield task, marker
        finally:
            if not task.done():
                task.cancel()
            found = await asyncio.gather(task, return_exceptions=True)
            if isinstance(found[0], httpx2.Response):
                await found[0].aclose()
            answer.release.set()

    # ------------------------------------------------------------ reading

    def seen(self, arrived: Arrived | None) -> Seen | None:
        """What the provider made of the request; faults it would refuse are noted."""
        if not self.expect(arrived is not None, "nothing reached the provider"):
            return None
        assert arrived is not None
        assert arrived.dialect is not None
        try:
            found = read_request(arrived.dialect, arrived.body)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self.expect(False, f"the provider cannot read the request: {type(error).__name__}: {error}")
            return None
        for violation in found.violations:
            self.expect(False, f"the provider would refuse: {violation}")
        return found

    def observed(self, got: Got, *, stream: bool, form: bool = False) -> Observed | None:
        """What the client made of the answer; breaches of its protocol are noted, known ones only for `form`."""
        if not self.expect(got.status == 200, f"HTTP {got.status}: {got.raw[:160].decode('utf-8', 'replace')}"):
            return None
        if stream:
            kind = got.headers.get("content-type", "")
            wanted = "ndjson" if self.caller.startswith("ollama") else "text/event-stream"
            self.expect(wanted in kind, f"content-type {kind!r} for a stream")
        found = self.read(got, stream=stream)
        if found is not None:
            known = frozenset[str]() if form else self.bench.known.get((self.caller, self.upstream), frozenset())
            for violation in found.violations:
                self.expect(violation in known, violation)
        return found

    def read(self, got: Got, *, stream: bool) -> Observed | None:
        """The same, without judging."""
        try:
            if stream:
                return read_stream(self.caller, got.raw.replace(b"\r\n", b"\n"))
            return read_whole(self.caller, got.raw)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            self.expect(False, f"the answer cannot be read: {type(error).__name__}: {error}")
            return None

    def refusal(self, got: Got, *, status: Callable[[int], bool] | None = None) -> bool:
        """Whether it is an error in the caller's own envelope; what is wrong with it is noted."""
        fine = self.expect((status or (lambda code: 400 <= code < 500))(got.status), f"HTTP {got.status} for an error")
        return self.envelope(got) and fine

    def envelope(self, got: Got) -> bool:
        try:
            body = got.body
            error = body["error"]
            if self.caller.startswith("ollama"):
                fine = isinstance(error, str)
            else:
                fine = isinstance(error["message"], str) and isinstance(error["type"], str)
                fine = fine and (self.caller != "anthropic_messages" or body["type"] == "error")
        except (ValueError, KeyError, TypeError):
            fine = False
        return self.expect(fine, f"not the dialect's error envelope: {got.raw[:160].decode('utf-8', 'replace')}")

    # ------------------------------------------------------------ judging

    def same_answer(self, found: Observed, script: Script, arrived: Arrived | None) -> None:
        """The answer says exactly what the provider's script said."""
        self.equal(found.text, script.text, "text")
        if self.caller != "ollama_generate":
            wanted = [(c.name, c.arguments) for c in script.calls]
            self.equal([(name, arguments) for _, name, arguments in found.tools], wanted, "tool calls")
            ids = [call_id for call_id, _, _ in found.tools]
            self.expect(len(set(ids)) == len(ids) and all(ids), f"tool call ids {ids}")
        said = "end" if script.reason == "tool_use" and self.caller == "ollama_generate" else script.reason
        words = stop_word(self.caller, said)
        self.expect(found.stop in words, f"stop {found.stop!r} instead of {' or '.join(words)}")
        self.usage(found, script.tokens, arrived.dialect if arrived is not None else self.upstream)

    def usage(self, found: Observed, tokens: Tokens, upstream: Dialect | None) -> None:
        """Input, cached and output tokens as the provider reported them, as far as both dialects have words."""
        if not self.expect(found.tokens is not None, "no usage"):
            return
        assert found.tokens is not None
        self.equal((found.tokens.input, found.tokens.output), (tokens.input, tokens.output), "tokens in and out")
        if not (self.caller.startswith("ollama") or (upstream or "").startswith("ollama")):
            self.equal(found.tokens.cache_read, tokens.cache_read, "cached tokens")


def _headers(response: httpx2.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _marked(turns: tuple[Turn, ...], marker: str) -> tuple[Turn, ...]:
    """The marker stands in the last user text, where every dialect keeps it."""
    for number in range(len(turns) - 1, -1, -1):
        turn = turns[number]
        if turn.role == "user" and turn.texts:
            texts = (*turn.texts[:-1], f"{turn.texts[-1]} {marker}")
            return (*turns[:number], replace(turn, texts=texts), *turns[number + 1 :])
    raise AssertionError("a request without a user's text")
