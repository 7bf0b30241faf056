"""The report for people: a table of findings, then what was not checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from avyay.raksha.report.escape import visible
from avyay.raksha.types import SEVERITIES, Finding, Report, Severity, verdict

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_report"]

LABELS: dict[Severity, str] = {"critical": "CRIT", "high": "HIGH", "medium": "MED", "low": "LOW", "info": "INFO"}
STYLES: dict[Severity, str] = {
    "critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim",
}  # fmt: skip
TITLE = "🛡️ RAKṢĀ Security Scan"
LISTED = 20  # skipped files named one by one


def print_report(
    report: Report,
    console: Console,
    *,
    fail_on: Severity,
    shown: Sequence[Finding] | None = None,
    verbose: bool = False,
) -> None:
    """Print the report.

    Args:
        shown: What `--severity` lets through; by default everything.
        verbose: Also list what was left out on purpose, and what was suppressed.
    """
    findings = report.findings if shown is None else shown
    console.print(TITLE, style="bold", markup=False)
    console.print("━" * 22)
    console.print(f"Scanning: {report.root}", markup=False, soft_wrap=True)
    console.print(f"Files analyzed: {report.files:,} | Time: {report.seconds:.1f}s")
    console.print()
    if findings:
        _print_table(findings, console)
    _print_skipped(report, console)
    if verbose:
        for item in report.ignored:
            console.print(visible(f"left out: {item.path}: {item.reason}"), markup=False, soft_wrap=True, style="dim")
        for suppressed in report.suppressed:
            finding = suppressed.finding
            why = f"{suppressed.by}: {suppressed.reason}" if suppressed.reason else suppressed.by
            text = f"suppressed: {finding.path}:{finding.line} {finding.rule} ({why})"
            console.print(visible(text), markup=False, soft_wrap=True, style="dim")
    console.print(_conclusion(report, findings, fail_on), markup=False, soft_wrap=True)
    if findings:
        console.print(f"Why, and what to do: avyay raksha explain {findings[0].rule}", markup=False, soft_wrap=True)


def _print_table(findings: Sequence[Finding], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SQUARE, header_style="bold", expand=False)
    table.add_column("Sev", no_wrap=True, min_width=6)
    table.add_column("File", overflow="fold", ratio=None, max_width=max(20, console.width * 2 // 5))
    table.add_column("Finding", overflow="fold")
    for finding in findings:
        message = Text(visible(finding.message))
        message.append(f"  {finding.rule}", style="dim")
        if finding.triage is not None:
            message.append(visible(f"\n{finding.triage.verdict}: {finding.triage.reason}"), style="italic")
        table.add_row(
            Text(LABELS[finding.severity], style=STYLES[finding.severity]),
            Text(visible(f"{finding.path}:{finding.line}")),
            message,
        )
    console.print(table)


def _print_skipped(report: Report, console: Console) -> None:
    for reason, paths in _notes(report).items():
        console.print(visible(f"{', '.join(paths)}: {reason}"), markup=False, soft_wrap=True, style="yellow")
    if not report.skipped:
        return
    console.print(f"Could not check {len(report.skipped)}:", style="yellow")
    for item in report.skipped[:LISTED]:
        engine = f" [{item.engine}]" if item.engine else ""
        where = f"{item.path}: " if item.path else ""
        console.print(visible(f"  {where}{item.reason}{engine}"), markup=False, soft_wrap=True)
    if len(report.skipped) > LISTED:
        console.print(f"  and {len(report.skipped) - LISTED} more; all of them are in --json")


def _notes(report: Report) -> dict[str, list[str]]:
    """What engines left out, as opposed to files that are no source code: by reason."""
    notes: dict[str, list[str]] = {}
    for item in report.ignored:
        if item.engine:
            notes.setdefault(item.reason, []).append(item.path)
    return notes


def _conclusion(report: Report, shown: Sequence[Finding], fail_on: Severity) -> str:
    counts = Counter(finding.severity for finding in report.findings)
    total = len(report.findings)
    parts = ", ".join(f"{counts[severity]} {severity}" for severity in SEVERITIES if counts[severity])
    hidden = f" ({total - len(shown)} not shown)" if len(shown) < total else ""
    suppressed = f" {len(report.suppressed)} suppressed." if report.suppressed else ""
    if total:
        text = f"{total} finding{'s' if total != 1 else ''}: {parts}{hidden}.{suppressed}"
        if verdict(report, fail_on) == "unchecked":
            text += f" None at {fail_on} or above, but not everything could be checked."
        return text
    if report.skipped:
        return f"No findings in what could be checked; not everything could.{suppressed}"
    if not report.files:
        return f"No files to scan.{suppressed}"
    return f"No findings.{suppressed}"
