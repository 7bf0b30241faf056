from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.embed.tokenizer import WordPiece

WORDS = WordPiece()


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_offsets_are_ordered_and_inside_the_text(text: str) -> None:
    offsets = WORDS.offsets(text)
    assert len(offsets) == WORDS.count(text)
    assert offsets == sorted(offsets)  # equal neighbours: one character that is several tokens
    assert all(0 <= first <= end <= len(text) for first, end in offsets)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_counts_add_up_over_white_space(left: str, right: str) -> None:
    assert WORDS.count(f"{left}\n{right}") == WORDS.count(left) + WORDS.count(right)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["restart", "the-pod", "0x80070005", "数据库", "Café", "x" * 120, "  ", "\n"]), max_size=60
    )
)
def test_ids_of_a_long_text_are_the_first_ids(words: list[str]) -> None:
    text = " ".join(words)
    everything = WORDS.ids(text, 1_000_000)
    for limit in (1, 3, 10):
        assert WORDS.ids(text, limit) == everything[:limit]


def test_unknown_words_count_once() -> None:
    assert WORDS.count("x" * 101) == 1
    assert WORDS.ids("x" * 101, 5) == [WORDS.id("[UNK]")]
