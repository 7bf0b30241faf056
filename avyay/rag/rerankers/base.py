"""What a reranker is, and how its opinion counts: within a time budget, and never against a name that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from avyay.rag.types import Hit

__all__ = ["Reranker", "rerank"]


@runtime_checkable
class Reranker(Protocol):
    """Judges how well texts answer a query."""

    @property
    def name(self) -> str: ...

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """One number for each text, larger is better; any scale.

        Raises:
            AvyayError: the texts cannot be judged now.
        """
        ...


def rerank(
    reranker: Reranker,
    query: str,
    hits: Sequence[Hit],
    texts: Sequence[str],
    *,
    fixed: Callable[[Hit], bool],
    seconds: float,
    monotonic: Callable[[], float],
    batch: int = 8,
) -> tuple[Hit, ...]:
    """Hits in the reranker's order, as far as it came in time; the rest follows in the order it had.

    Args:
        fixed: Hits that stay ahead of all others, in their order: exact matches of a name.
        seconds: What the reranker may take; a batch that was begun is finished.
        monotonic: The clock.
    """
    head = [hit for hit in hits if fixed(hit)]
    rest = [(hit, text) for hit, text in zip(hits, texts, strict=True) if not fixed(hit)]
    end = monotonic() + seconds
    judged: list[tuple[float, Hit]] = []
    while len(judged) < len(rest) and monotonic() < end:
        some = rest[len(judged) : len(judged) + batch]
        scores = reranker.score(query, [text for _, text in some])
        judged.extend((score, hit) for score, (hit, _) in zip(scores, some, strict=True))
    ordered = sorted(judged, key=lambda item: -item[0])
    better = [replace(hit, signals={**hit.signals, "rerank": score}) for score, hit in ordered]
    return (*head, *better, *(hit for hit, _ in rest[len(judged) :]))
