"""Vectors in a dictionary: for tests, and for indexes that live as long as the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avyay.ports import Vectors

__all__ = ["MemoryStore"]


class MemoryStore:
    """A `VectorStore` without a disk."""

    def __init__(self) -> None:
        self._rows: dict[str, NDArray[np.float32]] = {}

    def get(self, keys: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        return {key: self._rows[key] for key in keys if key in self._rows}

    def add(self, keys: Sequence[str], vectors: Vectors) -> None:
        for key, vector in zip(keys, vectors, strict=True):
            self._rows.setdefault(key, np.array(vector, dtype=np.float32))

    def keys(self) -> set[str]:
        return set(self._rows)

    def retain(self, keys: set[str]) -> int:
        gone = self._rows.keys() - keys
        for key in gone:
            del self._rows[key]
        return len(gone)

    def search(self, vector: NDArray[np.float32], limit: int) -> list[tuple[str, float]]:
        if not self._rows:
            return []
        names = list(self._rows)
        scores = np.stack([self._rows[name] for name in names]) @ vector
        best = np.argsort(-scores, kind="stable")[:limit]
        return [(names[index], float(scores[index])) for index in best]
