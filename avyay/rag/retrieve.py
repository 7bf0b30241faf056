"""The ranking pipeline: pure functions over one number per chunk and one per document.

Documents are ranked first, by what all their signals say together; then each chunk stands below its document's best
chunk by how much worse it is. So a section is found through its document and a document through its sections, and
how many chunks of one document come before the next document is one number (`Weights.spread`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avyay.rag.chunk import document_name
from avyay.rag.kinds import SectionKind
from avyay.rag.lexical.bm25 import LexicalScores, score
from avyay.rag.lexical.postings import Fields, Postings
from avyay.rag.query import Query, query_terms
from avyay.rag.types import NAMED, RULE, Chunk, Hit

__all__ = ["Weights", "freshness", "join_neighbours", "lexical_fields", "query_terms", "rank", "search_lexical"]

Floats = NDArray[np.float32]
# A line of a table of contents: it holds the words of every question and the answer to none.
CONTENTS = re.compile(r"(?m)^\s*(?:[-*+]|\d+[.)])\s*\[(?:[^\]\\]|\\.)*\]\(#[^)\s]*\)\s*$")


@dataclass(frozen=True, slots=True)
class Weights:
    """What counts how much, against a cosine of 1.

    Args:
        keywords: Of keyword scores, as shares of the most that the query could score.
        best_chunk: Share of a document's keyword score that is its best chunk's; the rest is the whole document's.
        opening: Share of its cosine that is its opening's: what a document is about stands first.
        kind: Bonus of a section of the kind asked for, among the chunks of one document.
        spread: How far a chunk falls below its document's best chunk, per unit that it is worse.
        name: Bonus of an identifier that was asked for by itself and stands in title, file name or heading: more than
            all else together, so nothing overturns it.
        heading: Bonus of a section whose headings hold every word of the question and little else: "How do I run the
            tests?" means the section "Run the tests". Twice as many words, articles included, still count in full.
        rules: How far an alert rule stands below a runbook that fits as well: its text is the alert's own, word for
            word, and says nothing of what to do.
    """

    keywords: float = 0.75
    best_chunk: float = 0.25
    opening: float = 0.4
    kind: float = 0.1
    spread: float = 1.0
    name: float = 4.0
    heading: float = 0.4
    rules: float = 0.5


def lexical_fields(chunk: Chunk) -> Fields:
    """What a chunk contributes to the keyword index: (title and file name, headings, body); inner headings last."""
    inside = [heading for heading in chunk.headings if heading not in chunk.heading_path]
    body = CONTENTS.sub("", chunk.text) if "](#" in chunk.text else chunk.text
    return f"{chunk.title} {document_name(chunk.path)}", " ".join((*inside, *chunk.heading_path)), body


def search_lexical(postings: Postings, query: Query) -> LexicalScores:
    """Keyword scores of a query taken apart."""
    return score(postings, query.terms, added=query.added, names=query.names)


def rank(
    query: Query,
    postings: Postings,
    *,
    lexical: LexicalScores,
    similarities: Floats | None,
    limit: int = 10,
    weights: Weights | None = None,
    eligible: NDArray[np.bool_] | None = None,
    prior: Floats | None = None,
) -> tuple[Hit, ...]:
    """The best chunks, best first.

    Args:
        lexical: What `search_lexical` says of the query; all zero to go by vectors alone.
        similarities: Cosine of query and chunk for every chunk; None when vectors are unavailable.
        eligible: Chunks that filters let through; by default all.
        prior: A bonus for each chunk's document, such as `freshness`; small against 1.
    """
    chosen = weights or Weights()
    documents = np.asarray(postings.documents)
    if not len(documents):
        return ()
    total = len(lexical.document)
    ideal = np.float32(max(lexical.ideal, 1e-6))
    keyword = lexical.chunk / ideal
    of_document = chosen.best_chunk * _best(keyword, documents, total)
    of_document += (1 - chosen.best_chunk) * lexical.document / ideal
    of_document *= chosen.keywords
    own = keyword * np.float32(chosen.keywords)
    if similarities is not None:
        best = _best(similarities, documents, total)
        of_document += (1 - chosen.opening) * best + chosen.opening * _opening(similarities, documents, total)
        own = own + similarities
    if prior is not None:
        of_document += _best(prior, documents, total)
    rule = postings.kinds == SectionKind.RULE
    lowered = chosen.rules if rule.any() else 0.0
    if lowered:
        of_document -= np.float32(lowered) * _best(rule.astype(np.float32), documents, total)
    if query.kinds:
        own = own + np.float32(chosen.kind) * np.isin(postings.kinds, [int(kind) for kind in query.kinds])
    if not query.is_name and len(lexical.headed) and chosen.heading:
        own = own.copy()
        words = np.asarray(postings.lengths)[lexical.headed, 1].astype(np.float32)
        share = np.minimum(np.float32(2 * len(query.terms)) / np.maximum(words, 1), 1)  # articles count for words, too
        bonus = np.zeros(len(own), dtype=np.float32)
        bonus[lexical.headed] = np.float32(chosen.heading) * share
        own += bonus
        of_document += _best(bonus, documents, total)
    if query.is_name and len(lexical.named):
        of_document[np.unique(documents[lexical.named])] += np.float32(chosen.name)
        own = own.copy()
        own[lexical.named] += np.float32(chosen.name)
    if eligible is not None:
        own = np.where(eligible, own, np.float32(-1e6))
    final = of_document[documents] - np.float32(chosen.spread) * (_best(own, documents, total)[documents] - own)
    if eligible is not None:
        final = np.where(eligible, final, -np.inf).astype(np.float32)
    limit = min(limit, len(final))
    top = np.argpartition(-final, limit - 1)[:limit]
    top = top[np.lexsort((top, -final[top]))]
    named = set(lexical.named.tolist()) if len(lexical.named) else ()
    signals = {"keywords": keyword, "document_keywords": lexical.document[documents[top]] / ideal}
    return tuple(
        Hit(
            int(row),
            int(documents[row]),
            float(final[row]),
            {
                "keywords": float(keyword[row]),
                "document_keywords": float(signals["document_keywords"][place]),
                **({"cosine": float(similarities[row])} if similarities is not None else {}),
                **({NAMED: 1.0} if row in named else {}),
                **({RULE: lowered} if lowered and rule[row] else {}),
            },
        )
        for place, row in enumerate(top)
        if np.isfinite(final[row])
    )


def join_neighbours(
    hits: Sequence[Hit], *, sections: Sequence[Sequence[str]], tokens: Sequence[int], limit: int, most: int = 3
) -> list[tuple[int, ...]]:
    """Hits of one document that stand side by side become one passage; each is given as positions in `hits`.

    A passage grows from its best hit to the better neighbour, while it holds no more sections and tokens than a
    reader takes in at once. Passages come in the order of their best hits, which stand first in them.

    Args:
        sections: For each hit the headings of the sections it holds.
        tokens: For each hit its length.
        most: Sections in a passage.
    """
    place = {hit.chunk: position for position, hit in enumerate(hits)}
    used: set[int] = set()
    passages: list[tuple[int, ...]] = []
    for position, hit in enumerate(hits):
        if position in used or len(passages) == limit:
            continue
        used.add(position)
        members, held, size = [position], set(sections[position]), tokens[position]
        first = last = hit.chunk
        while True:
            beside = [place[row] for row in (first - 1, last + 1) if row in place]
            fitting = [
                other
                for other in beside
                if other not in used
                and hits[other].document == hit.document
                and len(held | set(sections[other])) <= most
                and size + tokens[other] <= PASSAGE_TOKENS
            ]
            if not fitting:
                break
            chosen = min(fitting)
            used.add(chosen)
            members.append(chosen)
            held |= set(sections[chosen])
            size += tokens[chosen]
            first, last = min(first, hits[chosen].chunk), max(last, hits[chosen].chunk)
        passages.append(tuple(members))
    return passages


PASSAGE_TOKENS = 700


def freshness(age_days: Floats, *, weight: float = 0.02, half_life_days: float = 365.0) -> Floats:
    """A prior for `rank`: `weight` for what was written just now, half of it after a half life. Off unless asked."""
    prior: Floats = (weight * np.exp2(-np.maximum(age_days, 0.0) / half_life_days)).astype(np.float32)
    return prior


def _best(values: Floats, documents: NDArray[np.int32], total: int) -> Floats:
    best = np.full(total, -np.inf, dtype=np.float32)
    np.maximum.at(best, documents, values)
    return np.where(np.isfinite(best), best, np.float32(0))


def _opening(similarities: Floats, documents: NDArray[np.int32], total: int) -> Floats:
    """The better of each document's first two chunks; a document's rows stand side by side, in order."""
    starts = np.flatnonzero(np.r_[True, documents[1:] != documents[:-1]])
    second = np.minimum(starts + 1, len(documents) - 1)
    second = np.where(documents[second] == documents[starts], second, starts)
    opening = np.zeros(total, dtype=np.float32)
    opening[documents[starts]] = np.maximum(similarities[starts], similarities[second])
    return opening
