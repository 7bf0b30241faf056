"""`avyay trust`: let a project's avyay.yaml set endpoints, commands and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command

app = command_group("Let this project's avyay.yaml set everything.")
app.info.no_args_is_help = False


@command(app)
def trust(
    run: Run,
    path: Annotated[Path | None, typer.Argument(help="The file, or the folder that holds it.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Withdraw the trust.")] = False,
) -> None:
    """Trust the project's avyay.yaml as it stands now; an edit asks again."""
    from avyay.config.trust import revoke_trust
    from avyay.config.trust import trust as record

    file = path or run.loaded.project_file or Path("avyay.yaml")
    file = file / "avyay.yaml" if file.is_dir() else file
    paths = run.loaded.paths
    if revoke:
        known = revoke_trust(file, paths)
        run.out.note(f"{file} is no longer trusted." if known else f"{file} was not trusted.")
        return
    record(file, paths)
    run.out.note(f"Trusted {file} as it stands now.")
