"""Writing the next generation: rows, files, verification and the pointer, in one transaction."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avyay.errors import UnreachableError
from avyay.rag.generation import Generation, load_generation, next_generation, remove_generations
from avyay.rag.kinds import is_rule
from avyay.rag.lexical.postings import Postings
from avyay.rag.retrieve import lexical_fields
from avyay.rag.sources.base import Change, Entry
from avyay.rag.stores.base import vector_key
from avyay.rag.verify import verify_generation

if TYPE_CHECKING:
    from avyay.db import Database
    from avyay.ports import Vectors
    from avyay.rag.catalog import ChunkRow, State
    from avyay.rag.documents import Document
    from avyay.rag.plan import Plan
    from avyay.rag.types import Chunk

__all__ = ["Publisher", "record_source"]


class Publisher:
    """Makes one generation out of another; used once, inside `transaction`.

    Args:
        generations: The folder that holds the files of all generations.
        old: What the new generation takes over from.
    """

    def __init__(self, database: Database, generations: Path, state: State, old: Generation) -> None:
        self.database = database
        self.number = state.generation + 1
        self._generations = generations
        self._state = state
        self._old = old
        self._folder = generations / f"{self.number}-{secrets.token_hex(4)}"
        self._retired: list[int] = []
        self._uids: list[int] = []
        self._owners: list[int] = []
        self._chunks: list[Chunk] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block or nothing of it, files included."""
        try:
            with self.database.transaction():
                yield
        except BaseException:
            present = {path.name for path in self._generations.iterdir()} if self._generations.is_dir() else set()
            remove_generations(self._generations, present - {self._folder.name})
            raise

    def retire(self, documents: Sequence[int]) -> None:
        """Hide documents from this generation on."""
        # What was invisible already in the generation before cannot be asked for any more.
        self.database.execute("DELETE FROM documents WHERE died < ?", (self.number,))
        self.database.executemany(
            "UPDATE documents SET died = ? WHERE id = ?", [(self.number, one) for one in documents]
        )
        self._retired.extend(documents)

    def add(self, source: int, entry: Entry, document: Document, change: Change) -> None:
        """Show a document from this generation on."""
        identity = self.database.execute(
            "INSERT INTO documents (source_id, path, content, title, head, author_time, born)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (source, entry.path, entry.content, document.title, change.commit, change.author_time, self.number),
        ).lastrowid
        assert identity is not None
        self.database.executemany(
            "INSERT OR IGNORE INTO sections VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(identity, section.id, section.parent_id, section.heading, section.level),
                    *(json.dumps(section.heading_path, ensure_ascii=False), section.first_line, section.last_line),
                )
                for section in document.sections
            ],
        )
        for chunk in document.chunks:
            self._uids.append(self._insert_chunk(identity, chunk))
            self._owners.append(identity)
            self._chunks.append(chunk)

    def take_over(self, rows: Sequence[ChunkRow]) -> None:
        """Show chunks that are in the catalog already, in files made anew."""
        self._uids.extend(row.uid for row in rows)
        self._owners.extend(row.document.id for row in rows)
        self._chunks.extend(row.chunk for row in rows)

    def publish(self, vectors: Vectors, *, embedder: str, now: float) -> None:
        """Write the files, read them back, move the pointer.

        Args:
            vectors: One row for each chunk added, in order.
            now: Unix seconds.

        Raises:
            CorruptError: what was written does not read back.
            DependencyError: it cannot be written.
        """
        old = self._old
        if len(old):
            owner_of_row = old.document_ids[old.postings.documents]
            keep = ~np.isin(owner_of_row, np.asarray(self._retired, dtype=np.int64))
        else:
            keep = np.empty(0, dtype=np.bool_)
        numbers = np.unique(np.asarray(self._owners, dtype=np.int64), return_inverse=True)[1].astype(np.int32)
        rules = {row for row, chunk in enumerate(self._chunks) if is_rule(chunk.path)}
        new = Postings.build((lexical_fields(chunk) for chunk in self._chunks), numbers, rules)
        next_generation(self._folder, old, keep, new, self._uids, self._owners, vectors)
        dimensions = int(vectors.shape[1])
        self._point(embedder, dimensions, now)
        written = load_generation(self._folder, dimensions=dimensions)
        verify_generation(self.database, written, self._uids, self._chunks, vectors, self._retired)

    def _insert_chunk(self, document: int, chunk: Chunk) -> int:
        uid = self.database.execute(
            "INSERT INTO chunks (document_id, id, section_id, first_line, last_line, tokens, part, repeated,"
            " oversized, vector_key, heading_path, headings, context, text)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(document, chunk.id, chunk.section_id, chunk.first_line, chunk.last_line, chunk.tokens),
                *(chunk.part, chunk.repeated, chunk.oversized, vector_key(chunk.embedding_text)),
                json.dumps(chunk.heading_path, ensure_ascii=False),
                json.dumps(chunk.headings, ensure_ascii=False),
                *(chunk.context, chunk.text),
            ),
        ).lastrowid
        assert uid is not None
        return uid

    def _point(self, embedder: str, dimensions: int, now: float) -> None:
        moved = self.database.execute(
            "UPDATE state SET generation = ?, files = ?, embedder = ?, dimensions = ?, published_at = ?,"
            " chunks = (SELECT count(*) FROM chunks c JOIN documents d ON d.id = c.document_id WHERE d.died IS NULL),"
            " documents = (SELECT count(*) FROM documents WHERE died IS NULL) WHERE generation = ?",
            (self.number, self._folder.name, embedder, dimensions, now, self._state.generation),
        ).rowcount
        if moved != 1:
            raise UnreachableError(
                "The index was changed by somebody else meanwhile.", hint="Try again.", code="index_busy"
            )


def record_source(database: Database, plan: Plan, *, pipeline: str, now: float) -> int:
    """Write down what a source is and at which commit it stands; returns its id."""
    spec = plan.spec
    (identity,) = database.execute(
        "INSERT INTO sources (name, kind, location, branch, prefix, include, exclude, worktree, head, pipeline,"
        " indexed_at, checked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, location = excluded.location,"
        " branch = excluded.branch, prefix = excluded.prefix, include = excluded.include,"
        " exclude = excluded.exclude, worktree = excluded.worktree, head = excluded.head,"
        " pipeline = excluded.pipeline, checked_at = excluded.checked_at,"
        " indexed_at = CASE WHEN ? THEN indexed_at ELSE excluded.indexed_at END RETURNING id",
        (
            *(spec.name, spec.kind, spec.location, spec.branch, spec.prefix),
            *(json.dumps(spec.include), json.dumps(spec.exclude), spec.worktree),
            *(plan.tree.commit, pipeline, now, now, plan.idle),
        ),
    ).fetchone()
    database.execute("DELETE FROM unread WHERE source_id = ?", (identity,))
    database.executemany(
        "INSERT INTO unread VALUES (?, ?, ?)", [(identity, item.path, item.reason) for item in plan.unread]
    )
    if plan.rewritten:
        changes = [(path, plan.history[path]) for path in plan.unchanged if path in plan.history]
        database.executemany(
            "UPDATE documents SET head = ?, author_time = ? WHERE source_id = ? AND path = ? AND died IS NULL",
            [(change.commit, change.author_time, identity, path) for path, change in changes],
        )
    return int(identity)
