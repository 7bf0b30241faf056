"""The scanner: files in, report out. Engines run side by side; one that fails leaves the others' findings standing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AvyayError, ConfigError
from avyay.ports import Progress
from avyay.raksha.engines.base import Engine, Outcome
from avyay.raksha.files import Tree, collect
from avyay.raksha.languages import STRUCTURED
from avyay.raksha.merge import finish, join
from avyay.raksha.project import Allowed, Project, Resolver
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Report, Rule, Skipped, severity_rank

__all__ = ["CodeScanner"]


@dataclass
class _Run:
    """One engine's part of a scan."""

    engine: Engine
    files: list[SourceFile]
    outcome: Outcome | None = None


class CodeScanner:
    """Scans files with every engine and merges what they find.

    Args:
        engines: In the order in which their words count.
        exclude: Globs of files not to scan.
        allowed: What the user vouches for.
        resolver: Given with `--online`.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        exclude: Sequence[str] = (),
        allowed: Allowed | None = None,
        resolver: Resolver | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._engines = tuple(engines)
        self._exclude = tuple(exclude)
        self._allowed = allowed or Allowed()
        self._resolver = resolver
        self._clock = clock

    def rules(self) -> dict[str, Rule]:
        """Everything the engines can find, by id."""
        return {rule.id: rule for engine in self._engines for rule in engine.rules()}

    def scan(self, paths: Sequence[Path], *, progress: Progress | None = None) -> Report:
        """Scan files and folders.

        Raises:
            UsageError: a path does not exist.
            ConfigError: a rule is broken.
        """
        started = self._clock.monotonic()
        tree = collect(paths, exclude=self._exclude)
        project = Project(tree.root, tuple(tree.names), self._allowed, self._resolver)
        runs = self._run_engines(tree.files, project, progress)
        rules = self.rules()
        by_name = {file.name: file for file in tree.files}
        found = [
            finding
            for run in runs
            if run.outcome is not None
            for result in run.outcome.results.values()
            for finding in result.findings
        ]
        findings = finish(join(found, rules), by_name)
        findings.sort(key=_order)
        used = {finding.rule for finding in findings}
        return Report(
            root=tree.root,
            findings=tuple(findings),
            skipped=tuple(dict.fromkeys((*tree.skipped, *_unread(tree, runs)))),
            files=len(tree.files),
            seconds=self._clock.monotonic() - started,
            engines={run.engine.name: run.engine.version for run in runs},
            ignored=tuple(tree.ignored),
            rules=tuple(rule for rule in rules.values() if rule.id in used),
            lines=sum(len(file.lines) for file in tree.files),
        )

    def _run_engines(self, files: Sequence[SourceFile], project: Project, progress: Progress | None) -> list[_Run]:
        runs = [_Run(engine, [file for file in files if engine.reads(file)]) for engine in self._engines]
        total = sum(len(run.files) for run in runs)
        done = 0
        lock = threading.Lock()
        cancel = threading.Event()

        def step(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                if progress is not None:
                    progress(done, total, "files x engines")

        def work(run: _Run) -> None:
            try:
                run.outcome = run.engine.run(run.files, project, step=step, cancel=cancel)
            except ConfigError:
                raise
            except AvyayError as error:
                # The others still count; that this one did not look makes the scan incomplete.
                hint = f" {error.hint}" if error.hint else ""
                run.outcome = Outcome(skipped=[Skipped("", f"{error.message}{hint}", run.engine.name)])

        with ThreadPoolExecutor(max_workers=max(1, len(runs)), thread_name_prefix="raksha") as pool:
            futures = [pool.submit(work, run) for run in runs if run.files]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                cancel.set()
                raise
        return runs


def _unread(tree: Tree, runs: Sequence[_Run]) -> list[Skipped]:
    """Engines that failed, checks that failed, and files whose structure nobody could read."""
    skipped: list[Skipped] = []
    for run in runs:
        if run.outcome is None:
            continue
        skipped.extend(run.outcome.skipped)
        skipped.extend(
            Skipped(name, result.failed, run.engine.name)
            for name, result in sorted(run.outcome.results.items())
            if result.failed
        )
    said = _said(runs)
    failed = bool(skipped)
    for file in tree.files:
        words = said.get(file.name, [])
        if file.language not in STRUCTURED or any(parsed for _, parsed, _ in words):
            continue
        problems = [(engine, problem) for engine, _, problem in words if problem]
        if problems:
            skipped.append(Skipped(file.name, problems[0][1], ", ".join(engine for engine, _ in problems)))
        elif not failed:  # a failed engine has been named already
            skipped.append(Skipped(file.name, f"No engine reads {file.language}."))
    return skipped


def _said(runs: Sequence[_Run]) -> dict[str, list[tuple[str, bool, str]]]:
    """What the engines say of having read each file: (engine, read, problem). One that failed says nothing."""
    said: dict[str, list[tuple[str, bool, str]]] = {}
    for run in runs:
        if run.outcome is None or run.outcome.skipped:
            continue
        for file in run.files:
            result = run.outcome.results.get(file.name)
            word = (True, "") if result is None else (result.parsed, result.problem)
            said.setdefault(file.name, []).append((run.engine.name, *word))
    return said


def _order(finding: Finding) -> tuple[int, str, int, int, str]:
    return severity_rank(finding.severity), finding.path, finding.line, finding.column, finding.rule
