"""One call through the gateway, seen from the wire: the caller's body in, the upstream's body out, and the way back.

The same interface whether the dialects are the same (bytes pass) or differ (they are translated).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import orjson

from avyay.errors import UnreachableError
from avyay.marga.wire import responses_reply
from avyay.marga.wire.context import ReplyContext
from avyay.marga.wire.dialects import (
    parse_reply,
    parse_request,
    render_reply,
    render_request,
    stream_parser,
    stream_renderer,
)
from avyay.marga.wire.failure import Failure, render_error, truncated
from avyay.marga.wire.framing import MISSHAPEN, FrameTooLargeError
from avyay.marga.wire.model import (
    BlockDelta,
    Dialect,
    Event,
    JsonObject,
    Reply,
    ReplyBlock,
    Stop,
    StopReason,
    StreamEnd,
    StreamFailure,
    StreamStart,
    Usage,
    UsageUpdate,
)
from avyay.marga.wire.notes import Notes
from avyay.marga.wire.passthrough import Tap, edit_body, open_tap
from avyay.marga.wire.target import Target
from avyay.marga.wire.thinking import keep_own_thinking, strip_thinking
from avyay.marga.wire.tools import ToolNames

__all__ = ["Exchange", "ReplyOut", "StreamPipe", "begin"]


def _written(block: ReplyBlock) -> int:
    """The characters of a block whose fields are what they should be."""
    if not (isinstance(block.text, str) and isinstance(block.name, str) and isinstance(block.id, str)):
        raise TypeError("a block's text, name or id is no text")
    return len(block.text)


def _translated_stop(reply: Reply) -> StopReason:
    if reply.stop == "end" and any(b.kind == "refusal" for b in reply.blocks):
        return "refusal"
    return reply.stop


@dataclass(frozen=True, slots=True)
class ReplyOut:
    """A whole answer, ready to send.

    Attributes:
        body: The bytes for the caller; the upstream's own when nothing had to change.
        usage: Token counts, or None when the provider reported none.
        stop: Why the answer ended.
        model: The model the provider says it used.
        output_chars: Characters written, thinking and tool arguments included; for estimates where usage is missing.
        has_tools: Whether the model called tools.
        failure: Set when a 200 answer carries an error (Responses: status failed); `body` shows it to the caller.
    """

    body: bytes
    usage: Usage | None
    stop: StopReason
    model: str
    output_chars: int
    has_tools: bool
    failure: Failure | None = None


class StreamPipe(Protocol):
    """A stream on its way from the upstream to the caller. Feed it every packet, then close it once.

    Attributes are as in `passthrough.Tap`; they fill while the stream goes by. `frames` counts the events that carried
    output, near the number of tokens written, for billing an answer that was cut short.
    """

    @property
    def usage(self) -> Usage | None: ...

    @property
    def stop(self) -> StopReason | None: ...

    @property
    def model(self) -> str: ...

    @property
    def failure(self) -> Failure | None: ...

    @property
    def finished(self) -> bool: ...

    @property
    def ended(self) -> bool: ...

    @property
    def frames(self) -> int: ...

    def feed(self, data: bytes) -> bytes:
        """The bytes to send on now; may be empty."""

    def close(self) -> bytes:
        """At the end of the upstream's bytes. Sets `failure` if they ended too soon, and returns what tells so."""

    def fail(self, failure: Failure) -> bytes:
        """Ends the caller's stream with an error of ours (idle timeout, lost connection)."""


class _Passing:
    """Same dialect: a tap, plus the dialect's error event when the stream breaks."""

    def __init__(self, exchange: Exchange) -> None:
        hide = exchange.dialect == "openai_chat" and exchange.hides_usage
        self._tap: Tap = open_tap(exchange.dialect, hide_usage=hide)
        self._ended = False

    @property
    def usage(self) -> Usage | None:
        return self._tap.usage

    @property
    def stop(self) -> StopReason | None:
        return self._tap.stop

    @property
    def model(self) -> str:
        return self._tap.model

    @property
    def failure(self) -> Failure | None:
        return self._tap.failure

    @property
    def finished(self) -> bool:
        return self._tap.finished

    @property
    def ended(self) -> bool:
        return self._tap.ended

    @property
    def frames(self) -> int:
        return self._tap.frames

    def feed(self, data: bytes) -> bytes:
        return self._tap.feed(data)

    def close(self) -> bytes:
        if self._ended:
            return b""
        had = self._tap.failure
        rest = self._tap.close()
        self._ended = True
        if self._tap.failure is not None and had is None and self._tap.failure.kind == "truncated":
            return rest + self._tap.broken(self._tap.failure)
        return rest

    def fail(self, failure: Failure) -> bytes:
        if self._ended or self._tap.finished:
            return b""
        self._ended = True
        self._tap.failure = failure
        return self._tap.broken(failure)


class _Translating:
    """Different dialects: parse, render."""

    def __init__(self, exchange: Exchange, context: ReplyContext) -> None:
        self._parser = stream_parser(exchange.target.dialect, exchange.exchange_id)
        self._renderer = stream_renderer(exchange.dialect, context)
        self.usage: Usage | None = None
        self.stop: StopReason | None = None
        self.model = ""
        self.failure: Failure | None = None
        self.finished = False
        self.frames = 0

    @property
    def ended(self) -> bool:
        return self.finished or self.failure is not None

    def feed(self, data: bytes) -> bytes:
        if self.failure is not None:
            return b""
        try:
            events = self._parser.feed(data)
        except FrameTooLargeError as error:
            return self.fail(truncated(str(error)))
        except MISSHAPEN:
            return self.fail(truncated("the provider sent an event of no known shape"))
        return self._through(events)

    def close(self) -> bytes:
        if self.failure is not None:
            return b""
        try:
            events = self._parser.close()
        except MISSHAPEN:
            return self.fail(truncated("the provider sent an event of no known shape"))
        return self._through(events)

    def fail(self, failure: Failure) -> bytes:
        if self.failure is not None or self.finished:
            return b""
        self.failure = failure
        return self._renderer.failure(failure)

    def _through(self, events: list[Event]) -> bytes:
        if not events:
            return b""
        for event in events:
            kind = type(event)
            if kind is BlockDelta:
                self.frames += 1
            elif kind is UsageUpdate:
                self.usage = cast(UsageUpdate, event).usage
            elif kind is StreamStart:
                start = cast(StreamStart, event)
                self.model, self.usage = start.model, start.usage
            elif kind is Stop:
                self.stop = cast(Stop, event).reason
            elif kind is StreamEnd:
                self.finished = True
            elif kind is StreamFailure:
                self.failure = cast(StreamFailure, event).failure
        return self._renderer.render(events)


class Exchange:
    """One request on its way to one target, and the readers for whatever comes back.

    A retry at another target is another exchange; use the same `exchange_id` for both, so that ids stay the same.

    Attributes:
        dialect: The caller's.
        target: Where it goes.
        body: The bytes to send upstream.
        notes: What could not be carried over as it was; for a header and the decision's record.
        passthrough: Whether the bytes pass untranslated.
        streaming: Whether the caller asked for a stream.
        hides_usage: Whether a usage chunk will come that the caller did not ask for.
    """

    __slots__ = (
        "_context",
        "body",
        "dialect",
        "exchange_id",
        "hides_usage",
        "notes",
        "passthrough",
        "streaming",
        "target",
    )

    def __init__(
        self,
        dialect: Dialect,
        target: Target,
        exchange_id: str,
        body: bytes,
        notes: Notes,
        *,
        streaming: bool,
        hides_usage: bool = False,
        context: ReplyContext | None = None,
    ) -> None:
        self.dialect: Dialect = dialect
        self.target = target
        self.exchange_id = exchange_id
        self.body = body
        self.notes = notes
        self.passthrough = context is None
        self.streaming = streaming
        self.hides_usage = hides_usage
        self._context = context

    def reply(self, raw: bytes) -> ReplyOut:
        """A whole answer with status 200.

        Raises:
            UnreachableError: It is no answer in the upstream's dialect.
        """
        body = _load_reply(raw)
        try:
            reply = parse_reply(self.target.dialect, body, self.exchange_id)
            chars = sum(map(_written, reply.blocks))
        except MISSHAPEN as error:
            raise UnreachableError(
                "The provider's answer does not have the shape of its dialect.",
                hint="Check the provider's dialect and base URL.",
                code="bad_reply",
            ) from error
        failure = None
        if self.target.dialect == "openai_responses":
            failure = responses_reply.reply_failure(body)
        tools = any(b.kind == "tool_use" for b in reply.blocks)
        out = raw
        if self._context is not None:
            if failure is not None and self.dialect != "openai_responses":
                out = render_error(self.dialect, failure)
            else:
                out = orjson.dumps(render_reply(self.dialect, reply, self._context))
        return ReplyOut(out, reply.usage, _translated_stop(reply), reply.model, chars, tools, failure)

    def stream(self) -> StreamPipe:
        """A pipe for one upstream stream."""
        return _Passing(self) if self._context is None else _Translating(self, self._context)

    def error(self, failure: Failure, request_id: str | None = None) -> bytes:
        """The caller's dialect's error body, to be sent with `failure.status`."""
        return render_error(self.dialect, failure, request_id)


def _load_reply(raw: bytes) -> JsonObject:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise UnreachableError(
            "The provider's answer is not valid JSON.", hint="Check the provider's base URL.", code="bad_reply"
        ) from error
    if not isinstance(body, dict):
        raise UnreachableError("The provider's answer is not a JSON object.", code="bad_reply")
    return body


def begin(
    dialect: Dialect,
    raw: bytes,
    body: JsonObject,
    target: Target,
    *,
    exchange_id: str,
    created: int,
    model_shown: str | None = None,
    edited: bool = False,
    foreign_thinking: bool = False,
    model_switched: bool = False,
) -> Exchange:
    """Prepares a request for a target.

    Args:
        dialect: The caller's dialect.
        raw: The body as received.
        body: The same, parsed (`load_body`), or a changed copy of it with `edited`.
        target: Where it goes.
        exchange_id: `[A-Za-z0-9_-]`, unique; every id we must invent is derived from it.
        created: Unix seconds.
        model_shown: The model name for translated replies; by default what the upstream reports.
        edited: `body` differs from `raw` (masked text), so it is written anew.
        foreign_thinking: From `inspect`: the history holds reasoning that no provider of this dialect signed.
        model_switched: The conversation's last turn was served by another model, so signed reasoning must go.

    Raises:
        MalformedError: The body is no request of its dialect.
        UntranslatableError: The target cannot be asked this.
    """
    notes = Notes()
    if dialect == target.dialect:
        if foreign_thinking or model_switched:
            stripped = strip_thinking(dialect, body, notes, everything=model_switched)
            edited = edited or stripped is not body
            body = stripped
        stream = body.get("stream")
        streaming = bool(stream) if dialect not in ("ollama_chat", "ollama_generate") else stream is not False
        changes: JsonObject = {}
        if body.get("model") != target.model:
            changes["model"] = target.model
        hides_usage = False
        if dialect == "openai_chat" and streaming and target.stream_usage:
            options = body.get("stream_options")
            options = options if isinstance(options, dict) else {}
            if not options.get("include_usage"):
                hides_usage = True
                changes["stream_options"] = {**options, "include_usage": True}
        sent = orjson.dumps({**body, **changes}) if edited else edit_body(raw, body, changes)
        return Exchange(dialect, target, exchange_id, sent, notes, streaming=streaming, hides_usage=hides_usage)
    request = parse_request(dialect, body, notes)
    request = keep_own_thinking(request, target.dialect, notes, everything=model_switched)
    names = ToolNames(request, target.dialect)
    sent_body = render_request(request, target, names, notes)
    context = ReplyContext(exchange_id, created, model_shown, names, request, body)
    return Exchange(
        dialect, target, exchange_id, orjson.dumps(sent_body), notes, streaming=request.stream, context=context
    )
