"""The router's service: knows the providers, takes decisions, keeps what became of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.schema import MargaSettings
from avyay.errors import AuthError, AvyayError, UsageError
from avyay.marga.backends import open_backend
from avyay.marga.backends.base import Backend
from avyay.marga.catalogue import Catalogue, bundled_catalogue, configured_model
from avyay.marga.complexity import Complexity, score
from avyay.marga.dispatch import Dispatcher
from avyay.marga.providers import SETUP_HINT
from avyay.marga.select import select
from avyay.marga.store import CallStore
from avyay.marga.tokens import estimate_tokens
from avyay.marga.transport import Transport
from avyay.marga.types import Candidate, Condition, Decision, Hints, Kind, Model, Provider
from avyay.marga.view import RequestView

__all__ = ["Router", "new_decision_id", "no_provider"]

_LIST_TIMEOUT = 2.0  # seconds a provider has to say which models it holds
# Whose models a name is, where neither the configuration nor the catalogue knows it.
_FAMILIES: tuple[tuple[tuple[str, ...], tuple[Kind, ...]], ...] = (
    (("claude-",), ("anthropic",)),
    (("gpt-", "o1", "o3", "o4", "chatgpt-", "codex-", "ft:gpt-", "text-embedding-"), ("openai",)),
)


def new_decision_id() -> str:
    """A new id: 96 random bits behind a prefix that says what it is."""
    return f"dec_{secrets.token_hex(12)}"


def no_provider() -> AuthError:
    """The error of a router without any provider, with the ways to get one."""
    return AuthError("No provider is configured.", hint=SETUP_HINT, code="no_provider")


class Router:
    """One per process. `async with` keeps its connections open; without it they close after each call.

    Args:
        providers: All of them, usable or not.
        store: Where calls are kept; made when the first call is.
        count: Tokens of a text, exactly or nearly; by default an estimate by letters.
        score: The complexity of a request.
        new_id: Ids of decisions.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        settings: MargaSettings,
        *,
        store: Callable[[], CallStore],
        catalogue: Catalogue | None = None,
        clock: Clock = SYSTEM_CLOCK,
        transport: Transport | None = None,
        count: Callable[[str], int] = estimate_tokens,
        score: Callable[[RequestView], Complexity] = score,
        new_id: Callable[[], str] = new_decision_id,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.transport = transport or Transport()
        self.catalogue = catalogue or bundled_catalogue()
        self.providers: dict[str, Provider] = {provider.name: provider for provider in providers}
        self.backends: dict[str, Backend] = {p.name: open_backend(p, self.transport) for p in providers if p.usable}
        self.dispatcher = Dispatcher(self.backends, clock)
        self._make_store = store
        self._store: CallStore | None = None
        self._count = count
        self._score = score
        self._new_id = new_id
        self._listed: set[str] = set()
        self._users = 0

    @property
    def store(self) -> CallStore:
        """Where calls are kept.

        Raises:
            AvyayError: it cannot be opened.
        """
        if self._store is None:
            self._store = self._make_store()
        return self._store

    def usable(self) -> list[Provider]:
        """The providers that can be called."""
        return [provider for provider in self.providers.values() if provider.usable]

    async def learn_models(self) -> None:
        """Ask the providers that hold models of their own which these are; those that stay silent have none."""
        silent = [p for p in self.usable() if p.lists_models and p.name not in self._listed]
        await asyncio.gather(*(self._learn(provider) for provider in silent))

    async def _learn(self, provider: Provider) -> None:
        try:
            async with asyncio.timeout(_LIST_TIMEOUT):
                models = await self.backends[provider.name].list_models()
        except (AvyayError, TimeoutError):
            return  # the next request asks again; until then it has no models to offer
        self._listed.add(provider.name)
        if not provider.models or provider.kind == "ollama":
            self.providers[provider.name] = replace(provider, models=models)

    def candidates(self) -> list[Candidate]:
        """Every chat model of every usable provider."""
        return [
            Candidate(provider, model)
            for provider in self.usable()
            for model in provider.models
            if model.mode == "chat"
        ]

    def pinned(self, name: str) -> list[Candidate]:
        """The candidates a concrete model name stands for: `model`, `provider/model` or an alias.

        Raises:
            UsageError: nobody has it.
        """
        name = self.settings.aliases.get(name, name)
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
                name, kind=provider.kind, vendor=provider.vendor, tier=None, catalogue=self.catalogue
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
        known = self.catalogue.find(name, vendor=provider.vendor)
        if known is None:
            kinds = next((kinds for prefixes, kinds in _FAMILIES if name.startswith(prefixes)), ())
            if provider.kind not in kinds:
                return None
        return configured_model(name, kind=provider.kind, vendor=provider.vendor, tier=None, catalogue=self.catalogue)

    def decide(
        self,
        view: RequestView,
        hints: Hints,
        *,
        candidates: Sequence[Candidate] | None = None,
        conditions: Mapping[str, Condition] | None = None,
    ) -> Decision:
        """Where a request goes.

        Args:
            candidates: Instead of the usable ones: to explain without a provider.

        Raises:
            UsageError: the model named is nobody's.
        """
        started = self.clock.monotonic()
        complexity = self._score(view)
        pool = self.candidates() if candidates is None else list(candidates)
        pinned: list[Candidate] = []
        if hints.model != "auto":
            pinned = self.pinned(hints.model)
        tokens = sum(self._count(text) for _, text in view.texts) + 4 * view.turns
        conditions = conditions or {}
        routing = self.settings.routing
        selection = select(
            view,
            hints,
            complexity,
            pool,
            conditions,
            input_tokens=tokens,
            local_below=routing.local_below,
            premium_from=routing.premium_from,
            pinned=pinned,
        )
        return Decision(
            id=self._new_id(),
            at=self.clock.now(),
            tier=selection.tier,
            complexity=complexity.score,
            reasons=(*selection.reasons, *complexity.reasons),
            ranked=selection.ranked,
            hints=hints,
            features={**view.features(), "input_tokens": tokens},
            conditions=conditions,
            seconds=self.clock.monotonic() - started,
        )

    async def __aenter__(self) -> Router:
        self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if self._users == 0:
            await self.transport.aclose()
