"""Rerankers keep to their time and leave names alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from avyay.rag.rerankers.base import Reranker, rerank
from avyay.rag.rerankers.late_interaction import LateInteraction
from avyay.rag.types import Hit

HITS = tuple(Hit(chunk, 0, 1.0 - chunk / 10, {}) for chunk in range(6))
TEXTS = tuple("abcdef")


class Backwards:
    name = "backwards"

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        return [float(ord(text)) for text in texts]


def order(hits: Sequence[Hit]) -> list[int]:
    return [hit.chunk for hit in hits]


def ticks(step: float):
    now = [0.0]

    def monotonic() -> float:
        now[0] += step
        return now[0]

    return monotonic


def test_all_are_judged_in_time() -> None:
    done = rerank(Backwards(), "q", HITS, TEXTS, fixed=lambda hit: False, seconds=9, monotonic=ticks(0.0))
    assert order(done) == [5, 4, 3, 2, 1, 0]
    assert done[0].signals == {"rerank": float(ord("f"))}


def test_names_stay_ahead() -> None:
    done = rerank(Backwards(), "q", HITS, TEXTS, fixed=lambda hit: hit.chunk < 2, seconds=9, monotonic=ticks(0.0))
    assert order(done) == [0, 1, 5, 4, 3, 2]


@pytest.mark.parametrize(("seconds", "expected"), [(2.5, [3, 2, 1, 0, 4, 5]), (0.0, [0, 1, 2, 3, 4, 5])])
def test_the_rest_keeps_its_order_when_time_is_up(seconds: float, expected: list[int]) -> None:
    done = rerank(
        Backwards(), "q", HITS, TEXTS, fixed=lambda hit: False, seconds=seconds, monotonic=ticks(1.0), batch=2
    )
    assert order(done) == expected


class Letters:
    def embed_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.eye(26, dtype=np.float32)[[ord(letter) - 97 for letter in text]] for text in texts]


def test_late_interaction_counts_what_each_token_finds() -> None:
    reranker = LateInteraction(Letters())
    assert isinstance(reranker, Reranker)
    assert reranker.score("ab", ["ba", "axx", ""]) == pytest.approx([1.0, 0.5, 0.0])
    assert reranker.score("", ["a"]) == [0.0]
