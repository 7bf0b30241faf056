"""How documents become chunks and terms, as one short name: another name means that an index has to be cut again."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

__all__ = ["pipeline_id"]

# Everything that decides what stands in an index. Its bytes are the version: a number that somebody has to raise
# would be forgotten, and cutting again is cheap, because vectors are kept by their text.
_PARTS = (
    "chunk.py",
    "documents.py",
    "kinds.py",
    "retrieve.py",
    "lexical/tokenise.py",
    "lexical/postings.py",
    "parsers",
)


@lru_cache(maxsize=1)
def pipeline_id() -> str:
    """12 hex digits, the same for the same code."""
    digest = hashlib.blake2b(digest_size=6)
    here = Path(__file__).parent
    for part in _PARTS:
        place = here / part
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
