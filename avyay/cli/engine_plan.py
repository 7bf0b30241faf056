"""`avyay engine plan`: an objective becomes a task graph, which a person reads before it is queued."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from avyay.cli.command import Run, command
from avyay.cli.engine_app import app
from avyay.errors import AuthError


@command(app, results=True)
def plan(
    run: Run,
    objective: Annotated[str, typer.Argument(help="What shall be so in the end.", show_default=False)],
    repository: Annotated[Path, typer.Option("--repository", "-r", help="The repository.")] = Path(),
    tokens: Annotated[int, typer.Option("--tokens", min=100, help="Budget of the map that the model sees.")] = 4000,
    yes: Annotated[bool, typer.Option("--yes", help="Queue it.")] = False,
) -> None:
    """Let a model break an objective into tasks.

    They are printed, and queued only with --yes.
    """
    import asyncio
    import secrets

    from avyay.engine.generate.plan import plan as ask
    from avyay.engine.graph import tree_lines

    with run.services as services:
        completer = services.completer
        if not completer.available():
            raise AuthError("No model is configured to plan with.", hint="Set a provider's key, or see: avyay doctor")
        found = services.knowledge.map(repository, query=objective, tokens=tokens)
        name = services.engine_repository(repository.resolve())
        prefix = f"p-{secrets.token_hex(2)}"
        with run.out.waiting("Waiting for a plan"):
            tasks = asyncio.run(ask(completer, objective, found.text, repository=name, prefix=prefix))
        if yes:
            services.engine.add(tasks)
    rows = [(task.id or "", task.title, task.size) for task in tasks]
    needs = {task.id or "": task.needs for task in tasks}
    data = [{**asdict(task), "requires": sorted(task.requires), "allow": sorted(task.allow)} for task in tasks]
    shown = [
        *tree_lines(rows, needs),
        "",
        *(f"{task.id}: accepted when `{task.accept}`" for task in tasks if task.accept),
    ]
    run.out.result({"tasks": data, "queued": yes}, "\n".join(shown))
    if not yes:
        run.out.note("Nothing is queued. Queue it with --yes, or with --json, an editor, and: avyay engine import FILE")
