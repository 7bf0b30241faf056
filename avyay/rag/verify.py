"""Reading back what was written: an index that says "done" and does not answer is worse than an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from avyay.errors import CorruptError
from avyay.rag.catalog import read_chunks, visible_chunks
from avyay.rag.lexical.tokenise import tokenise
from avyay.rag.retrieve import lexical_fields

if TYPE_CHECKING:
    from avyay.db import Database
    from avyay.ports import Vectors
    from avyay.rag.generation import Generation
    from avyay.rag.stores.base import VectorStore
    from avyay.rag.types import Chunk

__all__ = ["verify_generation", "verify_vectors"]

TOLERANCE = 1e-6
SEARCHED = 32  # new chunks looked for by a real query each; all of them are compared


def verify_vectors(store: VectorStore, keys: Sequence[str], vectors: Vectors) -> None:
    """Compare what the store gives back with what it was given.

    Raises:
        CorruptError: something is missing or different.
    """
    found = store.get(keys)
    for key, vector in zip(keys, vectors, strict=True):
        if key not in found:
            raise _mismatch("the vector store accepted vectors and does not have them")
        if not np.allclose(found[key], vector, atol=TOLERANCE):
            raise _mismatch("the vector store gives back other vectors than it was given")


def verify_generation(
    database: Database,
    generation: Generation,
    uids: Sequence[int],
    chunks: Sequence[Chunk],
    vectors: Vectors,
    gone: Sequence[int],
) -> None:
    """Check the next generation before anyone sees it.

    Every visible chunk has its row and no other has one; every new chunk has its text, its vector and its terms; a
    sample of them is found by its own words and by its own vector; nothing of the retired documents is left.

    Raises:
        CorruptError: with what is wrong.
    """
    visible = np.asarray(visible_chunks(database), dtype=np.int64)
    if not np.array_equal(generation.uids, visible):
        raise _mismatch(f"{len(visible)} chunks are in the catalog, {len(generation)} other ones in the search files")
    if generation.vectors is None:
        raise _mismatch("the vector file does not read back")
    if np.isin(generation.document_ids, np.asarray(gone, dtype=np.int64)).any():
        raise _mismatch("retired documents are still in the search files")
    stored = read_chunks(database, uids)
    rows = [int(row) for row in generation.rows_of(uids)]
    for uid, row, chunk, vector in zip(uids, rows, chunks, vectors, strict=True):
        if row < 0:
            raise _mismatch(f"{chunk.path}:{chunk.first_line} is not in the search files")
        if uid not in stored or stored[uid].chunk.text != chunk.text:
            raise _mismatch(f"{chunk.path}:{chunk.first_line} does not read back")
        if generation.document_ids[generation.postings.documents[row]] != stored[uid].document.id:
            raise _mismatch(f"{chunk.path}:{chunk.first_line} is filed under another document")
        if not np.allclose(generation.vectors[row], vector, atol=TOLERANCE):
            raise _mismatch(f"the vector of {chunk.path}:{chunk.first_line} does not read back")
    step = max(1, len(uids) // SEARCHED)
    sample = range(0, len(uids), step)
    for place in sample:
        _find_by_words(generation, rows[place], chunks[place])
    if len(uids):
        similarity = generation.vectors @ np.stack([vectors[place] for place in sample]).T
        best = similarity.max(axis=0)
        for column, place in enumerate(sample):
            if similarity[rows[place], column] < best[column] - 1e-4:
                chunk = chunks[place]
                raise _mismatch(f"{chunk.path}:{chunk.first_line} is not found by its own vector")


def _find_by_words(generation: Generation, row: int, chunk: Chunk) -> None:
    terms = list(Counter(term for text in lexical_fields(chunk) for term in tokenise(text)))
    for term, place in zip(terms, generation.postings.slices(terms), strict=True):
        holding = generation.postings.rows[place]
        at = int(np.searchsorted(holding, row))
        if at == len(holding) or holding[at] != row:
            raise _mismatch(f"{chunk.path}:{chunk.first_line} is not found by its word {term!r}")


def _mismatch(what: str) -> CorruptError:
    return CorruptError(
        f"The new index was not taken into use: {what}.",
        hint="The old one still answers. Try again; if it happens again, make it anew: avyay rag index --rebuild",
        code="index_verification",
    )
