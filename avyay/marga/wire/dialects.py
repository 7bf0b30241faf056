"""The registry of dialects: which module reads and which writes each of them."""

from __future__ import annotations

from typing import Protocol

from avyay.marga.wire import (
    anthropic_parse,
    anthropic_render,
    anthropic_reply,
    chat_parse,
    chat_render,
    chat_reply,
    ollama_parse,
    ollama_render,
    ollama_reply,
    responses_answer,
    responses_parse,
    responses_render,
    responses_reply,
)
from avyay.marga.wire.context import ReplyContext
from avyay.marga.wire.failure import Failure
from avyay.marga.wire.model import (
    Dialect,
    Event,
    JsonObject,
    Reply,
    Request,
)
from avyay.marga.wire.notes import Notes
from avyay.marga.wire.target import Target
from avyay.marga.wire.tools import ToolNames

__all__ = [
    "StreamParser",
    "StreamRenderer",
    "parse_reply",
    "parse_request",
    "render_reply",
    "render_request",
    "stream_content_type",
    "stream_parser",
    "stream_renderer",
]


class StreamParser(Protocol):
    """Upstream bytes to neutral events."""

    def feed(self, data: bytes) -> list[Event]: ...

    def close(self) -> list[Event]: ...


class StreamRenderer(Protocol):
    """Neutral events to the caller's bytes."""

    def render(self, events: list[Event]) -> bytes: ...

    def failure(self, failure: Failure) -> bytes: ...


def parse_request(dialect: Dialect, body: JsonObject, notes: Notes) -> Request:
    """A caller's body as a neutral request; raises `MalformedError` or `UntranslatableError`."""
    if dialect == "openai_chat":
        return chat_parse.parse_request(body, notes)
    if dialect == "anthropic_messages":
        return anthropic_parse.parse_request(body, notes)
    if dialect == "openai_responses":
        return responses_parse.parse_request(body, notes)
    if dialect == "ollama_chat":
        return ollama_parse.parse_chat(body, notes)
    return ollama_parse.parse_generate(body, notes)


def render_request(request: Request, target: Target, names: ToolNames, notes: Notes) -> JsonObject:
    """A neutral request as the target's body; raises `UntranslatableError`."""
    if target.dialect == "openai_chat":
        return chat_render.render_request(request, target, names, notes)
    if target.dialect == "anthropic_messages":
        return anthropic_render.render_request(request, target, names, notes)
    if target.dialect == "openai_responses":
        return responses_render.render_request(request, target, names, notes)
    if target.dialect == "ollama_chat":
        return ollama_render.render_chat(request, target, names, notes)
    return ollama_render.render_generate(request, target, notes)


def parse_reply(dialect: Dialect, body: JsonObject, exchange_id: str) -> Reply:
    """An upstream's whole answer as a neutral reply."""
    if dialect == "openai_chat":
        return chat_reply.parse_reply(body, exchange_id)
    if dialect == "anthropic_messages":
        return anthropic_reply.parse_reply(body, exchange_id)
    if dialect == "openai_responses":
        return responses_reply.parse_reply(body, exchange_id)
    return ollama_reply.parse_reply(body, exchange_id)


def render_reply(dialect: Dialect, reply: Reply, context: ReplyContext) -> JsonObject:
    """A neutral reply as the caller's body."""
    if dialect == "openai_chat":
        return chat_reply.render_reply(reply, context)
    if dialect == "anthropic_messages":
        return anthropic_reply.render_reply(reply, context)
    if dialect == "openai_responses":
        return responses_answer.render_reply(reply, context)
    return ollama_reply.render_reply(reply, context, generate=dialect == "ollama_generate")


def stream_parser(dialect: Dialect, exchange_id: str) -> StreamParser:
    """A fresh parser for one upstream stream."""
    if dialect == "openai_chat":
        return chat_reply.StreamParser(exchange_id)
    if dialect == "anthropic_messages":
        return anthropic_reply.StreamParser(exchange_id)
    if dialect == "openai_responses":
        return responses_reply.StreamParser(exchange_id)
    return ollama_reply.StreamParser(exchange_id)


def stream_renderer(dialect: Dialect, context: ReplyContext) -> StreamRenderer:
    """A fresh renderer for one caller's stream."""
    if dialect == "openai_chat":
        return chat_reply.StreamRenderer(context)
    if dialect == "anthropic_messages":
        return anthropic_reply.StreamRenderer(context)
    if dialect == "openai_responses":
        return responses_answer.StreamRenderer(context)
    return ollama_reply.StreamRenderer(context, generate=dialect == "ollama_generate")


def stream_content_type(dialect: Dialect) -> str:
    """The media type of the dialect's streams."""
    if dialect in ("ollama_chat", "ollama_generate"):
        return "application/x-ndjson"
    return "text/event-stream; charset=utf-8"
