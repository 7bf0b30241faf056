"""Headings and spans that stay whole, format by format."""

from __future__ import annotations

import textwrap
from itertools import pairwise

import pytest

from avyay.rag.chunk import chunk_document, document_title
from avyay.rag.parsers import Span, parse


def outline(path: str, text: str):
    found = parse(path, textwrap.dedent(text).lstrip("\n"))
    return [(one.text, one.level, one.line) for one in found.headings], list(found.whole), found.title


def test_markdown() -> None:
    headings, whole, title = outline(
        "a.md",
        """
        ---
        title: From the front
        ---
        # The `title` of [this](x.md) {#anchor}

        Setext
        ------

        - step
          ```console
          $ ls
          # no heading
          ```

        | a | b |
        |---|---|
        | 1 | 2 |

        > # quoted, no section

        <h3 align="center">In HTML</h3>
        """,
    )
    assert headings == [("The title of this", 1, 4), ("Setext", 2, 6), ("In HTML", 3, 21)]
    assert whole == [Span(10, 13), Span(15, 17)]
    assert title == "The title of this"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("---\ntitle: 'Quoted: yes'\n---\ntext\n", "Quoted: yes"),
        ('+++\ntitle = "Toml"\n+++\ntext\n', "Toml"),
        ("---\ntitle: [broken\n---\ntext\n", ""),
        ("---\nno end\n", ""),
    ],
)
def test_front_matter_titles(text: str, title: str) -> None:
    assert parse("a.md", text).title == title


def test_restructuredtext() -> None:
    headings, whole, title = outline(
        "a.rst",
        """
        =====
        Title
        =====

        Section
        -------

        Run this::

            $ ls
            $ pwd

        .. code-block:: sh

           echo

        Deeper
        ~~~~~~

        +---+---+
        | a | b |
        +---+---+

        ===  ===
        a    b
        ===  ===
        1    2
        ===  ===
        """,
    )
    assert headings == [("Title", 1, 1), ("Section", 2, 5), ("Deeper", 3, 17)]
    assert whole == [Span(8, 11), Span(13, 15), Span(20, 22), Span(24, 28)]
    assert title == "Title"


def test_asciidoc() -> None:
    headings, whole, title = outline(
        "a.adoc",
        """
        = The Title

        == Check `that`

        [source,sh]
        ----
        == no heading
        ----

        |===
        |a |b
        |===
        """,
    )
    assert headings == [("The Title", 1, 1), ("Check that", 2, 3)]
    assert whole == [Span(6, 8), Span(10, 12)]
    assert title == "The Title"


RULES = """
groups:
  - name: kubernetes
    rules:
      - alert: KubePodCrashLooping
        expr: rate(restarts[5m]) > 0
        annotations:
          summary: A pod restarts.
      - alert: KubeNodeNotReady
        expr: up == 0
"""


@pytest.mark.parametrize("wrap", [False, True])
def test_alert_rules(wrap: bool) -> None:
    text = textwrap.dedent(RULES).lstrip("\n")
    if wrap:
        text = "kind: PrometheusRule\nspec:\n" + textwrap.indent(text, "  ")
    found = parse("rules.yaml", text)
    shift = 2 if wrap else 0
    assert [(one.text, one.level, one.line - shift) for one in found.headings] == [
        ("kubernetes", 1, 2),
        ("KubePodCrashLooping", 2, 4),
        ("KubeNodeNotReady", 2, 8),
    ]
    chunks = chunk_document("rules.yaml", text, count_tokens=lambda words: len(words.split()))
    (rule,) = [chunk for chunk in chunks if chunk.heading == "KubePodCrashLooping"]
    assert "A pod restarts." in rule.text
    assert "KubeNodeNotReady" not in rule.text


@pytest.mark.parametrize("text", ["a: [", "just text", "rules: none", "- 1\n- 2\n", "&a [*a]\n", "\x00"])
def test_yaml_without_rules_has_no_headings(text: str) -> None:
    assert parse("x.yml", text).headings == ()


def test_plain_text_keeps_commands_together() -> None:
    assert outline("a.txt", "Do this:\n$ ls\n$ pwd\nthen rest\n$ alone\n")[1] == [Span(2, 3)]


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("runbooks/KubePodCrashLooping.md", "Kube Pod Crash Looping"),
        ("etcd/README.md", "etcd"),
        ("README.md", "README"),
        ("disk_full-now.md", "disk full now"),
    ],
)
def test_titles_from_file_names(path: str, title: str) -> None:
    assert document_title(path, parse(path, "text")) == title


def test_long_code_stays_whole_and_is_marked() -> None:
    code = "```\n" + "one line of a long script\n" * 60 + "```"
    chunks = chunk_document(
        "a.md", f"# T\n\n## S\n\nBefore.\n\n{code}\n\nAfter.\n", count_tokens=lambda t: len(t.split())
    )
    (whole,) = [chunk for chunk in chunks if chunk.oversized]
    assert code in whole.text


def test_neighbours_of_one_section_overlap() -> None:
    text = "# T\n\n## S\n\n" + " ".join(f"word{number}" for number in range(600)) + "\n"
    chunks = chunk_document("a.md", text, count_tokens=lambda t: len(t.split()))
    assert len(chunks) > 2
    for before, after in pairwise(chunks):
        shared = after.text[: after.repeated]
        assert len(shared.split()) == 50
        assert before.text.endswith(shared.strip())


def test_ids_survive_edits_elsewhere() -> None:
    text = "# T\n\n## A\n\nalpha\n\n## B\n\nbeta\n"
    before = {chunk.heading: chunk.id for chunk in chunk_document("a.md", text, count_tokens=len)}
    after = {chunk.heading: chunk.id for chunk in chunk_document("a.md", "intro\n\n" + text, count_tokens=len)}
    assert before["B"] == after["B"]
