"""The models we know: prices, limits, capabilities from a dated table; tiers by price; each kind's usual models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import orjson

from avyay.config.marga import ModelSettings
from avyay.marga.types import Kind, Model, Prices
from avyay.money import Picodollars, per_million_tokens
from avyay.ports import Tier

__all__ = ["USUAL_MODELS", "Catalogue", "bundled_catalogue", "tier_of", "vendor_of"]

PREMIUM_OUTPUT_PRICE = 20_000_000  # picodollars per token: $20 per million

# The models a provider is routed to when its configuration names none. Any other known model can still be pinned.
USUAL_MODELS: Mapping[Kind, tuple[str, ...]] = {
    "openai": ("gpt-6-luna", "gpt-6.1-sol", "gpt-5.6"),
    "anthropic": ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"),
    "ollama": ("qwen3:4b",),  # only shown while no Ollama has said what it holds
}

_VENDOR_HOSTS = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "api.x.ai": "xai",
    "api.cerebras.ai": "cerebras",
    "generativelanguage.googleapis.com": "gemini",
}
_DATED = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8}|latest)$")
# Families of local models that can call tools or read pictures, by the names Ollama lists them under.
_LOCAL_TOOLS = re.compile(r"qwen|llama-?[345]|llama3|mistral|devstral|gpt-oss|command-r|granite|hermes|deepseek-v3")
_LOCAL_VISION = re.compile(r"llava|vision|-vl|gemma3|gemma-3|minicpm-v|moondream|mistral-small3")


@dataclass(frozen=True)
class Catalogue:
    """The bundled table: (vendor, model name) -> `Model`."""

    source: str
    date: str
    models: Mapping[str, Mapping[str, Model]]

    def find(self, name: str, *, vendor: str | None) -> Model | None:
        """A model by its name, or by its name without the date it carries."""
        tables = [self.models.get(vendor, {})] if vendor else list(self.models.values())
        for wanted in (name, _DATED.sub("", name)):
            for table in tables:
                if (model := table.get(wanted)) is not None:
                    return model if wanted == name else replace(model, name=name)
        return None

    def rows(self) -> Iterable[tuple[str, Model]]:
        """Every (vendor, model)."""
        for vendor, table in self.models.items():
            for model in table.values():
                yield vendor, model


@cache
def bundled_catalogue() -> Catalogue:
    """The table that ships with the package."""
    raw = orjson.loads((files("avyay.marga") / "data" / "prices.json").read_bytes())
    models = {
        vendor: {name: _parse(name, entry) for name, entry in entries.items()}
        for vendor, entries in raw["models"].items()
    }
    return Catalogue(raw["source"], raw["date"], models)


def _parse(name: str, entry: dict[str, Any]) -> Model:
    prices = _prices(entry["prices"])
    long = entry.get("long")
    return Model(
        name=name,
        tier=tier_of(prices),
        prices=prices,
        long_above=long["above"] if long else None,
        long=_prices(entry["prices"] | long["prices"]) if long else None,
        service_tiers={tier: _prices(entry[tier]) for tier in ("priority", "flex") if tier in entry},
        context=entry.get("context"),
        max_output=entry.get("max_output"),
        capabilities=frozenset(entry["capabilities"]),
        mode=entry["mode"],
        retires=entry.get("retires"),
    )


def _prices(entry: Mapping[str, int]) -> Prices:
    return Prices(
        Picodollars(entry["input"]),
        Picodollars(entry.get("output", 0)),
        *(Picodollars(entry[name]) if name in entry else None for name in ("cached", "cache_write", "cache_write_1h")),
    )


def tier_of(prices: Prices | None) -> Tier:
    """The tier a price stands for: free is local, $20 or more per million output tokens is premium."""
    if prices is None:
        return "medium"
    if prices.input == 0 and prices.output == 0:
        return "local"
    return "premium" if prices.output >= PREMIUM_OUTPUT_PRICE else "medium"


def vendor_of(kind: Kind, endpoint: str) -> str | None:
    """Whose price list holds for a provider."""
    if kind in ("openai", "anthropic", "azure"):
        return kind
    return _VENDOR_HOSTS.get(urlsplit(endpoint).hostname or "")


def local_model(name: str) -> Model:
    """A model that runs on one's own machine: free, its abilities read off its name."""
    lowered = name.lower()
    abilities = {"json_schema"}
    if _LOCAL_TOOLS.search(lowered):
        abilities.add("tools")
    if _LOCAL_VISION.search(lowered):
        abilities.add("vision")
    free = Prices(Picodollars(0), Picodollars(0))
    return Model(name, "local", free, capabilities=frozenset(abilities))


def configured_model(
    setting: str | ModelSettings, *, kind: Kind, vendor: str | None, tier: Tier | None, catalogue: Catalogue
) -> Model:
    """A model as the configuration names it, completed from the catalogue."""
    name = setting if isinstance(setting, str) else setting.name
    base = None if isinstance(setting, str) else setting.base
    if kind == "ollama":
        model = local_model(name)
    else:
        known = catalogue.find(base or name, vendor=vendor)
        if known is None and vendor == "azure":
            known = catalogue.find(base or name, vendor="openai")
        if known is None:
            known = Model(base or name, "local" if kind == "fake" else "medium")
        model = replace(known, name=name, base=base)
    if isinstance(setting, ModelSettings):
        if setting.input_price is not None or setting.output_price is not None:
            prices = Prices(
                per_million_tokens(setting.input_price or "0"),
                per_million_tokens(setting.output_price or "0"),
                per_million_tokens(setting.cached_price) if setting.cached_price is not None else None,
                per_million_tokens(setting.cache_write_price) if setting.cache_write_price is not None else None,
            )
            model = replace(model, prices=prices, long=None, long_above=None, service_tiers={}, tier=tier_of(prices))
        model = replace(
            model,
            context=setting.context or model.context,
            max_output=setting.max_output or model.max_output,
            tier=setting.tier or tier or model.tier,
            capabilities=model.capabilities if setting.capabilities is None else frozenset(setting.capabilities),
            mode=setting.mode or model.mode,
        )
    elif tier is not None:
        model = replace(model, tier=tier)
    return model
