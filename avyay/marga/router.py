"""The router's service: knows the providers, takes decisions, keeps what became of them."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.marga import CircuitBreakerSettings, MargaSettings
from avyay.errors import AuthError, UsageError
from avyay.marga.backends import open_backend
from avyay.marga.backends.base import Backend, dialect_towards
from avyay.marga.budgets import Budgets
from avyay.marga.calibrate import Calibrated
from avyay.marga.catalogue import Catalogue, bundled_catalogue
from avyay.marga.complexity import Complexity, score
from avyay.marga.dispatch import Dispatcher
from avyay.marga.experiments import assign, experiment_of
from avyay.marga.health import Health
from avyay.marga.model_pool import ModelPool
from avyay.marga.providers import SETUP_HINT
from avyay.marga.select import Selection, select, tier_for
from avyay.marga.shadow import UNCLASSED
from avyay.marga.sticky import Answered, Conversations, Homes, stay
from avyay.marga.store import CallStore
from avyay.marga.tokens import LearnedRatios, estimate_size
from avyay.marga.transport import Transport
from avyay.marga.types import (
    ENDPOINTS,
    TIERS,
    Candidate,
    Condition,
    Decision,
    Dialect,
    Endpoint,
    Hints,
    Provider,
    Ranked,
)
from avyay.marga.view import RequestView, view_stored
from avyay.ports import Tier
from avyay.resilience.breaker import BreakerPolicy
from avyay.resilience.timeouts import TimeoutPolicy

_random = random.Random(secrets.randbits(128))  # noqa: S311 - ids must differ, not be secret

__all__ = ["Router", "new_decision_id", "no_provider"]

_UNSCORED = Complexity(0.0, ())  # a concrete model was named: how hard the request is changes nothing


def new_decision_id() -> str:
    """A new id: the time in milliseconds, then 48 random bits. Rows with neighbouring keys are far cheaper to write."""
    return f"dec_{time.time_ns() // 1_000_000:012x}{_random.getrandbits(48):012x}"


def no_provider(providers: Iterable[Provider] = ()) -> AuthError:
    """The error of a router without any provider it can call, with the ways to get one."""
    problems = [f"{provider.name} ({provider.problem})" for provider in providers if provider.problem]
    if problems:
        return AuthError(
            f"No provider can be used: {', '.join(problems)}.", hint="See: avyay marga providers", code="no_provider"
        )
    return AuthError("No provider is configured.", hint=SETUP_HINT, code="no_provider")


class Router:
    """One per process. `async with` keeps its connections open; without it they close after each call.

    Args:
        providers: All of them, usable or not.
        store: Where calls are kept; made when the first call is.
        budgets: What callers may spend; None limits nobody.
        score: The complexity of a request.
        new_id: Ids of decisions.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        settings: MargaSettings,
        *,
        store: Callable[[], CallStore],
        budgets: Budgets | None = None,
        catalogue: Catalogue | None = None,
        clock: Clock = SYSTEM_CLOCK,
        transport: Transport | None = None,
        score: Callable[[RequestView], Complexity] = score,
        new_id: Callable[[], str] = new_decision_id,
    ) -> None:
        self.settings = settings
        self.budgets = budgets
        self.clock = clock
        self.transport = transport or Transport(
            connect_timeout=settings.timeouts.connect, idle_timeout=settings.timeouts.idle
        )
        self.catalogue = catalogue or bundled_catalogue()
        self.backends: dict[str, Backend] = {p.name: open_backend(p, self.transport) for p in providers if p.usable}
        self.models = ModelPool(providers, self.backends, settings.aliases, self.catalogue)
        configured = {setting.name: setting for setting in settings.providers}
        timeouts = settings.timeouts
        self.health = Health(
            {name: ENDPOINTS[backend.dialects[0]] for name, backend in self.backends.items()},
            clock,
            policies={name: breaker_policy(setting.circuit_breaker) for name, setting in configured.items()},
            timeouts={
                True: TimeoutPolicy(timeouts.stream_min, timeouts.stream_max, timeouts.stream_start),
                False: TimeoutPolicy(timeouts.answer_min, timeouts.answer_max, timeouts.answer_start),
            },
            limits_declared=frozenset(name for name, s in configured.items() if s.requests_per_minute is not None),
        )
        self.dispatcher = Dispatcher(self.backends, self.health, clock)
        self.ratios = LearnedRatios()
        self._selected: dict[tuple[object, ...], tuple[Selection, Mapping[str, Condition]]] = {}
        self._selected_at = (-1, -1)
        self.floors: dict[str, Tier] = {}  # by request class: the lowest tier that was found good enough
        self.qualities: Mapping[str, Mapping[Tier, float]] = {}  # by request class and tier, relative to premium
        self.conversations = Conversations()
        self.homes = Homes()
        self.calibration: Calibrated | None = None
        self.experiments = {e.request_class: experiment_of(e) for e in settings.experiments}
        self._make_store = store
        self._store: CallStore | None = None
        self._score = score
        self.new_id = new_id
        self._users = 0

    @property
    def providers(self) -> dict[str, Provider]:
        """All of them by name, usable or not, with the models they are known to hold."""
        return self.models.providers

    @property
    def store(self) -> CallStore:
        """Where calls are kept.

        Raises:
            AvyayError: it cannot be opened.
        """
        if self._store is None:
            self._store = self._make_store()
        return self._store

    def open_store(self) -> None:
        """Open the place where calls are kept.

        Raises:
            AvyayError: it cannot be opened.
        """
        _ = self.store

    def usable(self) -> list[Provider]:
        """The providers that can be called."""
        return self.models.usable()

    async def learn_models(self, *, again: bool = False) -> None:
        """Ask the providers that hold models of their own which these are; those that stay silent have none.

        Args:
            again: Ask also those that have answered before.
        """
        await self.models.learn_all(again=again)

    async def learn(self, name: str) -> None:
        """Ask a provider which models it holds.

        Raises:
            UnreachableError: it does not say.
            AuthError: it refuses the key.
        """
        await self.models.learn(name)

    def candidates(self) -> list[Candidate]:
        """Every chat model of every usable provider."""
        return self.models.candidates()

    def pinned(self, name: str) -> list[Candidate]:
        """The candidates a concrete model name stands for: `model`, `provider/model` or an alias.

        Raises:
            UsageError: nobody has it.
        """
        return self.models.pinned(name)

    def decide(
        self,
        view: RequestView,
        hints: Hints,
        *,
        candidates: Sequence[Candidate] | None = None,
        conditions: Mapping[str, Condition] | None = None,
        at: float | None = None,
        conversation: str | None = None,
        dialect: Dialect = "openai_chat",
    ) -> Decision:
        """Where a request goes.

        Args:
            candidates: Instead of the usable ones: to explain without a provider.
            conditions: Instead of the present ones: to take a decision again.
            at: When the decision began, on the monotonic clock, for its latency.
            conversation: What names the conversation, so that it can keep its model.
            dialect: The caller's: it decides which endpoint of a provider is asked, and so whose health counts.

        Raises:
            UsageError: the model named is nobody's.
        """
        started = self.clock.monotonic() if at is None else at
        tokens = estimate_size(view.chars, view.last_user) + 4 * view.messages
        arm: tuple[str, str] | None = None
        if self.experiments and hints.model == "auto" and hints.tier is None:
            hints, arm = self._assign(hints, conversation)
        pinned: tuple[Candidate, ...] = ()
        complexity = _UNSCORED
        if hints.model != "auto":
            pinned = tuple(self.pinned(hints.model))
        else:
            complexity = self._score(view)
            if self.calibration is not None:
                learned = self.calibration.rate(complexity.score, view.features(), hints.request_class)
                complexity = replace(
                    complexity, score=learned, reasons=("calibrated on this traffic", *complexity.reasons)
                )
        floor = self.floors.get(hints.request_class or UNCLASSED, "local") if not pinned else "local"
        measured = None
        if hints.quality_min is not None and not pinned:
            measured = self.qualities.get(hints.request_class or UNCLASSED)
        if candidates is None and conditions is None:
            selection, conditions = self._select(view, hints, complexity, pinned, tokens, floor, dialect, measured)
        else:
            pool = self.candidates() if candidates is None else candidates
            if conditions is None:
                conditions = self.health.conditions(pool, lambda candidate: self.endpoint_of(candidate, dialect))
            shape, size, _ = self._size_class(view, tokens)
            selection = self._select_now(shape, hints, complexity, pinned, size, pool, conditions, floor, measured)
        features = {**view.features(), "input_tokens": tokens}
        if floor != "local":
            features["floor"] = floor
        if measured is not None:
            features["quality"] = dict(measured)
        if arm is not None:
            features["experiment"] = arm
        if conversation is not None and not pinned:
            bound = view.tool_loop or view.signed_thinking
            last = self.conversations.last(conversation, self.clock.monotonic(), bound=bound)
            if last is not None:
                features["last"] = [last.candidate, last.cached]
                selection = _kept(view, selection, last, conditions, tokens)
        return Decision(
            id=self.new_id(),
            at=self.clock.now(),
            tier=selection.tier,
            complexity=complexity.score,
            reasons=(*selection.reasons, *complexity.reasons),
            ranked=selection.ranked,
            hints=hints,
            features=features,
            conditions=conditions,
            seconds=self.clock.monotonic() - started,
            displaced=selection.displaced,
        )

    def _assign(self, hints: Hints, conversation: str | None) -> tuple[Hints, tuple[str, str] | None]:
        """The hints of the arm this request falls into, where its class is under experiment."""
        experiment = self.experiments.get(hints.request_class or "")
        if experiment is None:
            return hints, None
        arm = assign(experiment, conversation or self.new_id())
        if arm.target in TIERS:
            tier: Tier = TIERS[TIERS.index(arm.target)]
            return replace(hints, tier=tier), (experiment.name, arm.name)
        try:
            self.pinned(arm.target)
        except UsageError:
            return hints, None  # nobody has it: the class is routed as if there were no experiment
        return replace(hints, model=arm.target), (experiment.name, arm.name)

    def decide_again(
        self, features: Mapping[str, Any], hints: Hints, complexity: float, conditions: Mapping[str, Condition]
    ) -> Selection:
        """The selection for a decision on record, from its stored features and conditions.

        Under the configuration it was taken with this is the same selection; under another, what would have been.

        Raises:
            UsageError: the model named is nobody's here.
        """
        view = view_stored(features)
        tokens = int(features["input_tokens"])
        pinned = tuple(self.pinned(hints.model)) if hints.model != "auto" else ()
        floor: Tier = features.get("floor", "local")
        pool = self.candidates()
        shape, size, _ = self._size_class(view, tokens)
        quality: Mapping[Tier, float] | None = features.get("quality")
        found = self._select_now(
            shape, hints, Complexity(complexity, ()), pinned, size, pool, conditions, floor, quality
        )
        if not pinned and (last := features.get("last")) is not None:
            found = _kept(view, found, Answered(last[0], 0.0, last[1]), conditions, tokens)
        return found

    def _select(
        self,
        view: RequestView,
        hints: Hints,
        complexity: Complexity,
        pinned: tuple[Candidate, ...],
        tokens: int,
        floor: Tier,
        dialect: Dialect,
        measured: Mapping[Tier, float] | None,
    ) -> tuple[Selection, Mapping[str, Condition]]:
        """The selection among the present candidates; remembered for small requests of a kind, since most are alike."""
        pool = self.candidates()
        version = self.health.version, self.models.version
        if version != self._selected_at or len(self._selected) > 1000:
            self._selected.clear()
            self._selected_at = version
        shape, size, small = self._size_class(view, tokens)
        key: tuple[object, ...] | None = None
        if small:
            local_below, premium_from = self._limits(floor)
            tier = tier_for(complexity.score, _at_least(hints, floor), local_below, premium_from, measured)
            key = (
                hints,
                dialect,
                floor,
                measured is None,
                tier[0] if not pinned else None,
                size,
                shape.max_tokens,
                view.tools > 0,
                view.images > 0,
            )
            if (found := self._selected.get(key)) is not None:
                selection, conditions = found
                if not pinned:
                    selection = replace(selection, reasons=(*tier[1], *selection.reasons[len(tier[1]) :]))
                return selection, conditions
        conditions = self.health.conditions(pool, lambda candidate: self.endpoint_of(candidate, dialect))
        selection = self._select_now(
            view, hints, complexity, pinned, size if small else tokens, pool, conditions, floor, measured
        )
        kept = _of_ranked(conditions, selection.ranked)
        if key is not None:
            self._selected[key] = (selection, kept)
        return selection, kept

    def _select_now(
        self,
        view: RequestView,
        hints: Hints,
        complexity: Complexity,
        pinned: Sequence[Candidate],
        tokens: int,
        pool: Sequence[Candidate],
        conditions: Mapping[str, Condition],
        floor: Tier,
        measured: Mapping[Tier, float] | None,
    ) -> Selection:
        local_below, premium_from = self._limits(floor)
        found = select(
            view,
            _at_least(hints, floor),
            complexity,
            pool,
            conditions,
            input_tokens=tokens,
            local_below=local_below,
            premium_from=premium_from,
            pinned=pinned,
            measured=measured,
        )
        if floor == "local":
            return found
        return replace(found, reasons=(*found.reasons, f"its class needs {floor} at least, by comparison of answers"))

    def _size_class(self, view: RequestView, tokens: int) -> tuple[RequestView, int, bool]:
        """The request as it is costed, its size, and whether it is small.

        Small requests of a size class are costed alike: at its upper end, so that a context limit is kept.
        """
        size = 1 << max(6, tokens.bit_length())
        if 2 * size > self.models.smallest_context:
            return view, tokens, False
        if view.max_tokens is not None:
            view = replace(view, max_tokens=1 << view.max_tokens.bit_length())
        return view, size, True

    def _limits(self, floor: Tier) -> tuple[float, float]:
        """The thresholds of the tiers for a class with a floor."""
        routing = self.settings.routing
        if floor == "premium":
            return 0.0, 0.0
        return (0.0 if floor == "medium" else routing.local_below), routing.premium_from

    def endpoint_of(self, candidate: Candidate, dialect: Dialect) -> Endpoint:
        """The endpoint of its provider that a candidate is asked at, for a caller who speaks `dialect`."""
        return ENDPOINTS[dialect_towards(candidate.model, self.backends[candidate.provider.name].dialects, dialect)]

    def last_model(self, conversation: str | None) -> str | None:
        """The candidate (`provider/model`) that answered a conversation last."""
        if conversation is None:
            return None
        last = self.conversations.last(conversation, self.clock.monotonic(), bound=True)
        return last.candidate if last is not None else None

    def estimate_input(self, decision: Decision, candidate: Candidate) -> int:
        """Input tokens of a decided request as this candidate would count them, nearly."""
        return self.ratios.apply(candidate.model.known_as, int(decision.features["input_tokens"]))

    async def __aenter__(self) -> Router:
        self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if self._users == 0:
            await self.transport.aclose()


def _at_least(hints: Hints, floor: Tier) -> Hints:
    """Hints that ask for no tier below a measured floor: what a tier cannot do is no matter of taste."""
    if hints.tier is None or TIERS.index(hints.tier) >= TIERS.index(floor):
        return hints
    return replace(hints, tier=floor)


def _kept(
    view: RequestView, selection: Selection, last: Answered, conditions: Mapping[str, Condition], tokens: int
) -> Selection:
    """The selection with the conversation's model in front, where it should stay there."""
    ranked, reason = stay(view, selection.ranked, last, selection.tier, conditions, input_tokens=tokens)
    if reason is None:
        return selection
    return replace(selection, tier=ranked[0].candidate.model.tier, ranked=ranked, reasons=(reason, *selection.reasons))


def _of_ranked(conditions: Mapping[str, Condition], ranked: Sequence[Ranked]) -> Mapping[str, Condition]:
    """The conditions that could have mattered, for the record."""
    names = (entry.candidate.name for entry in ranked)
    return {name: conditions[name] for name in names if name in conditions}


def breaker_policy(settings: CircuitBreakerSettings) -> BreakerPolicy:
    """The breaker policy of a provider's configuration."""
    return BreakerPolicy(
        failure_threshold=settings.failure_threshold,
        recovery_timeout=max(0.001, settings.recovery_timeout),
        error_rate_threshold=settings.error_rate_threshold,
        window_size=max(0.001, settings.window_size),
        minimum_requests=settings.minimum_requests,
    )
