"""AsciiDoc: `=` titles, delimited blocks and tables."""

from __future__ import annotations

import re

from avyay.rag.parsers.types import Heading, Outline, Span, merge_spans, split_lines

__all__ = ["parse"]

TITLE = re.compile(r"^(={1,6}|#{1,6})\s+(\S.*?)(?:\s+\1)?\s*$")
VERBATIM = re.compile(r"^(-{4,}|\.{4,}|\+{4,}|/{4,}|`{3}\S*|\|={3,}|,={3,}|:={3,})\s*$")
MARKUP = re.compile(r"(?:https?://\S+?|link:\S+?|xref:\S+?)\[([^\]]*)\]|(?<!\w)[`*_]+([^`*_]+)[`*_]+(?!\w)")


def parse(text: str) -> Outline:
    """Titles outside delimited blocks; `= Title` is level 1. Listings, literals, passthroughs and tables stay whole."""
    headings: list[Heading] = []
    whole: list[Span] = []
    closing, first, number = "", 0, 0
    for number, line in enumerate((line.rstrip() for line in split_lines(text)), 1):
        delimiter = VERBATIM.match(line)
        if closing:
            if line == closing:
                whole.append(Span(first, number))
                closing = ""
        elif delimiter:
            closing, first = "```" if line.startswith("```") else delimiter.group(1), number
        elif match := TITLE.match(line):
            headings.append(Heading(_plain(match.group(2)), len(match.group(1)), number))
    if closing:
        whole.append(Span(first, number))
    title = headings[0].text if headings and headings[0].level == 1 else ""
    return Outline(title, tuple(headings), merge_spans(whole))


def _plain(markup: str) -> str:
    return " ".join(MARKUP.sub(lambda match: match.group(1) or match.group(2) or "", markup).split()) or markup
