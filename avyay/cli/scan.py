"""`avyay scan`: find the faults people and coding agents make."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError

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


@command(app, results=True)
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
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Skip files that match; repeat it.")] = None,
) -> ExitCode:
    """Scan files and folders.

    Exit code: 1 findings at --fail-on or worse; else 3 when something could not be checked; else 0. 2: no such path.
    """
    from avyay.raksha.types import verdict

    threshold = fail_on.value if fail_on is not None else run.loaded.settings.raksha.fail_on
    _check_writable(sarif)
    scanner = run.services.make_scanner(exclude=exclude or ())
    with run.out.progress("Scanning") as progress:
        report = scanner.scan(paths or [Path()], progress=progress)
    wanted = {level.value for level in severity} if severity else None
    shown = [finding for finding in report.findings if wanted is None or finding.severity in wanted]

    if sarif is not None:
        from avyay.raksha.report.sarif import write_sarif

        write_sarif(sarif, report, shown=shown, top=_top(report.root))
        run.out.note(f"Wrote {sarif}.")

    def as_text() -> None:
        from avyay.raksha.report.text import print_report

        print_report(report, run.out.console(), fail_on=threshold, shown=shown, verbose=bool(run.out.verbose))

    from avyay.raksha.report.json import report_data

    run.out.result(report_data(report, fail_on=threshold, shown=shown) if run.out.json else {}, as_text)
    return EXITS[verdict(report, threshold)]


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
