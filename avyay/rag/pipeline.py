"""How documents become chunks, and chunks terms, as short names: another name means that it has to be done again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

__all__ = ["pipeline_id", "terms_id"]

# Everything that decides what stands in an index. Its bytes are the version: a number that somebody has to raise
# would be forgotten, and cutting again is cheap, because vectors are kept by their text.
_TERMS = ("kinds.py", "retrieve.py", "lexical/tokenise.py", "lexical/postings.py")
_PARTS = ("chunk.py", "documents.py", *_TERMS, "parsers")


@lru_cache(maxsize=1)
def pipeline_id() -> str:
    """12 hex digits, the same for the same code."""
    return _digest(_PARTS)


@lru_cache(maxsize=1)
def terms_id() -> str:
    """The same for what turns chunks into terms, which queries are turned into as well."""
    return _digest(_TERMS)


def _digest(parts: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    here = Path(__file__).parent
    for part in parts:
        place = here / part
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
