"""From what each engine said to one list: duplicates joined, secrets covered, fingerprints that survive moved lines."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from avyay.log import redact
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Rule, severity_rank

__all__ = ["cover", "finish", "join"]

SNIPPET_LINES = 3
SNIPPET_WIDTH = 200
NEAR = 3  # lines: another engine may point at the call's last line, or at the argument
_ENGINES = ("checks", "semgrep", "bandit")  # whose words are kept when several say the same
COVERED = "[secret]"
LONG_SECRET = 12  # characters; a shorter one may be part of an ordinary word
_STARTS = r"(?:(?<!\w)|(?<=\\[abfnrtv]))"  # at a word's start, or behind an escape such as \n
_WORDS_OF_RULES = frozenset(
    {
        "secret", "secrets", "password", "token", "tokens", "value", "user", "admin", "root", "test", "default", "pass",
        "code", "file", "text", "name", "store", "source", "postgres", "environment", "guessable", "invented",
    }
)  # fmt: skip


def join(findings: Iterable[Finding], rules: Mapping[str, Rule]) -> list[Finding]:
    """One finding for each fault: several rules or engines at one place become one, with all origins."""
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.path].append(
            replace(finding, origins=tuple(_origin(finding, rules, o) for o in finding.origins))
        )
    joined: list[Finding] = []
    for path in sorted(groups):
        kept: list[Finding] = []
        for finding in sorted(groups[path], key=_importance):
            for index, other in enumerate(kept):
                if _same(other, finding, rules):
                    kept[index] = _both(other, finding)
                    break
            else:
                kept.append(finding)
        joined.extend(sorted(kept, key=lambda f: (f.line, f.column, f.rule)))
    return joined


def _origin(finding: Finding, rules: Mapping[str, Rule], engine: str) -> str:
    if ":" in engine:
        return engine
    rule = rules.get(finding.rule)
    if engine == "bandit" and rule is not None and rule.aliases:
        return rule.aliases[0]
    return f"{engine}:{finding.rule}"


def _importance(finding: Finding) -> tuple[int, int, int, int, str]:
    engine = finding.origins[0].split(":")[0] if finding.origins else ""
    rank = _ENGINES.index(engine) if engine in _ENGINES else len(_ENGINES)
    return rank, severity_rank(finding.severity), finding.line, finding.column, finding.rule


def _same(one: Finding, two: Finding, rules: Mapping[str, Rule]) -> bool:
    if one.rule == two.rule:
        return _overlap(one, two)
    near = _lines_overlap(one, two)
    if near and _meanings(one, rules) & _meanings(two, rules):
        return True
    if not set(one.cwe) & set(two.cwe):
        return False
    return one.line == two.line or (near and abs(one.line - two.line) <= NEAR)


def _meanings(finding: Finding, rules: Mapping[str, Rule]) -> set[str]:
    rule = rules.get(finding.rule)
    return {finding.rule, *(rule.aliases if rule is not None else ())}


def _lines_overlap(one: Finding, two: Finding) -> bool:
    return one.line <= (two.end_line or two.line) and two.line <= (one.end_line or one.line)


def _overlap(one: Finding, two: Finding) -> bool:
    start_one, start_two = (one.line, one.column), (two.line, two.column)
    end_one = (one.end_line or one.line, one.end_column or one.column + 1)
    end_two = (two.end_line or two.line, two.end_column or two.column + 1)
    return start_one < end_two and start_two < end_one


def _both(kept: Finding, other: Finding) -> Finding:
    return replace(
        kept,
        origins=tuple(dict.fromkeys((*kept.origins, *other.origins))),
        cwe=tuple(dict.fromkeys((*kept.cwe, *other.cwe))),
        fix=kept.fix or other.fix,
        edits=kept.edits or other.edits,
        secrets=tuple(dict.fromkeys((*kept.secrets, *other.secrets))),
    )


def cover(text: str, secrets: Sequence[str]) -> str:
    """`text` without the secrets named, and without anything that has the shape of one.

    A short secret is covered where it stands as a word: `pass` is no part of `password:` that hides something.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= LONG_SECRET:
            text = text.replace(secret, COVERED)
        elif len(secret) > 3:
            text = re.sub(rf"{_STARTS}{re.escape(secret)}(?!\w)", COVERED, text)
    return redact(text)


def _cover_prose(text: str, secrets: Sequence[str]) -> str:
    """The same for a sentence of a rule; its own words stay, though they be somebody's secret."""
    return cover(text, [secret for secret in secrets if secret.lower() not in _WORDS_OF_RULES])


def finish(findings: Sequence[Finding], files: Mapping[str, SourceFile]) -> list[Finding]:
    """Add snippets and fingerprints; cover every secret known in the file."""
    secrets: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        secrets[finding.path].extend(finding.secrets)
    seen: dict[str, int] = defaultdict(int)
    finished = []
    for finding in findings:
        file = files.get(finding.path)
        hidden = secrets[finding.path]
        lines = _lines(finding, file) if file is not None else []
        parts = (finding.rule, finding.path, *(re.sub(r"\s+", "", line) for line in lines))
        base = hashlib.sha256(os.fsencode("\0".join(parts))).hexdigest()[:32]
        seen[base] += 1
        finished.append(
            replace(
                finding,
                message=_cover_prose(finding.message, hidden),
                fix=_cover_prose(finding.fix, hidden) if finding.fix else None,
                snippet="\n".join(cover(line, hidden)[:SNIPPET_WIDTH] for line in lines) or None,
                fingerprint=f"{base}:{seen[base]}",
            )
        )
    return finished


def _lines(finding: Finding, file: SourceFile) -> list[str]:
    last = min(finding.end_line or finding.line, finding.line + SNIPPET_LINES - 1)
    return [file.line(number).rstrip() for number in range(finding.line, last + 1)]
