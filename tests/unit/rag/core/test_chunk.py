"""Chunks lose nothing, follow headings, and never cut code."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.rag.chunk import chunk_document, sections


def words(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def squeezed(text: str) -> str:
    return "".join(text.split())


PIECES = st.sampled_from(
    [
        "# Title\n",
        "## Meaning\n",
        "### Details\n",
        "Setext\n======\n",
        "\n",
        "\n\n",
        "A sentence that says something. Another one follows it.\n",
        "word " * 60 + "\n",
        "- item one\n- item two\n",
        "```console\n$ kubectl get pods\n# not a heading\n```\n",
        "```\n" + "echo line of a long script\n" * 20 + "```\n",
        "    indented code\n    more code\n",
        "| a | b |\n|---|---|\n| 1 | 2 |\n",
        "> quoted\n",
        "<!-- comment -->\n",
        "---\ntitle: Front\n---\n",
        "x" * 700 + "\n",
        "\r\n",
        "日本語の文章。\n",
        "\ufeff",
    ]
)
DOCUMENTS = st.lists(st.one_of(PIECES, st.text(max_size=40)), max_size=25).map("".join)
PATHS = st.sampled_from(["a/KubePodCrashLooping.md", "b.rst", "c.adoc", "rules.yaml", "notes.txt", "odd"])


@settings(max_examples=300, deadline=None)
@given(PATHS, DOCUMENTS, st.sampled_from([16, 40, 256]), st.sampled_from([0, 10, 50]))
def test_no_text_is_lost(path: str, text: str, limit: int, overlap: int) -> None:
    chunks = chunk_document(path, text, count_tokens=words, max_tokens=limit, overlap=overlap)
    assert squeezed("".join(chunk.text[chunk.repeated :] for chunk in chunks)) == squeezed(text)
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        assert chunk.text in text
        assert chunk.oversized or chunk.tokens <= limit
        assert words(chunk.text[: chunk.repeated]) <= overlap
        assert 1 <= chunk.first_line <= chunk.last_line <= max(1, len(re.split(r"\r\n?|\n", text)))


@settings(max_examples=100, deadline=None)
@given(PATHS, DOCUMENTS)
def test_sections_nest(path: str, text: str) -> None:
    found = {section.id: section for section in sections(path, text)}
    assert len(found) == len(sections(path, text))
    for section in found.values():
        if section.parent_id is not None:
            parent = found[section.parent_id]
            assert parent.first_line <= section.first_line <= section.last_line <= parent.last_line
            assert section.heading_path == (*parent.heading_path, section.heading)
