"""`avyay engine graph`: what waits for what, and what cannot run side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from avyay.cli.command import Run, command
from avyay.cli.engine_app import app
from avyay.errors import AvyayError, UsageError

if TYPE_CHECKING:
    from avyay.engine.types import Task
    from avyay.wiring import Services

Overlap = tuple[str, str, tuple[str, ...]]
_MOST_PAIRS = 200


@command(app, results=True)
def graph(
    run: Run,
    form: Annotated[
        Literal["text", "mermaid", "svg"] | None, typer.Option("--format", "-f", help="By default text.")
    ] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="The same as --format mermaid.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what has ended and holds up nothing.")] = False,
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Where tasks' files are looked up.")] = Path(),
) -> None:
    """Draw what waits for what, and which tasks share files."""
    from avyay.engine.drawing import Node, svg
    from avyay.engine.graph import mermaid as draw
    from avyay.engine.graph import tree_lines
    from avyay.engine.types import FINAL

    if mermaid and form not in (None, "mermaid"):
        raise UsageError(f"--mermaid and --format {form} exclude each other.", hint="Choose one.")
    with run.services as services:
        tasks = list(services.engine.tasks())
        held_up_by = {need for task in tasks if task.state not in FINAL for need in task.needs}
        if not everything and any(task.state not in FINAL for task in tasks):
            tasks = [task for task in tasks if task.state not in FINAL or task.id in held_up_by]
        overlaps = _overlaps(run, services, [task for task in tasks if task.state not in FINAL], repository)
    rows = [(task.id, task.title, task.state) for task in tasks]
    needs = {task.id: task.needs for task in tasks}
    if form == "svg":
        text = svg([Node(*row) for row in rows], needs, overlaps)
    elif mermaid or form == "mermaid":
        text = draw(rows, needs, overlaps)
    else:
        lines = tree_lines(rows, needs)
        lines += [f"{one} and {two} do not run side by side: {', '.join(files[:3])}" for one, two, files in overlaps]
        text = "\n".join(lines)
    if output is not None:
        try:
            output.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"Cannot write {output}: {error.strerror}.", hint="Name another file.") from error
        run.out.note(f"Wrote {output}.")
        return
    data = {
        "tasks": [{"id": name, "title": title, "state": state, "needs": needs[name]} for name, title, state in rows],
        "overlaps": [{"tasks": [one, two], "files": files} for one, two, files in overlaps],
    }
    run.out.result(data, text)


def _overlaps(run: Run, services: Services, tasks: list[Task], repository: Path) -> list[Overlap]:
    """Pairs that wait for neither and touch the same files; the knowledge graph knows which files globs stand for."""
    from avyay.engine.graph import ancestors
    from avyay.engine.overlap import globs_overlap

    touching = [task for task in tasks if task.files]
    if len(touching) < 2:
        return []
    above = ancestors({task.id: task.needs for task in tasks})
    try:
        expanded = {task.id: services.knowledge.expand(repository, task.files) for task in touching}
    except AvyayError as error:
        run.out.note(f"Files are compared by their globs alone: {error.message}")
        expanded = {}
    found: list[Overlap] = []
    for place, one in enumerate(touching):
        for two in touching[place + 1 :]:
            if one.id in above[two.id] or two.id in above[one.id]:
                continue
            files = sorted(set(expanded.get(one.id, ())) & set(expanded.get(two.id, ())))
            if not files and not (expanded.get(one.id) and expanded.get(two.id)):
                # Files that do not exist yet: only the globs can tell.
                files = [a for a in one.files if any(globs_overlap(a, b) for b in two.files)]
            if files:
                found.append((one.id, two.id, tuple(files)))
                if len(found) >= _MOST_PAIRS:
                    return found
    return found
