"""Whether what was found answers the question at all, so that "not in the runbooks" can be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avyay.rag.lexical.bm25 import BM25F

if TYPE_CHECKING:
    from avyay.rag.lexical.bm25 import LexicalScores
    from avyay.rag.lexical.postings import Postings

__all__ = ["Confidence", "assess"]

# Set on 496 queries over 442 runbooks, each asked with its own document and without it, and on questions about other
# things: off-topic questions stay below a cosine of 0.33 in 19 of 20 cases, real ones above 0.40.
COSINE = 0.36
COSINE_ALONE = 0.60  # when the question names something that no document knows
COVERAGE = 0.55
COSINE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Confidence:
    """`cosine` of the nearest chunk (None without vectors), `coverage` (0..1) of the question's words, weighted by
    rarity, in the best chunk; `unknown` says that it names an identifier that stands nowhere."""

    cosine: float | None
    coverage: float
    unknown: bool

    @property
    def value(self) -> float:
        """One number from 0 to 1 for records and comparisons."""
        if self.cosine is None:
            return self.coverage
        return COSINE_SHARE * max(0.0, self.cosine) + (1 - COSINE_SHARE) * self.coverage

    @property
    def relevant(self) -> bool:
        """Whether the runbooks say something about the question."""
        if self.coverage >= COVERAGE:
            return True
        if self.cosine is None:
            return self.coverage >= COVERAGE / 2 and not self.unknown
        return self.cosine >= (COSINE_ALONE if self.unknown else COSINE)


def assess(
    postings: Postings,
    terms: Mapping[str, float],
    names: list[str],
    lexical: LexicalScores,
    similarities: np.ndarray[tuple[int], np.dtype[np.float32]] | None,
    eligible: np.ndarray[tuple[int], np.dtype[np.bool_]] | None,
) -> Confidence:
    """Judge a search by its raw scores; `names` are the identifiers in the question."""
    chunk = lexical.chunk if eligible is None else lexical.chunk[eligible]
    ideal = 0.0
    total = len(postings.documents)
    for weight, place in zip(terms.values(), postings.slices(list(terms)), strict=True):
        holding = place.stop - place.start
        ideal += weight * float(np.log(1 + (total - holding + 0.5) / (holding + 0.5))) * (BM25F().k1 + 1)
    coverage = float(chunk.max()) / ideal if len(chunk) and ideal else 0.0
    cosine = None
    if similarities is not None:
        near = similarities if eligible is None else similarities[eligible]
        cosine = float(near.max()) if len(near) else None
    known = [place.stop > place.start for place in postings.slices(names)] if names else []
    return Confidence(cosine, min(1.0, coverage), bool(known) and not any(known))
