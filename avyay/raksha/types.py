"""The scanner's vocabulary: rules, findings, edits. Plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from avyay.ports import Finding as PortFinding
from avyay.ports import ScanReport as PortReport
from avyay.ports import Severity, Skipped

__all__ = [
    "SECURITY_SEVERITY",
    "SEVERITIES",
    "Category",
    "Edit",
    "Finding",
    "Precision",
    "Repair",
    "Report",
    "Rule",
    "Severity",
    "Skipped",
    "Suppressed",
    "Triage",
    "Verdict",
    "at_least",
    "severity_rank",
    "verdict",
]

Precision = Literal["very-high", "high", "medium", "low"]
Repair = Literal["none", "safe", "unsafe"]
Verdict = Literal["clean", "findings", "unchecked"]
Category = Literal["pattern", "hallucination", "architecture", "supply-chain"]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # worst first
# What GitHub shows as critical (>= 9), high (>= 7), medium (>= 4) and low.
SECURITY_SEVERITY: dict[Severity, float] = {"critical": 9.5, "high": 8.0, "medium": 5.5, "low": 3.0, "info": 1.0}


def severity_rank(severity: Severity) -> int:
    """0 for the worst: sorts findings."""
    return SEVERITIES.index(severity)


def at_least(severity: Severity, threshold: Severity) -> bool:
    """Whether `severity` is as bad as `threshold` or worse."""
    return severity_rank(severity) <= severity_rank(threshold)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is looked for, why it matters, and what to write instead.

    Attributes:
        id: kebab-case, unique over all engines; names the fixture files and the section of the documentation.
        title: A few words, shown in the table.
        cwe: Like `CWE-798`.
        owasp: Like `A07:2021`.
        why: What goes wrong, for someone who has never met the fault.
        bad: A short example that is found.
        good: The same intention, written well.
        fix: What to do, in the imperative; coding agents act on it.
        precision: How often a finding is right.
        languages: Those the rule reads; empty: any text.
        aliases: Rules of other tools that mean the same (`bandit:B105`); their findings merge into this one.
        online: The rule asks the network and runs only with `--online`.
        tests: The fault matters in test code too; most settings that are unsafe in production are the point of a test.
        repair: Whether `--fix` can repair what it finds, or some of it; `unsafe` needs `--fix=unsafe`.
    """

    id: str
    title: str
    severity: Severity
    cwe: tuple[str, ...]
    why: str
    bad: str
    good: str
    fix: str
    owasp: tuple[str, ...] = ()
    precision: Precision = "high"
    category: Category = "pattern"
    languages: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    security_severity: float | None = None
    online: bool = False
    engine: str = "checks"
    repair: Repair = "none"
    tests: bool = True

    @property
    def score(self) -> float:
        """0..10, as GitHub's code scanning sorts."""
        return SECURITY_SEVERITY[self.severity] if self.security_severity is None else self.security_severity


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the text from (line, column) up to (end_line, end_column) by `text`.

    Lines and columns are 1-based; columns count characters; the end is exclusive. `safe`: behaviour only gets safer, no
    caller has to change; anything else needs `--fix=unsafe`.
    """

    line: int
    column: int
    end_line: int
    end_column: int
    text: str
    safe: bool = False


@dataclass(frozen=True, slots=True)
class Triage:
    """A model's opinion on a finding; `decision` names the routed call in the ledger."""

    verdict: Literal["real", "false-positive", "unsure"]
    reason: str
    model: str
    decision: str


@dataclass(frozen=True, slots=True)
class Finding(PortFinding):
    """A fault at a place, with what the outputs and `--fix` need.

    `secrets` are the literal secret texts of the finding: every output replaces them.
    """

    edits: tuple[Edit, ...] = ()
    secrets: tuple[str, ...] = field(default=(), repr=False)
    triage: Triage | None = None


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that was not counted, and by whose word."""

    finding: Finding
    by: Literal["inline", "baseline", "diff", "path", "triage"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Report(PortReport):
    """A scan's outcome with what the outputs show besides: rules, suppressed findings, notes on the scan itself."""

    findings: tuple[Finding, ...]
    suppressed: tuple[Suppressed, ...] = ()
    ignored: tuple[Skipped, ...] = ()  # not scanned on purpose: binary, vendored, minified, excluded
    rules: tuple[Rule, ...] = ()
    lines: int = 0


def verdict(report: PortReport, fail_on: Severity) -> Verdict:
    """The three outcomes: findings at the threshold or worse; else something unread; else clean."""
    if any(at_least(finding.severity, fail_on) for finding in report.findings):
        return "findings"
    return "clean" if report.complete else "unchecked"
