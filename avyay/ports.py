"""What the components offer one another: protocols and the plain data that crosses them.

A component depends on a port, never on the component behind it; `avyay.wiring` joins the two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from avyay.money import Picodollars

    Vectors: TypeAlias = NDArray[np.float32]

__all__ = [
    "Alarm",
    "Alarms",
    "Bill",
    "BillReader",
    "Completer",
    "Completion",
    "CompletionDelta",
    "CompletionReply",
    "Embedder",
    "Event",
    "Events",
    "Finding",
    "Message",
    "ParentSection",
    "Passage",
    "Progress",
    "Retriever",
    "ScanReport",
    "Scanner",
    "Severity",
    "Skipped",
    "Tier",
    "TokenEmbedder",
    "Tokens",
]

Tier = Literal["local", "medium", "premium"]
Severity = Literal["critical", "high", "medium", "low", "info"]


# ---------------------------------------------------------------- completion: what marga offers


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of plain text."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A call another component wants answered. Hints are hints, not mandates.

    `model` is "auto" to be routed, or a model name to pin. `quality_min` is 0..1 relative to premium on that
    request class; `latency_budget_ms` counts to the first token when streamed. `json_schema` asks for structured
    output. `service`, `customer` and `session` are for cost attribution.
    """

    messages: tuple[Message, ...]
    model: str = "auto"
    tier: Tier | None = None
    request_class: str | None = None
    quality_min: float | None = None
    latency_budget_ms: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    json_schema: Mapping[str, Any] | None = None
    service: str | None = None
    customer: str | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token counts of one call, as the provider billed them (`estimated` when it did not say)."""

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class CompletionReply:
    """The whole answer, who gave it, and what it cost."""

    text: str
    model: str
    provider: str
    tier: Tier
    tokens: Tokens
    cost: Picodollars
    decision_id: str
    stop: str = "stop"
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CompletionDelta:
    """A piece of streamed text; the last one carries the finished reply."""

    text: str
    reply: CompletionReply | None = None


@runtime_checkable
class Completer(Protocol):
    """Answers completions: marga in-process, or over HTTP when `marga.url` is set."""

    async def complete(self, request: Completion) -> CompletionReply:
        """Answer in one piece.

        Raises:
            AuthError: no provider is configured.
            UnreachableError: every provider that could answer is down.
            PolicyError: a budget or a PII rule refuses the call.
        """
        ...

    def stream(self, request: Completion) -> AsyncIterator[CompletionDelta]:
        """Answer piece by piece; the same errors, until the first delta."""
        ...

    def available(self) -> bool:
        """Whether any provider is configured (no network is touched)."""
        ...


@dataclass(frozen=True, slots=True)
class Bill:
    """What the router charged."""

    cost: Picodollars
    calls: int


@runtime_checkable
class BillReader(Protocol):
    """Reads the router's ledger; what marga offers to those who let others spend."""

    def customer(self, name: str, since: float) -> Bill:
        """Everything charged to a customer since a time, seconds since the epoch.

        Raises:
            AvyayError: the ledger cannot be read.
        """
        ...

    def service(self, name: str, since: float) -> Bill:
        """Everything charged to a service since then; the same errors."""
        ...


# ---------------------------------------------------------------- embedding


@runtime_checkable
class Embedder(Protocol):
    """Turns text into L2-normalised float32 vectors."""

    @property
    def name(self) -> str:
        """Identifies model and version; an index built with another name cannot be searched with this one."""
        ...

    @property
    def dimensions(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read; the rest is ignored."""
        ...

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"] = "document") -> Vectors:
        """One row per text, shape (len(texts), dimensions)."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens the model would read of `text`, without truncation."""
        ...


@runtime_checkable
class TokenEmbedder(Embedder, Protocol):
    """An embedder that shows its tokens: for cutting texts on a budget, and for late interaction."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of the whole text stands: `text[first:end]`, in order."""
        ...

    def embed_tokens(self, texts: Sequence[str]) -> list[Vectors]:
        """For each text one L2-normalised row per token read; row i belongs to `offsets(text)[i]`.

        Raises:
            UsageError: this embedder has no vectors of single tokens.
        """
        ...


# ---------------------------------------------------------------- retrieval: what rag offers


@dataclass(frozen=True, slots=True)
class ParentSection:
    """The own text of a section that another stands in: what its heading says before the first heading below it."""

    heading: str
    level: int
    first_line: int
    last_line: int
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A section of a document that may answer a question. Lines are 1-based and inclusive.

    `parents` are the sections it stands in, the document first; empty unless asked for.
    """

    source: str
    path: str
    heading: str
    first_line: int
    last_line: int
    commit: str
    text: str
    score: float
    age_days: float | None = None
    parents: tuple[ParentSection, ...] = ()

    @property
    def citation(self) -> str:
        """`path:first-last@sha7 (heading)`."""
        commit = f"@{self.commit[:7]}" if self.commit else ""
        heading = f" ({self.heading})" if self.heading else ""
        return f"{self.path}:{self.first_line}-{self.last_line}{commit}{heading}"


@runtime_checkable
class Retriever(Protocol):
    """Finds passages; what rag offers to the engine and to MCP."""

    def search(self, query: str, *, limit: int = 5) -> Sequence[Passage]: ...


# ---------------------------------------------------------------- scanning: what raksha offers


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault at a place. Lines and columns are 1-based; `path` is relative to the scan root, with slashes."""

    rule: str
    severity: Severity
    message: str
    path: str
    line: int
    column: int = 1
    end_line: int | None = None
    end_column: int | None = None
    origins: tuple[str, ...] = ()
    cwe: tuple[str, ...] = ()
    fix: str | None = None
    snippet: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something the scan could not read or check; makes the result "could not check", never "clean"."""

    path: str
    reason: str
    engine: str = ""


@dataclass(frozen=True, slots=True)
class ScanReport:
    """The outcome of a scan: findings, or what could not be checked, or neither ("clean")."""

    root: Path
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    files: int
    seconds: float
    engines: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether everything asked for was read by something that understands it."""
        return not self.skipped


@runtime_checkable
class Scanner(Protocol):
    """Scans files; what raksha offers to the engine, to siddhi and to MCP."""

    def scan(self, paths: Sequence[Path], *, progress: Progress | None = None) -> ScanReport: ...


# ---------------------------------------------------------------- alarms: what marga's telemetry offers


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something unusual in the router's telemetry: `series` names provider and request class."""

    series: str
    signal: Literal["latency", "error_rate", "spend"]
    sentence: str
    at: float
    deviations: float


@runtime_checkable
class Alarms(Protocol):
    """Says what is unusual; what marga offers to the engine."""

    def alarms(self) -> Sequence[Alarm]: ...


# ---------------------------------------------------------------- events and progress


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, named `component.noun.verb_past` (`marga.provider.tripped`).

    `once` names the occasion where it may be noticed more than once: a second event of the same name and occasion is
    dropped. `everywhere` names it where several homes tell of the same occasion: they give it the same id.
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    once: str | None = None
    everywhere: str | None = None


@runtime_checkable
class Events(Protocol):
    """Where components publish what happened."""

    def publish(self, event: Event) -> None:
        """Soon: it never waits and never fails."""
        ...

    def publish_now(self, *events: Event) -> None:
        """On disk when it returns.

        Raises:
            AvyayError: they could not be kept.
        """
        ...

    def flush(self) -> None:
        """All that was published so far is on disk when it returns. Blocks for a commit; not for an event loop.

        Raises:
            AvyayError: it could not be kept.
        """
        ...


class Progress(Protocol):
    """A callback the core calls and the terminal draws; the core knows no terminal."""

    def __call__(self, done: int, total: int | None, what: str) -> None: ...
