from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.embed.hashing import Hashing
from avyay.ports import TokenEmbedder


def test_satisfies_the_port() -> None:
    assert isinstance(Hashing(), TokenEmbedder)


@given(st.lists(st.text(max_size=60), max_size=8))
def test_rows_have_length_one(texts: list[str]) -> None:
    embedder = Hashing(dimensions=16)
    vectors = embedder.embed(texts)
    assert vectors.shape == (len(texts), 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, rows in zip(texts, embedder.embed_tokens(texts), strict=True):
        assert len(rows) == embedder.count_tokens(text) == len(embedder.offsets(text))


def test_is_the_same_everywhere() -> None:
    assert np.flatnonzero(Hashing(dimensions=64).embed(["restart the pod"])[0]).tolist() == [47, 49, 60]


def test_equal_words_are_near() -> None:
    query, right, wrong = Hashing().embed(["restart the pod", "The POD: restart!", "drain a node"])
    assert query @ right > 0.99
    assert query @ wrong < 0.5


def test_reads_up_to_the_limit() -> None:
    embedder = Hashing(max_tokens=2)
    first, longer = embedder.embed(["one two", "one two three"])
    np.testing.assert_array_equal(first, longer)
    assert embedder.count_tokens("one two three") == 3
    assert [len(rows) for rows in embedder.embed_tokens(["one two three"])] == [2]


@pytest.mark.parametrize("options", [{"dimensions": 0}, {"max_tokens": 0}])
def test_refuses_sizes_below_one(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Hashing(**options)
