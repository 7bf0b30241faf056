"""What the scanner's `--json` outputs hold: a contract, to which keys are added and from which none is taken."""

from __future__ import annotations

from typing_extensions import TypedDict

from avyay.raksha.types import Category, Precision, Repair, Severity, Verdict

__all__ = ["AdvisoriesAge", "AdvisoriesFetched", "ExplainedRule", "RuleList", "ScanDocument"]


class TriageDocument(TypedDict):
    """A model's second opinion; it hides nothing."""

    verdict: str
    reason: str
    model: str
    decision: str


class FindingDocument(TypedDict):
    """A fault at a place. Lines and columns are 1-based; columns count characters; the end is exclusive."""

    rule: str
    severity: Severity
    message: str
    path: str
    line: int
    column: int
    end_line: int | None
    end_column: int | None
    origins: list[str]
    cwe: list[str]
    fix: str | None
    snippet: str | None
    fingerprint: str
    triage: TriageDocument | None


class SuppressedDocument(FindingDocument):
    """A finding that does not count, and by whose word: inline, baseline, diff, path or triage."""

    by: str
    reason: str


class SkippedDocument(TypedDict):
    """What was not read, and why; `path` is empty when an engine as a whole did not look."""

    path: str
    reason: str
    engine: str


class ScanDocument(TypedDict):
    """`avyay scan --json`. `skipped` makes the verdict unchecked; `ignored` was left out on purpose."""

    verdict: Verdict
    fail_on: Severity
    root: str
    files: int
    lines: int
    seconds: float
    engines: dict[str, str]
    summary: dict[Severity, int]
    findings: list[FindingDocument]
    skipped: list[SkippedDocument]
    ignored: list[SkippedDocument]
    suppressed: list[SuppressedDocument]


class RuleRow(TypedDict):
    """One rule in a list."""

    id: str
    title: str
    severity: Severity
    precision: Precision
    category: Category
    languages: list[str]
    cwe: list[str]
    engine: str
    repair: Repair


class RuleList(TypedDict):
    """`avyay raksha rules --json`."""

    rules: list[RuleRow]


class RuleDocument(RuleRow):
    """Everything about one rule."""

    why: str
    bad: str
    good: str
    fix: str
    owasp: list[str]
    aliases: list[str]
    security_severity: float | None
    online: bool


class ExplainedRule(TypedDict):
    """`avyay raksha explain ID --json`."""

    rule: RuleDocument


class AdvisoriesFetched(TypedDict):
    """`avyay raksha db update --json`: how many advisories each ecosystem has."""

    file: str
    advisories: dict[str, int]


class AdvisoriesAge(TypedDict):
    """`avyay raksha db show --json`: when each ecosystem's advisories were fetched, ISO 8601 in UTC."""

    file: str
    fetched: dict[str, str]
