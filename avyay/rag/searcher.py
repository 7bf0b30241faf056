"""The reader of an index: opens what is visible, ranks, and fetches the text of what was found.

A search imports neither LanceDB nor pyarrow: postings and vectors are mapped from flat files, texts come from SQLite.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, open_database
from avyay.errors import AvyayError, CorruptError, DependencyError, UsageError
from avyay.ports import Passage
from avyay.rag.catalog import (
    SCHEMA,
    ChunkRow,
    SourceRow,
    State,
    document_chunks,
    document_sections,
    read_chunks,
    read_sources,
    read_state,
)
from avyay.rag.confidence import Confidence, assess
from avyay.rag.generation import Generation, load_generation
from avyay.rag.query import Query, analyse, with_concepts, without_keywords
from avyay.rag.rerankers.base import RerankPolicy, rerank
from avyay.rag.retrieve import Weights, freshness, rank, search_lexical
from avyay.rag.sources.base import glob_pattern

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avyay.ports import Embedder
    from avyay.rag.types import Chunk, Hit, Section

__all__ = ["Found", "Mode", "Ranking", "SearchResult", "Searcher", "no_index", "no_source"]

Mode = Literal["hybrid", "keywords", "vectors"]
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """A configuration of the search: what a shadow comparison compares.

    `freshness` is the bonus of a document written just now (halved with every year of its age), `sources` the bonus
    of each source by name; both are small against 1, and off by default. `rerank` is a second opinion on the first
    results; off by default too.
    """

    mode: Mode = "hybrid"
    weights: Weights | None = None
    freshness: float = 0.0
    sources: Mapping[str, float] = field(default_factory=dict)
    rerank: RerankPolicy | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk that answers a query, with the document it stands in and how it was found."""

    row: ChunkRow
    hit: Hit
    age_days: float | None

    @property
    def passage(self) -> Passage:
        """What other components are given."""
        chunk, document = self.row.chunk, self.row.document
        return Passage(
            source=document.source,
            path=document.path,
            heading=chunk.heading,
            first_line=chunk.first_line,
            last_line=chunk.last_line,
            commit=document.head,
            text=chunk.text,
            score=self.hit.score,
            age_days=self.age_days,
        )


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found, best first, in which generation; `notes` say when something was done without."""

    query: str
    found: tuple[Found, ...]
    generation: int
    mode: Mode
    confidence: Confidence
    notes: tuple[str, ...] = ()


class Searcher:
    """Searches the visible generation; follows the index as it changes. Safe to share between threads."""

    def __init__(
        self,
        database: Path,
        generations: Path,
        embedder: Embedder,
        *,
        ranking: Ranking | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._path = database
        self._folder = generations
        self._embedder = embedder
        self._clock = clock
        self._ranking = ranking or Ranking()
        self._database: Database | None = None
        self._loaded: tuple[str, Generation] | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database, self._loaded = None, None

    def state(self) -> State:
        """What is visible now.

        Raises:
            UsageError: nothing has been indexed.
        """
        with self._lock:
            return read_state(self._open())

    def sources(self) -> list[SourceRow]:
        """What is indexed; empty when nothing is."""
        if not self._path.is_file():
            return []
        with self._lock:
            return read_sources(self._open())

    def outdated(self) -> bool:
        """Whether another version of avyay made the visible terms.

        Raises:
            UsageError: nothing has been indexed.
            CorruptError: the index files are damaged.
        """
        return self._current()[1].outdated

    def search(
        self,
        query: str,
        *,
        limit: int = 10,
        mode: Mode | None = None,
        sources: Sequence[str] = (),
        paths: Sequence[str] = (),
        without: Collection[str] = (),
        ranking: Ranking | None = None,
    ) -> SearchResult:
        """The chunks that answer `query`, best first.

        Args:
            mode: By default the ranking's.
            sources: Names of sources to search; by default all.
            paths: Globs over document paths; by default all.
            without: Paths of documents to leave out.
            ranking: Instead of the configured one.

        Raises:
            UsageError: nothing has been indexed, the query is empty, or a source is unknown.
            CorruptError: the index files are damaged.
        """
        if not query.strip():
            raise UsageError("The question is empty.", hint='Write it in quotes: avyay ask "why is etcd slow?"')
        state, generation = self._current()
        chosen = ranking or self._ranking
        mode = mode or chosen.mode
        analysed = analyse(query)
        analysed, vector, notes = self._query_vector(analysed, state, generation, mode)
        if mode == "vectors" and vector is None:
            raise DependencyError("Vectors are unavailable: " + " ".join(notes), hint="Search with --mode keywords.")
        eligible = self._eligible(generation, sources, paths, without)
        if mode == "vectors":
            analysed = without_keywords(analysed)
        prior = self._prior(generation, chosen)
        hits, confidence = _rank(generation, analysed, vector, limit, eligible, chosen.weights, prior)
        with self._lock:
            rows = read_chunks(self._open(), [int(generation.uids[hit.chunk]) for hit in hits])
        if chosen.rerank is not None:
            hits, note = self._reranked(chosen.rerank, query, generation, hits, rows)
            notes = (*notes, note) if note else notes
        now = self._clock.now()
        found = []
        for hit in hits:
            row = rows.get(int(generation.uids[hit.chunk]))
            if row is not None:  # None: two syncs have passed since the ranking began
                written = row.document.author_time
                age = max(0.0, (now - written) / DAY) if written is not None else None
                found.append(Found(row, hit, age))
        return SearchResult(query, tuple(found), state.generation, mode, confidence, notes)

    def documents(self, source: str) -> list[str]:
        """The paths of a source's documents.

        Raises:
            UsageError: there is no such source.
        """
        names = [row.spec.name for row in self.sources()]
        if source not in names:
            raise no_source(source, names)
        with self._lock, self._open().errors():
            rows = self._open().execute(
                "SELECT d.path FROM documents d JOIN sources s ON s.id = d.source_id"
                " WHERE s.name = ? AND d.died IS NULL ORDER BY d.path",
                (source,),
            )
            return [path for (path,) in rows.fetchall()]

    def document(self, source: str, path: str) -> str:
        """The text of a document as indexed; white space between its chunks may differ from the file's.

        Raises:
            UsageError: there is no such document.
        """
        if path not in self.documents(source):
            raise UsageError(f"The source {source} has no document {path!r}.", code="no_document")
        with self._lock, self._open().errors():
            rows = self._open().execute(
                "SELECT substr(c.text, c.repeated + 1) FROM chunks c JOIN documents d ON d.id = c.document_id"
                " JOIN sources s ON s.id = d.source_id"
                " WHERE s.name = ? AND d.path = ? AND d.died IS NULL ORDER BY c.uid",
                (source, path),
            )
            return "\n\n".join(text.strip("\n") for (text,) in rows.fetchall()) + "\n"

    def outline(self, document: int) -> tuple[list[Section], list[Chunk]]:
        """The sections and the chunks of a document that was found, by its id; empty when it has been purged since."""
        with self._lock:
            return document_sections(self._open(), document), document_chunks(self._open(), document)

    # ------------------------------------------------------------ parts

    def _reranked(
        self,
        policy: RerankPolicy,
        query: str,
        generation: Generation,
        hits: tuple[Hit, ...],
        rows: Mapping[int, ChunkRow],
    ) -> tuple[tuple[Hit, ...], str | None]:
        known = [hit for hit in hits if int(generation.uids[hit.chunk]) in rows]
        first, rest = known[: policy.top], known[policy.top :]
        started = self._clock.monotonic()
        try:
            reranker = policy.open()
        except AvyayError as error:
            return hits, f"Not reranked: {error.message} {error.hint or ''}".strip()
        texts = [rows[int(generation.uids[hit.chunk])].chunk.embedding_text for hit in first]
        ordered, note = rerank(
            reranker,
            query,
            first,
            texts,
            # The first query opens the reranker: that is part of its time.
            seconds=policy.seconds - (self._clock.monotonic() - started),
            monotonic=self._clock.monotonic,
            weight=policy.weight,
        )
        return (*ordered, *rest), note

    def _open(self) -> Database:
        if self._database is None:
            if not self._path.is_file():
                raise no_index()
            self._database = open_database(self._path, SCHEMA, read_only=True, check_same_thread=False)
        return self._database

    def _current(self) -> tuple[State, Generation]:
        with self._lock:
            for attempt in range(3):
                state = read_state(self._open())
                if not state.generation or not state.chunks:
                    raise no_index()
                if self._loaded is not None and self._loaded[0] == state.files:
                    return state, self._loaded[1]
                try:
                    generation = load_generation(self._folder / state.files, dimensions=state.dimensions)
                except CorruptError:
                    # Another generation may have been published, and this one swept, since the pointer was read.
                    if attempt == 2 or read_state(self._open()).files == state.files:
                        raise
                    continue
                self._loaded = (state.files, generation)
                return state, generation
        raise AssertionError("unreachable")

    def _query_vector(
        self, query: Query, state: State, generation: Generation, mode: Mode
    ) -> tuple[Query, NDArray[np.float32] | None, tuple[str, ...]]:
        if mode == "keywords":
            return query, None, ()
        if generation.vectors is None:
            return query, None, ("The vector file is missing: searched by keywords only. Repair: avyay rag reconcile",)
        if state.embedder != self._embedder.name:
            return (
                query,
                None,
                (
                    f"The index was made with the embedder {state.embedder}, not {self._embedder.name}: searched by"
                    " keywords only. Make it again: avyay rag index --rebuild",
                ),
            )
        try:
            vectors = self._embedder.embed(query.texts, kind="query")
        except AvyayError as error:
            return query, None, (f"{error.message} Searched by keywords only.",)
        return with_concepts(query, vectors[0], self._embedder.name), vectors.mean(axis=0), ()

    def _eligible(
        self, generation: Generation, sources: Sequence[str], paths: Sequence[str], without: Collection[str]
    ) -> NDArray[np.bool_] | None:
        if not sources and not paths and not without:
            return None
        if sources:
            names = {row.spec.name for row in self.sources()}
            for name in sources:
                if name not in names:
                    raise no_source(name, sorted(names))
        patterns = [glob_pattern(glob) for glob in paths]
        wanted = [
            identity
            for identity, path, name, _ in self._document_rows()
            if (not sources or name in sources)
            and (not patterns or any(pattern.fullmatch(path) for pattern in patterns))
            and path not in without
        ]
        documents = np.isin(generation.document_ids, np.asarray(wanted, dtype=np.int64))
        return documents[generation.postings.documents]

    def _prior(self, generation: Generation, ranking: Ranking) -> NDArray[np.float32] | None:
        """The bonus of each chunk for its document's age and source; None when neither counts."""
        if not ranking.freshness and not ranking.sources:
            return None
        rows = {identity: (name, written) for identity, _, name, written in self._document_rows()}
        now = self._clock.now()
        known = [rows.get(int(identity), ("", None)) for identity in generation.document_ids]
        ages = np.array([(now - written) / DAY if written is not None else np.inf for _, written in known])
        bonus = freshness(ages.astype(np.float32), weight=ranking.freshness)
        bonus += np.array([ranking.sources.get(name, 0.0) for name, _ in known], dtype=np.float32)
        chunks: NDArray[np.float32] = bonus[generation.postings.documents]
        return chunks

    def _document_rows(self) -> list[tuple[int, str, str, int | None]]:
        """Id, path, source and author time of every document."""
        with self._lock, self._open().errors():
            rows = self._open().execute(
                "SELECT d.id, d.path, s.name, d.author_time FROM documents d JOIN sources s ON s.id = d.source_id"
            )
            return rows.fetchall()


def _rank(
    generation: Generation,
    query: Query,
    vector: NDArray[np.float32] | None,
    limit: int,
    eligible: NDArray[np.bool_] | None,
    weights: Weights | None,
    prior: NDArray[np.float32] | None,
) -> tuple[tuple[Hit, ...], Confidence]:
    similarities = None
    if vector is not None and generation.vectors is not None:
        similarities = generation.vectors @ vector
    lexical = search_lexical(generation.postings, query)
    hits = rank(
        query,
        generation.postings,
        lexical=lexical,
        similarities=similarities,
        limit=limit,
        weights=weights,
        eligible=eligible,
        prior=prior,
    )
    return hits, assess(query, generation.postings, hits, lexical, similarities, eligible)


def no_index() -> UsageError:
    """The error for a search before anything was indexed."""
    return UsageError(
        "Nothing has been indexed yet.",
        hint="Index your runbooks first: avyay rag index PATH_OR_GIT_URL",
        code="no_index",
    )


def no_source(name: str, names: Sequence[str]) -> UsageError:
    """The error for a source nobody indexed."""
    import difflib

    close = difflib.get_close_matches(name, names, n=1)
    known = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(names) or 'none yet'}."
    return UsageError(f"No source is called {name!r}.", hint=known, code="no_source")
