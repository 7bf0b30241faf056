"""Where an index lives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["IndexPlaces"]


@dataclass(frozen=True, slots=True)
class IndexPlaces:
    """Where an index lives. `vectors` is a folder or an object store's URL; the rest are local."""

    root: Path
    vectors: str

    @classmethod
    def under(cls, root: Path, vectors: str | None = None) -> IndexPlaces:
        """An index below `root`; its vectors too, unless they have a place of their own."""
        return cls(root, vectors or str(root / "vectors.lance"))

    @property
    def database(self) -> Path:
        return self.root / "rag.db"

    @property
    def generations(self) -> Path:
        return self.root / "generations"

    @property
    def mirrors(self) -> Path:
        return self.root / "mirrors"

    @property
    def lock(self) -> Path:
        return self.root / "index.lock"
