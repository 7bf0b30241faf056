"""`avyay doctor`: what is there, what is not, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from avyay.doctor import Check

app = command_group("Check every prerequisite and say how to fix it.")
app.info.no_args_is_help = False

MARKS = {"ok": "ok", "optional": "absent", "missing": "MISSING"}


@command(app, results=True)
def doctor(run: Run) -> ExitCode:
    """Check every prerequisite; exit 3 when something must be mended."""
    from avyay.doctor import examine

    checks = examine(run.services)
    missing = any(check.state == "missing" for check in checks)
    run.out.result({"checks": [asdict(check) for check in checks], "ok": not missing}, lambda: show(run, checks))
    return ExitCode.DEPENDENCY if missing else ExitCode.OK


def show(run: Run, checks: Sequence[Check]) -> None:
    """The checks as aligned lines, each fix under its check."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        run.out.line(f"  {MARKS[check.state]:<8}{check.name:<{width}}  {check.detail}")
        if check.fix:
            run.out.line(f"  {'':<8}{'':<{width}}  -> {check.fix}")
