"""Configuration: one typed tree from flags, `AVYAY_*`, the project's and the user's avyay.yaml, and defaults."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from avyay.config.environment import Environment

if TYPE_CHECKING:
    from avyay.config.load import Loaded, Origin, load_settings
    from avyay.config.schema import Settings

__all__ = ["Environment", "Loaded", "Origin", "Settings", "load_settings"]

# The tree is made of pydantic models, and whoever wants only the environment should not wait for them.
_HOMES = {"Loaded": "load", "Origin": "load", "load_settings": "load", "Settings": "schema"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
