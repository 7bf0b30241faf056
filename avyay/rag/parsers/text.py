"""Plain text: paragraphs, and runs of shell commands kept together."""

from __future__ import annotations

import re

from avyay.rag.parsers.types import Outline, Span, split_lines

__all__ = ["command_runs", "parse"]

PROMPT = re.compile(r"^\s*(?:\$|#|>|%|\w+@[\w.-]+[:~\w/.-]*[$#])\s+\S")


def parse(text: str) -> Outline:
    """No headings: what looks like one in plain text too often is not."""
    return Outline("", (), command_runs(split_lines(text)))


def command_runs(lines: list[str]) -> tuple[Span, ...]:
    """Two or more neighbouring lines that begin with a shell prompt."""
    spans: list[Span] = []
    first = 0
    for number, line in enumerate([*lines, ""], 1):
        if PROMPT.match(line):
            first = first or number
        else:
            if first and number - first > 1:
                spans.append(Span(first, number - 1))
            first = 0
    return tuple(spans)
