"""Inline suppression: `# avyay: ignore[rule-id] reason`, on the finding's line or on a line of its own above it.

The reason is required: a suppression without one suppresses nothing and is itself a finding. So is one that suppresses
nothing any more, so that they do not outlive what they excused.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from avyay.raksha.source import SourceFile
from avyay.raksha.types import Edit, Finding, Rule, Suppressed

__all__ = ["NO_REASON", "RULES", "UNUSED", "Suppression", "apply", "find"]

NO_REASON = Rule(
    id="suppression-without-reason",
    title="Suppression without a reason",
    severity="low",
    cwe=(),
    why="Nobody can tell later whether the exception still holds; so it is not honoured.",
    bad="run(command)  # avyay: ignore[shell-injection]",
    good="run(command)  # avyay: ignore[shell-injection] the command is a constant of this module",
    fix="Write the reason behind the bracket, or remove the comment and repair the fault.",
    precision="very-high",
    engine="scan",
)
UNUSED = Rule(
    id="suppression-unused",
    title="Suppression that suppresses nothing",
    severity="info",
    cwe=(),
    why="The fault is gone, or the rule is misspelt; left in place the comment hides the next fault on this line.",
    bad="x = 1  # avyay: ignore[shell-injection] was needed once",
    good="x = 1",
    fix="Remove the comment, or correct the rule's id.",
    precision="very-high",
    repair="safe",
    engine="scan",
)
RULES = (NO_REASON, UNUSED)

_MARK = "avyay: ignore["
_COMMENT = re.compile(
    r"(?P<alone>^\s*)?(?:#|//|/\*|<!--|--|;)\s*avyay: ignore\[(?P<rules>[^\]\n]*)\][ \t]*(?P<reason>[^\n]*)"
)
_CLOSER = re.compile(r"\s*(?:\*/|-->)\s*$")


@dataclass(slots=True)
class Suppression:
    """One comment. `target`: the line it speaks of, its own or the next line of code."""

    line: int
    column: int
    target: int
    rules: tuple[str, ...]
    reason: str
    used: set[str] = field(default_factory=set)

    def covers(self, finding: Finding) -> bool:
        """Whether it speaks of this finding: its first line or its last."""
        named = self.reason and not _names(finding).isdisjoint(self.rules)
        return bool(named) and self.target in (finding.line, finding.end_line or finding.line)


def find(file: SourceFile) -> list[Suppression]:
    """The suppressions written in a file."""
    if _MARK not in file.text:
        return []
    comments = _comment_lines(file)
    prose = file.name.lower().endswith((".md", ".markdown", ".mdx"))
    found = []
    for number, line in enumerate(file.lines, start=1):
        match = _COMMENT.search(line) if _MARK in line else None
        if match is None or (comments is not None and number not in comments):
            continue
        if prose and "<!--" not in line:
            continue  # an example
        alone = not line[: match.start()].strip() and match["alone"] is not None
        rules = tuple(part.strip() for part in match["rules"].split(",") if part.strip())
        reason = _CLOSER.sub("", match["reason"]).strip().lstrip(":-– ").strip()
        found.append(
            Suppression(number, match.start() + 1, _next_code(file, number) if alone else number, rules, reason)
        )
    return found


def apply(
    findings: Sequence[Finding], files: Iterable[SourceFile], *, judged: Mapping[str, Collection[str]]
) -> tuple[list[Finding], list[Finding], list[Suppressed]]:
    """What is left, what is wrong with the comments, and what the comments suppress.

    Args:
        judged: By file name, the rules that were really looked for: only for those can a comment be called unused.
    """
    by_file = {file.name: (file, comments) for file in files if (comments := find(file))}
    if not by_file:
        return list(findings), [], []
    kept: list[Finding] = []
    suppressed: list[Suppressed] = []
    for finding in findings:
        _, comments = by_file.get(finding.path, (None, []))
        by = next((comment for comment in comments if comment.covers(finding)), None)
        if by is None:
            kept.append(finding)
        else:
            by.used.update(_names(finding))
            suppressed.append(Suppressed(finding, "inline", by.reason))
    faults = [
        fault
        for name, (file, comments) in by_file.items()
        for comment in comments
        for fault in _faults(file, comment, judged.get(name, ()))
    ]
    return kept, faults, suppressed


def _names(finding: Finding) -> set[str]:
    """What a comment may call it: its rule, and the rules of other engines that were joined into it."""
    return {finding.rule, *(origin.partition(":")[2] for origin in finding.origins)}


def _faults(file: SourceFile, comment: Suppression, judged: Collection[str]) -> Iterable[Finding]:
    start = file.offset(comment.line, comment.column)
    end = file.offset(comment.line, len(file.line(comment.line)) + 1)
    if not comment.rules:
        yield file.finding(NO_REASON, start, end, message="The suppression names no rule.")
    elif not comment.reason:
        yield file.finding(NO_REASON, start, end)
    else:
        unused = [rule for rule in comment.rules if rule not in comment.used and rule in judged]
        edits = _removal(file, comment) if len(unused) == len(comment.rules) else ()
        for rule in unused:
            yield file.finding(UNUSED, start, end, message=f"Nothing here is found by {rule}.", edits=edits)


def _removal(file: SourceFile, comment: Suppression) -> tuple[Edit, ...]:
    """The edit that takes a comment away; none when code may follow it on its line."""
    line = file.line(comment.line)
    before = line[: comment.column - 1]
    if not line[comment.column - 1 :].lstrip().startswith(("#", "//")):
        return ()
    if before.strip() or comment.line >= len(file.lines):
        return (Edit(comment.line, len(before.rstrip()) + 1, comment.line, len(line) + 1, "", safe=True),)
    return (Edit(comment.line, 1, comment.line + 1, 1, "", safe=True),)


def _next_code(file: SourceFile, line: int) -> int:
    """The next line that is neither blank nor a comment."""
    for number in range(line + 1, len(file.lines) + 1):
        text = file.line(number).strip()
        if text and not text.startswith(("#", "//", "/*", "*", "<!--", "--")):
            return number
    return line


def _comment_lines(file: SourceFile) -> set[int] | None:
    """For Python the lines that hold a comment: the mark may stand in a string. None: take it on trust."""
    if file.language != "python":
        return None
    lines: set[int] = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
            if token.type == tokenize.COMMENT:
                lines.add(token.start[0])
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return lines
