"""Vectors for chunks: found where one was computed before, computed where not, kept, and read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from avyay.rag.stores.base import VectorStore, vector_key
from avyay.rag.verify import verify_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avyay.db import Database
    from avyay.ports import Embedder, Progress, Vectors
    from avyay.rag.generation import Generation

__all__ = ["VectorSupply"]

EMBED_BATCH = 32
STORE_BATCH = 1_024  # put into the store at once, and the most that an interrupted run has to embed again
PENDING = 256  # fewer new vectors wait in the catalog: a fragment each would slow the store down


class VectorSupply:
    """Gives each text its vector; a text is embedded once in the life of the store.

    Args:
        open_store: Opens the vector store, which takes seconds: called only when it is needed.
    """

    def __init__(self, embedder: Embedder, open_store: Callable[[], VectorStore]) -> None:
        self.embedder = embedder
        self._open_store = open_store
        self._store: VectorStore | None = None

    @property
    def store(self) -> VectorStore:
        """The vector store, opened."""
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def vectors(
        self, database: Database, old: Generation, texts: Sequence[str], *, few_may_wait: bool, progress: Progress
    ) -> tuple[Vectors, set[str]]:
        """One row per text, and the keys of those that were computed now.

        Args:
            old: A generation whose vectors may be taken over.
            few_may_wait: Let a handful of new vectors wait in the catalog instead of opening the store.
        """
        keys = [vector_key(text) for text in texts]
        wanted = dict(zip(keys, texts, strict=True))
        known = self._known(database, old, wanted.keys())
        missing = [key for key in wanted if key not in known]
        wait = few_may_wait and len(missing) < PENDING
        if missing and not wait:
            known.update(self.store.get(missing))
            missing = [key for key in missing if key not in known]
        for first in range(0, len(missing), STORE_BATCH):
            some = missing[first : first + STORE_BATCH]
            rows = self._embed([wanted[key] for key in some], first, len(missing), progress)
            known.update(zip(some, rows, strict=True))
            if wait:
                _let_wait(database, some, rows)
            else:
                self.keep(some, rows)
        if not wait or _waiting(database) >= PENDING:
            self.flush(database)
        if not keys:
            return np.empty((0, self.embedder.dimensions), np.float32), set()
        return np.stack([known[key] for key in keys]).astype(np.float32, copy=False), set(missing)

    def keep(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Put vectors into the store and read them back: a store may say yes and keep nothing.

        Raises:
            CorruptError: it did not keep them.
        """
        self.store.add(keys, vectors)
        verify_vectors(self.store, keys, vectors)

    def flush(self, database: Database) -> int:
        """Move the waiting vectors into the store; says how many."""
        waiting = _waiting_vectors(database, self.embedder.dimensions)
        if waiting:
            self.keep(list(waiting), np.stack(list(waiting.values())))
        # Those of another embedder go too: nothing will ask for them.
        with database.transaction():
            database.execute("DELETE FROM pending_vectors")
        return len(waiting)

    def _known(self, database: Database, old: Generation, wanted: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        found = _waiting_vectors(database, self.embedder.dimensions)
        keys = set(wanted) - found.keys()
        if old.vectors is not None and len(old) and keys:
            rows = database.execute("SELECT uid, vector_key FROM chunks").fetchall()
            named = [(uid, key) for uid, key in rows if key in keys]
            for (_, key), row in zip(named, old.rows_of([uid for uid, _ in named]), strict=True):
                if row >= 0:
                    found[key] = np.array(old.vectors[row])
        return found

    def _embed(self, texts: list[str], done: int, total: int, progress: Progress) -> Vectors:
        parts = []
        for first in range(0, len(texts), EMBED_BATCH):
            progress(done + first, total, "Embedding")
            parts.append(self.embedder.embed(texts[first : first + EMBED_BATCH], kind="document"))
        progress(done + len(texts), total, "Embedding")
        return np.concatenate(parts)


def _let_wait(database: Database, keys: Sequence[str], vectors: Vectors) -> None:
    with database.transaction():
        database.executemany(
            "INSERT OR IGNORE INTO pending_vectors VALUES (?, ?)",
            [(key, row.astype("<f4").tobytes()) for key, row in zip(keys, vectors, strict=True)],
        )


def _waiting(database: Database) -> int:
    return int(database.execute("SELECT count(*) FROM pending_vectors").fetchone()[0])


def _waiting_vectors(database: Database, dimensions: int) -> dict[str, NDArray[np.float32]]:
    rows = database.execute("SELECT vector_key, vector FROM pending_vectors").fetchall()
    return {key: np.frombuffer(blob, dtype="<f4") for key, blob in rows if len(blob) == dimensions * 4}
