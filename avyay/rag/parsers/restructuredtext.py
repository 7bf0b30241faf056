"""reStructuredText: adorned titles, literal blocks, code directives and both kinds of table."""

from __future__ import annotations

import re

from avyay.rag.parsers.types import Heading, Outline, Span, merge_spans, split_lines

__all__ = ["parse"]

ADORNMENT = re.compile(r"^([!-/:-@\[-`{-~])\1+\s*$")
CODE = re.compile(r"^\s*\.\. (?:code|code-block|sourcecode|highlight|parsed-literal|prompt|literalinclude)::")
TABLE_DIRECTIVE = re.compile(r"^\s*\.\. (?:table|list-table|csv-table)::")
GRID = re.compile(r"^\s*(?:\+[-=+]+\+|\|.*\|)\s*$")
SIMPLE = re.compile(r"^\s*=+(?:\s+=+)+\s*$")
MARKUP = re.compile(r"(?::[\w:+.-]+:)?(`+|\*+)(.+?)(?:\s*<[^<>]*>)?\1_{0,2}")


def parse(text: str) -> Outline:
    """Levels follow the order in which adornments first appear, as docutils has it."""
    lines = [line.rstrip("\r\n") for line in split_lines(text)]
    whole = merge_spans([*_indented_blocks(lines), *_tables(lines)])
    inside = {number for span in whole for number in range(span.first, span.last + 1)}
    headings = _headings(lines, inside)
    title = headings[0].text if headings and headings[0].level == 1 else ""
    return Outline(title, tuple(headings), whole)


def _headings(lines: list[str], inside: set[int]) -> list[Heading]:
    styles: list[tuple[str, bool]] = []
    headings: list[Heading] = []
    index = 0
    while index + 1 < len(lines):
        above = ADORNMENT.match(lines[index])
        overlined = above is not None and index + 2 < len(lines)
        at = index + 1 if overlined else index
        words, below = lines[at], ADORNMENT.match(lines[at + 1])
        fits = below is not None and bool(words.strip()) and not ADORNMENT.match(words) and at + 1 not in inside
        if fits and below is not None and len(lines[at + 1].rstrip()) >= min(len(words.strip()), 4):
            if overlined and (above is None or above.group(1) != below.group(1)):
                index += 1
                continue
            if not overlined and words[:1].isspace():
                index += 1
                continue
            style = (below.group(1), overlined)
            if style not in styles:
                styles.append(style)
            headings.append(Heading(MARKUP.sub(r"\2", words.strip()), styles.index(style) + 1, index + 1))
            index = at + 2
        else:
            index += 1
    return headings


def _indented_blocks(lines: list[str]) -> list[Span]:
    """What stands indented under `::` or under a directive whose content is code or a table."""
    spans: list[Span] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        directive = CODE.match(line) or TABLE_DIRECTIVE.match(line)
        literal = line.rstrip().endswith("::") and not line.lstrip().startswith("..")
        if directive or literal:
            indent = len(line) - len(line.lstrip())
            last = number
            for ahead in range(number + 1, len(lines)):
                if not lines[ahead].strip():
                    continue
                if len(lines[ahead]) - len(lines[ahead].lstrip()) <= indent:
                    break
                last = ahead
            if last > number:
                spans.append(Span(number + 1, last + 1))
                number = last
        number += 1
    return spans


def _tables(lines: list[str]) -> list[Span]:
    spans: list[Span] = []
    first = 0
    for number, line in enumerate([*lines, ""], 1):
        if GRID.match(line) and (first or "+" in line):
            first = first or number
        else:
            if first and number - first > 2:
                spans.append(Span(first, number - 1))
            first = 0
    return spans + _simple_tables(lines)


def _simple_tables(lines: list[str]) -> list[Span]:
    """From a border to the last border before two blank lines or the end; a border row repeats under the header."""
    spans: list[Span] = []
    open_at = last = 0
    for number, line in enumerate(lines, 1):
        if not SIMPLE.match(line):
            continue
        if open_at and last and not lines[number - 2].strip() and number - last > 1:
            open_at = 0
        open_at = open_at or number
        last = number
        following = lines[number] if number < len(lines) else ""
        if last > open_at and not following.strip():
            spans.append(Span(open_at, last))
            open_at = last = 0
    return spans
