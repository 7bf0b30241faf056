"""The words of retrieval: chunks of documents, the sections they come from, and what a search found."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["NAMED", "RULE", "Chunk", "Hit", "Section"]

RULE = "rule"  # the signal of an alert rule: what its score was lowered by
NAMED = "name"  # the signal of a hit whose title, file name or heading holds an identifier of the query

FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\r?\n.*?^(?:\1|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
ADORNED = re.compile(r"[\s=\-~^\"'`#*+.:]*")


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with all that stands under it, subsections included. Lines are 1-based and inclusive.

    `id` is made of the path and the headings, so edits elsewhere in the document leave it alone. The first section
    is the document itself: it has no parent and an empty `heading_path`.
    """

    id: str
    parent_id: str | None
    heading: str
    level: int
    heading_path: tuple[str, ...]
    first_line: int
    last_line: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that is embedded and found as one. Lines are 1-based and inclusive.

    `text` is verbatim; its first `repeated` characters also end the chunk before it. `context` says where the text
    stands (title, file name, headings) and is embedded with it; `tokens` counts both. `headings` names the sections
    that begin in the text, its own first. `oversized` marks a single code block or table that the embedder cannot
    read to its end and that is kept whole all the same. `part` numbers the chunks of one section from 0.
    """

    id: str
    section_id: str
    path: str
    title: str
    heading_path: tuple[str, ...]
    headings: tuple[str, ...]
    first_line: int
    last_line: int
    text: str
    context: str
    tokens: int
    part: int = 0
    repeated: int = 0
    oversized: bool = False

    @property
    def heading(self) -> str:
        """The nearest heading above the text; the title where there is none."""
        return self.heading_path[-1] if self.heading_path else self.title

    @property
    def embedding_text(self) -> str:
        """What the embedder reads: the context, then the text without front matter and headings the context has."""
        return f"{self.context}\n{self._body()}".strip() or self.text

    def _body(self) -> str:
        said = {_plain(text) for text in (self.title, *self.heading_path)}
        rest = FRONT_MATTER.sub("", self.text)
        while rest:
            line, _, following = rest.partition("\n")
            if not (ADORNED.fullmatch(line) or _plain(line) in said):
                break
            rest = following
        return rest


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that a query found. `chunk` and `document` are row numbers; `signals` says where the score came from."""

    chunk: int
    document: int
    score: float
    signals: dict[str, float]


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())
