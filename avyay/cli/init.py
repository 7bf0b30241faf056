"""`avyay init`: a commented avyay.yaml that works as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command

app = command_group("Write a commented avyay.yaml.")
app.info.no_args_is_help = False


@command(app)
def init(
    run: Run,
    directory: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
    user: Annotated[bool, typer.Option("--user", help="Write the user's file instead of a project's.")] = False,
) -> None:
    """Write avyay.yaml with every common setting explained; never overwrites one."""
    from avyay.config.template import write_template
    from avyay.config.trust import trust
    from avyay.paths import ensure_directory

    paths = run.loaded.paths
    file = ensure_directory(paths.config) / "avyay.yaml" if user else directory / "avyay.yaml"
    write_template(file)
    if not user:
        trust(file, paths)  # its content is ours; an edit by anyone asks again
    run.out.note(f"Wrote {file}. It works as it stands; check it with: avyay config check")
    if not user:
        run.out.note("After an edit, run: avyay trust")
