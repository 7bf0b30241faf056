"""What every dialect is translated into and out of: one neutral request, one neutral reply, one neutral stream.

Nothing here knows a wire format. Requests are frozen; stream events are plain slots, since a reply makes thousands.

Conventions:
- A message has one role and an ordered tuple of parts. Tool results are parts of `user` messages, because that is the
  only form which keeps "these results answer that turn" in every dialect.
- Tool arguments stay the JSON text the model wrote; they are parsed only where a dialect wants an object.
- Token counts are totals: `Usage.input` includes cache reads and writes, `Usage.output` includes reasoning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

__all__ = [
    "DIALECTS",
    "Audio",
    "BlockDelta",
    "BlockKind",
    "BlockSignature",
    "BlockStart",
    "BlockStop",
    "CacheMark",
    "Carry",
    "Dialect",
    "Document",
    "Effort",
    "Event",
    "Image",
    "JsonObject",
    "Message",
    "Opaque",
    "Part",
    "Reasoning",
    "Refusal",
    "Reply",
    "ReplyBlock",
    "Request",
    "ResponseFormat",
    "Role",
    "Sampling",
    "Stop",
    "StopReason",
    "StreamEnd",
    "StreamFailure",
    "StreamStart",
    "Text",
    "Thinking",
    "ToolChoice",
    "ToolKind",
    "ToolResult",
    "ToolSpec",
    "ToolUse",
    "Usage",
    "UsageUpdate",
]

JsonObject: TypeAlias = dict[str, Any]
Dialect: TypeAlias = Literal["openai_chat", "openai_responses", "anthropic_messages", "ollama_chat", "ollama_generate"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

Role: TypeAlias = Literal["system", "developer", "user", "assistant"]
ToolKind: TypeAlias = Literal["function", "custom"]
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
StopReason: TypeAlias = Literal[
    "end",  # the model finished its turn
    "stop_sequence",  # one of the caller's stop strings was written
    "max_tokens",  # the output limit was hit
    "tool_use",  # the model wants tools run
    "refusal",  # withheld by the model's policy or a content filter
    "pause",  # a long turn was paused; sending it back continues it
    "context_window",  # the context window filled up
]
BlockKind: TypeAlias = Literal["text", "thinking", "redacted_thinking", "refusal", "tool_use"]


@dataclass(frozen=True, slots=True)
class CacheMark:
    """ "Cache the prompt up to here." `ttl` is the dialect's own word (5m, 1h, 30m, 12h) or None for its default."""

    ttl: str | None = None


@dataclass(frozen=True, slots=True)
class Carry:
    """An opaque proof of reasoning: the issuer's dialect and the token only that issuer can read.

    `dialect` None means that nothing is known about who signed it, except that it came in over the caller's dialect.
    """

    dialect: Dialect | None
    token: str
    item_id: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    cache: CacheMark | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """Exactly one of `data` (base64), `url` (never fetched by us) or `file_id` is set."""

    data: str | None = None
    media_type: str | None = None
    url: str | None = None
    file_id: str | None = None
    detail: str | None = None
    cache: CacheMark | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """Exactly one of `data` (base64), `text`, `url` or `file_id` is set."""

    data: str | None = None
    media_type: str | None = None
    text: str | None = None
    url: str | None = None
    file_id: str | None = None
    title: str | None = None
    cache: CacheMark | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    data: str
    format: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """Reasoning of an earlier turn. With a `carry` its issuer accepts it back only unchanged."""

    text: str
    carry: Carry | None = None
    redacted: bool = False


@dataclass(frozen=True, slots=True)
class ToolUse:
    id: str
    name: str
    arguments: str
    kind: ToolKind = "function"
    namespace: str | None = None
    cache: CacheMark | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    tool_use_id: str
    content: tuple[Part, ...]
    is_error: bool = False
    name: str | None = None
    kind: ToolKind = "function"
    cache: CacheMark | None = None


@dataclass(frozen=True, slots=True)
class Opaque:
    """A block only its own dialect understands (a provider's server-side tool, a stored item, ...)."""

    dialect: Dialect
    raw: JsonObject


Part: TypeAlias = Text | Refusal | Image | Document | Audio | Thinking | ToolUse | ToolResult | Opaque


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool the caller runs itself, or (`provider` set) one that the upstream provider would run."""

    name: str
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None
    kind: ToolKind = "function"
    grammar: JsonObject | None = None  # the `format` of a custom tool
    namespace: str | None = None
    cache: CacheMark | None = None
    provider: Opaque | None = None


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`allowed` narrows the tools to those names; `name` is set only for mode "tool"."""

    mode: Literal["auto", "none", "required", "tool"] = "auto"
    name: str | None = None
    allowed: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    kind: Literal["json", "schema"]
    schema: JsonObject | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class Reasoning:
    """`mode` None leaves it to the model; "on" may carry an effort, a token budget, both or neither."""

    mode: Literal["on", "off"] | None = None
    effort: Effort | None = None
    budget_tokens: int | None = None
    adaptive: bool = False
    summary: str | None = None  # Responses: auto | concise | detailed
    display: str | None = None  # Messages: summarized | omitted


@dataclass(frozen=True, slots=True)
class Sampling:
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    max_tokens: int | None = None
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tools: bool | None = None
    sampling: Sampling = Sampling()
    reasoning: Reasoning = Reasoning()
    format: ResponseFormat | None = None
    verbosity: str | None = None
    user: str | None = None
    metadata: JsonObject | None = None
    service_tier: str | None = None
    cache: CacheMark | None = None
    cache_key: str | None = None
    include_usage: bool = True  # Chat: whether the caller asked for the usage chunk of a stream
    legacy_functions: bool = False  # Chat: the caller speaks `functions`/`function_call`
    extra: tuple[tuple[str, Any], ...] = ()  # Ollama: keep_alive and runner options, for another Ollama


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts so far; every one cumulative for the reply, never a delta.

    `input` includes `cache_read` and `cache_write`; `cache_write` includes `cache_write_1h`; `output` includes
    `reasoning`. Providers that report them apart are added up by their parser.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0
    tier: str | None = field(default=None, compare=False)  # the service tier that was served, where it is said

    @property
    def total(self) -> int:
        return self.input + self.output

    @property
    def uncached_input(self) -> int:
        """Input tokens billed at the plain rate, never below zero."""
        return max(0, self.input - self.cache_read - self.cache_write)


@dataclass(frozen=True, slots=True)
class ReplyBlock:
    """One finished piece of an answer. `text` holds the arguments for `tool_use`."""

    kind: BlockKind
    text: str = ""
    id: str = ""
    name: str = ""
    carry: Carry | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    id: str
    model: str
    blocks: tuple[ReplyBlock, ...]
    stop: StopReason
    usage: Usage | None
    stop_sequence: str | None = None
    created: int | None = None

    @property
    def text(self) -> str:
        return "".join(b.text for b in self.blocks if b.kind == "text")


# Stream events. Every parser keeps these promises, and every renderer may rely on them:
# exactly one StreamStart, first; blocks are numbered 0, 1, 2 ... and only one is open at a time; each has exactly one
# BlockStart and one BlockStop; then exactly one of Stop + StreamEnd, or StreamFailure, last.


@dataclass(slots=True)
class StreamStart:
    id: str
    model: str
    created: int | None = None
    usage: Usage | None = None


@dataclass(slots=True)
class BlockStart:
    index: int
    kind: BlockKind
    id: str = ""
    name: str = ""


@dataclass(slots=True)
class BlockDelta:
    """A piece of text, of thinking, of a refusal or of a tool call's arguments, by the kind of the open block."""

    index: int
    text: str


@dataclass(slots=True)
class BlockSignature:
    """The proof of a thinking block, before its BlockStop."""

    index: int
    carry: Carry


@dataclass(slots=True)
class BlockStop:
    index: int


@dataclass(slots=True)
class UsageUpdate:
    usage: Usage


@dataclass(slots=True)
class Stop:
    reason: StopReason
    sequence: str | None = None


@dataclass(slots=True)
class StreamEnd:
    pass


@dataclass(slots=True)
class StreamFailure:
    """The stream broke: the provider said so, or it ended before it was finished. `failure` is a `Failure`."""

    failure: Any


Event: TypeAlias = (
    StreamStart | BlockStart | BlockDelta | BlockSignature | BlockStop | UsageUpdate | Stop | StreamEnd | StreamFailure
)
