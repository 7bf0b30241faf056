"""`avyay scan`: find the faults people and coding agents make."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer
from typer.core import TyperCommand

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from avyay.raksha.scan import CodeScanner
    from avyay.raksha.types import Finding, Report, Severity

app = command_group("Scan code for the faults people and coding agents make.")
app.info.no_args_is_help = False


class Level(StrEnum):
    """How bad a finding is."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


EXITS = {"findings": ExitCode.FINDINGS, "unchecked": ExitCode.DEPENDENCY, "clean": ExitCode.OK}


class ScanCommand(TyperCommand):
    """`--fix` is a flag that may carry a word; typer's flags may not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = {"--fix=unsafe": "--fix-unsafe", "--fix=safe": "--fix"}
        for arg in args:
            if arg.startswith("--fix=") and arg not in words:
                raise UsageError(
                    f"--fix takes safe or unsafe, not {arg[6:]!r}.", hint="Try: avyay scan --fix --dry-run"
                )
        return super().parse_args(ctx, [words.get(arg, arg) for arg in args])


@command(app, results=True, cls=ScanCommand)
def scan(
    run: Run,
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders; by default the current folder.")
    ] = None,
    severity: Annotated[
        list[Level] | None,
        typer.Option("--severity", "-s", help="Show only these; repeat it. Does not change the exit."),
    ] = None,
    fail_on: Annotated[
        Level | None, typer.Option("--fail-on", help="Exit 1 for findings this bad or worse (default: high).")
    ] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", help="Also write a SARIF log.", metavar="FILE")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also append a summary in Markdown.", metavar="FILE")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json-file", help="Also write the report as JSON.", metavar="FILE")
    ] = None,
    agent: Annotated[bool, typer.Option("--agent", help="Print instructions for a coding agent.")] = False,
    github: Annotated[bool, typer.Option("--github", help="Also print GitHub annotations.")] = False,
    diff: Annotated[
        str | None, typer.Option("--diff", help="Only what is new since this commit or branch.", metavar="BASE")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Accepted findings; they do not count.", metavar="FILE")
    ] = None,
    write_baseline: Annotated[
        Path | None, typer.Option("--write-baseline", help="Accept what is found now.", metavar="FILE")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Skip files that match; repeat it.")] = None,
    rules: Annotated[
        list[Path] | None, typer.Option("--rules", help="More rules: semgrep YAML file or folder; repeat it.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Apply safe repairs; --fix=unsafe: all.")] = False,
    fix_unsafe: Annotated[bool, typer.Option("--fix-unsafe", hidden=True)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --fix: print the changes, write nothing.")] = False,
    triage: Annotated[bool, typer.Option("--triage", help="Ask a model for a second opinion on findings.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Let checks ask DNS and your package registries.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Look at every file again.")] = False,
) -> ExitCode:
    """Scan files and folders.

    Exit code: 1 findings at --fail-on or worse; else 3 when something could not be checked; else 0. 2: no such path.
    """
    import gc

    from avyay.cli.replay import Recorder, Tee
    from avyay.raksha.baseline import read_baseline
    from avyay.raksha.baseline import write_baseline as save_baseline
    from avyay.raksha.types import verdict

    settings = run.loaded.settings.raksha
    threshold: Severity = fail_on.value if fail_on is not None else settings.fail_on
    for path in (sarif, markdown, json_file, write_baseline):
        _check_writable(path)
    named = baseline or (None if write_baseline else settings.baseline)
    scanner = run.services.make_scanner(exclude=exclude or (), rules=rules or (), cache=not no_cache, online=online)
    accepted = read_baseline(named) if named else None
    if dry_run and not (fix or fix_unsafe):
        raise UsageError("--dry-run belongs to --fix.", hint="Try: avyay scan --fix --dry-run")
    # A scan makes millions of small objects and hardly a cycle: looking for cycles often costs a third of its time.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    tee = Tee(run.out.stdout)
    run.out.print_to(cast("TextIO", tee))
    recorder = Recorder(run.loaded, paths or [Path()], (*settings.exclude, *(exclude or ())), tee)
    with run.out.progress("Scanning") as progress:
        report = scanner.scan(paths or [Path()], progress=progress, baseline=accepted, diff=diff)
    if fix or fix_unsafe:
        changed = _repair(run, scanner, report, paths or [Path()], exclude or (), unsafe=fix_unsafe, dry_run=dry_run)
        if changed and not dry_run:
            report = scanner.scan(paths or [Path()], baseline=accepted, diff=diff)
    if triage and report.findings:
        report = _triage(run, report)
    wanted = {level.value for level in severity} if severity else None
    shown = [finding for finding in report.findings if wanted is None or finding.severity in wanted]
    _write_files(run, report, shown, threshold, sarif, markdown, json_file)
    if write_baseline is not None:
        save_baseline(write_baseline, report.findings)
        run.out.note(f"Wrote {write_baseline}: {len(report.findings)} findings accepted.")
        return ExitCode.OK if report.complete else ExitCode.DEPENDENCY
    if github:
        from avyay.raksha.report.github import workflow_commands

        for line in workflow_commands(shown, prefix=_prefix(report.root)):
            run.out.line(line)
    if agent and not run.out.json:
        from avyay.raksha.report.agent import agent_report

        again = shlex.join(
            ["avyay", "scan", *map(str, paths or [Path()]), "--agent", *(["--diff", diff] if diff else [])]
        )
        run.out.line(agent_report(report, fail_on=threshold, again=again, shown=shown))
    else:
        _print(run, report, shown, threshold)
    code = EXITS[verdict(report, threshold)]
    if report.complete:
        recorder.finish(code)
    return code


def _triage(run: Run, report: Report) -> Report:
    """Second opinions; nothing is hidden by them, and the exit code stays."""
    import asyncio

    from avyay.money import parse_usd
    from avyay.raksha.triage import counts
    from avyay.raksha.triage import triage as second_opinions

    budget = parse_usd(run.loaded.settings.raksha.triage_budget)
    report, summary = asyncio.run(second_opinions(report, run.services.completer, budget=budget))
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts(report.findings).items()))
    stopped = f"; stopped: {summary.stopped}" if summary.stopped else ""
    run.out.note(f"Second opinions on {summary.asked}: {said or 'none'}{stopped}.")
    return report


def _repair(
    run: Run,
    scanner: CodeScanner,
    report: Report,
    paths: list[Path],
    exclude: Sequence[str],
    *,
    unsafe: bool,
    dry_run: bool,
) -> bool:
    """Write the repairs that prove themselves, or print them; says whether there are any."""
    from avyay.raksha.files import collect
    from avyay.raksha.fix import plan_fixes

    files = {file.name: file for file in collect(paths, exclude=exclude).files}
    fixes = plan_fixes(report, files, scanner, unsafe=unsafe)
    for item in fixes.files:
        if dry_run:
            if not run.out.json:
                run.out.write(item.diff)
            continue
        try:
            item.write()
        except OSError as error:
            raise UsageError(
                f"Cannot repair {item.file.name}: {error.strerror or error}.", hint="Scan again."
            ) from error
        for finding in item.findings:
            run.out.note(f"Repaired {finding.path}:{finding.line} {finding.rule}")
    for finding, reason in fixes.refused:
        run.out.note(f"Not repaired {finding.path}:{finding.line} {finding.rule}: {reason}.")
    return bool(fixes.files)


def _print(run: Run, report: Report, shown: list[Finding], threshold: Severity) -> None:
    def as_text() -> None:
        from avyay.raksha.report.text import print_report

        print_report(report, run.out.console(), fail_on=threshold, shown=shown, verbose=bool(run.out.verbose))

    from avyay.raksha.report.json import report_data

    run.out.result(report_data(report, fail_on=threshold, shown=shown) if run.out.json else {}, as_text)


def _write_files(
    run: Run,
    report: Report,
    shown: list[Finding],
    threshold: Severity,
    sarif: Path | None,
    markdown: Path | None,
    json_file: Path | None,
) -> None:
    try:
        if sarif is not None:
            from avyay.raksha.report.sarif import write_sarif

            write_sarif(sarif, report, shown=shown, top=_top(report.root))
            run.out.note(f"Wrote {sarif}.")
        if json_file is not None:
            import json

            from avyay.cli.output import SCHEMA_VERSION
            from avyay.raksha.report.json import report_data

            data = {"schema_version": SCHEMA_VERSION, **report_data(report, fail_on=threshold, shown=shown)}
            json_file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8", errors="backslashreplace")
        if markdown is not None:
            from avyay.raksha.report.markdown import summary

            with markdown.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(summary(report, fail_on=threshold, shown=shown))
            run.out.note(f"Wrote {markdown}.")
    except OSError as error:
        raise UsageError(
            f"Cannot write {error.filename}: {error.strerror}.",
            hint="Name a file in a folder you can write to.",
            code="output_not_writable",
        ) from error


def _check_writable(path: Path | None) -> None:
    """A scan of minutes must not end in a typo of the output's name."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UsageError(f"Cannot write {path}.", hint="Name a file in an existing folder.", code="output_not_writable")


def _top(root: Path) -> Path:
    from avyay.errors import AvyayError
    from avyay.git import find_repository

    try:
        repository = find_repository(root)
    except AvyayError:
        return root
    return repository.root.resolve() if repository is not None else root


def _prefix(root: Path) -> str:
    top = _top(root)
    return "" if root == top else f"{root.relative_to(top).as_posix()}/"
