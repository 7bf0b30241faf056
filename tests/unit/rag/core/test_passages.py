"""Passages: neighbours joined, sections shown whole, and what stands above them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.embed.hashing import Hashing
from avyay.rag.catalog import ChunkRow, DocumentRow
from avyay.rag.chunk import chunk_document, sections
from avyay.rag.passages import Expansion, JoinedPassage, expand, gather, lay_out, without_repeats
from avyay.rag.searcher import Found
from avyay.rag.types import Hit

EMBEDDER = Hashing()
ITEMS = "\n".join(
    f"{number}. Do step number {number} of the long procedure, with great care." for number in range(1, 40)
)
TEXT = f"""# Database down

Page the database team.

## Mitigation

Choose one of the two ways.

### Promote the replica

{ITEMS}

### Restore a backup

Ask for the newest snapshot.

## Aftermath

Write it down.
"""


def found_in(text: str, *, max_tokens: int = 100) -> list[Found]:
    chunks = chunk_document("db.md", text, count_tokens=EMBEDDER.count_tokens, max_tokens=max_tokens)
    document = DocumentRow(7, "docs", "db.md", "", "Database down", "c" * 40, 0)
    return [
        Found(ChunkRow(place, "", chunk, document), Hit(place, 0, 1.0 - place / 100, {}), 3.0)
        for place, chunk in enumerate(chunks)
    ]


def passage_of(text: str, words: str, how: Expansion) -> JoinedPassage:
    found = found_in(text)
    hit = next(one for one in found if words in one.row.chunk.text)
    return expand(gather([hit], 1)[0], how, sections("db.md", text), lay_out([one.row.chunk for one in found]))


def lines(first: int, last: int) -> str:
    return "\n".join(TEXT.splitlines()[first - 1 : last])


def line_of(words: str) -> int:
    return next(number for number, line in enumerate(TEXT.splitlines(), 1) if words in line)


def test_nothing_is_expanded_unasked() -> None:
    assert passage_of(TEXT, "step number 20", "none").passage.parents == ()


def test_a_part_becomes_its_section() -> None:
    passage = passage_of(TEXT, "step number 20 ", "section").passage
    assert passage.first_line == line_of("### Promote")
    assert passage.last_line >= line_of("step number 39")
    assert passage.text == lines(passage.first_line, passage.last_line)
    assert passage.parents == ()


def test_the_parents_say_what_stands_above() -> None:
    passage = passage_of(TEXT, "step number 20 ", "parents").passage
    assert [(parent.heading, parent.level) for parent in passage.parents] == [("Database down", 1), ("Mitigation", 2)]
    assert passage.parents[0].text == "# Database down\n\nPage the database team."
    assert passage.parents[1].text == "## Mitigation\n\nChoose one of the two ways."


def test_the_opening_of_a_document_is_not_the_whole_document() -> None:
    passage = passage_of(TEXT, "Page the database team", "section").passage
    assert "Choose one" not in passage.text


def test_a_section_too_long_to_read_is_shown_around_the_passage() -> None:
    text = "# T\n\n## Log\n\n" + "\n".join(f"{number} {'word ' * 30}" for number in range(400))
    passage = passage_of(text, "\n200 ", "section").passage
    assert 8_000 < len(passage.text) <= 12_000
    assert "\n200 word" in passage.text


def test_a_section_found_twice_is_shown_once() -> None:
    found = found_in(TEXT)
    promote = [one for one in found if "step number" in one.row.chunk.text]
    assert len(promote) > 4
    apart = [promote[0], promote[-1], found[-1]]
    layout = lay_out([one.row.chunk for one in found])
    whole = [expand(one, "section", sections("db.md", TEXT), layout) for one in gather(apart, 3)]
    assert [one.passage.heading for one in without_repeats(whole, 3)] == ["Promote the replica", "Aftermath"]


def test_neighbours_across_sections_or_within_one() -> None:
    found = found_in(TEXT, max_tokens=300)
    across = gather(found, 10)
    assert across[0].headings[:2] == ("Database down", "Mitigation")
    assert across[0].passage.text == lines(across[0].passage.first_line, across[0].passage.last_line)
    within = gather(found, 10, across=False)
    assert all(len({identity.partition("-")[0] for identity in one.chunk_ids}) == 1 for one in within)
    assert "".join("".join(one.passage.text.split()) for one in within) == "".join(TEXT.split())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["# A", "## B", "### C", "", "word " * 40, "x" * 300, "- item", "    code"]), max_size=40)
)
def test_laid_out_chunks_are_the_document(pieces: list[str]) -> None:
    text = "\n".join(pieces)
    chunks = chunk_document("a.md", text, count_tokens=EMBEDDER.count_tokens, max_tokens=60)
    layout = lay_out(chunks)
    given = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    assert {number: "".join(line.split()) for number, line in layout.items() if line.strip()} == {
        number: "".join(line.split()) for number, line in given.items()
    }


@pytest.mark.parametrize("how", ["section", "parents"])
def test_a_document_that_is_gone_is_left_as_found(how: Expansion) -> None:
    joined = gather(found_in(TEXT)[:1], 1)[0]
    assert expand(joined, how, [], {}) == joined
