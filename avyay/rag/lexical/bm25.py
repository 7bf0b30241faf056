"""BM25 over fields (BM25F) of chunks and of whole documents, straight from postings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rank_bm25 import BM25Plus

from avyay.rag.lexical.postings import Postings

__all__ = ["BM25F", "LexicalScores", "rank_small", "score"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BM25F:
    """`k1`: how slowly repetition saturates; `b`: how much length counts, `weights`: what a hit is worth, per field."""

    k1: float = 1.2
    b: tuple[float, float, float] = (0.4, 0.4, 0.75)
    weights: tuple[float, float, float] = (3.0, 2.0, 1.0)


@dataclass(frozen=True, slots=True)
class LexicalScores:
    """A score for each chunk and each document; 0 where no term occurs."""

    chunk: Floats
    document: Floats


def score(postings: Postings, terms: Mapping[str, float], parameters: BM25F | None = None) -> LexicalScores:
    """Score every chunk and every document for weighted query terms."""
    chosen = parameters or BM25F()
    rows_total = len(postings.documents)
    documents_total = int(postings.documents.max()) + 1 if rows_total else 0
    chunk = np.zeros(rows_total, dtype=np.float32)
    document = np.zeros(documents_total, dtype=np.float32)
    if not rows_total:
        return LexicalScores(chunk, document)
    chunk_norm = _length_norm(np.asarray(postings.lengths, dtype=np.float32), chosen)
    document_norm = _length_norm(_document_lengths(postings, documents_total), chosen)
    for weight, place in zip(terms.values(), postings.slices(list(terms)), strict=True):
        rows = postings.rows[place]
        if not len(rows):
            continue
        counts = np.asarray(postings.counts[place], dtype=np.float32)
        frequency = (counts / chunk_norm[rows]).sum(axis=1)
        chunk[rows] += weight * _idf(len(rows), rows_total) * _saturated(frequency, chosen)
        in_document, sums = _per_document(postings.documents[rows], counts)
        frequency = (sums / document_norm[in_document]).sum(axis=1)
        document[in_document] += weight * _idf(len(in_document), documents_total) * _saturated(frequency, chosen)
    return LexicalScores(chunk, document)


def rank_small(corpus: Sequence[Sequence[str]], query: Sequence[str]) -> Floats:
    """Scores by rank-bm25, which indexes anew for every call: for corpora of some hundred texts, and as an oracle."""
    if not any(corpus):
        return np.zeros(len(corpus), dtype=np.float32)
    scores: Floats = BM25Plus([list(terms) for terms in corpus]).get_scores(list(query)).astype(np.float32)
    return scores


def _length_norm(lengths: Floats, parameters: BM25F) -> Floats:
    """What a count of each field is divided by: its length against the average, and its weight."""
    average = np.maximum(lengths.mean(axis=0), 1e-6)
    b = np.array(parameters.b, dtype=np.float32)
    weights = np.array(parameters.weights, dtype=np.float32)
    norm: Floats = ((1 - b) + b * lengths / average) / weights
    return np.maximum(norm, 1e-6)


def _document_lengths(postings: Postings, documents: int) -> Floats:
    """Title once, headings and body summed over the document's chunks."""
    lengths = np.asarray(postings.lengths, dtype=np.float32)
    columns: list[NDArray[Any]] = [
        np.bincount(postings.documents, lengths[:, field], documents) for field in range(lengths.shape[1])
    ]
    title = np.zeros(documents, dtype=np.float32)
    np.maximum.at(title, postings.documents, lengths[:, 0])
    columns[0] = title
    return np.stack(columns, axis=1).astype(np.float32)


def _per_document(documents: NDArray[np.int32], counts: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Counts of one term summed by document; the title stands in every chunk and counts once."""
    order = np.argsort(documents, kind="stable")
    ordered = documents[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sums = np.add.reduceat(counts[order], starts, axis=0)
    sums[:, 0] = np.maximum.reduceat(counts[order][:, 0], starts)
    return ordered[starts], sums


def _saturated(frequency: Floats, parameters: BM25F) -> Floats:
    saturated: Floats = frequency * (parameters.k1 + 1) / (frequency + parameters.k1)
    return saturated


def _idf(holding: int, total: int) -> float:
    return float(np.log(1 + (total - holding + 0.5) / (holding + 0.5)))
