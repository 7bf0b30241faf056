"""From ranked chunks to passages worth reading: neighbours are joined, and sections shown whole when that is asked for.

There is one way from a search to what anybody sees: `gather`, then `expand`. A list of results joins sections that
stand side by side; an answer cites each section for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from avyay.ports import ParentSection
from avyay.rag.parsers import split_lines
from avyay.rag.retrieve import join_neighbours

if TYPE_CHECKING:
    from avyay.ports import Passage
    from avyay.rag.searcher import Found
    from avyay.rag.types import Chunk, Section

__all__ = ["EXPANSIONS", "Expansion", "JoinedPassage", "expand", "gather", "lay_out", "without_repeats"]

Expansion = Literal["none", "section", "parents"]
EXPANSIONS: tuple[Expansion, ...] = ("none", "section", "parents")
SECTIONS = 3  # in one passage
SECTION_LEVEL = 2  # a title's section is the whole document: of those above this, only their own text counts
SECTION_CHARACTERS = 12_000  # some 3,000 tokens: of a longer section, what stands around the passage
PARENT_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class JoinedPassage:
    """A passage and the chunks it was joined from. `best` ranked it; `headings` are of the sections in it, the best
    first."""

    passage: Passage
    best: Found
    headings: tuple[str, ...]
    chunk_ids: tuple[str, ...]


def gather(found: Sequence[Found], limit: int, *, across: bool = True) -> list[JoinedPassage]:
    """At most `limit` passages, in the order of their best chunks; no more in one than can be read at once.

    Args:
        across: Join neighbouring sections too, not only the parts of one.
    """
    headings = [one.row.chunk.headings or (one.row.chunk.heading,) for one in found]
    groups = join_neighbours(
        [one.hit for one in found],
        sections=headings if across else [(one.row.chunk.section_id,) for one in found],
        tokens=[one.row.chunk.tokens for one in found],
        limit=limit,
        most=SECTIONS if across else 1,
    )
    return [_joined([found[place] for place in group], [headings[place] for place in group]) for group in groups]


def expand(
    joined: JoinedPassage, how: Expansion, sections: Sequence[Section], lines: Mapping[int, str]
) -> JoinedPassage:
    """The passage as its whole section; with `parents` also the own text of every section around that.

    Args:
        sections: Those of its document.
        lines: The document, see `lay_out`.
    """
    own = next((one for one in sections if one.id == joined.best.row.chunk.section_id), None)
    if how == "none" or own is None:
        return joined
    passage = joined.passage
    first, last = _span(own, sections)
    first, last = min(first, passage.first_line), max(last, passage.last_line)
    first, last = _around(passage.first_line, passage.last_line, first, last, lines)
    parents = _parents(own, sections, lines) if how == "parents" else ()
    text = _text(lines, first, last)
    return replace(joined, passage=replace(passage, first_line=first, last_line=last, text=text, parents=parents))


def without_repeats(passages: Sequence[JoinedPassage], limit: int) -> list[JoinedPassage]:
    """The first `limit` that do not stand within one before them: a section may be found by several of its parts."""
    kept: list[JoinedPassage] = []
    for one in passages:
        if not any(_within(one, other) for other in kept):
            kept.append(one)
    return kept[:limit]


def lay_out(chunks: Sequence[Chunk]) -> dict[int, str]:
    """The lines that chunks of one document cover, by number; chunks in order. Blank lines between them are absent."""
    lines: dict[int, str] = {}
    for position, chunk in enumerate(chunks):
        repeated = chunk.repeated if position else 0
        number = chunk.first_line + len(split_lines(chunk.text[:repeated] + "x")) - 1
        for offset, line in enumerate(split_lines(chunk.text[repeated:])):
            line = line.rstrip("\r\n")
            if before := lines.get(number + offset):  # a line too long for one chunk goes on in the next
                line = f"{before} {line}" if line else before
            lines[number + offset] = line
    return lines


def _joined(group: Sequence[Found], headings: Sequence[Sequence[str]]) -> JoinedPassage:
    best = group[0]
    parts = sorted(group, key=lambda one: one.hit.chunk)
    passage = best.passage
    if len(parts) > 1:
        lines = lay_out([part.row.chunk for part in parts])
        first, last = min(lines), max(lines)
        first = min(first, parts[0].row.chunk.first_line)
        passage = replace(passage, text=_text(lines, first, last), first_line=first, last_line=last)
    return JoinedPassage(
        passage,
        best,
        tuple(dict.fromkeys(heading for some in headings for heading in some)),
        tuple(part.row.chunk.id for part in parts),
    )


def _span(section: Section, sections: Sequence[Section]) -> tuple[int, int]:
    """Its lines; without its subsections where it is the document or a part of it."""
    if section.level >= SECTION_LEVEL:
        return section.first_line, section.last_line
    return _own_lines(section, sections)


def _own_lines(section: Section, sections: Sequence[Section]) -> tuple[int, int]:
    below = [one.first_line for one in sections if one.parent_id == section.id]
    return section.first_line, min(below) - 1 if below else section.last_line


def _parents(section: Section, sections: Sequence[Section], lines: Mapping[int, str]) -> tuple[ParentSection, ...]:
    """Outermost first. What a heading says for itself is short; of a longer text the beginning."""
    known = {one.id: one for one in sections}
    found: list[ParentSection] = []
    above = known.get(section.parent_id or "")
    while above is not None:
        first, last = _own_lines(above, sections)
        size = 0
        for number in range(first, last + 1):
            size += len(lines.get(number, "")) + 1
            if size > PARENT_CHARACTERS:
                last = max(first, number - 1)
                break
        text = _text(lines, first, last).strip("\n")
        if text:
            found.append(ParentSection(above.heading, above.level, first, last, text))
        above = known.get(above.parent_id or "")
    return tuple(reversed(found))


def _around(first: int, last: int, top: int, bottom: int, lines: Mapping[int, str]) -> tuple[int, int]:
    """As much of top..bottom as fits, growing from first..last to both sides."""
    size = sum(len(lines.get(number, "")) + 1 for number in range(first, last + 1))
    while first > top or last < bottom:
        above = len(lines.get(first - 1, "")) + 1 if first > top else None
        if above is not None and size + above <= SECTION_CHARACTERS:
            first, size = first - 1, size + above
        else:
            top = first
        below = len(lines.get(last + 1, "")) + 1 if last < bottom else None
        if below is not None and size + below <= SECTION_CHARACTERS:
            last, size = last + 1, size + below
        else:
            bottom = last
    return first, last


def _text(lines: Mapping[int, str], first: int, last: int) -> str:
    return "\n".join(lines.get(number, "") for number in range(first, last + 1))


def _within(one: JoinedPassage, other: JoinedPassage) -> bool:
    same = one.best.row.document.id == other.best.row.document.id
    a, b = one.passage, other.passage
    return same and b.first_line <= a.first_line and a.last_line <= b.last_line
