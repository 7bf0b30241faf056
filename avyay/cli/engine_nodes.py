"""`avyay engine nodes`: the machines that work on tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.command import Run, command
from avyay.cli.engine_app import app
from avyay.errors import AvyayError, UsageError
from avyay.ports import Event

if TYPE_CHECKING:
    from avyay.engine.nodes.base import Node

_ACTIONS = ("list", "drain", "resume")


@command(app, results=True)
def nodes(
    run: Run,
    action: Annotated[str, typer.Argument(metavar="[list|drain|resume]", help="What to do.")] = "list",
    name: Annotated[str | None, typer.Argument(metavar="[NODE]", help="The node to drain or resume.")] = None,
) -> None:
    """List the nodes; drain one, or resume it.

    A drained node gets no new tasks; what runs on it goes on.
    """
    if action not in _ACTIONS:
        raise UsageError(f"{action!r} is nothing to do with nodes.", hint=f"Say {', '.join(_ACTIONS)}.")
    with run.services as services:
        found = {node.name: node for node in services.engine_nodes()}
        if action == "list":
            rows = [_look(node) for node in found.values()]
            run.out.result({"nodes": rows}, lambda: _table(run, rows))
            return
        if name not in found:
            raise UsageError(f"There is no node {name!r}.", hint=f"Nodes are: {', '.join(found)}.")
        note = found[name].drain_note
        if note is None:
            raise UsageError(f"{name} cannot be drained.", hint="Set drain in its settings.")
        if action == "drain":
            note.touch()
        else:
            note.unlink(missing_ok=True)
        services.events.publish_now(
            Event(f"engine.node.{'drained' if action == 'drain' else 'resumed'}", {"node": name})
        )
    state = "drained" if action == "drain" else "active"
    run.out.result({"node": name, "state": state}, f"{name} is {state}.")


def _look(node: Node) -> dict[str, Any]:
    try:
        offers, problem = sorted(node.capabilities()), ""
        state = "drained" if node.drained() or node.slots == 0 else "idle" if node.ready() else "busy"
    except AvyayError as error:
        offers, problem, state = [], error.message, "away"
    return {"node": node.name, "state": state, "slots": node.slots, "offers": offers, "problem": problem}


def _table(run: Run, rows: list[dict[str, Any]]) -> None:
    shown = [(r["node"], r["state"], r["slots"], r["problem"] or ", ".join(r["offers"])) for r in rows]
    run.out.table(("Node", "State", "Slots", "Offers"), shown)
