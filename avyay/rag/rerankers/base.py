"""What a reranker is, and how its opinion counts: within a time budget, and never against a name that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Protocol, runtime_checkable

from avyay.errors import AvyayError
from avyay.rag.types import NAMED, Hit

__all__ = ["RerankPolicy", "Reranker", "rerank"]


@runtime_checkable
class Reranker(Protocol):
    """Judges how well texts answer a query."""

    @property
    def name(self) -> str: ...

    @property
    def batch(self) -> int:
        """Texts judged at once: the clock is looked at in between."""
        ...

    def score(self, query: str, texts: Sequence[str], *, seconds: float) -> list[float]:
        """One number for each text, larger is better; any scale.

        Args:
            seconds: What is left of the time. Who calls others gives up after it.

        Raises:
            AvyayError: the texts cannot be judged now.
        """
        ...


@dataclass(frozen=True, slots=True)
class RerankPolicy:
    """A reranker and how far it goes.

    `open` makes it when it is first needed; `seconds` is the time it may take; `top` how many hits it judges; `weight`
    (0..1) how much its opinion counts against the order that was there, both in standard deviations.
    """

    open: Callable[[], Reranker]
    seconds: float = 0.5
    top: int = 20
    weight: float = 0.25


def rerank(
    reranker: Reranker,
    query: str,
    hits: Sequence[Hit],
    texts: Sequence[str],
    *,
    seconds: float,
    monotonic: Callable[[], float],
    weight: float = 1.0,
) -> tuple[tuple[Hit, ...], str | None]:
    """Hits in an order that the reranker has a say in, as far as it came in time; the rest keeps its order.

    A hit that is `NAMED` is not judged, and nothing that stood behind it comes to stand before it.

    Args:
        seconds: What the reranker may take; a batch that was begun is finished.
        monotonic: The clock.
        weight: 1: the reranker's order; 0: the order there was.

    Returns:
        The hits, and what the reader should know: that the reranker failed, or came only so far.
    """
    rest = [place for place, hit in enumerate(hits) if NAMED not in hit.signals]
    end = monotonic() + seconds
    judged: dict[int, float] = {}
    note = None
    while len(judged) < len(rest) and (left := end - monotonic()) > 0:
        some = rest[len(judged) : len(judged) + reranker.batch]
        try:
            scores = reranker.score(query, [texts[place] for place in some], seconds=left)
        except AvyayError as error:
            return tuple(hits), f"Not reranked by {reranker.name}: {error.message}"
        judged.update(zip(some, scores, strict=True))
    if rest and not judged:
        note = f"Not reranked: no time for {reranker.name}."
    if judged:
        first = _standard([hits[place].score for place in judged])
        second = _standard(list(judged.values()))
        mixed = {
            place: (1 - weight) * before + weight * after
            for place, before, after in zip(judged, first, second, strict=True)
        }
        order = sorted(rest, key=lambda place: (place not in mixed, -mixed.get(place, 0.0), place))
    else:
        order = rest
    return tuple(_placed(hits, order, judged)), note


def _placed(hits: Sequence[Hit], order: Sequence[int], judged: dict[int, float]) -> list[Hit]:
    """Hits in this order, those between two named ones among themselves."""
    rank = {place: position for position, place in enumerate(order)}
    out: list[Hit] = []
    between: list[int] = []
    for place in range(len(hits) + 1):
        if place in rank:
            between.append(place)
            continue
        for one in sorted(between, key=rank.__getitem__):
            hit = hits[one]
            out.append(replace(hit, signals={**hit.signals, "rerank": judged[one]}) if one in judged else hit)
        between = []
        if place < len(hits):
            out.append(hits[place])
    return out


def _standard(values: Sequence[float]) -> list[float]:
    middle, deviation = fmean(values), pstdev(values)
    return [(value - middle) / deviation if deviation > 1e-9 else 0.0 for value in values]
