"""Markdown: a scan's summary for pull requests and job summaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from avyay.raksha.report.escape import markdown
from avyay.raksha.types import SEVERITIES, Finding, Report, Severity, verdict

__all__ = ["summary"]

# GitHub cuts a job summary off at 1 MiB; a table nobody reads to its end needs less.
LISTED = 200
ICONS: dict[Severity, str] = {"critical": "🔴", "high": "🟠", "medium": "🟡", "low": "🔵", "info": "⚪"}


def summary(report: Report, *, fail_on: Severity, shown: Sequence[Finding] | None = None) -> str:
    """The outcome as a page: verdict, table, what was not checked."""
    findings = report.findings if shown is None else shown
    counts = Counter(finding.severity for finding in report.findings)
    heading = {
        "findings": f"❌ Findings at {fail_on} or above",
        "unchecked": "⚠️ Not everything could be checked",
        "clean": "✅ Clean" if not report.findings else f"✅ Nothing at {fail_on} or above",
    }[verdict(report, fail_on)]
    numbers = " · ".join(f"{ICONS[level]} {counts[level]} {level}" for level in SEVERITIES if counts[level])
    facts = f"{report.files:,} files in {report.seconds:.1f} s"
    lines = ["## RAKṢĀ security scan", "", f"**{heading}** · {facts}" + (f" · {numbers}" if numbers else ""), ""]
    if findings:
        lines += ["| Severity | Place | Finding | Rule |", "|---|---|---|---|"]
        for finding in findings[:LISTED]:
            place = f"{markdown(finding.path)}:{finding.line}"
            severity = f"{ICONS[finding.severity]} {finding.severity}"
            lines.append(f"| {severity} | {place} | {markdown(finding.message)} | {markdown(finding.rule)} |")
        if len(findings) > LISTED:
            lines.append(f"\n… and {len(findings) - LISTED} more.")
        lines.append("")
    if report.skipped:
        lines += ["<details><summary>Could not check " + str(len(report.skipped)) + "</summary>", ""]
        lines += [
            f"- {markdown(item.path)} {markdown(item.reason)}".replace("-  ", "- ") for item in report.skipped[:LISTED]
        ]
        lines += ["", "</details>", ""]
    if report.suppressed:
        lines += [f"{len(report.suppressed)} suppressed.", ""]
    return "\n".join(lines)
