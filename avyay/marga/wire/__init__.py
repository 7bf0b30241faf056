"""The wire of the router: one neutral model, two pure translators for each dialect, and an untouched way through.

Nothing here does I/O, reads a clock or draws a random number. A gateway needs five calls:

    body = load_body(raw)                          # MalformedError: broken JSON
    features = inspect("openai_chat", body)        # for routing, without translating
    target = default_target("anthropic_messages", "claude-opus-4-8", max_output_tokens=64_000)
    exchange = begin("openai_chat", raw, body, target, exchange_id=decision_id, created=now)
    ... send exchange.body upstream ...

    whole answer:   out = exchange.reply(upstream_bytes)          # out.body, out.usage, out.stop, out.model
    stream:         pipe = exchange.stream()
                    send(pipe.feed(packet)) for every packet, then send(pipe.close()) once
                    pipe.usage, pipe.stop, pipe.model, pipe.failure, pipe.finished, pipe.frames
                    pipe.fail(failure) ends the caller's stream with an error of ours
    error answer:   failure = parse_error(status, upstream_bytes, headers)
                    send(exchange.error(failure), status=failure.status)

`exchange.notes` lists every deviation from what the caller asked (`notes_header` makes a header of it). What would
change the meaning raises `UntranslatableError`; `failure_from_exception` turns any of our errors into a `Failure`, and
`render_error(dialect, failure)` writes it where no exchange exists yet. `forwarded_headers` picks the serving
provider's retry and rate-limit headers. `map_text` masks texts; pass its result on with `edited=True`. `prompt_texts`
is what to count tokens of. Embeddings have `begin_embeddings`, model lists `render_models`.

Same dialect in and out: the bytes pass as they are but for the model name, `stream_options.include_usage` (asked for
always, its chunk withheld from a caller who did not ask), masked text, and reasoning that the provider would refuse.
"""

from avyay.marga.wire.context import ReplyContext
from avyay.marga.wire.dialects import (
    parse_reply,
    parse_request,
    render_reply,
    render_request,
    stream_content_type,
    stream_parser,
    stream_renderer,
)
from avyay.marga.wire.embeddings import EmbeddingExchange, begin_embeddings
from avyay.marga.wire.exchange import Exchange, ReplyOut, StreamPipe, begin
from avyay.marga.wire.failure import (
    Failure,
    FailureKind,
    failure_from_exception,
    forwarded_headers,
    parse_error,
    parse_error_object,
    render_error,
    truncated,
)
from avyay.marga.wire.fields import load_body
from avyay.marga.wire.inspect import RequestFeatures, inspect, map_text, prompt_texts
from avyay.marga.wire.listing import ListedModel, render_model, render_models
from avyay.marga.wire.model import DIALECTS, Dialect, Reply, ReplyBlock, Request, StopReason, Usage
from avyay.marga.wire.notes import MalformedError, Note, Notes, UntranslatableError, notes_header
from avyay.marga.wire.passthrough import Tap, edit_body, open_tap
from avyay.marga.wire.target import Target, default_target
from avyay.marga.wire.thinking import has_foreign_thinking, strip_thinking
from avyay.marga.wire.tools import ToolNames

__all__ = [
    "DIALECTS",
    "Dialect",
    "EmbeddingExchange",
    "Exchange",
    "Failure",
    "FailureKind",
    "ListedModel",
    "MalformedError",
    "Note",
    "Notes",
    "Reply",
    "ReplyBlock",
    "ReplyContext",
    "ReplyOut",
    "Request",
    "RequestFeatures",
    "StopReason",
    "StreamPipe",
    "Tap",
    "Target",
    "ToolNames",
    "UntranslatableError",
    "Usage",
    "begin",
    "begin_embeddings",
    "default_target",
    "edit_body",
    "failure_from_exception",
    "forwarded_headers",
    "has_foreign_thinking",
    "inspect",
    "load_body",
    "map_text",
    "notes_header",
    "open_tap",
    "parse_error",
    "parse_error_object",
    "parse_reply",
    "parse_request",
    "prompt_texts",
    "render_error",
    "render_model",
    "render_models",
    "render_reply",
    "render_request",
    "stream_content_type",
    "stream_parser",
    "stream_renderer",
    "strip_thinking",
    "truncated",
]
