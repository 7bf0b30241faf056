"""Judges a result: by what it touches, by the acceptance command in a clean checkout, by the scanner, by a review.

What is judged is the commit that would be merged, on top of what it would be merged into.
"""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avyay.config.engine import EngineVerifySettings
from avyay.engine.attempts import Attempts
from avyay.engine.nodes.base import Control
from avyay.engine.nodes.local import clean_environment
from avyay.engine.protected import Change, protected_changes
from avyay.engine.review import Reviewer
from avyay.engine.supervise import supervise
from avyay.engine.types import Task
from avyay.engine.worktree import Workshop
from avyay.git import GitRepository
from avyay.paths import ensure_directory
from avyay.ports import Finding, Scanner

__all__ = ["Verdict", "Verifier"]

_TAIL = 6000
_RANKS = {"critical": 4, "high": 3, "medium": 2, "low": 1, "info": 0}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a result may be merged. `log` is for the next attempt, `notes` for the history."""

    passed: bool
    by: Literal["protected", "conflict", "setup", "accept", "scan", "review", "all"]
    reason: str
    log: str = ""
    notes: tuple[str, ...] = ()


class Verifier:
    """Judges results as the settings say.

    Args:
        scanner: Makes the scanner; called only when a scan is wanted.
        reviewer: Goes through the checklist; None when no review is wanted.
        environment: Of the dispatcher.
    """

    def __init__(
        self,
        settings: EngineVerifySettings,
        attempts: Attempts,
        environment: Mapping[str, str],
        *,
        scanner: Callable[[], Scanner] | None = None,
        reviewer: Reviewer | None = None,
    ) -> None:
        self.settings = settings
        self._attempts = attempts
        self._environment = environment
        self._scanner = scanner
        self._reviewer = reviewer
        self._red: dict[tuple[Path, str], str | None] = {}
        self._lock = threading.Lock()

    def command(self, task: Task) -> str:
        """The acceptance command of a task; empty when there is none."""
        return task.accept.strip() or self.settings.accept.strip()

    def check(
        self, task: Task, fence: int, tree: GitRepository, base: str, commit: str, folder: Path, control: Control
    ) -> Verdict:
        """Judge a commit that is checked out, clean, at `tree`.

        Raises:
            UnreachableError: the review could not be made; nothing is said about the result.
        """
        changes = _changes(tree, base, commit)
        if (verdict := self._touches(task, tree, base, commit, changes)) is not None:
            return verdict
        notes: list[str] = []
        for by, command in (("setup", self.settings.setup.strip()), ("accept", self.command(task))):
            if command:
                verdict = self._run(by, command, task, fence, tree, folder, control)  # type: ignore[arg-type]
                if not verdict.passed:
                    return verdict
                notes.append(verdict.reason)
        verdict = self._scan(tree, base, changes, folder)
        notes += verdict.notes
        if not verdict.passed:
            return verdict
        if self._reviewer is not None:
            diff = tree.output("diff", "--no-color", base, commit)
            problems = self._reviewer.review(task, diff)
            if problems:
                text = "\n".join(f"- {problem}" for problem in problems)
                return Verdict(False, "review", f"the review objects: {problems[0]}", text)
            notes.append("reviewed")
        return Verdict(True, "all", "; ".join(notes) or "nothing to check", notes=tuple(notes))

    def red_before(
        self, task: Task, fence: int, workshop: Workshop, head: str, folder: Path, control: Control
    ) -> str | None:
        """Why the branch itself fails what all its results must pass; None when it passes. Looked at once a commit."""
        key = (workshop.repository.root, head)
        with self._lock:
            if key in self._red:
                return self._red[key]
        tree = folder / "candidate"
        workshop.remove(tree)
        place = workshop.add(tree, head)
        try:
            reason = None
            for by, command in (("setup", self.settings.setup.strip()), ("accept", self.settings.accept.strip())):
                if command and reason is None:
                    verdict = self._run(by, command, task, fence, place, folder, control)  # type: ignore[arg-type]
                    reason = None if verdict.passed else verdict.reason
        finally:
            workshop.remove(tree)
        with self._lock:
            self._red[key] = reason
        return reason

    # ---------------------------------------------------------------- the parts

    def _touches(
        self, task: Task, tree: GitRepository, base: str, commit: str, changes: list[Change]
    ) -> Verdict | None:
        def read(path: str, after: bool) -> str | None:
            done = tree.git("show", f"{commit if after else base}:{path}")
            return done.text if done.code == 0 else None

        refused = protected_changes(
            changes, allow=task.allow, more=self.settings.protect, accept=self.command(task), read=read
        )
        if not refused:
            return None
        reason = "; ".join(map(str, refused[:5]))
        advice = "Do not change these files. If that cannot be helped, say why and change nothing."
        return Verdict(False, "protected", f"not allowed: {reason}", f"{advice}\n" + "\n".join(map(str, refused)))

    def _run(
        self,
        by: Literal["setup", "accept"],
        command: str,
        task: Task,
        fence: int,
        tree: GitRepository,
        folder: Path,
        control: Control,
    ) -> Verdict:
        place = ensure_directory(folder / "check")
        shutil.rmtree(place / "home", ignore_errors=True)
        home = ensure_directory(place / "home")
        ensure_directory(home / "tmp")
        (place / "output.log").unlink(missing_ok=True)
        run = supervise(
            ["/bin/sh", "-c", f"exec 2>&1\n{command}"],
            cwd=tree.root,
            environment=clean_environment(self._environment, home, *self.settings.environment),
            folder=place,
            mark=self._attempts.mark(task.id, fence),
            control=control,
            wall=self.settings.timeout,
        )
        log = (place / "output.log").read_text(encoding="utf-8", errors="replace")[-_TAIL:]
        shutil.copyfile(place / "output.log", folder / f"{by}.log")
        if run.ending.ended_by == "wall":
            return Verdict(False, by, f"`{command}` took longer than {self.settings.timeout:.0f} s", log)
        if run.ending.ended_by is not None:
            return Verdict(False, by, f"`{command}` was ended: {run.ending.detail or run.ending.ended_by}", log)
        if run.ending.code != 0:
            how = f"exit {run.ending.code}" if run.ending.signal is None else f"signal {run.ending.signal}"
            return Verdict(False, by, f"`{command}` failed ({how})", log)
        return Verdict(True, by, f"`{command}` succeeded in {run.seconds:.1f} s", log)

    def _scan(self, tree: GitRepository, base: str, changes: list[Change], folder: Path) -> Verdict:
        """Scan the changed files before and after: only what is new counts."""
        files = [change.path for change in changes if change.status != "D" and (tree.root / change.path).is_file()]
        if self._scanner is None or self.settings.scan == "off" or not files:
            return Verdict(True, "scan", "not scanned")
        before = ensure_directory(folder / "before")
        for change in changes:
            if change.status != "A" and change.path in files:
                done = tree.git("show", f"{base}:{change.path}")
                if done.code == 0:
                    ensure_directory((before / change.path).parent)
                    (before / change.path).write_bytes(done.stdout)
        scanner = self._scanner()
        after_report = scanner.scan([tree.root / path for path in files])
        old = [before / path for path in files if (before / path).is_file()]
        known: Counter[tuple[str, str, str]] = Counter()
        if old and after_report.findings:
            report = scanner.scan(old)
            known = Counter(_key(finding, report.root, before) for finding in report.findings)
        shutil.rmtree(before, ignore_errors=True)
        new = []
        for finding in after_report.findings:
            key = _key(finding, after_report.root, tree.root)
            if known[key] > 0:
                known[key] -= 1
            elif _RANKS[finding.severity] >= _RANKS[self.settings.fail_on]:
                new.append(finding)
        notes = tuple(f"could not check {item.path}: {item.reason}" for item in after_report.skipped[:5])
        if new:
            text = "\n".join(f"{item.path}:{item.line}: {item.severity}: {item.message} [{item.rule}]" for item in new)
            return Verdict(False, "scan", f"the scan finds {new[0].rule} in {new[0].path}:{new[0].line}", text, notes)
        if notes and self.settings.scan == "required":
            return Verdict(False, "scan", notes[0], "\n".join(notes), notes)
        return Verdict(True, "scan", "scanned", notes=("scanned", *notes))


def _key(finding: Finding, root: Path, tree: Path) -> tuple[str, str, str]:
    """What makes two findings the same, wherever in the file they are."""
    path = (root / finding.path).resolve()
    name = str(path.relative_to(tree.resolve())) if path.is_relative_to(tree.resolve()) else finding.path
    return finding.rule, name, " ".join((finding.snippet or finding.message).split())


def _changes(tree: GitRepository, base: str, commit: str) -> list[Change]:
    fields = tree.output("diff", "--name-status", "-z", "--no-renames", base, commit).split("\0")
    return [Change(fields[i][:1], fields[i + 1]) for i in range(0, len(fields) - 1, 2)]
