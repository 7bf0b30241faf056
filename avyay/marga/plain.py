"""Plain text calls of the port `Completer` in each provider's dialect, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from avyay.marga.types import Candidate, Dialect
from avyay.ports import Completion

__all__ = ["PlainReader", "ProviderFailedError", "encode_completion"]

_STOPS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "length": "length",
    "refusal": "content_filter",
    "content_filter": "content_filter",
}
_DEFAULT_MAX_TOKENS = 4096  # where the dialect demands a limit and the model's own is not known


class ProviderFailedError(Exception):
    """The provider reported an error in the middle of its answer, or the answer makes no sense."""


def encode_completion(request: Completion, candidate: Candidate, dialect: Dialect, *, stream: bool) -> bytes:
    """The request body for a candidate."""
    model = candidate.model
    limit = request.max_tokens
    if limit is not None and model.max_output is not None:
        limit = min(limit, model.max_output)
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body: dict[str, Any] = {"model": model.name}
    if dialect == "anthropic_messages":
        if system := "\n\n".join(message["content"] for message in messages if message["role"] == "system"):
            body["system"] = system
        body["messages"] = [message for message in messages if message["role"] != "system"]
        body["max_tokens"] = limit or model.max_output or _DEFAULT_MAX_TOKENS
        if request.temperature is not None and "reasoning" not in (model.capabilities or ()):
            body["temperature"] = min(1.0, request.temperature)
        if request.json_schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": dict(request.json_schema)}}
        body["stream"] = stream
    elif dialect == "ollama_chat":
        options: dict[str, Any] = {}
        if limit is not None:
            options["num_predict"] = limit
        if request.temperature is not None:
            options["temperature"] = request.temperature
        body |= {"messages": messages, "stream": stream}
        if options:
            body["options"] = options
        if request.json_schema is not None:
            body["format"] = dict(request.json_schema)
    else:
        body["messages"] = messages
        if limit is not None:
            compatible = candidate.provider.kind == "openai-compatible"
            body["max_tokens" if compatible else "max_completion_tokens"] = limit
        if request.temperature is not None and "reasoning" not in (model.capabilities or ()):
            body["temperature"] = request.temperature
        if request.json_schema is not None:
            schema = {"name": "answer", "schema": dict(request.json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body["stream"] = stream
        if stream:
            body["stream_options"] = {"include_usage": True}
    return orjson.dumps(body)


@dataclass(slots=True)
class PlainReader:
    """Reads an answer, streamed or whole; `feed` returns the new text."""

    dialect: Dialect
    stream: bool
    input: int = 0
    output: int = 0
    cached: int = 0
    cache_written: int = 0
    cache_written_1h: int = 0
    reasoning: int = 0
    usage_seen: bool = False
    stop: str = ""
    done: bool = False
    _pending: bytes = b""

    def feed(self, data: bytes) -> str:
        """Take the next bytes.

        Raises:
            ProviderFailedError: they carry an error or are no answer of this dialect.
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
        if self.stream:
            text = self._line(rest) if rest else ""
            if not self.done:
                raise ProviderFailedError("the answer was cut off")
            return text
        return self._whole(_object(rest))

    def _line(self, line: bytes) -> str:
        if self.dialect == "ollama_chat":
            return self._ollama(_object(line)) if line else ""
        if not line.startswith(b"data:"):
            return ""
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return ""
        event = _object(data)
        return self._anthropic(event) if self.dialect == "anthropic_messages" else self._chat_chunk(event)

    def _whole(self, body: dict[str, Any]) -> str:
        _raise_error(body)
        try:
            if self.dialect == "ollama_chat":
                return self._ollama({**body, "done": True})
            if self.dialect == "anthropic_messages":
                self._anthropic_usage(body["usage"])
                self.stop = _STOPS.get(str(body.get("stop_reason")), "stop")
                return "".join(block["text"] for block in body["content"] if block["type"] == "text")
            choice = body["choices"][0]
            self._chat_usage(body.get("usage"))
            self.stop = _STOPS.get(str(choice.get("finish_reason")), "stop")
            return choice["message"].get("content") or ""
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ProviderFailedError("the answer has an unknown shape") from error

    def _chat_chunk(self, chunk: dict[str, Any]) -> str:
        _raise_error(chunk)
        self._chat_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return ""
        if reason := choices[0].get("finish_reason"):
            self.stop = _STOPS.get(str(reason), "stop")
        return (choices[0].get("delta") or {}).get("content") or ""

    def _chat_usage(self, usage: dict[str, Any] | None) -> None:
        if not isinstance(usage, dict):
            return
        self.usage_seen = True
        self.input = usage.get("prompt_tokens") or 0
        self.output = usage.get("completion_tokens") or 0
        self.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self.reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0

    def _anthropic(self, event: dict[str, Any]) -> str:
        kind = event.get("type")
        if kind == "error":
            _raise_error(event)
        elif kind == "message_start":
            self._anthropic_usage((event.get("message") or {}).get("usage"))
        elif kind == "message_delta":
            self._anthropic_usage(event.get("usage"))
            self.stop = _STOPS.get(str((event.get("delta") or {}).get("stop_reason")), "stop")
        elif kind == "message_stop":
            self.done = True
        elif kind == "content_block_delta":
            delta = event.get("delta") or {}
            if delta.get("type") == "text_delta":
                return str(delta.get("text") or "")
        return ""

    def _anthropic_usage(self, usage: dict[str, Any] | None) -> None:
        # Cumulative: a later report replaces what it names and leaves the rest.
        if not isinstance(usage, dict):
            return
        self.usage_seen = True
        plain = self.input - self.cached - self.cache_written
        self.cached = usage.get("cache_read_input_tokens") or self.cached
        self.cache_written = usage.get("cache_creation_input_tokens") or self.cache_written
        details = usage.get("cache_creation") or {}
        self.cache_written_1h = details.get("ephemeral_1h_input_tokens") or self.cache_written_1h
        self.input = (usage.get("input_tokens") or plain) + self.cached + self.cache_written
        self.output = usage.get("output_tokens") or self.output

    def _ollama(self, chunk: dict[str, Any]) -> str:
        _raise_error(chunk)
        if chunk.get("done"):
            self.done = True
            self.stop = _STOPS.get(str(chunk.get("done_reason")), "stop")
            if "eval_count" in chunk or "prompt_eval_count" in chunk:
                self.usage_seen = True
                self.input = chunk.get("prompt_eval_count") or 0
                self.output = chunk.get("eval_count") or 0
        return str((chunk.get("message") or {}).get("content") or "")


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except ValueError as error:
        raise ProviderFailedError("the answer is not JSON") from error
    if not isinstance(value, dict):
        raise ProviderFailedError("the answer has an unknown shape")
    return value


def _raise_error(body: dict[str, Any]) -> None:
    error = body.get("error")
    if error:
        message = error.get("message") if isinstance(error, dict) else error
        raise ProviderFailedError(str(message)[:300])
