"""`avyay mcp`: what the components offer, as tools for coding agents."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import UsageError

app = command_group("Serve tools to coding agents over MCP.")
app.info.no_args_is_help = False

DEFAULT_PORT = 8090


@command(app, results=True)
def mcp(
    run: Run,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[rag|raksha|marga|engine|config]", help="A component; by default all. config: see --client."
        ),
    ] = None,
    client: Annotated[
        str | None, typer.Option("--client", help="With config: claude-code, cursor, codex, vscode or openclaw.")
    ] = None,
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at /mcp instead of stdio.")] = False,
    host: Annotated[str, typer.Option("--host", help="With --http: the address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="With --http.")] = DEFAULT_PORT,
) -> None:
    """Run an MCP server on stdin and stdout, or print how to tell a client about it (avyay mcp config)."""
    if subject == "config":
        _print_config(run, client, url=f"http://{host}:{port}/mcp" if http else None)
        return
    if client is not None:
        raise UsageError("--client goes with: avyay mcp config")
    server = run.services.mcp_server([subject] if subject else None, host=host, port=port)
    if http:
        _check_port(host, port)
        run.out.note(f"MCP at http://{host}:{port}/mcp")
        server.run("streamable-http")
    else:
        server.run("stdio")


def _print_config(run: Run, client: str | None, *, url: str | None) -> None:
    from avyay.mcp_clients import CLIENTS, client_snippet

    program = [*_program(), "mcp"]
    names = [client] if client else list(CLIENTS)
    snippets = [client_snippet(name, program, url=url) for name in names]

    def show() -> None:
        for snippet in snippets:
            if len(snippets) > 1:
                run.out.line(f"# {snippet.client}")
            run.out.note(f"Put this into {snippet.file}" + (f", or run: {snippet.command}" if snippet.command else ":"))
            run.out.line(snippet.text)

    data = [{"client": one.client, "file": one.file, "text": one.text, "command": one.command} for one in snippets]
    run.out.result({"snippets": data}, show)


def _program() -> list[str]:
    """The installed `avyay`, by its full path: clients start servers with a PATH of their own."""
    beside = Path(sys.executable).with_name("avyay")
    return [str(beside)] if beside.is_file() else [sys.executable, "-m", "avyay"]


def _check_port(host: str, port: int) -> None:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"Cannot listen on {host}:{port}: {error.strerror}.", hint="Choose another with --port.", code="port"
            ) from error
