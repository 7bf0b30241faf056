"""`avyay tailnet`: the daemons of the other machines of a tailnet."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode

app = command_group("The tailnet: which peers run daemons, asked just now.")


@app.callback()
def tailnet() -> None:
    """The tailnet."""


@command(app, results=True)
def peers(
    run: Run,
    name: Annotated[list[str] | None, typer.Argument(help="Peers by name; by default all.", show_default=False)] = None,
    port: Annotated[
        list[int] | None, typer.Option("--port", min=1, max=65535, help="Ports to ask; by default the gateway's.")
    ] = None,
) -> ExitCode | None:
    """Ask peers for their health. What tailscale says of them may be stale; this is how they answer now."""
    from avyay.tailnet import find_peer, probe_peers, read_tailnet

    found = read_tailnet()
    chosen = [find_peer(one, found) for one in name] if name else list(found.peers)
    probes = probe_peers(chosen, port or [8080])
    rows = [
        (one.peer.name, one.url, "yes" if one.peer.online else "no", one.status or "-", one.component, one.problem)
        for one in probes
    ]
    run.out.result(
        {"peers": [{**asdict(one), "answers": not one.problem} for one in probes]},
        lambda: run.out.table(("Peer", "URL", "Online", "Health", "Component", "Problem"), rows),
    )
    return ExitCode.DEPENDENCY if name and any(one.problem for one in probes) else None
