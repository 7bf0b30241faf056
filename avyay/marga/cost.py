"""From tokens to money, exactly: integer picodollars."""

from __future__ import annotations

from avyay.marga.types import Model, Prices
from avyay.money import Picodollars

__all__ = ["EXPECTED_OUTPUT", "cost_of", "estimate"]

EXPECTED_OUTPUT = 400  # tokens an answer is taken to have when nothing is known yet


def cost_of(
    model: Model,
    *,
    input_tokens: int,
    output_tokens: int,
    cache_read: int = 0,
    cache_write: int = 0,
    cache_write_1h: int = 0,
    service_tier: str | None = None,
) -> Picodollars | None:
    """What a call costs; None when the model's prices are not known.

    Args:
        input_tokens: All input tokens, those read from and written to a cache included.
        cache_write: All tokens written to a cache, those kept for an hour included.
        service_tier: What the provider says it served: priority, flex or something without prices of its own.
    """
    prices = _prices(model, input_tokens, service_tier)
    if prices is None:
        return None
    short_writes = max(0, cache_write - cache_write_1h)
    plain = max(0, input_tokens - cache_read - cache_write)
    write = prices.input if prices.cache_write is None else prices.cache_write
    total = (
        plain * prices.input
        + cache_read * (prices.input if prices.cached is None else prices.cached)
        + short_writes * write
        + cache_write_1h * (write if prices.cache_write_1h is None else prices.cache_write_1h)
        + output_tokens * prices.output
    )
    return Picodollars(total)


def estimate(model: Model, *, input_tokens: int, max_tokens: int | None = None) -> Picodollars | None:
    """What a call is expected to cost before it is made."""
    output = EXPECTED_OUTPUT if max_tokens is None else min(EXPECTED_OUTPUT, max_tokens)
    return cost_of(model, input_tokens=input_tokens, output_tokens=output)


def _prices(model: Model, input_tokens: int, service_tier: str | None) -> Prices | None:
    if service_tier is not None and (special := model.service_tiers.get(service_tier)) is not None:
        return special
    if model.long is not None and model.long_above is not None and input_tokens > model.long_above:
        return model.long
    return model.prices
