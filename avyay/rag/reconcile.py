"""The daily round: is the index what its sources say, and is what is stored what was written? Mends what is not.

Webhooks get lost, disks and people damage files. Nothing here trusts an earlier "done": sources are listed anew, the
search files are compared with the catalog row by row, and the vector store with the search files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from avyay.db import integrity_problems
from avyay.errors import AvyayError, CorruptError
from avyay.rag.catalog import read_chunks, read_sources, read_state, visible_chunks
from avyay.rag.plan import SyncReport
from avyay.rag.verify import TOLERANCE, verify_generation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avyay.db import Database
    from avyay.ports import Progress, Vectors
    from avyay.rag.index import Indexer

__all__ = ["ReconcileReport", "reconcile"]


@dataclass
class ReconcileReport:
    """What was checked, mended, and could not be.

    `stale` names the sources that were behind, `unchecked` those that could not be read and why.
    """

    synced: list[SyncReport] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    mended: list[str] = field(default_factory=list)
    chunks: int = 0
    vectors: int = 0

    @property
    def stale(self) -> list[str]:
        return [report.source for report in self.synced if not report.up_to_date]

    @property
    def sound(self) -> bool:
        """Whether everything could be checked and nothing was wrong."""
        return not (self.stale or self.unchecked or self.mended)


def reconcile(indexer: Indexer, *, progress: Progress) -> ReconcileReport:
    """Check everything and mend what can be mended.

    Raises:
        CorruptError: the catalog itself is damaged; it has to be made again.
    """
    report = ReconcileReport()
    with indexer.writing() as database:
        if problems := integrity_problems(database):
            raise CorruptError(
                f"The catalog {indexer.places.database} is damaged: {problems[0]}",
                hint=f"Move {indexer.places.root} away and index again.",
            )
        specs = [row.spec for row in read_sources(database)]
        # First the files: a sync takes over from them what has not changed.
        _mend_files(indexer, database, report, progress)
    for spec in specs:
        try:
            report.synced.extend(indexer.sync([spec], progress=progress))
        except AvyayError as error:
            report.unchecked[spec.name] = error.message
    with indexer.writing() as database:
        _mend_store(indexer, database, report, progress)
        report.chunks = read_state(database).chunks
    return report


def _mend_files(indexer: Indexer, database: Database, report: ReconcileReport, progress: Progress) -> None:
    state = read_state(database)
    if not state.generation or state.embedder != indexer.embedder.name:
        return
    progress(0, None, "Checking the search files")
    uids = visible_chunks(database)
    found = read_chunks(database, uids)
    rows = [found[uid] for uid in uids]
    try:
        generation = indexer.load(state)
        places = generation.rows_of(uids)
        if generation.vectors is None or (places < 0).any():
            raise CorruptError("incomplete")
        vectors = generation.vectors[places] if uids else _no_vectors(indexer)
        chunks = [row.chunk for row in rows]
        verify_generation(database, generation, uids, chunks, vectors, [])
    except CorruptError:
        report.mended.append("the search files were damaged or missing, and are made anew")
        indexer.rewrite(database, progress)


def _mend_store(indexer: Indexer, database: Database, report: ReconcileReport, progress: Progress) -> None:
    """The store has the vector of every visible chunk, the same as the search files, and no others."""
    state = read_state(database)
    if not state.generation or state.embedder != indexer.embedder.name:
        return
    progress(0, None, "Checking the vector store")
    indexer.supply.flush(database)
    store = indexer.supply.store
    generation = indexer.load(state)
    rows = read_chunks(database, [int(uid) for uid in generation.uids])
    here: dict[str, NDArray[np.float32]] = {}
    texts: dict[str, str] = {}
    if generation.vectors is not None:
        for place, uid in enumerate(generation.uids):
            row = rows[int(uid)]
            here[row.vector_key] = generation.vectors[place]
            texts[row.vector_key] = row.chunk.embedding_text
    stored = store.get(list(here))
    missing = [key for key in here if key not in stored]
    different = [key for key in stored if not np.allclose(stored[key], here[key], atol=TOLERANCE)]
    if missing:
        report.mended.append(f"{len(missing)} vectors were missing from the vector store")
    if different:
        # One of the two is wrong, and only the text can tell which.
        report.mended.append(f"{len(different)} vectors in the vector store differed from those searched")
        store.retain(store.keys() - set(different))
    if again := [*missing, *different]:
        indexer.supply.keep(again, indexer.embedder.embed([texts[key] for key in again], kind="document"))
        if different:
            indexer.rewrite(database, progress)
    known = {key for (key,) in database.execute("SELECT DISTINCT vector_key FROM chunks")}
    store.retain(known)
    report.vectors = len(here)


def _no_vectors(indexer: Indexer) -> Vectors:
    return np.empty((0, indexer.embedder.dimensions), np.float32)
