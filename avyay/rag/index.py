"""Keeping the index at what its sources say: incremental, all or nothing, verified before it shows.

A sync compares the listing of a commit with what is indexed, cuts and embeds what changed, writes the files of the next
generation, reads back what it wrote, and only then moves the catalog's pointer, in the transaction that also retires
the documents that changed or went. Until then nothing anyone can see has changed, whatever happens.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, open_database
from avyay.errors import AvyayError, CorruptError, UnreachableError, UsageError
from avyay.log import get_logger
from avyay.rag.catalog import SCHEMA, SourceRow, State, read_sources, read_state
from avyay.rag.documents import Document, read_document
from avyay.rag.generation import (
    Generation,
    empty_generation,
    load_generation,
    next_generation,
    remove_generations,
)
from avyay.rag.lexical.postings import Postings
from avyay.rag.lock import exclusive
from avyay.rag.places import IndexPlaces
from avyay.rag.retrieve import lexical_fields
from avyay.rag.searcher import no_source
from avyay.rag.sources import Change, Entry, SourceSpec, SourceTree, Unread, open_source
from avyay.rag.stores.base import VectorStore, vector_key
from avyay.rag.verify import verify_generation, verify_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avyay.ports import Embedder, Progress, Vectors
    from avyay.rag.types import Chunk

__all__ = ["PIPELINE", "Indexer", "SyncReport"]

PIPELINE = "1"  # raise when the same text would be cut, tokenised or embedded differently: sources are then cut again
EMBED_BATCH = 32
STORE_BATCH = 1_024  # vectors put into the store at once, and the most an interrupted first run has to embed again
PENDING = 256  # fewer new vectors than this wait in the catalog: a fragment each would slow the store down
LOCK_WAIT = 900.0

log = get_logger("rag")


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync found and did. `embedded` chunks were computed, `reused` ones were known already."""

    source: str
    head: str
    previous: str | None
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int
    chunks: int
    embedded: int
    reused: int
    unread: tuple[Unread, ...]
    generation: int
    seconds: float

    @property
    def up_to_date(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.added or self.changed or self.removed)


@dataclass
class _Plan:
    """What is to happen to one source."""

    spec: SourceSpec
    tree: SourceTree
    row: SourceRow | None
    documents: list[tuple[Entry, Document]] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: dict[str, int] = field(default_factory=dict)  # path -> document id, the changed ones included
    gone: list[str] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    history: dict[str, Change] = field(default_factory=dict)
    rewritten: bool = False
    embedded: int = 0
    reused: int = 0

    @property
    def chunks(self) -> list[Chunk]:
        return [chunk for _, document in self.documents for chunk in document.chunks]

    @property
    def idle(self) -> bool:
        return not self.documents and not self.removed


class Indexer:
    """The writer of an index.

    Args:
        places: Where it lives.
        embedder: What turns chunks into vectors.
        open_store: Opens the vector store; called only when it is needed.
    """

    def __init__(
        self,
        places: IndexPlaces,
        embedder: Embedder,
        open_store: Callable[[], VectorStore],
        *,
        clock: Clock = SYSTEM_CLOCK,
        lock_wait: float = LOCK_WAIT,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        self.places = places
        self.embedder = embedder
        self.clock = clock
        self._open_store = open_store
        self._store: VectorStore | None = None
        self._lock_wait = lock_wait
        self._waiting = waiting

    @property
    def pipeline(self) -> str:
        """How documents are cut and embedded at present."""
        return f"{PIPELINE}/{self.embedder.name}/{self.embedder.max_tokens}"

    def sync(
        self, specs: Sequence[SourceSpec], *, rebuild: bool = False, progress: Progress | None = None
    ) -> list[SyncReport]:
        """Bring sources to their present state, in one step for all of them.

        Args:
            rebuild: Cut and embed everything again, the sources not named included.

        Raises:
            AvyayError: a source cannot be read, or something cannot be written; the index is as it was.
        """
        started = self.clock.monotonic()
        step = progress or _silent
        with self._writing() as database:
            state = read_state(database)
            rows = {row.spec.name: row for row in read_sources(database)}
            self._check_embedder(state, rebuild)
            wanted = {spec.name: spec for spec in specs}
            if rebuild:
                wanted = {**{name: row.spec for name, row in rows.items()}, **wanted}
            for spec in wanted.values():
                _check_same_place(rows.get(spec.name), spec)
            plans = [self._plan(database, spec, rows.get(spec.name), rebuild, step) for spec in wanted.values()]
            state = self._apply(database, state, plans, rebuild, step)
            seconds = self.clock.monotonic() - started
            return [_report(plan, state, seconds) for plan in plans]

    def remove(self, name: str) -> int:
        """Forget a source; says how many documents it had.

        Raises:
            UsageError: there is no source of that name.
        """
        with self._writing() as database:
            row = next((row for row in read_sources(database) if row.spec.name == name), None)
            if row is None:
                raise no_source(name, [row.spec.name for row in read_sources(database)])
            state = read_state(database)
            old = self._load(state)
            gone = [identity for _, identity in _manifest(database, row.id).values()]
            folder = self._folder(state.generation + 1)
            with self._publishing(database, folder):
                self._retire(database, state.generation + 1, gone)
                self._write(folder, old, gone, [], np.empty((0, state.dimensions), np.float32), [])
                self._point(database, state, folder, state.embedder, state.dimensions)
                database.execute("DELETE FROM sources WHERE id = ?", (row.id,))
                now = load_generation(folder, dimensions=state.dimensions)
                verify_generation(database, now, [], [], np.empty((0, state.dimensions), np.float32), gone)
            self._sweep(read_state(database), state)
            return len(gone)

    # ------------------------------------------------------------ planning

    def _plan(
        self, database: Database, spec: SourceSpec, row: SourceRow | None, rebuild: bool, progress: Progress
    ) -> _Plan:
        progress(0, None, f"Reading {spec.name}")
        tree = open_source(spec, self.places.mirrors)
        plan = _Plan(spec, tree, row, unread=list(tree.unread))
        known = _manifest(database, row.id) if row else {}
        again = rebuild or row is None or row.pipeline != self.pipeline
        entries = {entry.path: entry for entry in tree.entries}
        fresh = [entry for path, entry in entries.items() if again or known.get(path, ("", 0))[0] != entry.content]
        for done, (entry, data) in enumerate(tree.read(fresh)):
            progress(done, len(fresh), f"Cutting {spec.name}")
            found = read_document(
                entry.path, data, count_tokens=self.embedder.count_tokens, max_tokens=self.embedder.max_tokens
            )
            if isinstance(found, Unread):
                plan.unread.append(found)
            elif found is not None:
                (plan.changed if entry.path in known else plan.added).append(entry.path)
                plan.documents.append((entry, found))
        fresh_paths = {entry.path for entry in fresh}
        written = {entry.path for entry, _ in plan.documents}
        for path, (_, identity) in known.items():
            if path in fresh_paths or path not in entries:
                plan.removed[path] = identity
                if path not in written:
                    plan.gone.append(path)
            else:
                plan.unchanged.append(path)
        if row is None and not plan.documents:
            raise _nothing_there(spec, plan)
        plan.rewritten = row is not None and not tree.descends_from(row.head)
        plan.history = tree.history([*written, *(plan.unchanged if plan.rewritten else ())])
        return plan

    def _check_embedder(self, state: State, rebuild: bool) -> None:
        if state.generation and state.embedder != self.embedder.name and not rebuild:
            raise UsageError(
                f"The index was made with the embedder {state.embedder}; {self.embedder.name} is configured.",
                hint="Make it again with: avyay rag index --rebuild (or set rag.embedder back)",
                code="embedder_changed",
            )

    # ------------------------------------------------------------ writing

    @contextmanager
    def _writing(self) -> Iterator[Database]:
        self.places.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(self.places.lock, wait=self._lock_wait, waiting=self._waiting):
            database = open_database(self.places.database, SCHEMA)
            try:
                yield database
            finally:
                database.close()

    def _apply(self, database: Database, state: State, plans: list[_Plan], rebuild: bool, progress: Progress) -> State:
        if all(plan.idle for plan in plans) and not rebuild:
            with database.transaction():
                for plan in plans:
                    self._record_source(database, plan, state.generation)
            return state
        self._sweep(state, state)
        old = empty_generation(self.embedder.dimensions) if rebuild else self._load(state)
        vectors = self._vectors(database, self._known_before(state) if rebuild else old, plans, progress)
        progress(0, None, "Writing the index")
        folder = self._folder(state.generation + 1)
        with self._publishing(database, folder):
            generation = state.generation + 1
            gone = [identity for plan in plans for identity in plan.removed.values()]
            self._retire(database, generation, gone)
            uids: list[int] = []
            owners: list[int] = []
            for plan in plans:
                source = self._record_source(database, plan, generation)
                for entry, document in plan.documents:
                    identity = self._insert(database, source, generation, entry, document, plan.history)
                    uids.extend(self._insert_chunks(database, identity, document))
                    owners.extend([identity] * len(document.chunks))
            chunks = [chunk for plan in plans for chunk in plan.chunks]
            self._write(folder, old, gone, uids, vectors, owners, chunks)
            self._point(database, state, folder, self.embedder.name, self.embedder.dimensions)
            progress(0, None, "Verifying")
            verify_generation(
                database, load_generation(folder, dimensions=self.embedder.dimensions), uids, chunks, vectors, gone
            )
        now = read_state(database)
        self._sweep(now, state)
        return now

    @contextmanager
    def _publishing(self, database: Database, folder: Path) -> Iterator[None]:
        try:
            with database.transaction():
                yield
        except BaseException:
            remove_generations(self.places.generations, {path.name for path in self._present()} - {folder.name})
            raise

    def _present(self) -> list[Path]:
        return list(self.places.generations.iterdir()) if self.places.generations.is_dir() else []

    def _folder(self, generation: int) -> Path:
        return self.places.generations / f"{generation}-{secrets.token_hex(4)}"

    def _load(self, state: State) -> Generation:
        if not state.generation:
            return empty_generation(self.embedder.dimensions)
        return load_generation(self.places.generations / state.files, dimensions=state.dimensions)

    def _known_before(self, state: State) -> Generation:
        """The visible generation as a place to find vectors in: nothing when it is damaged or of another embedder."""
        try:
            return self._load(state) if state.embedder == self.embedder.name else empty_generation(0)
        except CorruptError:
            return empty_generation(0)

    def _sweep(self, state: State, previous: State) -> None:
        """Files of no generation, or of one that nobody can still be about to open."""
        remove_generations(self.places.generations, {state.files, previous.files} - {""})

    def _retire(self, database: Database, generation: int, gone: Sequence[int]) -> None:
        # What was already invisible in the generation before cannot be asked for any more.
        database.execute("DELETE FROM documents WHERE died < ?", (generation,))
        database.executemany("UPDATE documents SET died = ? WHERE id = ?", [(generation, one) for one in gone])

    def _record_source(self, database: Database, plan: _Plan, generation: int) -> int:
        spec, now = plan.spec, self.clock.now()
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
                *(plan.tree.commit, self.pipeline, now, now, plan.idle),
            ),
        ).fetchone()
        database.execute("DELETE FROM unread WHERE source_id = ?", (identity,))
        database.executemany(
            "INSERT INTO unread VALUES (?, ?, ?)", [(identity, item.path, item.reason) for item in plan.unread]
        )
        if plan.rewritten:
            database.executemany(
                "UPDATE documents SET head = ?, author_time = ? WHERE source_id = ? AND path = ? AND died IS NULL",
                [
                    (change.commit, change.author_time, identity, path)
                    for path in plan.unchanged
                    if (change := plan.history.get(path))
                ],
            )
        return int(identity)

    def _insert(
        self,
        database: Database,
        source: int,
        generation: int,
        entry: Entry,
        document: Document,
        history: dict[str, Change],
    ) -> int:
        change = history.get(entry.path, Change("", None))
        identity = database.execute(
            "INSERT INTO documents (source_id, path, content, title, head, author_time, born)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (source, entry.path, entry.content, document.title, change.commit, change.author_time, generation),
        ).lastrowid
        assert identity is not None
        database.executemany(
            "INSERT OR IGNORE INTO sections VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(identity, section.id, section.parent_id, section.heading, section.level),
                    *(json.dumps(section.heading_path, ensure_ascii=False), section.first_line, section.last_line),
                )
                for section in document.sections
            ],
        )
        return identity

    def _insert_chunks(self, database: Database, document_id: int, document: Document) -> Iterator[int]:
        for chunk in document.chunks:
            uid = database.execute(
                "INSERT INTO chunks (document_id, id, section_id, first_line, last_line, tokens, part, repeated,"
                " oversized, vector_key, heading_path, headings, context, text)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(document_id, chunk.id, chunk.section_id, chunk.first_line, chunk.last_line, chunk.tokens),
                    *(chunk.part, chunk.repeated, chunk.oversized, vector_key(chunk.embedding_text)),
                    *(
                        json.dumps(chunk.heading_path, ensure_ascii=False),
                        json.dumps(chunk.headings, ensure_ascii=False),
                    ),
                    *(chunk.context, chunk.text),
                ),
            ).lastrowid
            assert uid is not None
            yield uid

    def _write(
        self,
        folder: Path,
        old: Generation,
        gone: Sequence[int],
        uids: Sequence[int],
        vectors: Vectors,
        owners: Sequence[int],
        chunks: Sequence[Chunk] = (),
    ) -> None:
        if len(old):
            owner_of_row = old.document_ids[old.postings.documents]
            keep = ~np.isin(owner_of_row, np.asarray(gone, dtype=np.int64))
        else:
            keep = np.empty(0, dtype=np.bool_)
        numbers = np.unique(np.asarray(owners, dtype=np.int64), return_inverse=True)[1].astype(np.int32)
        new = Postings.build((lexical_fields(chunk) for chunk in chunks), numbers)
        next_generation(folder, old, keep, new, uids, owners, vectors)

    def _point(self, database: Database, state: State, folder: Path, embedder: str, dimensions: int) -> None:
        moved = database.execute(
            "UPDATE state SET generation = ?, files = ?, embedder = ?, dimensions = ?, published_at = ?,"
            " chunks = (SELECT count(*) FROM chunks c JOIN documents d ON d.id = c.document_id WHERE d.died IS NULL),"
            " documents = (SELECT count(*) FROM documents WHERE died IS NULL) WHERE generation = ?",
            (state.generation + 1, folder.name, embedder, dimensions, self.clock.now(), state.generation),
        ).rowcount
        if moved != 1:
            raise UnreachableError(
                "The index was changed by somebody else meanwhile.", hint="Try again.", code="index_busy"
            )

    # ------------------------------------------------------------ vectors

    def _vectors(self, database: Database, old: Generation, plans: list[_Plan], progress: Progress) -> Vectors:
        """The vectors of all new chunks, in order; each text is embedded once in the life of the store."""
        keys: list[str] = []
        texts: dict[str, str] = {}
        for plan in plans:
            for chunk in plan.chunks:
                text = chunk.embedding_text
                keys.append(vector_key(text))
                texts.setdefault(keys[-1], text)
        known = self._known(database, old, list(texts))
        missing = [key for key in texts if key not in known]
        few = len(missing) < PENDING and read_state(database).generation > 0
        if missing and not few:
            known.update(self._open().get(missing))
            missing = [key for key in missing if key not in known]
        fresh = set(missing)
        for plan in plans:
            mine = [vector_key(chunk.embedding_text) for chunk in plan.chunks]
            plan.embedded = len(fresh.intersection(mine))
            plan.reused = len(mine) - plan.embedded
        for first in range(0, len(missing), STORE_BATCH):
            some = missing[first : first + STORE_BATCH]
            rows = self._embed([texts[key] for key in some], first, len(missing), progress)
            known.update(zip(some, rows, strict=True))
            if few:
                with database.transaction():
                    database.executemany(
                        "INSERT OR IGNORE INTO pending_vectors VALUES (?, ?)",
                        [(key, row.tobytes()) for key, row in zip(some, rows, strict=True)],
                    )
            else:
                self._keep(some, rows)
        if not few or self._store is not None or _pending_count(database) >= PENDING:
            self.flush(database)
        if not keys:
            return np.empty((0, self.embedder.dimensions), np.float32)
        return np.stack([known[key] for key in keys]).astype(np.float32, copy=False)

    def _known(self, database: Database, old: Generation, keys: list[str]) -> dict[str, NDArray[np.float32]]:
        found: dict[str, NDArray[np.float32]] = {}
        if not keys:
            return found
        for key, blob in database.execute("SELECT vector_key, vector FROM pending_vectors"):
            found[key] = np.frombuffer(blob, dtype=np.float32)
        if old.vectors is not None and len(old):
            wanted = set(keys)
            row_of = {int(uid): row for row, uid in enumerate(old.uids)}
            for uid, key in database.execute(
                "SELECT c.uid, c.vector_key FROM chunks c JOIN documents d ON d.id = c.document_id WHERE d.died IS NULL"
            ):
                if key in wanted and (row := row_of.get(uid)) is not None:
                    found[key] = np.array(old.vectors[row])
        return found

    def _embed(self, texts: list[str], done: int, total: int, progress: Progress) -> Vectors:
        parts = []
        for first in range(0, len(texts), EMBED_BATCH):
            progress(done + first, total, "Embedding")
            parts.append(self.embedder.embed(texts[first : first + EMBED_BATCH], kind="document"))
        progress(done + len(texts), total, "Embedding")
        return np.concatenate(parts)

    def _open(self) -> VectorStore:
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _keep(self, keys: list[str], vectors: Vectors) -> None:
        """Put vectors into the store and read them back: a store may say yes and keep nothing."""
        store = self._open()
        store.add(keys, vectors)
        verify_vectors(store, keys, vectors)

    def flush(self, database: Database) -> int:
        """Move waiting vectors into the store; says how many."""
        rows = database.execute("SELECT vector_key, vector FROM pending_vectors").fetchall()
        if rows:
            keys = [key for key, _ in rows]
            self._keep(keys, np.stack([np.frombuffer(blob, dtype=np.float32) for _, blob in rows]))
            with database.transaction():
                database.executemany("DELETE FROM pending_vectors WHERE vector_key = ?", [(key,) for key in keys])
        return len(rows)


# ---------------------------------------------------------------- small pieces


def _manifest(database: Database, source: int) -> dict[str, tuple[str, int]]:
    """path -> (content, document id) of what is visible of a source."""
    rows = database.execute("SELECT path, content, id FROM documents WHERE source_id = ? AND died IS NULL", (source,))
    return {path: (content, identity) for path, content, identity in rows.fetchall()}


def _pending_count(database: Database) -> int:
    return int(database.execute("SELECT count(*) FROM pending_vectors").fetchone()[0])


def _check_same_place(row: SourceRow | None, spec: SourceSpec) -> None:
    if row is not None and (row.spec.location, row.spec.prefix) != (spec.location, spec.prefix):
        raise UsageError(
            f"A source called {spec.name} is already indexed from {row.spec.location}/{row.spec.prefix}.",
            hint="Give this one another name: --name NAME",
            code="source_exists",
        )


def _nothing_there(spec: SourceSpec, plan: _Plan) -> AvyayError:
    where = f"{spec.location}/{spec.prefix}".rstrip("/")
    at = f" at {plan.tree.commit[:7]}" if plan.tree.commit else ""
    if plan.unread:
        reasons = "; ".join(f"{item.path}: {item.reason}" for item in plan.unread[:3])
        return UsageError(f"No document in {where}{at} can be read: {reasons}.", code="no_documents")
    hint = "Documents are .md, .rst, .adoc, .txt and YAML alert rules; name others with --include '*.ext'."
    if spec.kind == "git":
        hint += " Files that are not committed are not read: use --worktree for those."
    return UsageError(f"There are no documents in {where}{at}.", hint=hint, code="no_documents")


def _report(plan: _Plan, state: State, seconds: float) -> SyncReport:
    return SyncReport(
        source=plan.spec.name,
        head=plan.tree.commit,
        previous=plan.row.head if plan.row else None,
        added=tuple(plan.added),
        changed=tuple(plan.changed),
        removed=tuple(plan.gone),
        unchanged=len(plan.unchanged),
        chunks=len(plan.chunks),
        embedded=plan.embedded,
        reused=plan.reused,
        unread=tuple(plan.unread),
        generation=state.generation,
        seconds=seconds,
    )


def _silent(done: int, total: int | None, what: str) -> None:
    return None
