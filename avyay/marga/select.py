"""Which candidates a request is offered to, in order: tier by complexity, then capability x cost x latency x health.

Pure: the same view, hints, candidates and conditions give the same answer, which is what makes a decision replayable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from avyay.marga.complexity import Complexity
from avyay.marga.compliance import on_own_network, resident
from avyay.marga.cost import estimate
from avyay.marga.types import TIERS, Candidate, Condition, Hints, Ranked
from avyay.marga.view import RequestView
from avyay.ports import Tier

__all__ = ["QUALITY_OF_TIER", "Selection", "same_class", "select", "tier_for"]

# What a tier is taken to deliver relative to premium until it has been measured on the user's own traffic.
QUALITY_OF_TIER: Mapping[Tier, float] = {"local": 0.7, "medium": 0.9, "premium": 1.0}

_UNKNOWN_LATENCY = 1.0  # seconds to the first byte a candidate is taken to need before it was measured
_SURELY_TOO_LONG = 1.6
_FREE = 2_000_000  # picodollars; keeps latency meaningful among free models
_HEALTH = {"closed": 1.0, "half_open": 0.5, "open": 0.0}


@dataclass(frozen=True, slots=True)
class Selection:
    """The tier, the candidates in the order they will be tried, and the reasons in the order they were found."""

    tier: Tier
    ranked: tuple[Ranked, ...]
    reasons: tuple[str, ...]
    excluded: tuple[tuple[str, str], ...] = ()  # (candidate, why not)
    displaced: bool = False  # the first stands in for one that is down


def tier_for(
    complexity: float,
    hints: Hints,
    local_below: float,
    premium_from: float,
    measured: Mapping[Tier, float] | None = None,
) -> tuple[Tier, list[str]]:
    """The tier a request deserves, before it is known who can serve it.

    Args:
        measured: Quality by tier relative to premium, as comparisons of this request class showed it.
    """
    tier: Tier
    if complexity < local_below:
        tier, why = "local", f"complexity {complexity:.2f} < {local_below:g}"
    elif complexity < premium_from:
        tier, why = "medium", f"complexity {complexity:.2f} < {premium_from:g}"
    else:
        tier, why = "premium", f"complexity {complexity:.2f} >= {premium_from:g}"
    reasons = [why]
    if hints.tier is not None and hints.tier != tier:
        tier = hints.tier
        reasons.append(f"the caller asks for {tier}")
    if hints.quality_min is not None:
        quality = {**QUALITY_OF_TIER, **(measured or {})}
        if quality[tier] < hints.quality_min:
            # Upward only: a tier below what complexity asks for may be good on average and not for this request.
            enough = (t for t in TIERS[TIERS.index(tier) :] if quality[t] >= hints.quality_min)
            tier = next(enough, "premium")
            reasons.append(f"quality {hints.quality_min:g} asks for {tier}")
        if measured:
            shown = ", ".join(f"{t} {quality[t]:.2f}" for t in TIERS if t in measured)
            reasons.append(f"its class was measured: {shown}")
    return tier, reasons


def same_class(pinned: Candidate, other: Candidate) -> bool:
    """Whether `other` may stand in for a pinned model: the same model elsewhere, or another of its tier."""
    return other.model.known_as == pinned.model.known_as or other.model.tier == pinned.model.tier


def select(
    view: RequestView,
    hints: Hints,
    complexity: Complexity,
    candidates: Sequence[Candidate],
    conditions: Mapping[str, Condition],
    *,
    input_tokens: int,
    local_below: float = 0.3,
    premium_from: float = 0.7,
    pinned: Sequence[Candidate] = (),
    measured: Mapping[Tier, float] | None = None,
) -> Selection:
    """Order the candidates for one request.

    Args:
        candidates: Every chat model of every usable provider.
        conditions: By candidate name; a candidate without one counts as healthy and unmeasured.
        input_tokens: The request's size, counted or estimated.
        pinned: The candidates of the concrete model the caller named, which come first whatever the complexity.
    """
    able: list[Candidate] = []
    excluded: list[tuple[str, str]] = []
    own_names = {candidate.name for candidate in pinned}
    for candidate in (*pinned, *(c for c in candidates if c.name not in own_names)):
        reason = _unable(candidate, view, hints, input_tokens)
        if reason is None:
            able.append(candidate)
        else:
            excluded.append((candidate.name, reason))
    if pinned:
        first = pinned[0]
        own = [c for c in able if c.name in own_names]
        others = [c for c in able if c.name not in own_names and same_class(first, c)]
        if len(own) > 1:
            own.sort(key=lambda c: _rank(c, view, hints, conditions, input_tokens))
        others.sort(
            key=lambda c: (
                c.model.known_as != first.model.known_as,
                _rank(c, view, hints, conditions, input_tokens),
            )
        )
        ranked = tuple(_ranked(c, view, input_tokens) for c in (*own, *others))
        displaced = conditions.get(first.name, _CLOSED).state != "closed"
        reason = f"the caller named {hints.model}"
        return Selection(first.model.tier, ranked, (reason,), tuple(excluded), displaced)

    tier, reasons = tier_for(complexity.score, hints, local_below, premium_from, measured)
    by_tier = {t: [c for c in able if c.model.tier == t] for t in TIERS}
    wanted = TIERS.index(tier)
    # Upward first: a better model than needed costs money, a worse one costs the answer.
    order = [*TIERS[wanted:], *reversed(TIERS[:wanted])]
    ordered: list[Candidate] = []
    for t in order:
        ordered += sorted(by_tier[t], key=lambda c: _rank(c, view, hints, conditions, input_tokens))
    # A candidate whose breaker is open stays a last resort of its chain, never the first choice.
    down = [c for c in ordered if conditions.get(c.name, _CLOSED).state != "closed"]
    if down:
        healthy = {name: replace(condition, state="closed") for name, condition in conditions.items()}
        first_choice = min(
            (c for t in order[:1] for c in by_tier[t]),
            key=lambda c: _rank(c, view, hints, healthy, input_tokens),
            default=None,
        )
        displaced = first_choice in down
        ordered = [c for c in ordered if c not in down] + down
    else:
        displaced = False
    if ordered and ordered[0].model.tier != tier:
        chosen = ordered[0].model.tier
        why = "no provider of that tier can take it" if by_tier[tier] else "no provider of that tier is configured"
        if by_tier[tier]:
            why = "every provider of that tier is down"
        elif any(name for name, _ in excluded if _tier_named(candidates, name) == tier):
            why = "no model of that tier can take it"
        direction = "up" if TIERS.index(chosen) > wanted else "down"
        reasons.append(f"{direction} from {tier} to {chosen}: {why}")
        tier = chosen
    ranked = tuple(_ranked(c, view, input_tokens) for c in ordered)
    return Selection(tier, ranked, tuple(reasons), tuple(excluded), displaced)


_CLOSED = Condition()


def _tier_named(candidates: Sequence[Candidate], name: str) -> Tier | None:
    return next((c.model.tier for c in candidates if c.name == name), None)


def _unable(candidate: Candidate, view: RequestView, hints: Hints, input_tokens: int) -> str | None:
    """Why a candidate cannot take this request, None when it can. What is not known counts as possible."""
    model = candidate.model
    if model.capabilities is not None:
        if view.tools and "tools" not in model.capabilities:
            return "cannot call tools"
        if view.images and "vision" not in model.capabilities:
            return "cannot read images"
    # An estimate excludes only what is far too long; near the limit the gateway asks the target's own tokenizer.
    if model.context is not None and input_tokens > model.context * _SURELY_TOO_LONG:
        return f"context of {model.context} tokens is too small for {input_tokens}"
    if hints.residency:
        region = candidate.provider.region
        local = on_own_network(candidate.provider.endpoint)
        if not local and not resident(hints.residency, region):
            return f"processes data in {region or 'an unknown region'}, not {hints.residency}"
    return None


def _rank(
    candidate: Candidate,
    view: RequestView,
    hints: Hints,
    conditions: Mapping[str, Condition],
    input_tokens: int,
) -> tuple[object, ...]:
    condition = conditions.get(candidate.name, _CLOSED)
    latency = condition.first_byte if condition.first_byte is not None else _UNKNOWN_LATENCY
    health = _HEALTH[condition.state] * (1.0 - min(0.9, condition.error_rate))
    cost = estimate(candidate.model, input_tokens=input_tokens, max_tokens=view.max_tokens)
    # A model without a known price must not look free: it comes after the priced ones of its tier.
    money = float("inf") if cost is None else float(cost + _FREE)
    late = hints.latency_budget_ms is not None and latency * 1000 > hints.latency_budget_ms
    effort = money * (latency**0.5) / health if health > 0 else float("inf")
    return (condition.state == "open", late, candidate.provider.priority, effort, candidate.name)


def _ranked(candidate: Candidate, view: RequestView, input_tokens: int) -> Ranked:
    return Ranked(candidate, estimate(candidate.model, input_tokens=input_tokens, max_tokens=view.max_tokens))
