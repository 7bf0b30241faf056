"""The words of the router: models, providers, what a request hints at, what was decided and what it became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from avyay.marga.wire import Dialect
from avyay.money import ZERO, Picodollars
from avyay.ports import Tier

__all__ = [
    "ENDPOINTS",
    "TIERS",
    "Attempt",
    "BegunCall",
    "CallRecord",
    "CallStatus",
    "Candidate",
    "Condition",
    "Decision",
    "Dialect",
    "Endpoint",
    "Hints",
    "Kind",
    "Model",
    "Prices",
    "Provider",
    "Ranked",
]

TIERS: tuple[Tier, ...] = ("local", "medium", "premium")
Kind: TypeAlias = Literal["openai", "anthropic", "ollama", "azure", "openai-compatible", "fake"]
CallStatus: TypeAlias = Literal["ok", "error", "aborted", "truncated", "refused"]  # in the ledger also "killed"
Endpoint: TypeAlias = Literal["chat", "responses", "messages", "generate", "embeddings", "count_tokens"]
"""A part of a provider that fails and recovers on its own."""

ENDPOINTS: Mapping[Dialect, Endpoint] = {
    "openai_chat": "chat",
    "openai_responses": "responses",
    "anthropic_messages": "messages",
    "ollama_chat": "chat",
    "ollama_generate": "generate",
}


@dataclass(frozen=True, slots=True)
class Prices:
    """Picodollars per token. None: the provider has no such price, the input price holds."""

    input: Picodollars
    output: Picodollars
    cached: Picodollars | None = None
    cache_write: Picodollars | None = None
    cache_write_1h: Picodollars | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model. None means not known, never unlimited or free.

    `prices` holds up to `long_above` input tokens, `long` beyond; `service_tiers` are priority and flex prices.
    """

    name: str
    tier: Tier
    prices: Prices | None = None
    long_above: int | None = None
    long: Prices | None = None
    service_tiers: Mapping[str, Prices] = field(default_factory=dict)
    context: int | None = None
    max_output: int | None = None
    capabilities: frozenset[str] | None = None
    mode: Literal["chat", "responses", "embedding"] = "chat"
    retires: str | None = None
    base: str | None = None

    @property
    def known_as(self) -> str:
        """The name its tokenizer and its peers know it by: a deployment's model, else its own name."""
        return self.base or self.name


@dataclass(frozen=True, slots=True)
class Provider:
    """One place that answers. `problem` says why it cannot be used, when it cannot."""

    name: str
    kind: Kind
    endpoint: str
    key: str | None = field(default=None, repr=False)
    models: tuple[Model, ...] = ()
    vendor: str | None = None
    region: str | None = None
    priority: int = 1
    origin: str = ""
    problem: str | None = None
    api_version: str | None = None
    lists_models: bool = False

    @property
    def usable(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A model at a provider: what a request can be sent to."""

    provider: Provider
    model: Model
    name: str = ""  # provider/model

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.provider.name}/{self.model.name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True, slots=True)
class Hints:
    """What the caller would like; hints, not mandates, but for a concrete `model`.

    `quality_min` is 0..1 relative to premium on that request class; `latency_budget_ms` counts to the first byte of
    a stream, else to the end; `residency` is a region prefix the provider's region must start with.
    """

    model: str = "auto"
    tier: Tier | None = None
    request_class: str | None = None
    quality_min: float | None = None
    latency_budget_ms: int | None = None
    residency: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """How a provider's model does just now. `first_byte` is seconds, smoothed; None before the first answer."""

    state: Literal["closed", "half_open", "open"] = "closed"
    first_byte: float | None = None
    error_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate in the order it will be tried, with what it is expected to cost and why it stands there."""

    candidate: Candidate
    cost: Picodollars | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes, and why. `features` and `conditions` are enough to take the decision again."""

    id: str
    at: float
    tier: Tier
    complexity: float
    reasons: tuple[str, ...]
    ranked: tuple[Ranked, ...]
    hints: Hints
    features: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    seconds: float = 0.0
    displaced: bool = False

    @property
    def chosen(self) -> Candidate | None:
        return self.ranked[0].candidate if self.ranked else None


@dataclass(slots=True)
class Attempt:
    """One try at one candidate. `outcome` is ok or a failure kind; `seconds` to its first byte or its failure."""

    provider: str
    model: str
    outcome: str
    status: int = 0
    seconds: float = 0.0
    state: str = "closed"


class BegunCall(NamedTuple):
    """What is known of a call when it goes to a provider; the names are the ledger's columns. New ones come last.

    Attributes:
        blocks: Of the budgets, with a space between.
        held: The worst case that is drawn from them, in picodollars.
    """

    id: str
    at: float
    dialect: str
    stream: bool
    provider: str
    model: str
    tier: str
    decided_tier: str
    complexity: float
    requested_model: str
    request_class: str | None
    key: str | None
    service: str | None
    customer: str | None
    session: str | None
    blocks: str | None = None
    held: int = 0


@dataclass(slots=True)
class CallRecord:
    """What a request became: a row of the ledger. Times in seconds, money in picodollars."""

    decision: Decision
    dialect: str
    status: CallStatus
    provider: str = ""
    model: str = ""
    tier: str = ""
    stream: bool = False
    input: int = 0
    output: int = 0
    cached: int = 0
    cache_written: int = 0
    reasoning: int = 0
    estimated: bool = False
    priced: bool = True
    cost: Picodollars = ZERO
    key: str | None = None
    service: str | None = None
    customer: str | None = None
    session: str | None = None
    first_byte: float | None = None
    seconds: float = 0.0
    state: str = "closed"
    attempts: tuple[Attempt, ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = ()
    cache: str | None = None  # "exact" or "semantic": answered from an earlier answer, which had cost `saved`
    saved: Picodollars = ZERO
    blocks: tuple[int, ...] = ()  # of the budgets' ledger, that paid for it
