"""Workflow commands: findings as annotations of a GitHub Actions run, for jobs that may not upload SARIF."""

from __future__ import annotations

from collections.abc import Sequence

from avyay.raksha.types import Finding, Severity

__all__ = ["workflow_commands"]

LEVELS: dict[Severity, str] = {
    "critical": "error", "high": "error", "medium": "warning", "low": "notice", "info": "notice",
}  # fmt: skip
# GitHub shows ten of each level in a step; more only makes the log longer.
SHOWN = 10


def workflow_commands(findings: Sequence[Finding], *, prefix: str = "") -> list[str]:
    """`::error file=...::message` lines; `prefix` is the scan root's path inside the repository."""
    lines: list[str] = []
    shown: dict[str, int] = {}
    for finding in findings:
        level = LEVELS[finding.severity]
        shown[level] = shown.get(level, 0) + 1
        if shown[level] > SHOWN:
            continue
        end = f",endLine={finding.end_line}" if finding.end_line else ""
        place = f"file={_property(prefix + finding.path)},line={finding.line}{end},col={finding.column}"
        title = _property(f"RAKSHA {finding.rule}")
        lines.append(f"::{level} {place},title={title}::{_data(finding.message)}")
    return lines


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
