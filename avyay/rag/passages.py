"""From ranked chunks to passages worth reading: chunks that touch are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from avyay.rag.retrieve import join_neighbours

if TYPE_CHECKING:
    from avyay.ports import Passage
    from avyay.rag.searcher import Found

__all__ = ["JoinedPassage", "NeighbouringSections", "gather", "gather_sections"]


@dataclass(frozen=True, slots=True)
class JoinedPassage:
    """A passage and the chunks it was joined from."""

    passage: Passage
    chunk_ids: tuple[str, ...]


def gather(found: Sequence[Found], limit: int) -> list[JoinedPassage]:
    """At most `limit` passages, in the order of their best chunks."""
    groups: list[list[Found]] = []
    for one in found:
        home = next((group for group in groups if any(_touch(one, other) for other in group)), None)
        if home is not None:
            home.append(one)
        elif len(groups) < limit:
            groups.append([one])
    return [_joined(group) for group in groups]


@dataclass(frozen=True, slots=True)
class NeighbouringSections:
    """Sections of one document that were found and stand side by side, as one result; `best` ranked it."""

    best: Found
    headings: tuple[str, ...]
    first_line: int
    last_line: int


def gather_sections(found: Sequence[Found], limit: int) -> list[NeighbouringSections]:
    """At most `limit` results, in the order of their best chunks; no more sections in one than can be read at once."""
    headings = [one.row.chunk.headings or (one.row.chunk.heading,) for one in found]
    groups = join_neighbours(
        [one.hit for one in found],
        sections=headings,
        tokens=[one.row.chunk.tokens for one in found],
        limit=limit,
    )
    return [
        NeighbouringSections(
            best=found[group[0]],
            headings=tuple(dict.fromkeys(heading for place in group for heading in headings[place])),
            first_line=min(found[place].row.chunk.first_line for place in group),
            last_line=max(found[place].row.chunk.last_line for place in group),
        )
        for group in groups
    ]


def _touch(one: Found, other: Found) -> bool:
    a, b = one.row.chunk, other.row.chunk
    return one.row.document.id == other.row.document.id and a.section_id == b.section_id and abs(a.part - b.part) == 1


def _joined(group: Sequence[Found]) -> JoinedPassage:
    best = group[0].passage
    parts = sorted(group, key=lambda one: one.row.chunk.part)
    text = parts[0].row.chunk.text
    for part in parts[1:]:
        text += "\n" + part.row.chunk.text[part.row.chunk.repeated :].lstrip("\n")
    passage = replace(
        best,
        text=text,
        first_line=parts[0].row.chunk.first_line,
        last_line=max(part.row.chunk.last_line for part in parts),
    )
    return JoinedPassage(passage, tuple(part.row.chunk.id for part in parts))
