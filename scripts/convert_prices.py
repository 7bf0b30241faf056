"""Make avyay/marga/data/prices.json from the price file inside a litellm wheel (MIT licence).

    pip download --no-deps litellm -d /tmp/wheel
    python scripts/convert_prices.py /tmp/wheel/litellm-*.whl --date 2026-11-21

Kept: chat, responses and embedding models of a few vendors; prices as integer picodollars per token.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "avyay" / "marga" / "data" / "prices.json"
MEMBER = "litellm/model_prices_and_context_window_backup.json"
VENDORS = ("openai", "anthropic", "azure", "deepseek", "groq", "mistral", "xai", "cerebras", "gemini")
MODES = {"chat": "chat", "responses": "responses", "embedding": "embedding"}
PRICES = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
}
CAPABILITIES = {
    "tools": "supports_function_calling",
    "vision": "supports_vision",
    "json_schema": "supports_response_schema",
    "reasoning": "supports_reasoning",
    "prompt_cache": "supports_prompt_caching",
}
_ABOVE = re.compile(r"^input_cost_per_token_above_(\d+)k_tokens$")


def picodollars(value: float) -> int:
    """A price per token in dollars as an exact integer, rounded half to even where the source is finer."""
    return int((Decimal(repr(value)) * 10**12).to_integral_value())


def prices(entry: dict[str, Any], suffix: str = "") -> dict[str, int]:
    """The prices of one service tier or context length."""
    found = {}
    for name, key in PRICES.items():
        value = entry.get(f"{key}{suffix}")
        if isinstance(value, int | float):
            found[name] = picodollars(value)
    return found


def convert(entry: dict[str, Any]) -> dict[str, Any] | None:
    """One model, or None when it is not priced by the token."""
    base = prices(entry)
    mode = MODES.get(str(entry.get("mode")))
    if mode is None or "input" not in base or any("audio" in k or "image_token" in k for k in entry if "cost" in k):
        return None
    model: dict[str, Any] = {"mode": mode, "prices": base}
    for match in filter(None, map(_ABOVE.match, entry)):
        model["long"] = {"above": int(match[1]) * 1000, "prices": prices(entry, f"_above_{match[1]}k_tokens")}
    for tier in ("priority", "flex"):
        if "input" in (special := prices(entry, f"_{tier}")):
            model[tier] = special
    for name, key in (("context", "max_input_tokens"), ("max_output", "max_output_tokens")):
        if isinstance(entry.get(key), int) and entry[key] > 0:
            model[name] = entry[key]
    model["capabilities"] = sorted(name for name, key in CAPABILITIES.items() if entry.get(key))
    if entry.get("deprecation_date"):
        model["retires"] = entry["deprecation_date"]
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--date", required=True, help="the day the wheel was fetched")
    options = parser.parse_args()
    with zipfile.ZipFile(options.wheel) as archive:
        table = json.loads(archive.read(MEMBER))
    models: dict[str, dict[str, Any]] = {vendor: {} for vendor in VENDORS}
    for name, entry in sorted(table.items()):
        vendor = entry.get("litellm_provider") if isinstance(entry, dict) else None
        if vendor in models and not name.startswith("ft:") and (model := convert(entry)):
            bare = name.removeprefix(f"{vendor}/")
            if vendor == "azure" and "/" in bare:
                continue  # regional variants: az/eu/..., priced apart
            models[vendor][bare] = model
    version = options.wheel.name.split("-")[1]
    document = {
        "source": f"litellm {version} (MIT), {MEMBER}",
        "date": options.date,
        "unit": "picodollars per token",
        "models": models,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "models"]
    vendors = []
    for vendor, entries in models.items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
        vendors.append(f" {json.dumps(vendor)}: {{\n{rows}\n }}")
    body = ",\n".join(vendors)
    TARGET.write_text("{" + ",\n".join(lines) + ',\n"models": {\n' + body + "\n}}\n", encoding="utf-8")
    print(f"{TARGET}: {sum(map(len, models.values()))} models, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
