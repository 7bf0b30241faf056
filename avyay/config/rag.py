"""The settings of runbook retrieval."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from avyay.config.types import Fraction, Seconds, Section, Tier, Workers, project_safe

__all__ = ["EmbedderSettings", "RagSettings", "RankingSettings", "RerankSettings", "ShadowSettings"]


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
