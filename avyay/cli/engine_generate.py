"""`avyay engine generate`: work found in a codebase becomes tasks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avyay.cli.command import Run, command
from avyay.cli.engine_app import app
from avyay.errors import ExitCode

if TYPE_CHECKING:
    from avyay.engine.generate.types import Generated

Texts = list[str] | None


@command(app, results=True)
def generate(
    run: Run,
    repository: Annotated[Path, typer.Argument(help="The repository.")] = Path(),
    source: Annotated[Texts, typer.Option("--source", "-s", help="Only this kind of evidence; repeat it.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many new tasks.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be added and closed; write nothing.")
    ] = False,
    online: Annotated[bool, typer.Option("--online", help="Also ask package registries and GitHub.")] = False,
) -> None:
    """Find work in a codebase and queue it.

    What it queued before and whose evidence is gone is closed.
    """
    with run.services as services:
        settings = services.settings.engine.generate
        generator = services.make_generator(online=online, sources=tuple(source or ()))
        name = services.engine_repository(repository.resolve())
        with run.out.progress("Looking for work") as progress:
            done = generator.round(
                repository,
                services.engine,
                limit=limit or settings.limit,
                dry_run=dry_run,
                name=name,
                progress=progress,
            )
    data = {
        **asdict(done),
        "tasks": [{**asdict(task), "requires": [], "allow": sorted(task.allow)} for task in done.tasks],
    }
    run.out.result({**data, "dry_run": dry_run}, lambda: _text(run, done, dry_run))
    if not dry_run and done.added and any(task.approval for task in done.tasks):
        run.out.note(f"A person must approve what was found: avyay engine approve {' '.join(done.added[:3])}")
    for name, reason in done.skipped.items():
        run.out.note(f"{name}: {reason}")
    if not done.checked:
        raise typer.Exit(ExitCode.DEPENDENCY)


def _text(run: Run, done: Generated, dry_run: bool) -> None:
    names = done.added or ("new",) * len(done.tasks)
    if done.tasks:
        rows = [(name, task.size, task.title, task.evidence[0]) for name, task in zip(names, done.tasks, strict=True)]
        run.out.table(("Id", "Size", "Title", "Evidence"), rows)
    would = "would be " if dry_run else ""
    looked = ", ".join(f"{name} {count}" for name, count in done.checked.items()) or "nothing"
    number = f"{len(done.tasks)} task{'' if len(done.tasks) == 1 else 's'}"
    run.out.line(
        f"{number} {would}added, {len(done.closed)} {would}closed, {done.known} known already,"
        f" {done.left} left for next time (found: {looked})."
    )
