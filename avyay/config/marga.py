"""The settings of the router."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from avyay.config.types import Fraction, Name, Seconds, Section, Tier, Workers
from avyay.errors import UsageError
from avyay.money import parse_usd

__all__ = [
    "AnomalySettings",
    "ArmSettings",
    "BudgetSettings",
    "CacheSettings",
    "CircuitBreakerSettings",
    "ExperimentSettings",
    "HealthCheckSettings",
    "MargaSettings",
    "ModelSettings",
    "PiiAction",
    "PiiAnswerSettings",
    "PiiKind",
    "PiiRuleSettings",
    "PiiSettings",
    "ProviderKind",
    "ProviderSettings",
    "RoutingSettings",
    "SemanticCacheSettings",
    "ShadowEvaluationSettings",
    "TimeoutSettings",
]


ProviderKind = Literal["openai", "anthropic", "ollama", "azure", "openai-compatible", "fake"]


class CircuitBreakerSettings(Section):
    """When a provider is taken out of rotation, and when it is tried again."""

    failure_threshold: int = Field(5, ge=1, description="Consecutive failures that trip the breaker.")
    recovery_timeout: Seconds = Field(30.0, description="Time spent open before one probe is sent.")
    error_rate_threshold: Fraction = Field(0.5, description="Share of errors in the window that trips it as well.")
    window_size: Seconds = Field(60.0, description="Length of the error-rate window.")
    minimum_requests: int = Field(10, ge=1, description="Requests in the window before the error rate counts.")


class HealthCheckSettings(Section):
    """Unbilled GETs that watch every provider."""

    interval: Seconds = Field(30.0, description="Time between two checks of one provider.")
    timeout: Seconds = Field(5.0, description="A check that takes longer has failed.")


class ModelSettings(Section):
    """A model of a provider, where the built-in catalogue does not know it or should be overruled."""

    name: str = Field(description="The name the provider knows it by.")
    tier: Tier | None = Field(None, description="By default from its price: local is free.")
    context: int | None = Field(None, ge=1, description="Context window in tokens.")
    max_output: int | None = Field(None, ge=1, description="Most tokens it will write.")
    base: str | None = Field(None, description="The catalogue's name for it, where an Azure deployment has its own.")
    input_price: str | None = Field(None, description="USD per million input tokens, a decimal number.")
    output_price: str | None = Field(None, description="USD per million output tokens, a decimal number.")
    cached_price: str | None = Field(None, description="USD per million input tokens read from a prompt cache.")
    cache_write_price: str | None = Field(None, description="USD per million input tokens written to a prompt cache.")
    capabilities: tuple[Literal["tools", "vision", "json_schema", "reasoning", "prompt_cache"], ...] | None = Field(
        None, description="What it can do, where the catalogue does not say."
    )
    mode: Literal["chat", "responses", "embedding"] | None = Field(None, description="What it is for; by default chat.")

    @field_validator("input_price", "output_price", "cached_price", "cache_write_price", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        # YAML reads 0.15 as a float: its shortest decimal is what was written.
        return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class ProviderSettings(Section):
    """One place that answers completions. Kind and models are inferred from name and endpoint when not given."""

    name: Name = Field(description="How it appears in decisions and in the ledger.")
    endpoint: str = Field(description="Base URL, for example https://api.openai.com/v1.")
    kind: ProviderKind | None = Field(None, description="The dialect it speaks.")
    api_key_env: str | None = Field(None, description="Environment variable that holds its key.")
    models: tuple[str | ModelSettings, ...] = Field((), description="Models to use; by default the kind's own.")
    tier: Tier | None = Field(None, description="Tier of all its models.")
    region: str | None = Field(None, description="Where it processes data, for residency rules.")
    priority: int = Field(1, ge=1, description="Lower is preferred; the rest are failover targets in order.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Its rate limit, where you know it: failover then loads it in steps."
    )
    api_version: str | None = Field(None, description="Azure only: the api-version of the per-deployment paths.")
    circuit_breaker: CircuitBreakerSettings = CircuitBreakerSettings()

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if scheme not in ("http", "https") or not separator or not rest.split("/")[0]:
            raise ValueError("not a base URL: write http://HOST[:PORT][/PATH] or https://…")
        return value.rstrip("/")


class TimeoutSettings(Section):
    """How long providers may take. First-byte timeouts follow the latencies seen, between min and max."""

    connect: Seconds = Field(5.0, description="To connect, TLS included.")
    idle: Seconds = Field(300.0, description="Between two bytes of an answer.")
    stream_start: Seconds = Field(30.0, description="First byte of a stream, until enough were seen.")
    stream_min: Seconds = Field(2.0, description="First byte of a stream: never less than this.")
    stream_max: Seconds = Field(120.0, description="First byte of a stream: never more than this.")
    answer_start: Seconds = Field(120.0, description="A whole answer, until enough were seen.")
    answer_min: Seconds = Field(5.0, description="A whole answer: never less than this.")
    answer_max: Seconds = Field(600.0, description="A whole answer: never more than this.")

    @model_validator(mode="after")
    def _in_order(self) -> TimeoutSettings:
        for kind in ("stream", "answer"):
            low, start, high = (getattr(self, f"{kind}_{name}") for name in ("min", "start", "max"))
            if not 0 < low <= start <= high:
                raise ValueError(f"{kind}_min, {kind}_start and {kind}_max must rise, above 0")
        return self


class RoutingSettings(Section):
    """How a request's complexity (0..1) becomes a tier."""

    local_below: Fraction = Field(0.3, description="Less complex than this goes to the local tier.")
    premium_from: Fraction = Field(0.7, description="This complex or more goes to the premium tier.")


class BudgetSettings(Section):
    """A cap on what may be spent. Calls that could pass it are refused before they are made."""

    per: Literal["all", "key", "service", "customer"] = Field("all", description="Whose spending is added up.")
    name: str = Field("*", description="Which key, service or customer; * means each one by itself.")
    daily: str | None = Field(None, description="USD a day (UTC).")
    monthly: str | None = Field(None, description="USD a month (UTC).")

    @field_validator("daily", "monthly", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        if value is None:
            return None
        text = repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        try:
            amount = parse_usd(text)
        except UsageError as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        if amount < 0:
            raise ValueError("a cap cannot be negative")
        return text

    @model_validator(mode="after")
    def _some_cap(self) -> BudgetSettings:
        if self.daily is None and self.monthly is None:
            raise ValueError("name a daily or a monthly amount")
        return self


PiiAction = Literal["allow", "mask", "local_only", "block"]

PiiKind = Literal["email", "phone", "card", "iban", "ssn", "aadhaar", "pan", "ip", "api_key"]


class PiiRuleSettings(Section):
    """What happens to personal data and credentials in requests."""

    action: PiiAction = Field("allow", description="For every kind: allow, mask (and put back), local_only or block.")
    kinds: dict[PiiKind, PiiAction] = Field({}, description="For kinds that differ: email, card, aadhaar ...")


class PiiAnswerSettings(Section):
    """What happens to personal data and credentials that a model writes and the request did not hold."""

    action: Literal["allow", "mask", "block"] = Field("allow", description="For every kind: allow, mask or block.")
    kinds: dict[PiiKind, Literal["allow", "mask", "block"]] = Field({}, description="For kinds that differ.")


class PiiSettings(Section):
    """Rules on personal data, by provider and by caller's key. A key's rule can only be stricter."""

    default: PiiRuleSettings = PiiRuleSettings()
    providers: dict[str, PiiRuleSettings] = Field({}, description="By provider name; local ones have no default rule.")
    keys: dict[str, PiiRuleSettings] = Field({}, description="By the key's label, as decisions show it.")
    answers: PiiAnswerSettings = PiiAnswerSettings()


class ShadowEvaluationSettings(Section):
    """Shadow evaluation: a sample of what cheap tiers answer is also asked of premium, and classes move by evidence."""

    enabled: bool = Field(False, description="Off by default, because it spends money.")
    share: Fraction = Field(0.05, description="Of the requests below premium that are compared.")
    daily_budget: str = Field("1.00", description="USD a day that comparisons may cost.")
    embedding: bool = Field(False, description="Compare long answers by the bundled embedder.")
    judge: bool = Field(True, description="Let a premium model decide what cheaper comparisons cannot, in both orders.")

    @field_validator("daily_budget", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class AnomalySettings(Section):
    """Alarms on latency, error rate and spend of each provider and request class, against their own past."""

    enabled: bool = Field(True, description="Judge every stretch of time as soon as it is over.")
    bucket: Seconds = Field(600.0, ge=10, le=86_400, description="Length of a stretch.")
    history: Seconds = Field(1_209_600.0, description="How much past counts.")
    deviations: float = Field(6.0, gt=0, description="Robust deviations above the expected value.")
    ratio: float = Field(1.5, ge=1, description="And at least so many times the expected value.")


class ArmSettings(Section):
    """One arm of an experiment."""

    name: Name = Field(description="How it appears in reports.")
    target: str = Field(description="A tier (local, medium, premium) or a model.")
    share: Fraction = Field(description="Of the class's traffic; the shares of all arms add up to 1.")


class ExperimentSettings(Section):
    """An A/B experiment on one request class. The first arm is what the others are compared with."""

    name: Name = Field(description="Changing it assigns everybody anew.")
    request_class: str = Field(description="The X-Request-Class it divides.")
    arms: tuple[ArmSettings, ...] = Field(description="Two or more.")

    @model_validator(mode="after")
    def _sound(self) -> ExperimentSettings:
        if len(self.arms) < 2 or abs(sum(arm.share for arm in self.arms) - 1) > 1e-9:
            raise ValueError("an experiment needs two arms or more whose shares add up to 1")
        if len({arm.name for arm in self.arms}) != len(self.arms) or any(arm.share <= 0 for arm in self.arms):
            raise ValueError("arms need different names and shares above 0")
        return self


class SemanticCacheSettings(Section):
    """The same answer for a question that only words an earlier one differently."""

    enabled: bool = Field(False, description="Compare questions by the bundled embedder, on this machine.")
    threshold: float = Field(0.95, ge=0.5, le=1, description="Cosine from which two questions are one.")


class CacheSettings(Section):
    """Answers given again to the same request of the same caller. Off by default, because it keeps answers."""

    enabled: bool = Field(False, description="Answer a repeated request from its earlier answer, at no cost.")
    storage: Literal["memory", "disk"] = Field(
        "memory", description="memory: in each process until it ends. disk: one file for all workers, kept."
    )
    ttl: Seconds = Field(3600.0, description="How long an answer is given again.")
    max_size: int = Field(64_000_000, ge=100_000, description="Bytes of all answers; the least recently used go first.")
    max_entry: int = Field(1_000_000, ge=1000, description="Bytes of one answer; longer ones are not kept.")
    sampled: bool = Field(False, description="Also requests that ask for a temperature above 0 or several answers.")
    semantic: SemanticCacheSettings = SemanticCacheSettings()


class MargaSettings(Section):
    """MĀRGA, the router."""

    url: str | None = Field(None, description="Use the router daemon at this URL instead of one in this process.")
    providers: tuple[ProviderSettings, ...] = Field((), description="In addition to those the environment names.")
    health_check: HealthCheckSettings = HealthCheckSettings()
    routing: RoutingSettings = RoutingSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    pii: PiiSettings = PiiSettings()
    shadow: ShadowEvaluationSettings = ShadowEvaluationSettings()
    cache: CacheSettings = CacheSettings()
    anomalies: AnomalySettings = AnomalySettings()
    experiments: tuple[ExperimentSettings, ...] = Field((), description="A/B experiments, at most one for each class.")
    budgets: tuple[BudgetSettings, ...] = Field((), description="Caps on spending; every one that applies must hold.")
    max_body: int = Field(32_000_000, ge=1000, description="Largest request the daemon reads, in bytes.")
    api_key_env: str | None = Field(None, description="Environment variable with the key the daemon asks callers for.")
    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")
    aliases: dict[str, str] = Field({}, description="Model names of your own: alias to model.")
    discover: bool = Field(True, description="Also use providers found through the environment and a local Ollama.")

    @field_validator("providers")
    @classmethod
    def _unique(cls, value: tuple[ProviderSettings, ...]) -> tuple[ProviderSettings, ...]:
        names = [provider.name for provider in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two providers are called {name!r}: names must differ")
        return value
