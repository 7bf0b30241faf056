"""`avyay engine`: the build engine's queue and its loop."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli import engine_generate as engine_generate  # these register their commands
from avyay.cli import engine_graph as engine_graph
from avyay.cli import engine_map as engine_map
from avyay.cli import engine_nodes as engine_nodes
from avyay.cli import engine_plan as engine_plan
from avyay.cli import engine_run as engine_run
from avyay.cli.command import Run, command
from avyay.cli.engine_app import app as app
from avyay.errors import UsageError, why_unreadable

if TYPE_CHECKING:
    from avyay.engine.types import Task

Name = Annotated[str, typer.Argument(metavar="TASK", help="The task's id.", show_default=False)]
Names = Annotated[list[str], typer.Argument(metavar="TASK", help="Ids of tasks.", show_default=False)]
Texts = list[str] | None


@command(app, results=True)
def add(
    run: Run,
    title: Annotated[str, typer.Argument(help="What is to be done, in one line.", show_default=False)],
    description: Annotated[str, typer.Option("--description", "-d", help="For the agent; - reads stdin.")] = "",
    accept: Annotated[str, typer.Option("--accept", help="The command that decides whether it is done.")] = "",
    needs: Annotated[Texts, typer.Option("--needs", help="A task that must be done before; repeat it.")] = None,
    files: Annotated[Texts, typer.Option("--files", help="A glob of files it will touch; repeat it.")] = None,
    requires: Annotated[Texts, typer.Option("--requires", help="What a node must offer; repeat it.")] = None,
    evidence: Annotated[Texts, typer.Option("--evidence", help="Where the need was seen: path:line.")] = None,
    priority: Annotated[int, typer.Option("--priority", "-p", help="Higher goes first.")] = 0,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Tries before it is given up.")] = 3,
    fingerprint: Annotated[str | None, typer.Option("--fingerprint", help="Add it only once.")] = None,
    approval: Annotated[bool, typer.Option("--approval", help="A person must approve it first.")] = False,
    agent: Annotated[str, typer.Option("--agent", help="The agent that shall do it.")] = "",
    allow: Annotated[Texts, typer.Option("--allow", help="May change tests, ci, locks, or a glob; repeat it.")] = None,
    repository: Annotated[str, typer.Option("--repository", help="Its repository: a configured name, or a path.")] = "",
    dollars: Annotated[float | None, typer.Option("--dollars", min=0, help="Its own cap.")] = None,
    turns: Annotated[int | None, typer.Option("--turns", min=1, help="Its own cap on answers of the model.")] = None,
    wall: Annotated[float | None, typer.Option("--wall", min=1, help="Its own cap on seconds.")] = None,
    name: Annotated[str | None, typer.Option("--id", help="Its id; by default made up.")] = None,
) -> None:
    """Add a task; prints its id."""
    from avyay.engine.types import NewTask

    if description == "-":
        description = sys.stdin.read()
    task = NewTask(
        title=title, description=description, accept=accept, needs=tuple(needs or ()), files=tuple(files or ()),
        requires=frozenset(requires or ()), evidence=tuple(evidence or ()), priority=priority, attempts=attempts,
        fingerprint=fingerprint, approval=approval, id=name, agent=agent, allow=frozenset(allow or ()),
        repository=repository,
        caps={
            key: repr(value) if key == "dollars" else value
            for key, value in (("dollars", dollars), ("turns", turns), ("wall", wall))
            if value is not None
        },
    )  # fmt: skip
    with run.services as services:
        (added,) = services.engine.add(services.settle_tasks([task]))
        found = services.engine.get(added)
        run.out.result(_data(found), added)
        if not found.accept and not services.settings.engine.verify.accept.strip():
            run.out.note(
                f"{added} has no acceptance command (--accept), and there is none for all tasks (engine.verify.accept):"
                " it will fail without being started."
            )


@command(app, "list", results=True)
def list_(
    run: Run,
    state: Annotated[Texts, typer.Option("--state", "-s", help="Only these states; repeat it.")] = None,
) -> None:
    """List tasks, oldest first."""
    from avyay.engine.types import STATES

    if unknown := [name for name in state or () if name not in STATES]:
        raise UsageError(f"There is no state {unknown[0]!r}.", hint=f"States: {', '.join(STATES)}.")
    with run.services as services:
        tasks = list(services.engine.tasks(*(state or ())))
        counts = services.engine.counts()
    run.out.result({"tasks": [_data(task) for task in tasks], "counts": counts}, lambda: _table(run, tasks, counts))


@command(app, results=True)
def show(run: Run, task: Name) -> None:
    """Tell a task's whole story."""
    from avyay.engine.narrate import narrate
    from avyay.engine.types import ACTIVE

    with run.services as services:
        found = services.engine.get(task)
        history = services.engine.history(task)
        output = services.paths.component("engine") / "attempts" / found.id / str(found.fence) / "output.log"
    data = {**_data(found), "history": [asdict(entry) for entry in history]}
    lines = narrate(found, history)
    if found.state in ACTIVE and output.is_file():
        lines.append(f"  what its agent says: {output}")
    run.out.result(data, "\n".join(lines))


@command(app, results=True)
def log(
    run: Run,
    after: Annotated[int | None, typer.Option("--after", help="What followed this entry; by default the last.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 100,
) -> None:
    """Print what happened to all tasks, oldest first."""
    from avyay.engine.narrate import moment

    with run.services as services:
        queue = services.engine
        history = queue.newest(limit)[::-1] if after is None else queue.history(after=after, limit=limit)

    def text() -> None:
        width = max((len(entry.task) for entry in history), default=0)
        for entry in history:
            step = f"{entry.before or '-'} -> {entry.after}" if entry.after else ""
            what = f"{entry.task:<{width}}  {entry.kind:<11}{step:<22}{entry.detail}"
            run.out.line(f"{entry.number:>6}  {moment(entry.at)}  {what}".rstrip())

    run.out.result({"history": [asdict(entry) for entry in history]}, text)


@command(app)
def cancel(run: Run, task: Names, reason: Annotated[str, typer.Option("--reason")] = "cancelled by hand") -> None:
    """End tasks; an agent at work on one loses its lease."""
    with run.services as services:
        for name in task:
            services.engine.cancel(name, reason)
            run.out.note(f"Cancelled {name}.")


@command(app)
def retry(run: Run, task: Names) -> None:
    """Give tasks that ended badly all their attempts again.

    One that waits for its next attempt, or was given back for a while, need not wait any longer.
    """
    with run.services as services:
        for name in task:
            services.engine.retry(name)
            run.out.note(f"{name} is {services.engine.get(name).state}.")


@command(app)
def approve(run: Run, task: Names) -> None:
    """Let tasks that asked for approval go on."""
    import getpass

    with run.services as services:
        for name in task:
            services.engine.approve(name, by=getpass.getuser())
            run.out.note(f"{name} is {services.engine.get(name).state}.")


@command(app, results=True)
def why(run: Run, task: Name) -> None:
    """Say why a task is not running, down to the root."""
    from avyay.engine.narrate import why as explain
    from avyay.engine.types import ACTIVE

    with run.services as services:
        active = services.engine.tasks(*ACTIVE)
        lines = explain(services.engine.get(task), services.engine.get, services.clock.now(), active)
    run.out.result({"task": task, "reasons": lines}, "\n".join(lines))


@command(app, "import", results=True)
def import_(run: Run, file: Annotated[Path, typer.Argument(help="A JSON list, or JSON lines; - reads stdin.")]) -> None:
    """Add the unfinished tasks of a JSON queue.

    All are added, or none.
    """
    from avyay.engine.exchange import read_tasks

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {file}: {why_unreadable(error)}.", hint="Name a JSON file.") from error
    with run.services as services:
        ids = services.engine.add(services.settle_tasks(read_tasks(text)))
    run.out.result({"added": ids}, f"{len(ids)} task{'' if len(ids) == 1 else 's'} added")


@command(app)
def export(run: Run) -> None:
    """Print all tasks as JSON, for `avyay engine import`."""
    import json

    from avyay.engine.exchange import export_tasks

    with run.services as services:
        run.out.line(json.dumps({"tasks": export_tasks(services.engine.tasks())}, indent=2, ensure_ascii=False))


def _data(task: Task) -> dict[str, Any]:
    return {**asdict(task), "requires": sorted(task.requires), "allow": sorted(task.allow)}


def _table(run: Run, tasks: list[Task], counts: dict[str, int]) -> None:
    if tasks:
        several = len({task.repository for task in tasks}) > 1
        place = ("Repository",) if several else ()
        rows = [
            (t.id, t.state, t.priority, *([Path(t.repository).name] if several else []), t.title, t.reason)
            for t in tasks
        ]
        run.out.table(("Id", "State", "Prio", *place, "Title", "Reason"), rows)
    run.out.line(", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "The queue is empty.")


_ORDER = (
    "add", "run", "list", "show", "why", "log", "graph", "approve", "cancel", "retry", "generate", "plan", "map",
    "nodes", "doctor", "import", "export",
)  # fmt: skip
app.registered_commands.sort(key=lambda item: _ORDER.index(item.name or getattr(item.callback, "__name__", "")))
