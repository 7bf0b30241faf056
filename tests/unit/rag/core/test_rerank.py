"""Rerankers keep to their time and leave names alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.errors import UnreachableError
from avyay.rag.rerankers.base import Reranker, rerank
from avyay.rag.rerankers.late_interaction import LateInteraction
from avyay.rag.types import NAMED, Hit

HITS = tuple(Hit(chunk, 0, 1.0 - chunk / 10, {}) for chunk in range(6))
TEXTS = tuple("abcdef")


class Backwards:
    name = "backwards"
    batch = 2

    def score(self, query: str, texts: Sequence[str], *, seconds: float) -> list[float]:
        assert seconds > 0
        return [float(ord(text)) for text in texts]


class Broken:
    name = "broken"
    batch = 1

    def score(self, query: str, texts: Sequence[str], *, seconds: float) -> list[float]:
        raise UnreachableError("Nobody there.")


def order(hits: Sequence[Hit]) -> list[int]:
    return [hit.chunk for hit in hits]


def ticks(step: float):
    now = [0.0]

    def monotonic() -> float:
        now[0] += step
        return now[0]

    return monotonic


def named(*places: int) -> tuple[Hit, ...]:
    return tuple(replace(hit, signals={NAMED: 1.0}) if hit.chunk in places else hit for hit in HITS)


def test_all_are_judged_in_time() -> None:
    done, note = rerank(Backwards(), "q", HITS, TEXTS, seconds=9, monotonic=ticks(0.0))
    assert order(done) == [5, 4, 3, 2, 1, 0]
    assert done[0].signals == {"rerank": float(ord("f"))}
    assert note is None


@pytest.mark.parametrize(
    ("places", "expected"),
    [((0, 1), [0, 1, 5, 4, 3, 2]), ((2,), [1, 0, 2, 5, 4, 3]), ((5,), [4, 3, 2, 1, 0, 5])],
    ids=["first", "middle", "last"],
)
def test_nothing_overtakes_a_name_that_was_asked_for(places: tuple[int, ...], expected: list[int]) -> None:
    done, _ = rerank(Backwards(), "q", named(*places), TEXTS, seconds=9, monotonic=ticks(0.0))
    assert order(done) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(2.5, [3, 2, 1, 0, 4, 5]), (0.0, [0, 1, 2, 3, 4, 5])])
def test_the_rest_keeps_its_order_when_time_is_up(seconds: float, expected: list[int]) -> None:
    done, note = rerank(Backwards(), "q", HITS, TEXTS, seconds=seconds, monotonic=ticks(1.0))
    assert order(done) == expected
    assert (note is None) == (seconds > 0)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.sets(st.integers(0, 5)), st.floats(0, 1))
def test_no_hit_is_lost_and_no_name_loses_a_place(scores: list[float], places: set[int], weight: float) -> None:
    class Given:
        name = "given"
        batch = 4

        def score(self, query: str, texts: Sequence[str], *, seconds: float) -> list[float]:
            return [scores[ord(text) - 97] for text in texts]

    done, _ = rerank(Given(), "q", named(*places), TEXTS, seconds=9, monotonic=ticks(0.0), weight=weight)
    assert sorted(order(done)) == [0, 1, 2, 3, 4, 5]
    for place in places:
        assert order(done)[place] == place


def test_a_weight_of_nothing_changes_nothing() -> None:
    assert order(rerank(Backwards(), "q", HITS, TEXTS, seconds=9, monotonic=ticks(0.0), weight=0.0)[0]) == order(HITS)


def test_a_reranker_that_fails_leaves_the_order_and_says_so() -> None:
    done, note = rerank(Broken(), "q", HITS, TEXTS, seconds=9, monotonic=ticks(0.0))
    assert done == HITS
    assert note == "Not reranked by broken: Nobody there."


class Letters:
    def embed_tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.eye(26, dtype=np.float32)[[ord(letter) - 97 for letter in text]] for text in texts]


def test_late_interaction_counts_what_each_token_finds() -> None:
    reranker = LateInteraction(Letters())
    assert isinstance(reranker, Reranker)
    assert reranker.score("ab", ["ba", "axx", ""], seconds=1) == pytest.approx([1.0, 0.5, 0.0])
    assert reranker.score("", ["a"], seconds=1) == [0.0]
