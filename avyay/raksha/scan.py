"""The scanner: files in, report out. Engines run side by side; one that fails leaves the others' findings standing."""

from __future__ import annotations

import fnmatch
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.errors import AvyayError, ConfigError
from avyay.ports import Progress
from avyay.raksha import suppress
from avyay.raksha.baseline import Baseline
from avyay.raksha.cache import ResultCache, cache_key, decode, decode_rules, encode, encode_rules
from avyay.raksha.diff import changes_since, files_before
from avyay.raksha.engines.base import Confirming, Engine, FileResult, Noting, Outcome
from avyay.raksha.files import Tree, collect, matches
from avyay.raksha.languages import STRUCTURED
from avyay.raksha.merge import finish, join
from avyay.raksha.project import Allowed, Project, Resolver
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Report, Rule, Severity, Skipped, Suppressed, severity_rank

__all__ = ["CodeScanner", "PathRule"]


@dataclass(frozen=True, slots=True)
class PathRule:
    """What holds below some paths: rules that do not count there, and severities that differ.

    Rules are ids or globs of ids (`bandit-*`); paths are globs relative to the scan root.
    """

    paths: tuple[str, ...]
    disable: tuple[str, ...] = ()
    severity: tuple[tuple[str, Severity], ...] = ()
    reason: str = ""


@dataclass
class _Run:
    """One engine's part of a scan."""

    engine: Engine
    files: list[SourceFile]
    outcome: Outcome = field(default_factory=Outcome)
    failed: bool = False


class CodeScanner:
    """Scans files with every engine and merges what they find.

    Args:
        engines: In the order in which their words count.
        exclude: Globs of files not to scan.
        disable: Rules (ids or globs) that are off.
        path_rules: Exceptions for parts of the tree.
        allowed: What the user vouches for.
        resolver: Given with `--online`.
        cache: The file that remembers results; None: nothing is remembered.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        exclude: Sequence[str] = (),
        disable: Sequence[str] = (),
        path_rules: Sequence[PathRule] = (),
        allowed: Allowed | None = None,
        resolver: Resolver | None = None,
        cache: Path | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._engines = tuple(engines)
        self._exclude = tuple(exclude)
        self._disable = tuple(disable)
        self._path_rules = tuple(path_rules)
        self._allowed = allowed or Allowed()
        self._resolver = resolver
        self._cache = cache
        self._clock = clock

    @property
    def engines(self) -> tuple[Engine, ...]:
        """What looks for faults, in the order in which their words count."""
        return self._engines

    def rules(self) -> dict[str, Rule]:
        """Everything that can be found, by id."""
        return dict(self._rules)

    @cached_property
    def _rules(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {}
        for engine in self._engines:
            rules.update({rule.id: rule for rule in self._described(engine)})
        return rules | {rule.id: rule for rule in suppress.RULES}

    def _described(self, engine: Engine) -> Sequence[Rule]:
        """An engine's rules; from the cache, they need neither be parsed nor imported."""
        if self._cache is None:
            return engine.rules()
        cache = ResultCache(self._cache, clock=self._clock)
        try:
            key = f"rules:{engine.name}:{engine.version}:{engine.digest()}".encode()
            known = decode_rules(cache.get([key]).get(key, ""))
            if known is None:
                known = list(engine.rules())
                cache.put({key: encode_rules(known)})
            return known
        finally:
            cache.close()

    def scan(
        self,
        paths: Sequence[Path],
        *,
        progress: Progress | None = None,
        baseline: Baseline | None = None,
        diff: str | None = None,
    ) -> Report:
        """Scan files and folders.

        Args:
            baseline: Accepted findings, which do not count.
            diff: A commit: only files changed since are scanned, and only what is new in them counts.

        Raises:
            UsageError: a path does not exist; with `diff`, no repository or no such commit.
            ConfigError: a rule is broken.
        """
        tree = collect(paths, exclude=self._exclude)
        return self.scan_tree(tree, progress=progress, baseline=baseline, diff=diff)

    def scan_tree(
        self,
        tree: Tree,
        *,
        progress: Progress | None = None,
        baseline: Baseline | None = None,
        diff: str | None = None,
    ) -> Report:
        """Scan what `collect` found, or files that were never on disk."""
        started = self._clock.monotonic()
        project = Project(tree.root, tuple(tree.names), self._allowed, self._resolver)
        changes = None
        if diff is not None:
            changes = changes_since(diff, project.repository, tree.root)
            tree = replace(tree, files=[file for file in tree.files if file.name in changes.names])
        runs = self._run_engines(tree.files, project, progress)
        rules = self._rules
        findings = self._findings(runs, tree.files, rules)
        judged = _judged(runs, self._described, self._is_on)
        kept, comments, suppressed = suppress.apply(findings, tree.files, judged=judged)
        kept += finish([c for c in comments if self._is_on(c.rule)], {file.name: file for file in tree.files})
        kept, by_path = self._apply_path_rules(kept)
        suppressed += by_path
        if baseline is not None:
            kept, accepted = baseline.split(kept)
            suppressed += accepted
        if changes is not None:
            with tempfile.TemporaryDirectory(prefix="avyay-diff-") as folder:
                before = files_before(changes, tree.files, tree.root, Path(folder))
                old = self._findings(self._run_engines(before, project, None), before, rules)
            known = Baseline(frozenset(finding.fingerprint for finding in old))
            kept, there_before = known.split(kept)
            suppressed += [replace(item, by="diff", reason=f"already at {changes.base[:12]}") for item in there_before]
        kept.sort(key=_order)
        notes = [note for engine in self._engines if isinstance(engine, Noting) for note in engine.notes(tree.files)]
        used = {finding.rule for finding in kept} | {item.finding.rule for item in suppressed}
        return Report(
            root=tree.root,
            findings=tuple(kept),
            skipped=tuple(dict.fromkeys((*tree.skipped, *_unread(tree, runs)))),
            files=len(tree.files),
            seconds=self._clock.monotonic() - started,
            engines={run.engine.name: run.engine.version for run in runs},
            ignored=(*tree.ignored, *notes),
            suppressed=tuple(suppressed),
            rules=tuple(rule for rule in rules.values() if rule.id in used),
            lines=sum(file.data.count(b"\n") + 1 for file in tree.files),
        )

    def _is_on(self, rule: str) -> bool:
        return not any(fnmatch.fnmatchcase(rule, glob) for glob in self._disable)

    def _findings(self, runs: Sequence[_Run], files: Sequence[SourceFile], rules: dict[str, Rule]) -> list[Finding]:
        tests = {file.name for file in files if file.is_test}
        found = [
            finding
            for run in runs
            for result in run.outcome.results.values()
            for finding in result.findings
            if self._is_on(finding.rule) and (finding.path not in tests or rules[finding.rule].tests)
        ]
        return finish(join(found, rules), {file.name: file for file in files})

    def _apply_path_rules(self, findings: Sequence[Finding]) -> tuple[list[Finding], list[Suppressed]]:
        kept: list[Finding] = []
        suppressed: list[Suppressed] = []
        for finding in findings:
            here = [rule for rule in self._path_rules if matches(finding.path, rule.paths)]
            off = next((r for r in here if any(fnmatch.fnmatchcase(finding.rule, glob) for glob in r.disable)), None)
            if off is not None:
                suppressed.append(Suppressed(finding, "path", off.reason or f"off in {', '.join(off.paths)}"))
                continue
            for rule in here:
                for glob, severity in rule.severity:
                    if fnmatch.fnmatchcase(finding.rule, glob):
                        finding = replace(finding, severity=severity)
            kept.append(finding)
        return kept, suppressed

    def _run_engines(self, files: Sequence[SourceFile], project: Project, progress: Progress | None) -> list[_Run]:
        runs = [_Run(engine, [file for file in files if engine.reads(file)]) for engine in self._engines]
        total = sum(len(run.files) for run in runs)
        done = 0
        lock = threading.Lock()

        def step(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                if progress is not None:
                    progress(done, total, "Scanning")

        cache = ResultCache(self._cache, clock=self._clock) if self._cache is not None else None
        try:
            keys = {run.engine.name: _recall(run, project, cache, step) for run in runs}
            todo = [(run, [f for f in run.files if f.name not in run.outcome.results]) for run in runs]
            _work([(run, left) for run, left in todo if left], project, step)
            _confirm(runs)
            if cache is not None:
                _remember(runs, keys, cache)
        finally:
            if cache is not None:
                cache.close()
        return runs


def _work(todo: Sequence[tuple[_Run, list[SourceFile]]], project: Project, step: Callable[[int], None]) -> None:
    """Run the engines side by side; the first broken rule, or an interrupt, stops all."""
    cancel = threading.Event()

    def work(run: _Run, files: list[SourceFile]) -> None:
        try:
            outcome = run.engine.run(files, project, step=step, cancel=cancel)
        except ConfigError:
            raise
        except AvyayError as error:
            # The others still count; that this one did not look makes the scan incomplete.
            hint = f" {error.hint}" if error.hint else ""
            run.outcome.skipped.append(Skipped("", f"{error.message}{hint}", run.engine.name))
            run.failed = True
            return
        run.outcome.skipped.extend(outcome.skipped)
        for file in files:
            run.outcome.results[file.name] = outcome.results.get(file.name) or FileResult()

    if not todo:
        return
    with ThreadPoolExecutor(max_workers=len(todo), thread_name_prefix="raksha") as pool:
        # The last ones first: they wait for programs of their own, while ours keeps this process busy.
        futures = [pool.submit(work, run, files) for run, files in reversed(todo)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            cancel.set()
            raise


def _confirm(runs: Sequence[_Run]) -> None:
    """Where one engine could not read a file, make sure that the one that says it could really did."""
    said = _said(runs)
    for run in runs:
        results = run.outcome.results
        doubtful = [
            file
            for file in run.files
            if file.name in results and results[file.name].parsed and _is_doubtful([r for _, r in said[file.name]])
        ]
        if not doubtful or not isinstance(run.engine, Confirming):
            continue
        try:
            problems = run.engine.confirm(doubtful, cancel=threading.Event())
        except AvyayError as error:
            problems = {file.name: error.message for file in doubtful}
        for file in doubtful:
            result = results[file.name]
            result.problem = problems.get(file.name, "")
            result.parsed = result.sure = not result.problem


def _is_doubtful(results: Sequence[FileResult]) -> bool:
    return any(result.problem for result in results) and not any(result.sure for result in results)


def _recall(run: _Run, project: Project, cache: ResultCache | None, step: Callable[[int], None]) -> dict[str, bytes]:
    """Take from the cache what is known; returns the key of each file's result."""
    if cache is None or not run.files:
        return {}
    version = run.engine.key(project)
    if not version:
        return {}
    keys = {file.name: cache_key(run.engine.name, version, file) for file in run.files}
    known = cache.get(list(keys.values()))
    for file in run.files:
        text = known.get(keys[file.name])
        result = decode(text, file) if text is not None else None
        if result is not None:
            run.outcome.results[file.name] = result
            del keys[file.name]
            step(1)
    return keys


def _remember(runs: Sequence[_Run], keys: dict[str, dict[str, bytes]], cache: ResultCache) -> None:
    values: dict[bytes, str] = {}
    for run in runs:
        if run.failed or run.outcome.skipped:
            continue
        fresh = keys[run.engine.name]
        for file in run.files:
            if file.name in fresh and (text := encode(run.outcome.results[file.name], file)) is not None:
                values[fresh[file.name]] = text
    cache.put(values)


def _judged(
    runs: Sequence[_Run], described: Callable[[Engine], Sequence[Rule]], is_on: Callable[[str], bool]
) -> dict[str, Collection[str]]:
    """For each file the rules that were really looked for in it."""
    judged: dict[str, set[str]] = {}
    for run in runs:
        if run.failed:
            continue
        rules = [rule for rule in described(run.engine) if is_on(rule.id)]
        everywhere, in_code = {rule.id for rule in rules if rule.tests}, {rule.id for rule in rules}
        for file in run.files:
            result = run.outcome.results.get(file.name)
            if result is not None and not result.failed:
                judged.setdefault(file.name, set()).update(everywhere if file.is_test else in_code)
    return judged  # type: ignore[return-value]


def _unread(tree: Tree, runs: Sequence[_Run]) -> list[Skipped]:
    """Engines that failed, checks that failed, and files whose structure nobody could read."""
    skipped: list[Skipped] = []
    for run in runs:
        skipped.extend(run.outcome.skipped)
        skipped.extend(
            Skipped(name, result.failed, run.engine.name)
            for name, result in sorted(run.outcome.results.items())
            if result.failed
        )
    failed = bool(skipped)
    said = _said(runs)
    for file in tree.files:
        words = said.get(file.name, [])
        if file.language not in STRUCTURED or _is_read([result for _, result in words]):
            continue
        problems = [(engine, result.problem) for engine, result in words if result.problem]
        if problems:
            skipped.append(Skipped(file.name, problems[0][1], ", ".join(engine for engine, _ in problems)))
        elif not failed:  # a failed engine has been named already
            skipped.append(Skipped(file.name, f"No engine reads {file.language}."))
    return skipped


def _is_read(results: Sequence[FileResult]) -> bool:
    """Whether somebody read the whole file: a parser, or a tolerant reader when no parser objects."""
    parsed = [result for result in results if result.parsed]
    return bool(parsed) and (any(r.sure for r in parsed) or not any(result.problem for result in results))


def _said(runs: Sequence[_Run]) -> dict[str, list[tuple[str, FileResult]]]:
    """What each engine says of each file; one that failed says nothing."""
    said: dict[str, list[tuple[str, FileResult]]] = {}
    for run in runs:
        for name, result in run.outcome.results.items():
            said.setdefault(name, []).append((run.engine.name, result))
    return said


def _order(finding: Finding) -> tuple[int, str, int, int, str]:
    return severity_rank(finding.severity), finding.path, finding.line, finding.column, finding.rule
