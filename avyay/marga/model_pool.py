"""Which models can be had from whom: those of the configuration, those providers say they hold, those callers name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from avyay.errors import AvyayError, UsageError
from avyay.marga.backends.base import Backend
from avyay.marga.catalogue import Catalogue, configured_model
from avyay.marga.types import Candidate, Kind, Model, Provider

__all__ = ["ModelPool"]

_MOST_NAMES = 10_000
_LIST_TIMEOUT = 2.0  # seconds a provider has to say which models it holds
# Whose models a name is, where neither the configuration nor the catalogue knows it.
_FAMILIES: tuple[tuple[tuple[str, ...], tuple[Kind, ...]], ...] = (
    (("claude-",), ("anthropic",)),
    (("gpt-", "o1", "o3", "o4", "chatgpt-", "codex-", "ft:gpt-", "text-embedding-"), ("openai",)),
)


class ModelPool:
    """The models of a router's providers.

    Args:
        providers: All of them, usable or not.
        backends: Of those that can be called, by name.
        aliases: What callers may say for a model.

    Attributes:
        smallest_context: Of all candidates, in tokens.
        version: Changes whenever the candidates do.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        backends: Mapping[str, Backend],
        aliases: Mapping[str, str],
        catalogue: Catalogue,
    ) -> None:
        self.providers: dict[str, Provider] = {provider.name: provider for provider in providers}
        self._backends = backends
        self._aliases = aliases
        self._catalogue = catalogue
        self._pool: list[Candidate] | None = None
        self._pinned: dict[str, list[Candidate]] = {}
        self._listed: set[str] = set()
        self.smallest_context = 0
        self.version = 0

    def usable(self) -> list[Provider]:
        """The providers that can be called."""
        return [provider for provider in self.providers.values() if provider.usable]

    async def learn_all(self, *, again: bool = False) -> None:
        """Ask the providers that hold models of their own which these are; those that stay silent have none.

        Args:
            again: Ask also those that have answered before.
        """
        silent = [p for p in self.usable() if p.lists_models and (again or p.name not in self._listed)]
        await asyncio.gather(*(self._learn_quietly(provider.name) for provider in silent))

    async def _learn_quietly(self, name: str) -> None:
        try:
            async with asyncio.timeout(_LIST_TIMEOUT):
                await self.learn(name)
        except (AvyayError, TimeoutError):
            return  # the next request asks again; until then it has no models to offer

    async def learn(self, name: str) -> None:
        """Ask a provider which models it holds.

        Raises:
            UnreachableError: it does not say.
            AuthError: it refuses the key.
        """
        models = await self._backends[name].list_models()
        self._listed.add(name)
        provider = self.providers[name]
        if models != provider.models:
            self.providers[name] = replace(provider, models=models)
            self._pool = None

    def candidates(self) -> list[Candidate]:
        """Every chat model of every usable provider."""
        if self._pool is None:
            self._pool = [
                Candidate(provider, model)
                for provider in self.usable()
                for model in provider.models
                if model.mode != "embedding"
            ]
            self._pinned.clear()
            self.version += 1
            contexts = [c.model.context for c in self._pool if c.model.context is not None]
            self.smallest_context = min(contexts, default=1 << 20)
        return self._pool

    def pinned(self, name: str) -> list[Candidate]:
        """The candidates a concrete model name stands for: `model`, `provider/model` or an alias.

        Raises:
            UsageError: nobody has it.
        """
        self.candidates()  # forgets what was looked up when the models change
        if (known := self._pinned.get(name)) is not None:
            return known
        found = self._look_up(self._aliases.get(name, name))
        if len(self._pinned) < _MOST_NAMES:  # names come from callers
            self._pinned[name] = found
        return found

    def _look_up(self, name: str) -> list[Candidate]:
        provider_name, slash, rest = name.partition("/")
        providers = self.usable()
        if slash and provider_name in self.providers:
            providers = [p for p in providers if p.name == provider_name]
            name = rest
        found = [Candidate(p, m) for p in providers for m in p.models if name in (m.name, m.base)]
        if not found:
            found = [Candidate(p, m) for p in providers if (m := self._known(p, name)) is not None]
        if not found and slash and provider_name in self.providers and providers:
            provider = providers[0]  # named outright: its owner knows what it holds
            model = configured_model(
                name, kind=provider.kind, vendor=provider.vendor, tier=None, catalogue=self._catalogue
            )
            found = [Candidate(provider, model)]
        if not found:
            raise UsageError(
                f"No provider has a model called {name!r}.",
                hint='Use "auto", or one of those that `avyay marga providers` lists.',
                code="model_not_found",
            )
        return found

    def _known(self, provider: Provider, name: str) -> Model | None:
        """A model the provider's vendor sells, though it is not routed to."""
        if provider.kind not in ("openai", "anthropic") and provider.vendor is None:
            return None
        if provider.kind == "azure":
            return None  # only deployments can be called
        known = self._catalogue.find(name, vendor=provider.vendor)
        if known is None:
            kinds = next((kinds for prefixes, kinds in _FAMILIES if name.startswith(prefixes)), ())
            if provider.kind not in kinds:
                return None
        return configured_model(name, kind=provider.kind, vendor=provider.vendor, tier=None, catalogue=self._catalogue)
