"""Keeping the index at what its sources say: incremental, all or nothing, verified before it shows.

A sync compares the listing of a commit with what is indexed, cuts and embeds what changed, writes the files of the next
generation, reads back what it wrote, and only then moves the catalog's pointer, in the transaction that also retires
the documents that changed or went. Until then nothing anyone can see has changed, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, open_database
from avyay.errors import CorruptError, UsageError
from avyay.events.outbox import OUTBOX, append_event
from avyay.paths import ensure_directory
from avyay.ports import Event
from avyay.rag.catalog import SCHEMA, SourceRow, State, read_chunks, read_sources, read_state, visible_chunks
from avyay.rag.generation import Generation, empty_generation, load_generation, remove_generations
from avyay.rag.lock import exclusive
from avyay.rag.pipeline import pipeline_id
from avyay.rag.places import IndexPlaces
from avyay.rag.plan import Plan, SyncReport, make_plan, manifest
from avyay.rag.publish import Publisher, record_source
from avyay.rag.searcher import no_source
from avyay.rag.sources import Change, SourceSpec
from avyay.rag.stores.base import VectorStore, vector_key
from avyay.rag.vectors import VectorSupply

if TYPE_CHECKING:
    from avyay.ports import Embedder, Progress

__all__ = ["Indexer", "SyncReport"]

LOCK_WAIT = 900.0
_TOLD_PATHS = 50  # named in one event


class Indexer:
    """The writer of an index.

    Args:
        places: Where it lives.
        embedder: What turns chunks into vectors.
        open_store: Opens the vector store; called only when it is needed.
        lock_wait: Seconds to wait for another writer.
        waiting: Called once when there is one.
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
        self.supply = VectorSupply(embedder, open_store)
        self._lock_wait = lock_wait
        self._waiting = waiting

    @property
    def pipeline(self) -> str:
        """How documents are cut and embedded at present."""
        return f"{pipeline_id()}/{self.embedder.name}/{self.embedder.max_tokens}"

    def sync(
        self, specs: Sequence[SourceSpec], *, rebuild: bool = False, progress: Progress | None = None
    ) -> list[SyncReport]:
        """Bring sources to their present state, in one step for all of them.

        Args:
            rebuild: Cut everything again, the sources not named included.

        Raises:
            AvyayError: a source cannot be read, or something cannot be written; the index is as it was.
        """
        started = self.clock.monotonic()
        step = progress or _silent
        with self.writing() as database:
            state = read_state(database)
            rows = {row.spec.name: row for row in read_sources(database)}
            self._check_embedder(state, rebuild)
            wanted = {spec.name: spec for spec in specs}
            if rebuild:
                wanted = {**{name: row.spec for name, row in rows.items()}, **wanted}
            for spec in wanted.values():
                _check_same_place(rows.get(spec.name), spec)
            plans = [
                make_plan(
                    database,
                    spec,
                    row := rows.get(spec.name),
                    mirrors=self.places.mirrors,
                    again=rebuild or row is None or row.pipeline != self.pipeline,
                    count_tokens=self.embedder.count_tokens,
                    max_tokens=self.embedder.max_tokens,
                    progress=step,
                )
                for spec in wanted.values()
            ]
            generation = self._apply(database, state, plans, rebuild, step)
            seconds = self.clock.monotonic() - started
            return [plan.report(generation, seconds) for plan in plans]

    def remove(self, name: str) -> int:
        """Forget a source; says how many documents it had.

        Raises:
            UsageError: there is no source of that name.
        """
        with self.writing() as database:
            rows = {row.spec.name: row for row in read_sources(database)}
            if name not in rows:
                raise no_source(name, sorted(rows))
            state, old = self._load_or_rewrite(database, read_state(database), _silent)
            retired = [identity for _, identity in manifest(database, rows[name].id).values()]
            publisher = Publisher(database, self.places.generations, state, old)
            with publisher.transaction():
                publisher.retire(retired)
                database.execute("DELETE FROM sources WHERE id = ?", (rows[name].id,))
                nothing = np.empty((0, state.dimensions), np.float32)
                publisher.publish(nothing, embedder=state.embedder, now=self.clock.now())
                removed = Event("rag.source.removed", {"source": name, "documents": len(retired)})
                append_event(database, removed, self.clock.now())
            self.sweep(read_state(database), state)
            return len(retired)

    # ------------------------------------------------------------ pieces that reconciliation uses as well

    @contextmanager
    def writing(self) -> Iterator[Database]:
        """The catalog, with the promise that nobody else writes it meanwhile."""
        ensure_directory(self.places.root)
        with exclusive(self.places.lock, wait=self._lock_wait, waiting=self._waiting):
            database = open_database(self.places.database, SCHEMA, OUTBOX)
            try:
                with database.errors():
                    yield database
            finally:
                database.close()

    def load(self, state: State) -> Generation:
        """The visible generation.

        Raises:
            CorruptError: its files are damaged.
        """
        if not state.generation:
            return empty_generation(self.embedder.dimensions)
        return load_generation(self.places.generations / state.files, dimensions=state.dimensions)

    def rewrite(self, database: Database, progress: Progress, known: Generation | None = None) -> State:
        """Make the files of everything visible again, from the catalog's texts and the vector store.

        Args:
            known: A generation whose vectors are right, so that the store need not be opened.
        """
        state = read_state(database)
        uids = visible_chunks(database)
        found = read_chunks(database, uids)
        rows = [found[uid] for uid in uids]
        nothing = empty_generation(self.embedder.dimensions)
        texts = [row.chunk.embedding_text for row in rows]
        vectors, _ = self.supply.vectors(
            database, known or nothing, texts, few_may_wait=known is not None, progress=progress
        )
        publisher = Publisher(database, self.places.generations, state, nothing)
        with publisher.transaction():
            publisher.retire([])
            publisher.take_over(rows)
            publisher.publish(vectors, embedder=self.embedder.name, now=self.clock.now())
        now = read_state(database)
        self.sweep(now, state)
        return now

    def _load_or_rewrite(self, database: Database, state: State, progress: Progress) -> tuple[State, Generation]:
        """The visible generation; made again first when its files are damaged, or of an older avyay."""
        known = None
        try:
            generation = self.load(state)
            if not generation.outdated or state.embedder != self.embedder.name:
                return state, generation
            known = generation
        except CorruptError:
            pass
        state = self.rewrite(database, progress, known)
        return state, self.load(state)

    def renew(self, progress: Progress | None = None) -> bool:
        """Make the files again when they are damaged, or another version of avyay made their terms; asks no source.

        An index of another embedder is left as it is: its vectors would all have to be made.

        Returns:
            Whether something was done.

        Raises:
            AvyayError: somebody else is writing, or nothing can be written.
        """
        with self.writing() as database:
            before = read_state(database)
            return self._load_or_rewrite(database, before, progress or _silent)[0].files != before.files

    def sweep(self, state: State, previous: State) -> None:
        """Remove files of no generation, and of those that nobody can still be about to open."""
        remove_generations(self.places.generations, {state.files, previous.files} - {""})

    # ------------------------------------------------------------ applying a plan

    def _apply(self, database: Database, state: State, plans: list[Plan], rebuild: bool, progress: Progress) -> int:
        now = self.clock.now()
        if all(plan.idle for plan in plans) and not rebuild:
            with database.transaction():
                for plan in plans:
                    record_source(database, plan, pipeline=self.pipeline, now=now)
            return state.generation
        self.sweep(state, state)
        if rebuild:
            known = self._known_before(state)
        else:
            state, known = self._load_or_rewrite(database, state, progress)
        texts = [chunk.embedding_text for plan in plans for chunk in plan.chunks]
        vectors, computed = self.supply.vectors(
            database, known, texts, few_may_wait=state.generation > 0, progress=progress
        )
        for plan in plans:
            keys = [vector_key(chunk.embedding_text) for chunk in plan.chunks]
            plan.embedded = len(computed.intersection(keys))
            plan.reused = len(keys) - plan.embedded
        progress(0, None, "Writing the index")
        old = empty_generation(self.embedder.dimensions) if rebuild else known
        publisher = Publisher(database, self.places.generations, state, old)
        with publisher.transaction():
            publisher.retire([identity for plan in plans for identity in plan.retired])
            for plan in plans:
                source = record_source(database, plan, pipeline=self.pipeline, now=now)
                for entry, document in plan.documents:
                    publisher.add(source, entry, document, plan.history.get(entry.path, Change("", None)))
            publisher.publish(vectors, embedder=self.embedder.name, now=now)
            for plan in plans:
                if not (report := plan.report(publisher.number, 0.0)).up_to_date:
                    append_event(database, _indexed(report), now)
        self.sweep(read_state(database), state)
        return publisher.number

    def _known_before(self, state: State) -> Generation:
        """The visible generation as a place to find vectors in: nothing when it is damaged or of another embedder."""
        try:
            return self.load(state) if state.embedder == self.embedder.name else empty_generation(0)
        except CorruptError:
            return empty_generation(0)

    def _check_embedder(self, state: State, rebuild: bool) -> None:
        if state.generation and state.embedder != self.embedder.name and not rebuild:
            raise UsageError(
                f"The index was made with the embedder {state.embedder}; {self.embedder.name} is configured.",
                hint="Make it again with: avyay rag index --rebuild (or set rag.embedder back)",
                code="embedder_changed",
            )


def _indexed(report: SyncReport) -> Event:
    paths = [*report.added, *report.changed, *report.removed]
    data = {
        "source": report.source,
        "commit": report.head,
        "generation": report.generation,
        "chunks": report.chunks,
        "added": len(report.added),
        "changed": len(report.changed),
        "removed": len(report.removed),
        "paths": paths[:_TOLD_PATHS],
    }
    return Event("rag.documents.indexed", data)


def _check_same_place(row: SourceRow | None, spec: SourceSpec) -> None:
    if row is not None and (row.spec.location, row.spec.prefix) != (spec.location, spec.prefix):
        raise UsageError(
            f"A source called {spec.name} is already indexed from {row.spec.location}/{row.spec.prefix}.",
            hint="Give this one another name: --name NAME",
            code="source_exists",
        )


def _silent(done: int, total: int | None, what: str) -> None:
    return None
