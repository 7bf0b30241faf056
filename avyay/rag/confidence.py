"""Whether what was found answers the question at all, so that "not in the runbooks" can be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avyay.rag.lexical.bm25 import BM25F
from avyay.rag.types import RULE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avyay.rag.lexical.bm25 import LexicalScores
    from avyay.rag.lexical.postings import Postings
    from avyay.rag.query import Query
    from avyay.rag.types import Hit

__all__ = ["Confidence", "assess"]

# Set on 633 queries over 817 runbooks of four repositories, each asked as it is and with its own documents left out,
# and on 40 questions about other things. A question in words: all the answerable ones reach this score, 35 of 40 about
# other things do not (0.45 refuses two more of those, and right answers of repositories with a page or two). Left
# without its document it mostly does, because a neighbouring runbook is about the same trouble. The margin to other
# documents, shares of rare words found, and agreement of words and vectors tell those apart no better
# (docs/decisions/0005-runbook-ranking.md). An identifier by itself: a text has to mention it.
SCORE = 0.42
NAME_SCORE = 0.95
NAME_COVERAGE = 0.65
NAME_BONUS = 2.0  # a score above this was given for standing in a title
# A question in another language: the bundled embedder finds all that is written in that language alike, so the words
# found count as well. Set on 54 questions over a French, a German and a Portuguese handbook: of 21 about other things 2
# are answered (11 by the score alone); of 31 others that the score alone answers, one is refused, with a wrong page.
FOREIGN = 0.6
# Where there are no vectors, or nothing but vectors.
COVERAGE_ALONE = 0.28
COSINE_ALONE = 0.36
FULL = 1.25  # the score of a sure hit: half of the alert texts with their document reach 1.15


@dataclass(frozen=True, slots=True)
class Confidence:
    """What speaks for the best hit.

    `score` is its rank score; `cosine` the nearest chunk's (None without vectors); `coverage` (0..1) the share of the
    question's words, weighted by rarity, in the best chunk; `is_name` says that the question is an identifier;
    `keywords` whether words counted at all; `mentioned` that a text holds the whole identifier; `foreign` that the
    question is not in English.
    """

    score: float
    cosine: float | None
    coverage: float
    is_name: bool
    keywords: bool = True
    mentioned: bool = False
    foreign: bool = False

    @property
    def value(self) -> float:
        """One number from 0 to 1 for records and comparisons."""
        return min(1.0, max(0.0, self.score / FULL))

    @property
    def relevant(self) -> bool:
        """Whether the runbooks say something about the question."""
        if not self.keywords:
            return self.cosine is not None and self.cosine >= COSINE_ALONE
        if self.is_name:
            return (
                self.mentioned or self.score >= NAME_BONUS or self.coverage >= NAME_COVERAGE or self.score >= NAME_SCORE
            )
        if self.cosine is None:
            return self.coverage >= COVERAGE_ALONE
        if self.foreign:
            return self.score + self.coverage / 2 >= FOREIGN
        return self.score >= SCORE


def assess(
    query: Query,
    postings: Postings,
    hits: Sequence[Hit],
    lexical: LexicalScores,
    similarities: NDArray[np.float32] | None,
    eligible: NDArray[np.bool_] | None,
) -> Confidence:
    """Judge a search by its scores."""
    chunk = lexical.chunk if eligible is None else lexical.chunk[eligible]
    ideal = _ideal(postings, query.terms)
    cosine = None
    if similarities is not None:
        near = similarities if eligible is None else similarities[eligible]
        cosine = float(near.max()) if len(near) else None
    named = lexical.mentioned if eligible is None else lexical.mentioned[eligible[lexical.mentioned]]
    return Confidence(
        # An alert rule stands lower than it fits, for the sake of the runbooks: here it counts as it fits.
        score=hits[0].score + hits[0].signals.get(RULE, 0.0) if hits else 0.0,
        cosine=cosine,
        coverage=min(1.0, float(chunk.max()) / ideal) if len(chunk) and ideal else 0.0,
        is_name=query.is_name,
        keywords=bool(query.terms),
        mentioned=bool(query.compound) and len(named) > 0,
        foreign=query.foreign,
    )


def _ideal(postings: Postings, terms: Mapping[str, float]) -> float:
    """The keyword score of a chunk that is full of every word."""
    total = len(postings.documents)
    ideal = 0.0
    for weight, place in zip(terms.values(), postings.slices(list(terms)), strict=True):
        holding = place.stop - place.start
        ideal += weight * float(np.log(1 + (total - holding + 0.5) / (holding + 0.5))) * (BM25F().k1 + 1)
    return ideal
