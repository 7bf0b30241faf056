"""What every parser returns: where the headings are, and which lines must stay together."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Heading", "Outline", "Span", "split_lines"]

NEWLINE = re.compile(r"\r\n?|\n")


@dataclass(frozen=True, slots=True)
class Span:
    """Lines `first` to `last`, 1-based and inclusive."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading, without its markup, and the 1-based line it begins on. `level` 1 is the outermost."""

    text: str
    level: int
    line: int


@dataclass(frozen=True, slots=True)
class Outline:
    """The structure of a document.

    `whole` are the spans that may not be cut (code, tables), in order and apart from one another. `title` is what the
    document calls itself, empty when it does not say. `metadata` is the front matter's span.
    """

    title: str
    headings: tuple[Heading, ...]
    whole: tuple[Span, ...]
    metadata: Span | None = None


def split_lines(text: str) -> list[str]:
    r"""The lines with their ends; only \n, \r\n and \r end a line, so numbers agree with editors and git."""
    lines, start = [], 0
    for match in NEWLINE.finditer(text):
        lines.append(text[start : match.end()])
        start = match.end()
    if start < len(text):
        lines.append(text[start:])
    return lines


def merge_spans(spans: list[Span]) -> tuple[Span, ...]:
    """The spans in order, overlapping ones joined."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.first, span.last)):
        if merged and span.first <= merged[-1].last:
            merged[-1] = Span(merged[-1].first, max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return tuple(merged)
