"""The report as plain data: what `--json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from avyay.raksha.types import SEVERITIES, Finding, Report, Severity, Skipped, verdict

__all__ = ["report_data"]


def report_data(report: Report, *, fail_on: Severity, shown: Sequence[Finding] | None = None) -> dict[str, Any]:
    """The report as a document; `shown` is what `--severity` lets through, by default everything."""
    findings = report.findings if shown is None else shown
    return {
        "verdict": verdict(report, fail_on),
        "fail_on": fail_on,
        "root": str(report.root),
        "files": report.files,
        "lines": report.lines,
        "seconds": round(report.seconds, 3),
        "engines": dict(report.engines),
        "summary": {severity: sum(f.severity == severity for f in report.findings) for severity in SEVERITIES},
        "findings": [_finding(finding) for finding in findings],
        "skipped": [_skipped(item) for item in report.skipped],
        "ignored": [_skipped(item) for item in report.ignored],
        "suppressed": [{"by": item.by, "reason": item.reason, **_finding(item.finding)} for item in report.suppressed],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "message": finding.message,
        "path": finding.path,
        "line": finding.line,
        "column": finding.column,
        "end_line": finding.end_line,
        "end_column": finding.end_column,
        "origins": list(finding.origins),
        "cwe": list(finding.cwe),
        "fix": finding.fix,
        "snippet": finding.snippet,
        "fingerprint": finding.fingerprint,
        "triage": asdict(finding.triage) if finding.triage is not None else None,
    }


def _skipped(item: Skipped) -> dict[str, str]:
    return {"path": item.path, "reason": item.reason, "engine": item.engine}
