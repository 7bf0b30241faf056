"""Trying another configuration on live questions: it searches too, unseen, and what differs is counted.

Nothing of a question is kept but numbers. Whether a difference is a gain, only verdicts or labelled queries can tell;
this tells whether there is a difference worth judging.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avyay.rag.searcher import Ranking, SearchResult

__all__ = ["Comparison", "Shadow", "ShadowReport", "compare_results", "summarise"]


@dataclass(frozen=True, slots=True)
class Shadow:
    """The other configuration, and the share of questions (0..1) it is tried on."""

    ranking: Ranking
    share: float
    chance: Callable[[], float] = random.random

    def wanted(self) -> bool:
        """Whether to try it on this question."""
        return self.share > 0 and self.chance() < self.share


@dataclass(frozen=True, slots=True)
class Comparison:
    """One question: the share of documents in common among the first, and whether the first one is the same.

    `verdict` is what the reader thought of the answer shown, if anything.
    """

    overlap: float
    same_first: bool
    confidence: float
    shadow_confidence: float
    verdict: bool | None = None


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """Means over the questions compared. `disputed` are answers that did not help where the shadow had another first
    document: the place to look for a gain."""

    questions: int
    overlap: float
    same_first: float
    confidence: float
    shadow_confidence: float
    disputed: int


def compare_results(shown: SearchResult, other: SearchResult, limit: int) -> Comparison:
    """Compare two results by the documents in them."""
    first, second = (
        list(dict.fromkeys((one.row.document.source, one.row.document.path) for one in result.found))[:limit]
        for result in (shown, other)
    )
    together = len(set(first) | set(second))
    return Comparison(
        overlap=len(set(first) & set(second)) / together if together else 1.0,
        same_first=first[:1] == second[:1],
        confidence=shown.confidence.value,
        shadow_confidence=other.confidence.value,
    )


def summarise(comparisons: Sequence[Comparison]) -> ShadowReport:
    """The means; of nothing they are 0."""
    count = max(1, len(comparisons))
    return ShadowReport(
        questions=len(comparisons),
        overlap=sum(one.overlap for one in comparisons) / count,
        same_first=sum(one.same_first for one in comparisons) / count,
        confidence=sum(one.confidence for one in comparisons) / count,
        shadow_confidence=sum(one.shadow_confidence for one in comparisons) / count,
        disputed=sum(one.verdict is False and not one.same_first for one in comparisons),
    )
