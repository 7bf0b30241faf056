"""Dependencies with known vulnerabilities: one finding for each package, with the version that repairs it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from avyay import __version__
from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.raksha.engines.base import FileResult, Outcome, Step
from avyay.raksha.project import Project
from avyay.raksha.sca.database import HINT, Advisory, AdvisoryDatabase
from avyay.raksha.sca.lockfiles import Dependency, LockfileError, is_lockfile, read_lockfile
from avyay.raksha.sca.versions import is_affected, newest, sort_key
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Rule, Severity, Skipped, severity_rank

__all__ = ["MALICIOUS", "VULNERABLE", "ScaEngine"]

VULNERABLE = Rule(
    id="vulnerable-dependency",
    title="Dependency with a known vulnerability",
    severity="high",
    cwe=("CWE-1395",),
    owasp=("A06:2021",),
    why="The fault is public, and so are ways to use it. The severity is that of the worst advisory.",
    bad="jinja2==2.4.1",
    good="jinja2==3.1.6",
    fix="Upgrade to the version named, lock again and run the tests.",
    precision="very-high",
    category="supply-chain",
    engine="sca",
)
MALICIOUS = Rule(
    id="malicious-dependency",
    title="Dependency known to be malicious",
    severity="critical",
    cwe=("CWE-506",),
    owasp=("A08:2021",),
    why="The package was published to do harm; installing it may already have run its code.",
    bad="requestss==1.0.0",
    good="requests==2.32.5",
    fix="Remove it, rotate every credential of the machines that installed it.",
    precision="very-high",
    category="supply-chain",
    engine="sca",
)
_LABELS: dict[str, Severity] = {
    "CRITICAL": "critical", "HIGH": "high", "MODERATE": "medium", "MEDIUM": "medium", "LOW": "low",
}  # fmt: skip
STALE_DAYS = 30
RENEW = "Renew it with: avyay raksha db update"
NAMED = 4  # advisories named in a message


class ScaEngine:
    """Compares lock files with the local advisory database.

    Args:
        path: The database's file.
        required: A missing database makes the scan incomplete; otherwise the report only says so.
    """

    name = "sca"

    def __init__(self, path: Path, *, required: bool = False, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = path
        self._required = required
        self._clock = clock

    @cached_property
    def available(self) -> bool:
        return self._path.is_file()

    @cached_property
    def version(self) -> str:
        if not self.available:
            return "no database"
        stamp = self._path.stat()
        return f"{__version__}:{stamp.st_mtime_ns}:{stamp.st_size}"

    def rules(self) -> Sequence[Rule]:
        return (VULNERABLE, MALICIOUS)

    def digest(self) -> str:
        return __version__

    def key(self, project: Project) -> str:
        return self.version

    def reads(self, file: SourceFile) -> bool:
        return is_lockfile(file.name) and (self.available or self._required)

    def run(self, files: Sequence[SourceFile], project: Project, *, step: Step, cancel: threading.Event) -> Outcome:
        database = AdvisoryDatabase(self._path)
        try:
            fetched = database.fetched()
            outcome = Outcome()
            for file in files:
                outcome.results[file.name] = self._look(file, database, set(fetched))
                step(1)
            return outcome
        finally:
            database.close()

    def _look(self, file: SourceFile, database: AdvisoryDatabase, known: set[str]) -> FileResult:
        result = FileResult(parsed=False)
        try:
            dependencies = read_lockfile(file.name, file.text)
        except LockfileError as error:
            result.failed = f"{error}."
            return result
        for ecosystem in {item.ecosystem for item in dependencies}:
            here = [item for item in dependencies if item.ecosystem == ecosystem]
            if ecosystem not in known:
                result.failed = f"No advisories for {ecosystem}; run: avyay raksha db update"
                continue
            about = database.advisories(ecosystem, sorted({item.name for item in here}))
            for item in here:
                known_here = about.get(item.name, ())
                hits = [a for a in known_here if is_affected(ecosystem, item.version, a.ranges, a.versions)]
                if hits:
                    result.findings.append(_finding(file, item, _without_twins(hits)))
        return result

    def notes(self, files: Sequence[SourceFile]) -> list[Skipped]:
        """What a reader should know although it does not make the scan incomplete."""
        locks = [file.name for file in files if is_lockfile(file.name)]
        if not locks or self._required:
            return []
        if not self.available:
            return [
                Skipped(name, f"Dependencies not checked: no advisory database. {HINT}", self.name) for name in locks
            ]
        age = (self._clock.now() - self._path.stat().st_mtime) / 86_400
        if age > STALE_DAYS:
            return [Skipped(locks[0], f"The advisory database is {age:.0f} days old. {RENEW}", self.name)]
        return []


def _without_twins(hits: Sequence[Advisory]) -> list[Advisory]:
    """Several databases describe one vulnerability: keep one of each, the most telling first."""
    kept: list[tuple[set[str], Advisory]] = []
    for advisory in sorted(hits, key=lambda a: (not a.id.startswith("GHSA"), a.id)):
        names = {advisory.id, *advisory.aliases}
        twin = next((known for known, _ in kept if known & names), None)
        if twin is None:
            kept.append((names, advisory))
        else:
            twin |= names
    return sorted((advisory for _, advisory in kept), key=lambda a: (severity_rank(_severity(a)), a.id))


def _severity(advisory: Advisory) -> Severity:
    if advisory.id.startswith("MAL-"):
        return "critical"
    if advisory.label in _LABELS:
        return _LABELS[advisory.label]
    score = advisory.score
    if score is None:
        return "medium"
    return "critical" if score >= 9 else "high" if score >= 7 else "medium" if score >= 4 else "low"


def _finding(file: SourceFile, item: Dependency, hits: Sequence[Advisory]) -> Finding:
    start = file.offset(item.line, 1)
    end = start + len(file.line(item.line))
    if any(advisory.id.startswith("MAL-") for advisory in hits):
        message = f"{item.name} {item.version} is malicious ({', '.join(a.id for a in hits[:NAMED])})."
        return file.finding(MALICIOUS, start, end, message=message)
    names = [_name(advisory) for advisory in hits[:NAMED]]
    more = f" and {len(hits) - NAMED} more" if len(hits) > NAMED else ""
    repaired = _repaired(item, hits)
    message = f"{item.name} {item.version}: {', '.join(names)}{more}: {hits[0].summary or 'no summary'}"
    advice = (
        f"Upgrade {item.name} to {repaired} or later." if repaired else "No version repairs it: replace the package."
    )
    finding = file.finding(VULNERABLE, start, end, message=message.rstrip(".") + ".")
    return replace(finding, severity=_severity(hits[0]), fix=advice)


def _name(advisory: Advisory) -> str:
    cve = next((alias for alias in advisory.aliases if alias.startswith("CVE-")), None)
    return f"{advisory.id} ({cve})" if cve and cve != advisory.id else advisory.id


def _repaired(item: Dependency, hits: Sequence[Advisory]) -> str | None:
    """The lowest version that no hit speaks of any more, of those named as repaired; None if one hit has none."""
    mine = sort_key(item.ecosystem, item.version)
    needed: list[str] = []
    for advisory in hits:
        fixed = {event["fixed"] for events in advisory.ranges for event in events if "fixed" in event}
        keys = [(key, version) for version in fixed if (key := sort_key(item.ecosystem, version)) is not None]
        later = [pair for pair in keys if mine is not None and pair[0] > mine]
        if not later:
            return None
        needed.append(min(later, key=lambda pair: pair[0])[1])
    return newest(item.ecosystem, needed)
