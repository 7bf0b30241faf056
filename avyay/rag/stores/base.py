"""The port behind which vectors are kept: named by what was embedded, so a row never changes and none is ever stale.

Which rows a search may show is not decided here but by the catalog.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from avyay.ports import Vectors

__all__ = ["VectorStore", "vector_key"]


def vector_key(text: str) -> str:
    """The name of the vector of `text`: 32 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class VectorStore(Protocol):
    """Vectors of one embedder, by key."""

    def get(self, keys: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """The vectors there are for these keys; absent ones are left out."""
        ...

    def add(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Keep vectors; keys already there are left alone.

        Raises:
            DependencyError: they cannot be written.
        """
        ...

    def keys(self) -> set[str]:
        """All keys."""
        ...

    def retain(self, keys: set[str]) -> int:
        """Drop all others; says how many."""
        ...

    def search(self, vector: NDArray[np.float32], limit: int) -> list[tuple[str, float]]:
        """The nearest keys with their cosine similarity, best first."""
        ...
