"""The service of runbook retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from avyay.errors import ConfigError
from avyay.rag.places import IndexPlaces
from avyay.rag.retrieve import Weights
from avyay.rag.searcher import Ranking
from avyay.rag.service import RagService
from avyay.rag.shadow import Shadow

if TYPE_CHECKING:
    from avyay.config.rag import RankingSettings, RerankSettings
    from avyay.rag.rerankers.base import RerankPolicy
    from avyay.rag.stores.base import VectorStore
    from avyay.wiring.services import Services

__all__ = ["open_rag"]


def open_rag(services: Services) -> RagService:
    """Runbook retrieval as configured.

    Raises:
        ConfigError: its ranking cannot be had.
    """
    settings = services.settings.rag
    places = IndexPlaces.under(services.paths.data / "rag", settings.vectors_url)
    embedder = services.embedder

    def open_store() -> VectorStore:
        from avyay.rag.stores.lance import LanceStore

        remote = "://" in places.vectors
        environment = services.loaded.environment
        options = {name.lower(): environment[name] for name in environment if remote and name.startswith("AWS_")}
        return LanceStore(places.vectors, embedder=embedder.name, dimensions=embedder.dimensions, options=options)

    shadow = settings.shadow
    return services.closing(
        RagService(
            places,
            embedder,
            open_store=open_store,
            completer=lambda: services.completer,
            passages=settings.passages,
            include=settings.include,
            exclude=settings.exclude,
            ranking=_ranking(services, settings.ranking),
            shadow=Shadow(_ranking(services, shadow), shadow.share) if shadow.share else None,
            clock=services.clock,
        )
    )


def _ranking(services: Services, settings: RankingSettings) -> Ranking:
    policy = _rerank_policy(services, settings.rerank)
    return Ranking(settings.mode, _weights(settings.weights), settings.freshness, settings.sources, policy)


def _rerank_policy(services: Services, settings: RerankSettings) -> RerankPolicy | None:
    if settings.name == "none":
        return None
    from avyay.rag.rerankers.base import RerankPolicy
    from avyay.rag.rerankers.registry import reranker_opener

    key = services.loaded.environment.value(settings.api_key_env) if settings.api_key_env else None
    if settings.api_key_env and key is None:
        raise ConfigError(f"The reranker's key is looked for in {settings.api_key_env}, which is not set.")
    opened = reranker_opener(
        settings.name,
        embedder=services.embedder,
        completer=lambda: services.completer,
        model=settings.model,
        url=settings.url,
        style=settings.style,
        key=key,
        tier=settings.tier,
    )
    return RerankPolicy(opened, settings.seconds, settings.top, settings.weight)


def _weights(named: Mapping[str, float]) -> Weights | None:
    """Weights of the ranking as configured; ConfigError for a name that ranking does not know."""
    known = [item.name for item in fields(Weights)]
    for name in named:
        if name not in known:
            raise ConfigError(f"Ranking has no weight {name!r}.", hint=f"Weights are: {', '.join(known)}.")
    return Weights(**named) if named else None
