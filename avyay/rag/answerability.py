"""How well "not in the runbooks" is told from an answer: queries with their documents, and with these left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

__all__ = ["Answerability", "wilson"]


@dataclass(frozen=True, slots=True)
class Answerability:
    """`answered` is the share of answerable queries that get passages, `refused` the share of those without their
    documents that do not, each with its 95 % interval. `auc` is how often confidence ranks an answerable query above
    an unanswerable one (0.5: chance). A query left without its document may still be answered rightly by another, so
    `refused` has no 1 to reach.
    """

    queries: int
    answered: float
    refused: float
    auc: float
    answered_interval: tuple[float, float] = (0.0, 1.0)
    refused_interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, judged: Sequence[tuple[bool, bool, float]]) -> Answerability:
        """From (answerable, taken for answerable, confidence) of each search."""
        answerable = [(taken, value) for present, taken, value in judged if present]
        without = [(taken, value) for present, taken, value in judged if not present]
        return cls(
            queries=len(answerable),
            answered=_share([taken for taken, _ in answerable]),
            refused=_share([not taken for taken, _ in without]),
            auc=_auc([value for _, value in answerable], [value for _, value in without]),
            answered_interval=wilson(sum(taken for taken, _ in answerable), len(answerable)),
            refused_interval=wilson(sum(not taken for taken, _ in without), len(without)),
        )


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share; it is honest for shares of 0 and 1 and for few trials."""
    if not total:
        return 0.0, 1.0
    z = 1.959964
    share = hits / total
    middle = (share + z * z / 2 / total) / (1 + z * z / total)
    half = z * sqrt(share * (1 - share) / total + z * z / 4 / total**2) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    if not positive or not negative:
        return 0.5
    wins = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    return wins / (len(positive) * len(negative))
