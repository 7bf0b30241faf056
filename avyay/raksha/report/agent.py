"""The report for a coding agent: what to change, where, how to check that it is done; nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from avyay.raksha.report.escape import visible
from avyay.raksha.types import Finding, Report, Rule, Severity, at_least, verdict

__all__ = ["agent_report"]

LISTED = 50  # an agent repairs a few at a time; the next run names the rest


def agent_report(report: Report, *, fail_on: Severity, again: str, shown: Sequence[Finding] | None = None) -> str:
    """Instructions in the order of their weight.

    Args:
        again: The command that verifies the repair.
    """
    findings = report.findings if shown is None else shown
    outcome = verdict(report, fail_on)
    if not findings and outcome == "clean":
        return f"PASS: no findings in {report.files} files."
    rules = {rule.id: rule for rule in report.rules}
    blocking = [finding for finding in findings if at_least(finding.severity, fail_on)]
    others = [finding for finding in findings if not at_least(finding.severity, fail_on)]
    lines = [_headline(outcome, len(blocking), len(others), fail_on)]
    if findings:
        lines += ["Repair each item at its place. Change behaviour only as the item says. Do not delete tests, do not"]
        lines += ["suppress a finding unless it is wrong; then write: avyay: ignore[rule-id] reason", ""]
    for number, finding in enumerate([*blocking, *others][:LISTED], start=1):
        lines += _item(number, finding, rules.get(finding.rule), must=finding in blocking)
    if len(findings) > LISTED:
        lines.append(f"... and {len(findings) - LISTED} more; run the command below after these.")
    for item in report.skipped[:10]:
        where = f"{item.path}: " if item.path else ""
        lines.append(f"NOT CHECKED {where}{item.reason}")
    lines.append(f"Verify: {again}")
    return "\n".join(visible(line) for line in lines)


def _headline(outcome: str, blocking: int, others: int, fail_on: Severity) -> str:
    if outcome == "findings":
        rest = f", {others} below it" if others else ""
        return f"FAIL: {blocking} findings at {fail_on} or above must be repaired{rest}."
    if outcome == "unchecked":
        return f"INCOMPLETE: something could not be checked; {others} findings below {fail_on}."
    return f"PASS with remarks: {others} findings below {fail_on}."


def _item(number: int, finding: Finding, rule: Rule | None, *, must: bool) -> list[str]:
    last = f"-{finding.end_line}" if finding.end_line and finding.end_line != finding.line else ""
    mark = "MUST" if must else "may"
    lines = [f"{number}. {mark} {finding.path}:{finding.line}{last} [{finding.severity}] {finding.rule}"]
    lines.append(f"   Fault: {finding.message}")
    if finding.snippet:
        lines += [f"   | {line}" for line in finding.snippet.split("\n")]
    fix = finding.fix or (rule.fix if rule is not None else "")
    if fix:
        lines.append(f"   Do: {' '.join(fix.split())}")
    good = rule.good.strip().split("\n") if rule is not None and rule.good else []
    if 0 < len(good) <= 6:
        lines += ["   Like:", *(f"   > {line}" for line in good)]
    return lines
