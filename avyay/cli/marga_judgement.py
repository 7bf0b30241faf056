"""`avyay marga complexity` and its kin: how the router judges, and how well."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from avyay.cli.command import Run, command


def add_commands(app: typer.Typer) -> None:
    """Put these commands into the group `avyay marga`."""
    command(app)(complexity)


def complexity(
    run: Run,
    file: Annotated[
        Path, typer.Argument(help="Requests as JSON lines {id, prompt} or {id, messages, ...}; - for stdin.")
    ],
) -> None:
    """Score requests: one line {id, complexity, tier, reasons} for each."""
    import sys

    from avyay.errors import UsageError
    from avyay.marga.scoring import score_lines

    routing = run.loaded.settings.marga.routing
    write = run.out.stdout.write

    def work(lines: Iterable[bytes]) -> None:
        for line in score_lines(lines, local_below=routing.local_below, premium_from=routing.premium_from):
            write(line.decode())

    if str(file) == "-":
        work(sys.stdin.buffer)
        return
    try:
        with file.open("rb") as source:
            work(source)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}.", hint="Name a file of JSON lines, or - for stdin.") from error
