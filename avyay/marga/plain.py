"""Plain text calls of the port `Completer` in the OpenAI chat dialect, and the way back: what both completers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from avyay.errors import AuthError, AvyayError, PolicyError, UnreachableError, UsageError
from avyay.log import redact
from avyay.ports import Completion, Tokens

__all__ = ["PlainReader", "ProviderFailedError", "encode_completion", "error_of"]


class ProviderFailedError(Exception):
    """The answer carries an error, breaks off, or makes no sense."""


def encode_completion(request: Completion, *, stream: bool) -> bytes:
    """The request body."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    if request.max_tokens is not None:
        body["max_completion_tokens"] = request.max_tokens
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.json_schema is not None:
        schema = {"name": "answer", "schema": dict(request.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return orjson.dumps(body)


@dataclass(slots=True)
class PlainReader:
    """Reads an answer, streamed or whole; `feed` returns the new text."""

    stream: bool
    tokens: Tokens | None = None
    stop: str = "stop"
    done: bool = False
    _pending: bytes = b""

    def feed(self, data: bytes) -> str:
        """Take the next bytes.

        Raises:
            ProviderFailedError: they carry an error or are no answer.
        """
        if not self.stream:
            self._pending += data
            return ""
        *lines, self._pending = (self._pending + data).split(b"\n")
        return "".join(self._line(line.strip()) for line in lines)

    def end(self) -> str:
        """The body is over; returns what was left.

        Raises:
            ProviderFailedError: the answer is not complete.
        """
        rest, self._pending = self._pending.strip(), b""
        if not self.stream:
            return self._whole(rest)
        text = self._line(rest) if rest else ""
        if not self.done:
            raise ProviderFailedError("the answer was cut off")
        return text

    def _line(self, line: bytes) -> str:
        if not line.startswith(b"data:"):
            return ""
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return ""
        chunk = _object(data)
        self._usage(chunk.get("usage"))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return ""
        self.stop = choices[0].get("finish_reason") or self.stop
        return (choices[0].get("delta") or {}).get("content") or ""

    def _whole(self, data: bytes) -> str:
        body = _object(data)
        try:
            choice = body["choices"][0]
            self._usage(body.get("usage"))
            self.stop = str(choice.get("finish_reason") or self.stop)
            return choice["message"].get("content") or ""
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ProviderFailedError("the answer has an unknown shape") from error

    def _usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details") or {}
        self.tokens = Tokens(
            input=usage.get("prompt_tokens") or 0,
            output=usage.get("completion_tokens") or 0,
            cached=details.get("cached_tokens") or 0,
            cache_written=details.get("cache_write_tokens") or 0,
            reasoning=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
        )


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except ValueError as error:
        raise ProviderFailedError("the answer is not JSON") from error
    if not isinstance(value, dict):
        raise ProviderFailedError("the answer has an unknown shape")
    if said := value.get("error"):
        message = said.get("message") if isinstance(said, dict) else said
        raise ProviderFailedError(redact(str(message))[:300])
    return value


def error_of(status: int, body: bytes) -> AvyayError:
    """An error answer of the router as the port's callers know it."""
    try:
        error = orjson.loads(body)["error"]
        message, code = redact(str(error["message"]))[:1000], str(error.get("code") or "") or None
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = f"HTTP {status} without a readable error.", None
    if code in ("no_provider", "provider_key_refused") or status in (401, 402):
        return AuthError(message, hint="See: avyay marga providers", code=code)
    if status == 403 or code in ("budget_exceeded", "refused"):
        return PolicyError(message, code=code)
    if status in (400, 404, 413, 422):
        return UsageError(message, code=code)
    return UnreachableError(message, hint="Try again; see: avyay marga providers --check", code=code)
