"""The router's services."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from avyay.marga.budgets import Budgets
    from avyay.marga.caching import AnswerCache
    from avyay.marga.router import Router
    from avyay.marga.store import CallStore
    from avyay.ports import BillReader, Completer, Embedder
    from avyay.wiring.services import Services

__all__ = ["make_answer_cache", "make_bill", "make_completer", "make_router", "open_budgets"]


def make_router(services: Services, store: Callable[[], CallStore]) -> Router:
    """A router that keeps its calls in `store`; it looks for a local Ollama, and calls nobody until asked."""
    from avyay.marga.providers import resolve_providers
    from avyay.marga.router import Router

    settings = services.settings.marga
    providers = resolve_providers(settings, services.loaded.environment)
    router = Router(providers, settings, store=store, budgets=services.budgets, clock=services.clock)
    calibration = services.paths.data / "marga" / "calibration.json"  # reading creates no folder
    if calibration.is_file():
        from avyay.marga.calibrate import load_calibration

        router.calibration = load_calibration(calibration.read_bytes())
    return router


def make_answer_cache(services: Services) -> AnswerCache | None:
    """Where a router's answers are kept; None when that is not asked for. Whoever made it closes its store."""
    settings = services.settings.marga.cache
    if not settings.enabled:
        return None
    from avyay.marga.cache_semantic import SemanticIndex
    from avyay.marga.cache_store import CacheStore, DiskCache, MemoryCache
    from avyay.marga.caching import AnswerCache

    store: CacheStore = MemoryCache(settings.max_size)
    if settings.storage == "disk":
        store = DiskCache(services.paths.component("marga") / "cache.db", settings.max_size)
    semantic = SemanticIndex(_bundled_embedder, settings.semantic.threshold) if settings.semantic.enabled else None
    return AnswerCache(settings, store, services.clock, semantic=semantic)


def open_budgets(services: Services) -> Budgets | None:
    """What callers of the router may spend; None when the configuration names no cap."""
    if not services.settings.marga.budgets:
        return None
    from avyay.marga.budgets import Budgets
    from avyay.money import DOLLAR

    folder = services.paths.component("marga")
    return services.closing(
        Budgets(
            services.settings.marga.budgets,
            folder / "budgets.db",
            services.clock,
            block=DOLLAR,
            calls=folder / "marga.db",
        )
    )


def make_completer(services: Services) -> Completer:
    """The router in this process, or the one at `marga.url`."""
    from avyay.marga.completer import LocalCompleter

    settings = services.settings.marga
    if settings.url is not None:
        from avyay.marga.remote import RemoteCompleter

        return RemoteCompleter(settings.url, key=services.loaded.environment.value("MARGA_API_KEY"))
    answers = make_answer_cache(services)
    if answers is not None:
        services.closing(answers.store)
    return LocalCompleter(services.router, cache=answers)


def make_bill(services: Services, models: str | None) -> BillReader | None:
    """Who counts what agents spend: the router they are sent to, when there is one."""
    if models is None:
        return None
    from avyay.marga.charges import RemoteBill

    return RemoteBill(models, key=services.loaded.environment.value("MARGA_API_KEY"))


@cache
def _bundled_embedder() -> Embedder:
    """The embedder in the package, whatever the configuration names: what it reads stays on this machine."""
    from avyay.embed.registry import open_embedder

    return open_embedder()
