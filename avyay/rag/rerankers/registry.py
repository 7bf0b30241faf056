"""Rerankers by name; each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Literal, cast

from avyay.errors import ConfigError

if TYPE_CHECKING:
    from avyay.ports import Completer, Embedder, Tier
    from avyay.rag.rerankers.base import Reranker
    from avyay.rag.rerankers.endpoint import Style
    from avyay.rag.rerankers.late_interaction import TokenEmbedder

__all__ = ["RerankerName", "reranker_opener"]

RerankerName = Literal["late-interaction", "cross-encoder", "endpoint", "model"]


def reranker_opener(
    name: RerankerName,
    *,
    embedder: Embedder,
    completer: Callable[[], Completer | None],
    model: str | None = None,
    url: str | None = None,
    style: Style = "cohere",
    key: str | None = None,
    tier: Tier | None = None,
) -> Callable[[], Reranker]:
    """What makes the reranker when it is first needed, and keeps it.

    Raises:
        ConfigError: what it needs is not configured.
    """
    if name == "endpoint" and not url:
        raise ConfigError("The reranker endpoint has no address.", hint="Set rag.ranking.rerank.url.")
    if name == "late-interaction" and not hasattr(embedder, "embed_tokens"):
        raise ConfigError(
            f"The embedder {embedder.name} gives no vectors of tokens.", hint="Late interaction needs minilm."
        )

    @cache
    def opened() -> Reranker:
        if name == "late-interaction":
            from avyay.rag.rerankers.late_interaction import LateInteraction

            return LateInteraction(cast("TokenEmbedder", embedder))
        if name == "cross-encoder":
            from avyay.rag.rerankers.cross_encoder import CrossEncoder

            return CrossEncoder(model)
        if name == "endpoint":
            from avyay.rag.rerankers.endpoint import EndpointReranker

            return EndpointReranker(url or "", model=model, style=style, key=key)
        from avyay.rag.rerankers.model import ModelReranker

        return ModelReranker(completer, model=model, tier=tier)

    return opened
