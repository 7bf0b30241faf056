"""What calls would have cost with one model for everything: the yardstick that routing is measured by."""

from __future__ import annotations

from collections.abc import Iterable

from avyay.marga.cost import cost_of
from avyay.marga.types import Model, Provider
from avyay.money import Picodollars

__all__ = ["cost_with", "dearest"]

_SAMPLE = 1_000  # tokens: few enough for a model's ordinary prices


def dearest(providers: Iterable[Provider]) -> Model | None:
    """The configured chat model with the highest price: where everything would go without a router."""
    known = [
        model
        for provider in providers
        for model in provider.models
        if model.mode != "embedding" and model.prices is not None
    ]
    return max(known, key=lambda model: cost_with(model, input_tokens=3_000_000, output_tokens=1_000_000), default=None)


def cost_with(model: Model, *, input_tokens: int, output_tokens: int) -> Picodollars:
    """The cost of many calls' tokens at a model's ordinary prices, in picodollars: no call was long, none cached."""
    read = cost_of(model, input_tokens=_SAMPLE, output_tokens=0) or 0
    write = cost_of(model, input_tokens=0, output_tokens=_SAMPLE) or 0
    return Picodollars((read * input_tokens + write * output_tokens) // _SAMPLE)
