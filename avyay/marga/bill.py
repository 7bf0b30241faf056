"""What a call used and cost: as its provider reported it, else estimated and labelled so."""

from __future__ import annotations

from dataclasses import dataclass

from avyay.marga.cost import cost_of
from avyay.marga.router import Router
from avyay.marga.tokens import estimate_size
from avyay.marga.types import Candidate, Decision
from avyay.marga.wire import Usage
from avyay.money import Picodollars

__all__ = ["Bill", "bill_of"]

_SERVICE_TIERS = {"priority": "priority", "flex": "flex"}


@dataclass(frozen=True, slots=True)
class Bill:
    """Tokens and money of one call. `cost` is None where no price is known."""

    usage: Usage
    cost: Picodollars | None
    estimated: bool


def bill_of(
    router: Router,
    decision: Decision,
    candidate: Candidate,
    reported: Usage | None,
    *,
    service_tier: object = None,
    output_chars: int = 0,
    complete: bool = True,
) -> Bill:
    """The bill of a call; what its provider reports also teaches the router how that model counts.

    Args:
        reported: What the provider said it used, so far.
        service_tier: As the request asked for it; what the provider says it served goes before.
        output_chars: Length of the answer, where nothing was reported.
        complete: Whether the answer came to its end: else what was reported is only a floor.
    """
    sized = int(decision.features["input_tokens"])
    if reported is not None and complete:
        router.ratios.observe(candidate.model.known_as, sized, reported.input)
        usage, estimated = reported, False
    else:
        seen = reported or Usage()
        usage, estimated = (
            Usage(
                input=seen.input or router.estimate_input(decision, candidate),
                output=max(seen.output, estimate_size(output_chars, "")),
                cache_read=seen.cache_read,
                cache_write=seen.cache_write,
                cache_write_1h=seen.cache_write_1h,
                reasoning=seen.reasoning,
                tier=seen.tier,
            ),
            True,
        )
    served = usage.tier or service_tier
    cost = cost_of(
        candidate.model,
        input_tokens=usage.input,
        output_tokens=usage.output,
        cache_read=usage.cache_read,
        cache_write=usage.cache_write,
        cache_write_1h=usage.cache_write_1h,
        service_tier=_SERVICE_TIERS.get(served) if isinstance(served, str) else None,
    )
    return Bill(usage, cost, estimated)
