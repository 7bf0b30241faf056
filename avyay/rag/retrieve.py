"""The ranking pipeline: pure functions over one number per chunk and one per document."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avyay.rag.chunk import document_name
from avyay.rag.fuse import linear
from avyay.rag.lexical.bm25 import LexicalScores
from avyay.rag.lexical.postings import Fields
from avyay.rag.lexical.tokenise import STOP_WORDS, tokenise
from avyay.rag.types import Chunk, Hit

__all__ = ["Weights", "lexical_fields", "query_terms", "rank"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weights:
    """What each signal, scaled to 0..1, is worth."""

    chunk_lexical: float = 0.5
    document_lexical: float = 0.5
    chunk_vector: float = 0.6
    document_vector: float = 0.6


def lexical_fields(chunk: Chunk) -> Fields:
    """What a chunk contributes to the keyword index: (title and file name, headings, body)."""
    return f"{chunk.title} {document_name(chunk.path)}", " ".join((*chunk.heading_path, *chunk.headings)), chunk.text


def query_terms(query: str) -> dict[str, float]:
    """The terms to look up, and what each counts."""
    terms = Counter(term for term in tokenise(query) if term not in STOP_WORDS)
    return {term: float(count) for term, count in (terms or Counter(tokenise(query))).items()}


def rank(
    documents: NDArray[np.int32],
    *,
    lexical: LexicalScores,
    similarities: Floats | None,
    limit: int = 10,
    weights: Weights | None = None,
    eligible: NDArray[np.bool_] | None = None,
) -> tuple[Hit, ...]:
    """The best chunks, best first.

    Args:
        documents: The document number of each chunk.
        lexical: What `bm25.score` says of the query.
        similarities: Cosine of query and chunk for every chunk; None when vectors are unavailable.
        eligible: Chunks that filters let through; by default all.
    """
    chosen = weights or Weights()
    if not len(documents):
        return ()
    signals = {
        "chunk_lexical": lexical.chunk,
        "document_lexical": lexical.document[documents],
    }
    if similarities is not None:
        best = np.full(len(lexical.document), -1.0, dtype=np.float32)
        np.maximum.at(best, documents, similarities)
        signals |= {"chunk_vector": similarities, "document_vector": best[documents]}
    total = linear(signals, {name: getattr(chosen, name) for name in signals})
    if eligible is not None:
        total = np.where(eligible, total, -np.inf).astype(np.float32)
    limit = min(limit, len(total))
    top = np.argpartition(-total, limit - 1)[:limit]
    top = top[np.lexsort((top, -total[top]))]
    return tuple(
        Hit(int(row), int(documents[row]), float(total[row]), {name: float(v[row]) for name, v in signals.items()})
        for row in top
        if np.isfinite(total[row])
    )
