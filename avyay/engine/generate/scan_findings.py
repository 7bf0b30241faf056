"""What the scanner finds: insecure code, leaked credentials, vulnerable dependencies. One task for each finding."""

from __future__ import annotations

import shlex
from collections import Counter

from avyay.engine.generate.types import Found, Need, Site
from avyay.ports import Finding, Severity

__all__ = ["ScanFindings"]

_WEIGHT: dict[Severity, float] = {"critical": 1.0, "high": 0.85, "medium": 0.5, "low": 0.2, "info": 0.1}
_REPORTED: frozenset[Severity] = frozenset({"critical", "high", "medium"})


class ScanFindings:
    """Findings of medium severity and above."""

    def find(self, site: Site) -> Found:
        if site.scanner is None:
            return Found.not_checked("there is no scanner")
        report = site.scanner().scan([site.root])
        seen: Counter[str] = Counter()
        needs = []
        for finding in report.findings:
            if finding.severity in _REPORTED:
                key = (
                    finding.fingerprint or f"{finding.rule}:{finding.path}:{' '.join((finding.snippet or '').split())}"
                )
                seen[key] += 1
                needs.append(_need(site, finding, f"{key}:{seen[key]}"))
        left = (
            f"{len(report.skipped)} files were not checked, such as {report.skipped[0].path}" if report.skipped else ""
        )
        return Found(tuple(needs), left, whole=report.complete)


def _need(site: Site, finding: Finding, key: str) -> Need:
    fix = f"\n\nHow to mend it: {finding.fix}" if finding.fix else ""
    cwe = f" ({', '.join(finding.cwe)})" if finding.cwe else ""
    accept = f"avyay scan {shlex.quote(finding.path)} --fail-on {finding.severity}"
    if tests := site.tests_for([finding.path]):
        accept = f"{accept} && {tests}"
    return Need(
        key=key,
        title=f"{finding.severity} {finding.rule} in {finding.path}: {finding.message}"[:120],
        description=f"{finding.path}:{finding.line}: {finding.message}{cwe}{fix}\n\nMend the cause, do not hide it.",
        evidence=(f"{finding.path}:{finding.line}",),
        accept=accept,
        files=site.knowledge.touched(site.root, [finding.path]),
        size="small",
        weight=_WEIGHT[finding.severity],
    )
