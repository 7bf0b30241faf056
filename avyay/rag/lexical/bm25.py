"""BM25 over fields (BM25F) of chunks and of whole documents, straight from postings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rank_bm25 import BM25Plus

from avyay.rag.kinds import SectionKind
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
    """A score for each chunk and each document; 0 where no term occurs.

    `ideal` is the most that the query's own terms could score: a share of it can be compared between queries.
    `named` are the rows whose title, file name or headings hold one of the names asked for; alert rules only where
    no runbook mentions it. `mentioned` are all rows that hold one. `headed` are the rows whose headings hold every
    term, of queries with more than one.
    """

    chunk: Floats
    document: Floats
    ideal: float = 0.0
    named: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    mentioned: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    headed: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))


def score(
    postings: Postings,
    terms: Mapping[str, float],
    parameters: BM25F | None = None,
    *,
    added: Mapping[str, float] | None = None,
    names: Sequence[str] = (),
) -> LexicalScores:
    """Score every chunk and every document for weighted query terms.

    Args:
        terms: The query's own.
        added: Terms that score without being asked for: they do not raise `ideal`.
        names: Identifiers, whole, to find in titles and headings.
    """
    chosen = parameters or BM25F()
    rows_total = len(postings.documents)
    documents_total = int(postings.documents.max()) + 1 if rows_total else 0
    chunk = np.zeros(rows_total, dtype=np.float32)
    document = np.zeros(documents_total, dtype=np.float32)
    if not rows_total:
        return LexicalScores(chunk, document)
    chunk_share = _share_of_count(np.asarray(postings.lengths, dtype=np.float32), chosen)
    document_share = _share_of_count(_document_lengths(postings, documents_total), chosen)
    wanted = {**(added or {}), **terms}
    ideal = 0.0
    headed: list[NDArray[np.int32]] = []
    for (term, weight), place in zip(wanted.items(), postings.slices(list(wanted)), strict=True):
        rows = np.asarray(postings.rows[place])
        rarity = weight * _idf(len(rows), rows_total)
        if term in terms:
            ideal += rarity * (chosen.k1 + 1)
            headed.append(rows[np.asarray(postings.counts[place])[:, 1] > 0])
        if not len(rows):
            continue
        counts = np.asarray(postings.counts[place], dtype=np.float32)
        chunk[rows] += rarity * _saturated(np.einsum("ij,ij->i", counts, chunk_share[rows]), chosen)
        in_document, sums = _per_document(postings.documents[rows], counts)
        frequency = np.einsum("ij,ij->i", sums, document_share[in_document])
        document[in_document] += weight * _idf(len(in_document), documents_total) * _saturated(frequency, chosen)
    in_headings = reduce(np.intersect1d, headed) if len(headed) > 1 else np.empty(0, np.int32)
    return LexicalScores(chunk, document, ideal, *_named(postings, names), in_headings.astype(np.int32))


def rank_small(corpus: Sequence[Sequence[str]], query: Sequence[str]) -> Floats:
    """Scores by rank-bm25, which indexes anew for every call: for corpora of some hundred texts, and as an oracle."""
    if not any(corpus):
        return np.zeros(len(corpus), dtype=np.float32)
    scores: Floats = BM25Plus([list(terms) for terms in corpus]).get_scores(list(query)).astype(np.float32)
    return scores


def _named(postings: Postings, names: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The rows that a name titles, and those that mention it."""
    titled, mentioned = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for place in postings.slices(list(names)) if names else []:
        counts, rows = postings.counts[place], np.asarray(postings.rows[place])
        mentioned.append(rows)
        found = rows[(counts[:, 0] > 0) | (counts[:, 1] > 0)]
        runbook = postings.kinds[rows] != SectionKind.RULE
        titled.append(found[postings.kinds[found] != SectionKind.RULE] if runbook.any() else found)
    return np.unique(np.concatenate(titled)), np.unique(np.concatenate(mentioned))


def _share_of_count(lengths: Floats, parameters: BM25F) -> Floats:
    """What one occurrence in each field is worth, by the field's weight and its length against the average."""
    average = np.maximum(lengths.mean(axis=0), 1e-6)
    b = np.array(parameters.b, dtype=np.float32)
    weights = np.array(parameters.weights, dtype=np.float32)
    share: Floats = weights / np.maximum((1 - b) + b * lengths / average, np.float32(1e-6))
    return share.astype(np.float32)


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
    order: NDArray[np.intp] | slice = slice(None)
    if len(documents) > 1 and not bool(np.all(documents[1:] >= documents[:-1])):
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
