"""What would happen to a request, without asking anybody: the decision, each tier's offer, the estimated cost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from avyay.marga.completer import hints_of
from avyay.marga.providers import catalogue_providers
from avyay.marga.router import Router
from avyay.marga.tokens import count_tokens
from avyay.marga.types import Decision, Hints
from avyay.marga.view import view_completion
from avyay.money import usd_string
from avyay.ports import Completion, Tier

__all__ = ["Explanation", "explain"]

TIERS: tuple[Tier, ...] = ("local", "medium", "premium")


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and what else could have been.

    `configured` is False when no provider can be used: the models are then what one could have. `tiers` holds the
    decision each tier would get, in rising order. `problems` says per provider why it cannot be used.
    """

    decision: Decision
    tiers: tuple[Decision, ...]
    input_tokens: int
    configured: bool
    problems: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """The explanation as JSON values."""
        decision, chosen = self.decision, self.decision.chosen
        cost = decision.ranked[0].cost if decision.ranked else None
        return {
            "tier": decision.tier,
            "complexity": decision.complexity,
            "provider": chosen.provider.name if chosen else None,
            "model": chosen.model.name if chosen else None,
            "estimated_cost_usd": usd_string(cost) if cost is not None else None,
            "reasons": list(decision.reasons),
            "failover": [ranked.candidate.name for ranked in decision.ranked[1:]],
            "configured": self.configured,
            "input_tokens": self.input_tokens,
            "tiers": [_offer(each) for each in self.tiers],
        }


def explain(router: Router, request: Completion) -> Explanation:
    """Decide without calling a model; a provider that lists its own models (Ollama) is asked for that list.

    Raises:
        UsageError: the request names a model that nobody has.
    """
    problems = tuple(
        f"{provider.name}: {provider.problem or 'says of no model that it holds it'}"
        for provider in router.providers.values()
    )
    usable = router.usable()
    if any(provider.lists_models for provider in usable):

        async def learn() -> None:
            async with router:
                await router.learn_models()

        asyncio.run(learn())
    configured = bool(usable) and bool(router.candidates())
    if not configured:
        offers = [replace(provider, problem=None) for provider in catalogue_providers()]
        router = Router(offers, router.settings, store=lambda: router.store)
    view = view_completion(request, stream=True)
    decision = router.decide(view, hints_of(request))
    tiers = tuple(router.decide(view, Hints("auto", tier, request.request_class)) for tier in TIERS)
    known_as = decision.chosen.model.known_as if decision.chosen else "gpt-4o"
    tokens = sum(count_tokens(message.content, known_as).tokens for message in request.messages)
    return Explanation(decision, tiers, tokens, configured, () if configured else problems)


def _offer(decision: Decision) -> dict[str, Any]:
    asked = decision.hints.tier
    if not decision.ranked:
        return {"tier": asked, "provider": None, "model": None, "serves_tier": None, "estimated_cost_usd": None}
    first = decision.ranked[0]
    return {
        "tier": asked,
        "provider": first.candidate.provider.name,
        "model": first.candidate.model.name,
        "serves_tier": first.candidate.model.tier,
        "estimated_cost_usd": usd_string(first.cost) if first.cost is not None else None,
    }
