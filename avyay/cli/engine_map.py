"""`avyay engine map`: what the engine knows of a codebase."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avyay.cli.command import Run, command
from avyay.cli.engine_app import app

if TYPE_CHECKING:
    from avyay.engine.knowledge.types import FileCard

Texts = list[str] | None


@command(app, "map", results=True)
def map_(
    run: Run,
    paths: Annotated[Texts, typer.Argument(metavar="[PATH]...", help="Files or globs it is about.")] = None,
    query: Annotated[str, typer.Option("--query", help="What it is about, in words.")] = "",
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=50, max=200_000, help="The budget.")] = 2000,
    repository: Annotated[Path, typer.Option("--repository", "-r", help="The repository.")] = Path(),
) -> None:
    """Print a ranked map of the code.

    The files and symbols that matter most, within a token budget; of one file, all that is known.
    """
    with run.services as services:
        knowledge = services.knowledge
        with run.out.progress("Reading the code") as progress:
            update = knowledge.update(repository, progress=progress)
        for path in update.unreadable:
            run.out.note(f"Not in this clone, so not read: {path}")
        knowledge.learn(repository, services.engine.tasks(), services.engine.history)
        about = [knowledge.inside(repository, path) for path in paths or ()]
        if (
            len(about) == 1
            and not query
            and not any(mark in about[0] for mark in "*?[")
            and not Path(about[0]).is_dir()
        ):
            card = knowledge.card(repository, about[0])
            run.out.result(asdict(card), lambda: run.out.line(_card_text(card)))
            return
        found = knowledge.map(repository, query=query, files=about, tokens=tokens)
    run.out.result(asdict(found), lambda: run.out.line(found.text))
    run.out.note(f"{found.tokens} tokens; {found.files} files and {found.symbols} symbols at {found.commit[:7]}.")


def _card_text(card: FileCard) -> str:
    covered = "" if card.covered is None else f", {card.covered:.0%} covered"
    lines = [f"{card.path} ({card.language or 'text'}, {card.lines} lines, {card.commits} commits{covered})"]
    lists = (
        ("owners", card.owners),
        ("tests", card.tests),
        ("imports", card.imports),
        ("imported by", card.imported_by),
        ("documents", card.documents),
        ("tasks", tuple(f"{task.id} [{task.state}] {task.title}" for task in card.tasks)),
    )
    for label, values in lists:
        if values:
            lines += [f"{label}:", *(f"  {value}" for value in values)]
    if card.symbols:
        lines.append("symbols:")
        for symbol in card.symbols:
            indent = "  " * (symbol.scope.count(".") + 1 if symbol.scope else 0)
            lines.append(f"  {symbol.line:>5}: {indent}{symbol.signature}")
    return "\n".join(lines)
