"""A deterministic embedder without a model: a hashed bag of words.

For tests, and where vectors are wanted but meaning is not: it knows equal words, no synonyms. It loads in no time and
gives the same vectors on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import numpy as np

from avyay.embed.types import EmbedderOptions

if TYPE_CHECKING:
    from avyay.ports import Vectors

__all__ = ["Hashing", "from_options"]

_WORD = re.compile(r"\w+")


class Hashing:
    """Each word adds or subtracts one in a dimension its hash chooses; the sum is scaled to length 1.

    A text without words, and one whose words cancel out, becomes the first unit vector.
    """

    def __init__(self, *, dimensions: int = 256, max_tokens: int = 8192) -> None:
        if dimensions < 1 or max_tokens < 1:
            raise ValueError("dimensions and max_tokens must be at least 1")
        self.name = f"hashing-{dimensions}"
        self.dimensions = dimensions
        self.max_tokens = max_tokens

    def embed(self, texts: Sequence[str], *, kind: Literal["query", "document"] = "document") -> Vectors:
        """One row of length 1 per text."""
        rows = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in self._words(text):
                place, sign = self._place(word)
                row[place] += sign
            if not row.any():
                row[0] = 1
            row /= np.linalg.norm(row)
        return rows

    def embed_tokens(self, texts: Sequence[str]) -> list[Vectors]:
        """For each text one row of length 1 per word that is read."""
        matrices = []
        for text in texts:
            words = self._words(text)
            rows = np.zeros((len(words), self.dimensions), dtype=np.float32)
            for row, word in zip(rows, words, strict=True):
                place, sign = self._place(word)
                row[place] = sign
            matrices.append(rows)
        return matrices

    def count_tokens(self, text: str) -> int:
        """Words in the whole text."""
        return len(_WORD.findall(text))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each word stands: `text[first:end]`, in order."""
        return [match.span() for match in _WORD.finditer(text)]

    def _words(self, text: str) -> list[str]:
        return [word.casefold() for word in _WORD.findall(text)[: self.max_tokens]]

    def _place(self, word: str) -> tuple[int, int]:
        number = int.from_bytes(blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        return (number >> 1) % self.dimensions, 1 if number & 1 else -1


def from_options(options: EmbedderOptions) -> Hashing:
    """The registry's way in; `dimensions` and `max_tokens` apply."""
    return Hashing(dimensions=options.dimensions or 256, max_tokens=options.max_tokens or 8192)
