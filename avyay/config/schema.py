"""The settings tree: every key avyay.yaml may hold, its type, its default and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from avyay.config.engine import EngineSettings
from avyay.config.types import Fraction, Name, Port, Seconds, Section, Usd, Workers, project_safe
from avyay.errors import UsageError
from avyay.money import parse_usd

__all__ = [
    "AllowSettings",
    "AnomalySettings",
    "ArmSettings",
    "BudgetSettings",
    "CacheSettings",
    "CircuitBreakerSettings",
    "EmbedderSettings",
    "EngineSettings",
    "EventsSettings",
    "ExperimentSettings",
    "GatewaySettings",
    "HealthCheckSettings",
    "JwtSettings",
    "LimitSettings",
    "LogSettings",
    "MargaSettings",
    "PathRuleSettings",
    "PiiAnswerSettings",
    "PiiRuleSettings",
    "PiiSettings",
    "ProviderSettings",
    "RagSettings",
    "RakshaSettings",
    "RankingSettings",
    "RedisStreamSettings",
    "RoutingSettings",
    "SemanticCacheSettings",
    "ServeSettings",
    "Settings",
    "ShadowEvaluationSettings",
    "SiddhiBudgetSettings",
    "SiddhiMailSettings",
    "SiddhiMineSettings",
    "SiddhiPageSettings",
    "SiddhiSettings",
    "SiddhiTestSettings",
    "TelemetrySettings",
    "TimeoutSettings",
    "UpstreamSettings",
    "UpstreamsSettings",
    "WebhookSettings",
]

Tier = Literal["local", "medium", "premium"]
Severity = Literal["critical", "high", "medium", "low", "info"]
ProviderKind = Literal["openai", "anthropic", "ollama", "azure", "openai-compatible", "fake"]


class LogSettings(Section):
    """What is logged, and how; always to stderr."""

    level: Literal["debug", "info", "warning", "error"] = project_safe("warning", "Least severe level written.")
    format: Literal["auto", "text", "json"] = project_safe("auto", "auto: text on a terminal, JSON elsewhere.")


class TelemetrySettings(Section):
    """Traces over OTLP/HTTP; nothing is sent unless an endpoint is set."""

    otlp_endpoint: str | None = Field(None, description="Base URL of an OpenTelemetry collector or Datadog Agent.")


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


class EmbedderSettings(Section):
    """What turns text into vectors."""

    name: str = Field("minilm", description="minilm (bundled), ollama, openai-compatible, hashing, or a plug-in.")
    endpoint: str | None = Field(None, description="Base URL, where the embedder is a service.")
    model: str | None = Field(None, description="Model name, where the embedder is a service.")
    api_key_env: str | None = Field(None, description="Environment variable that holds its key.")
    dimensions: int | None = Field(None, ge=1, description="Components of a vector; by default the model's own.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens a service's model reads of one text.")
    timeout: Seconds = Field(60.0, description="A service that sends nothing for so long has failed.")
    threads: int | None = Field(None, ge=1, description="Texts embedded at once by minilm; by default one per CPU.")


class RerankSettings(Section):
    """A second opinion on the first results. None has shown a gain that pays for its time: measure yours."""

    name: Literal["none", "late-interaction", "cross-encoder", "endpoint", "model"] = Field(
        "none",
        description="late-interaction: the bundled embedder's token vectors; cross-encoder: fastembed (the extra"
        " `rerank`); endpoint: a rerank API; model: a language model through the router.",
    )
    seconds: Seconds = Field(0.5, description="What it may take; what is not judged by then keeps its place.")
    top: int = Field(20, description="Results that are judged.", ge=2, le=100)
    weight: Fraction = Field(0.25, description="How much it counts against the first order; 1: it alone.")
    model: str | None = Field(None, description="The cross-encoder, the endpoint's model, or a model of the router.")
    url: str | None = Field(None, description="The endpoint's whole address, such as http://127.0.0.1:8080/rerank.")
    style: Literal["cohere", "tei"] = Field(
        "cohere", description="Its form: cohere (also Jina, vLLM, llama.cpp) or tei (text-embeddings-inference)."
    )
    api_key_env: str | None = Field(None, description="Environment variable with the endpoint's key.")
    tier: Tier | None = Field(None, description="The tier that a model is taken from.")


class RankingSettings(Section):
    """How passages are ranked; the defaults were measured, change them with `avyay rag eval` at hand."""

    mode: Literal["hybrid", "keywords", "vectors"] = project_safe("hybrid", "What is searched.")
    weights: dict[str, float] = project_safe({}, "Weights of the mix, by name; see the reference of the Python API.")
    freshness: float = project_safe(0.0, "Bonus of a document written now, halved every year.", ge=0, le=1)
    sources: dict[str, float] = project_safe({}, "Bonus of each source, by name; small against 1.")
    rerank: RerankSettings = RerankSettings()


class ShadowSettings(RankingSettings):
    """Another ranking, tried unseen on a share of live questions; `avyay rag shadow` reports."""

    share: Fraction = project_safe(0.0, "Share of questions it is tried on; 0: none.")


class RagSettings(Section):
    """Runbook retrieval."""

    ranking: RankingSettings = RankingSettings()
    shadow: ShadowSettings = ShadowSettings()

    embedder: EmbedderSettings = EmbedderSettings()
    include: tuple[str, ...] = project_safe((), "Globs of files to index; by default every supported document.")
    exclude: tuple[str, ...] = project_safe((), "Globs of files to leave out.")
    passages: int = project_safe(5, "Passages shown or given to the model.", ge=1, le=50)
    vectors_url: str | None = Field(None, description="Where LanceDB keeps vectors, such as s3://bucket/prefix.")
    poll_interval: Seconds = Field(300.0, description="The daemon looks at its sources so often; 0: never.")
    reconcile_interval: Seconds = Field(86_400.0, description="It compares index and sources so often; 0: never.")
    webhook_secret_env: str | None = Field(None, description="Environment variable with the secret of push webhooks.")
    api_key_env: str | None = Field(None, description="Environment variable with the key the daemon's callers send.")
    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")


class AllowSettings(Section):
    """What is known to be real, so that the scanner does not take it for invented."""

    emails: tuple[str, ...] = Field((), description="E-mail addresses; `*@example.org` allows a domain.")
    hosts: tuple[str, ...] = Field((), description="Host names; `*.example.org` allows a domain.")
    packages: tuple[str, ...] = Field((), description="Package names, for example of a private registry.")


class PathRuleSettings(Section):
    """What holds for some paths only."""

    match: tuple[str, ...] = Field(description="Globs, relative to the scanned folder.")
    disable: tuple[str, ...] = Field((), description="Rules (ids or globs) that do not count there.")
    severity: dict[str, Severity] = Field({}, description="Other severities there: rule id or glob to severity.")
    reason: str = Field("", description="Why; shown with what was held back.")


class RakshaSettings(Section):
    """RAKṢĀ, the scanner."""

    fail_on: Severity = Field("high", description="Findings at this severity or above make `avyay scan` exit 1.")
    exclude: tuple[str, ...] = Field((), description="Globs of files not to scan.")
    disable: tuple[str, ...] = Field((), description="Rules (ids or globs) that are off.")
    rules: tuple[Path, ...] = Field((), description="More rules: semgrep YAML files, or folders of them.")
    paths: tuple[PathRuleSettings, ...] = Field((), description="Exceptions for parts of the tree.")
    baseline: Path | None = Field(None, description="Findings accepted for now; see `avyay scan --write-baseline`.")
    allow: AllowSettings = AllowSettings()
    dependencies: Literal["auto", "required", "off"] = Field(
        "auto", description="Lock files against known vulnerabilities: auto, when `avyay raksha db update` was run."
    )
    api_key_env: str | None = Field(None, description="Variable that holds the key callers of the daemon must send.")
    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")
    git_hosts: tuple[str, ...] = Field((), description="Hosts of which the daemon fetches repositories.")
    advisories_url: str = Field(
        "https://osv-vulnerabilities.storage.googleapis.com", description="Where `avyay raksha db update` fetches."
    )
    cache: bool = project_safe(True, "Remember results of unchanged files.")
    triage_budget: float = Field(0.5, ge=0, description="Dollars that one `avyay scan --triage` may spend.")
    jobs: int = Field(0, ge=0, description="Processor cores to use; 0: all.")


class SiddhiBudgetSettings(Section):
    """Hard limits on what may be billed, in US dollars; what an ad platform may overspend is inside them."""

    hypothesis: Usd = Field("30", description="For one hypothesis, in all its rounds.")
    day: Usd = Field("60", description="In a day of the platform's time zone.")
    month: Usd = Field("300", description="In a month of the platform's time zone.")
    total: Usd = Field("300", description="For everything, ever.")
    sources: dict[str, Usd] = Field({}, description="For one ad platform or paid API, by name: google, meta, x, model.")


class SiddhiMineSettings(Section):
    """What to listen for; each list holds queries in the source's own form."""

    hn: tuple[str, ...] = Field((), description="Hacker News: words to search for.")
    reddit: tuple[str, ...] = Field((), description="Subreddits, or `subreddit: words`.")
    producthunt: tuple[str, ...] = Field((), description="Slugs of topics.")
    x: tuple[str, ...] = Field((), description="Queries in X's language; every post read costs money.")
    rss: tuple[str, ...] = Field((), description="Addresses of RSS or Atom feeds.")
    file: tuple[str, ...] = Field((), description="Files of JSON lines.")
    pages: int = Field(5, ge=1, le=100, description="Pages read of each query in one run.")


class SiddhiTestSettings(Section):
    """When a hypothesis is worth building, and how it is tested."""

    bar: Fraction = Field(0.05, description="Sign-up rate from which it is worth building.")
    gain: float = Field(300.0, gt=0, description="US dollars won by a product at twice the bar.")
    mode: Literal["value", "strict"] = Field("value", description="value: most money; strict: few false alarms.")
    caution: float = Field(
        0.5, ge=0, le=10, description="Share of the gain that validating a rate 20 % below the bar costs besides."
    )
    price: float = Field(0.6, gt=0, description="US dollars a click is expected to cost.")
    days: int = Field(3, ge=1, le=30, description="Longest test; the platform itself stops then.")
    least_score: Fraction = Field(0.4, description="A hypothesis that scores less is not tested.")
    platform: Literal["google", "meta"] | None = Field(None, description="Where clicks are bought; none: bring them.")
    countries: tuple[str, ...] = Field(("US",), description="ISO 3166 codes of where ads are shown.")
    google_customer: str | None = Field(None, description="Ten digits of the Google Ads account.")
    google_login_customer: str | None = Field(None, description="The manager account, when there is one.")
    meta_account: str | None = Field(None, description="Number of the Meta ad account, without act_.")
    meta_page: str | None = Field(None, description="The Facebook page that ads appear under.")


class SiddhiPageSettings(Section):
    """Landing pages and the collector behind them."""

    contact: str = Field("", description="Who asks, and how to reach them: shown on every page.")
    url: str = Field("", description="Base URL under which published pages appear; {id} is the hypothesis.")
    publish: str = Field("", description="directory:PATH, git:PATH#BRANCH, cloudflare, netlify, vercel or command.")
    project: str = Field("", description="The host's name or id of the project.")
    command: tuple[str, ...] = Field((), description="For `publish: command`; {folder} is the page.")
    collector: str = Field("http://127.0.0.1:8085", description="Where visitors' browsers reach the collector.")
    own: tuple[str, ...] = Field((), description="Networks whose visits do not count.")
    proxies: tuple[str, ...] = Field((), description="Networks whose X-Forwarded-For is believed.")


class SiddhiMailSettings(Section):
    """The mail server that sends requests to confirm an address."""

    host: str | None = Field(None, description="Name of the SMTP server; none: no mail is sent.")
    port: Port = Field(587, description="Its port.")
    sender: str = Field("", description="The From address.")
    user: str | None = Field(None, description="Login name.")
    password_env: str = Field("SIDDHI_MAIL_PASSWORD", description="Environment variable that holds the password.")
    tls: bool = Field(True, description="STARTTLS; off only on this machine.")


class SiddhiSettings(Section):
    """SIDDHI, the finder of products."""

    budget: SiddhiBudgetSettings = SiddhiBudgetSettings()
    mine: SiddhiMineSettings = SiddhiMineSettings()
    test: SiddhiTestSettings = SiddhiTestSettings()
    page: SiddhiPageSettings = SiddhiPageSettings()
    mail: SiddhiMailSettings = SiddhiMailSettings()
    api_key_env: str | None = Field(None, description="Environment variable with the key the daemon's callers send.")
    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")
    run_interval: Seconds = Field(0.0, description="The daemon makes a dry run so often; 0: never.")


class WebhookSettings(Section):
    """A receiver of signed messages about what happened."""

    name: Name = Field(description="How it appears in lists and logs.")
    url: str = Field(description="Where messages are POSTed.")
    secret_env: str = Field(description="Environment variable with its secret: whsec_ and base64; two while rotating.")
    events: tuple[str, ...] = Field((), description="Globs of event names, such as marga.*; by default all.")
    timeout: Seconds = Field(10.0, gt=0, le=60, description="Time it has to answer.")
    attempts: int = Field(10, ge=1, le=100, description="Tries before a message becomes a dead letter.")
    private: bool = Field(False, description="Whether its name may lead into this machine's own network.")

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        scheme, separator, rest = value.partition("://")
        if scheme not in ("http", "https") or not separator or not rest.split("/")[0] or "@" in rest.split("/")[0]:
            raise ValueError("not an address: write https://HOST/PATH, without credentials")
        return value


class RedisStreamSettings(Section):
    """A Redis stream that gets what happened (extra: redis)."""

    url: str | None = Field(None, description="redis://HOST:PORT/DB, where it needs no password.")
    url_env: str | None = Field(None, description="Environment variable with the address, where it holds a password.")
    stream: str = Field("avyay:events", description="Key of the stream.")
    events: tuple[str, ...] = Field((), description="Globs of event names; by default all.")
    length: int = Field(100_000, ge=1, description="Entries it is kept to, about.")

    @model_validator(mode="after")
    def _one_address(self) -> RedisStreamSettings:
        if (self.url is None) == (self.url_env is None):
            raise ValueError("name either url or url_env")
        return self


class EventsSettings(Section):
    """What happened: how long it is kept, and who is told."""

    keep: int = Field(10_000, ge=100, description="Events kept of each component.")
    keep_for: Seconds = Field(2_592_000.0, gt=0, description="Time after which events and deliveries may go.")
    budget_share: Fraction = Field(0.8, description="Share of a cap from which a budget is told to be near it.")
    webhooks: tuple[WebhookSettings, ...] = Field((), description="Receivers of signed messages.")
    redis: RedisStreamSettings | None = Field(None, description="A Redis stream.")

    @field_validator("webhooks")
    @classmethod
    def _unique(cls, value: tuple[WebhookSettings, ...]) -> tuple[WebhookSettings, ...]:
        names = [hook.name for hook in value]
        if len(set(names)) != len(names) or "redis" in names:
            raise ValueError("webhooks need different names, none of them redis")
        return value


class ServeSettings(Section):
    """What all daemons share."""

    host: str = Field("127.0.0.1", description="Address to bind; wider than loopback needs authentication.")
    port: Port | None = Field(None, description="By default each daemon's own.")
    workers: Workers = Field(1, description="Processes that serve a daemon; each component may set its own.")
    tailscale_serve: bool = Field(False, description="Publish through `tailscale serve`; see also --tailscale-serve.")
    tailnet_users: tuple[str, ...] = Field(
        (), description="Logins that need no key when they come through `tailscale serve`; *@example.com for a domain."
    )
    principal_secret_env: str | None = Field(
        None,
        description="Environment variable with the secret the gateway signs callers with; default: a file in the home.",
    )


class UpstreamSettings(Section):
    """Where the gateway finds a component, and how long it waits for it."""

    url: str | None = Field(None, description="Base URL; by default the component's port on this machine.")
    api_key_env: str | None = Field(None, description="Environment variable with a key the component asks for.")
    principal_key_env: str | None = Field(
        None, description="Environment variable with the secret shared with this component, to sign callers with."
    )
    connect: Seconds = Field(2.0, description="Time to connect.")
    first_byte: Seconds = Field(600.0, description="Time from the request to the first byte of the answer.")
    idle: Seconds = Field(300.0, description="Silence in the middle of an answer after which it is given up.")

    @field_validator("url")
    @classmethod
    def _plain_base(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from urllib.parse import urlsplit

        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.rstrip("/"):
            raise ValueError("write http://HOST:PORT or https://HOST, without a path")
        if parts.username or parts.query or parts.fragment:
            raise ValueError("a component's URL holds no user, query or fragment")
        return value.rstrip("/")


class UpstreamsSettings(Section):
    """The components behind the gateway."""

    marga: UpstreamSettings = UpstreamSettings()
    rag: UpstreamSettings = UpstreamSettings()
    raksha: UpstreamSettings = UpstreamSettings()
    siddhi: UpstreamSettings = UpstreamSettings()
    engine: UpstreamSettings = UpstreamSettings()


class JwtSettings(Section):
    """An issuer of tokens the gateway accepts."""

    issuer: str = Field(description="What `iss` must be.")
    audience: str = Field(description="What `aud` must be or contain.")
    algorithms: tuple[
        Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...
    ] = Field(description="Accepted algorithms, of one kind: HS* with secret_env, the others with jwks.")
    secret_env: str | None = Field(None, description="Environment variable with the secret, 32 characters or more.")
    jwks: str | None = Field(None, description="URL (https) or file of the issuer's public keys.")
    jwks_ttl: Seconds = Field(300.0, description="Time after which the keys are fetched again.")
    leeway: Seconds = Field(30.0, description="How far clocks may differ.")
    scopes: tuple[str, ...] = Field((), description="Scopes of every token of this issuer, besides its own.")
    scope_claim: str = Field("scope", description="Claim with scopes: a list, or words in a string.")
    customer_claim: str | None = Field(None, description="Claim that names the customer to bill.")
    tier_claim: str | None = Field(None, description="Claim that names the tier for rate limits.")

    @model_validator(mode="after")
    def _one_kind(self) -> JwtSettings:
        symmetric = [name for name in self.algorithms if name.startswith("HS")]
        if not self.algorithms or (symmetric and len(symmetric) != len(self.algorithms)):
            raise ValueError("name algorithms of one kind: HS*, or RS/PS/ES/EdDSA")
        if bool(symmetric) != (self.secret_env is not None) or bool(symmetric) == (self.jwks is not None):
            raise ValueError("HS* takes secret_env and no jwks; the others take jwks and no secret_env")
        if self.jwks is not None and "://" in self.jwks:
            from urllib.parse import urlsplit

            parts = urlsplit(self.jwks)
            if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
                raise ValueError("fetch keys over https")
        return self


class LimitSettings(Section):
    """A rate limit for every key it applies to, each counted by itself; all that apply must hold."""

    key: str | None = Field(None, description="Only this key (its id).")
    tier: str | None = Field(None, description="Only keys of this tier.")
    endpoint: str | None = Field(None, description="Only this scope: marga, marga:embeddings, rag:ask, ...")
    requests: int | None = Field(None, ge=1, description="Requests in a minute.")
    tokens: int | None = Field(None, ge=1, description="Tokens in a minute, as the router counts them.")
    concurrent: int | None = Field(None, ge=1, description="Answers under way at once, streams included.")


class GatewaySettings(Section):
    """The one door in front of the components."""

    workers: Workers | None = Field(None, description="Processes that serve it; by default serve.workers.")
    upstreams: UpstreamsSettings = UpstreamsSettings()
    jwt: tuple[JwtSettings, ...] = Field((), description="Issuers of tokens that are accepted besides API keys.")
    limits: tuple[LimitSettings, ...] = Field((), description="Rate limits.")
    redis_url: str | None = Field(None, description="Redis that several gateways share their limits in.")
    on_redis_loss: Literal["local", "refuse"] = Field(
        "local", description="Without Redis: each process limits by itself, or everything limited is refused."
    )
    failed_attempts: int = Field(
        20, ge=1, description="Failed authentications, and webhooks refused, in a minute from one address."
    )
    proxies: tuple[str, ...] = Field((), description="Networks whose X-Forwarded-For is believed.")
    cors_origins: tuple[str, ...] = Field((), description="Origins of web pages that may call; none by default.")
    max_body: int = Field(32_000_000, ge=1_000, description="Bytes of a request's body at most.")
    max_push_body: int = Field(
        2_000_000, ge=1_000, description="Bytes of a webhook's body, which needs no key, at most."
    )
    max_head: int = Field(65_536, ge=1_024, description="Bytes of a request's line and headers at most.")
    head_timeout: Seconds = Field(10.0, description="Time a client has to send its line and headers.")
    body_timeout: Seconds = Field(30.0, description="Silence in the middle of a request's body that ends it.")
    send_timeout: Seconds = Field(120.0, description="How long a client may not read before it is cut off.")
    max_connections: int = Field(4_096, ge=1, description="Open connections of one process at most.")
    keep_requests: Seconds = Field(3_024_000.0, description="How long single requests are kept; totals stay.")


class Settings(BaseSettings):
    """The whole tree. Built by `avyay.config.load_settings`, which also knows where each value came from."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    marga: MargaSettings = MargaSettings()
    rag: RagSettings = RagSettings()
    raksha: RakshaSettings = RakshaSettings()
    siddhi: SiddhiSettings = SiddhiSettings()
    engine: EngineSettings = EngineSettings()
    serve: ServeSettings = ServeSettings()
    events: EventsSettings = EventsSettings()
    gateway: GatewaySettings = GatewaySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Our own sources arrive through the loader, in order; nothing is read behind its back.
        sources: tuple[PydanticBaseSettingsSource, ...] = getattr(init_settings, "init_kwargs", {}).pop("_sources", ())
        return sources or (init_settings,)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of avyay.yaml, for editors."""
        return cls.model_json_schema()
