"""Bandit: the Python linter for security, in a process of its own, limited to the tests that are worth a warning."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from avyay.errors import DependencyError, UnreachableError
from avyay.process import run
from avyay.raksha.engines.bandit_rules import REPLACEMENTS, RULES, may_report
from avyay.raksha.engines.base import FileResult, Outcome, Step
from avyay.raksha.project import Project
from avyay.raksha.registry import installed_version
from avyay.raksha.repair import edits_of
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Rule, Skipped

__all__ = ["BanditEngine"]

HINT = "Install it with: pip install 'bandit>=1.9'"
WORKER = Path(__file__).with_name("bandit_worker.py")
_LEVELS = ("LOW", "MEDIUM", "HIGH")


class BanditEngine:
    """Runs bandit over the Python files on disk.

    Args:
        timeout: Seconds for one run; more files get more.
        command: Another worker, for tests.
    """

    name = "bandit"

    def __init__(self, *, timeout: float = 120.0, command: Sequence[str] | None = None) -> None:
        self._timeout = timeout
        # By its path, and -P: nothing is imported from the folder we stand in, which may be the scanned code's.
        self._command = list(command or (sys.executable, "-P", str(WORKER)))

    @cached_property
    def version(self) -> str:
        return installed_version("bandit") or "missing"

    def rules(self) -> Sequence[Rule]:
        return [rule for rule, _, _ in RULES.values()]

    def digest(self) -> str:
        return hash_of_rules()

    def key(self, project: Project) -> str:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"{self.version}:{python}:{hash_of_rules()}"

    def reads(self, file: SourceFile) -> bool:
        return file.language == "python" and file.path is not None

    def run(self, files: Sequence[SourceFile], project: Project, *, step: Step, cancel: threading.Event) -> Outcome:
        if self.version == "missing":
            raise DependencyError("bandit is not installed.", hint=HINT, code="no_bandit")
        outcome = Outcome({file.name: FileResult(parsed=False) for file in files})
        places = {str(file.path): file for file in files if may_report(file.text)}
        if not places:
            step(len(files))
            return outcome
        request = json.dumps({"files": list(places), "tests": sorted(RULES)}).encode()
        done = run(self._command, timeout=self._timeout + len(files) * 0.5, stdin=request, cancel=cancel)
        if done.timed_out:
            raise UnreachableError(
                "bandit took too long and was stopped.", hint="Scan fewer files, or exclude large ones."
            )
        try:
            document = json.loads(done.stdout)
            results, skipped = document["results"], document["skipped"]
        except (ValueError, TypeError, KeyError):
            last = done.error_text.strip().splitlines()[-1:] or ["no message"]
            how = f"signal {-done.code}" if done.code < 0 else f"exit code {done.code}"
            raise UnreachableError(f"bandit gave no usable answer ({how}: {last[0][:200]}).", hint=HINT) from None
        outcome.results |= {file.name: FileResult(sure=True) for file in places.values()}
        for place, reason in skipped:
            if place not in places:
                outcome.skipped.append(Skipped(str(place), str(reason), self.name))
                continue
            result = outcome.of(places[place].name)
            result.parsed = result.sure = False
            result.problem = (
                f"Not read by bandit under Python {sys.version_info.major}.{sys.version_info.minor}: {reason}."
            )
        for item in results:
            if (finding := _finding(item, places[item["file"]])) is not None:
                outcome.of(finding.path).findings.append(finding)
        step(len(files))
        return outcome


def hash_of_rules() -> str:
    """Changes when the selection of tests changes."""
    return hashlib.sha256(repr((sorted(RULES.items()), sorted(REPLACEMENTS.items()))).encode()).hexdigest()


def _finding(item: dict[str, Any], file: SourceFile) -> Finding | None:
    rule, severity, confidence = RULES[item["test"]]
    if _LEVELS.index(item["severity"]) < severity or _LEVELS.index(item["confidence"]) < confidence:
        return None
    line = int(item["line"])
    last = int(item["last_line"])
    column = max(1, int(item["column"]) + 1)
    end_column = int(item["end_column"]) + 1 if last == line else None
    if end_column is not None and end_column <= column:
        end_column = None  # some tests of bandit's report a start and no end
    return Finding(
        rule=rule.id,
        severity=rule.severity,
        message=str(item["text"]).split("\n")[0].strip() if rule.id != "bandit-b105" else rule.title,
        path=file.name,
        line=line,
        column=column,
        end_line=last,
        end_column=end_column,
        origins=("bandit",),
        cwe=rule.cwe,
        fix=rule.fix,
        edits=edits_of(REPLACEMENTS.get(item["test"], ()), file, (line, column, last, end_column)),
    )
