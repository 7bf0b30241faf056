"""Money as integer picodollars: a token can cost 7.5 nanodollars, int64 holds 9 million dollars."""

from __future__ import annotations

from typing import NewType

__all__ = ["Picodollars"]

Picodollars = NewType("Picodollars", int)
