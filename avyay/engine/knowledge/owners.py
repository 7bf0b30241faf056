"""Who owns a file: CODEOWNERS first, else those who changed it most. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["CODEOWNERS_PLACES", "OwnerRule", "owners_of", "parse_codeowners", "principal_authors"]

CODEOWNERS_PLACES = (".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS", ".gitlab/CODEOWNERS")


@dataclass(frozen=True, slots=True)
class OwnerRule:
    """A line of CODEOWNERS; no owners means that nobody owns what it matches."""

    pattern: str
    owners: tuple[str, ...]


def parse_codeowners(text: str) -> list[OwnerRule]:
    """The rules of a CODEOWNERS file, in order; sections of GitLab lend their default owners."""
    rules = []
    default: tuple[str, ...] = ()
    for raw in text.splitlines():
        line = re.split(r"(?<!\\)#", raw, maxsplit=1)[0].strip()
        if not line:
            continue
        if section := re.match(r"\^?\[([^\]]+)\](?:\[\d+\])?\s*(.*)$", line):
            default = tuple(section[2].split())
            continue
        words = re.split(r"(?<!\\)\s+", line)
        rules.append(OwnerRule(words[0].replace("\\ ", " ").replace("\\#", "#"), tuple(words[1:]) or default))
    return rules


def owners_of(path: str, rules: Sequence[OwnerRule]) -> tuple[str, ...]:
    """The owners of a file: the last rule that matches decides."""
    for rule in reversed(rules):
        if _pattern(rule.pattern).match(path):
            return rule.owners
    return ()


@lru_cache(maxsize=1024)
def _pattern(pattern: str) -> re.Pattern[str]:
    """Patterns are those of .gitignore, without negation."""
    anchored = "/" in pattern.rstrip("/")
    body = pattern.strip("/")
    parts = []
    index = 0
    while index < len(body):
        if body.startswith("**/", index):
            parts.append("(?:.*/)?")
            index += 3
        elif body.startswith("**", index):
            parts.append(".*")
            index += 2
        elif body[index] == "*":
            parts.append("[^/]*")
            index += 1
        elif body[index] == "?":
            parts.append("[^/]")
            index += 1
        else:
            parts.append(re.escape(body[index]))
            index += 1
    # "docs/*" owns the files in docs but not those below: only a pattern that may name a folder reaches deeper.
    below = "/.*" if pattern.endswith("/") else "" if body.endswith("/*") else "(?:/.*)?"
    return re.compile(f"{'' if anchored else '(?:.*/)?'}{''.join(parts)}{below}$")


def principal_authors(changes: Iterable[tuple[str, int]], limit: int = 3) -> tuple[str, ...]:
    """The authors of most commits, those with at least a tenth of the leader's."""
    ranked = sorted(changes, key=lambda row: (-row[1], row[0]))[:limit]
    return tuple(author for author, commits in ranked if commits * 10 >= ranked[0][1])
