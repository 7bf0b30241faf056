"""`avyay serve`: a component as a daemon."""

from __future__ import annotations

from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command

app = command_group("Run a component as a daemon: marga, rag.")


@app.callback()
def serve() -> None:
    """Run a component as a daemon."""


@command(app)
def marga(
    run: Run,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default 8081.")
    ] = None,
) -> None:
    """The router: one endpoint for OpenAI, Anthropic and Ollama clients."""
    from avyay.serve.marga import DEFAULT_PORT, serve_marga

    services = run.services
    shown = port if port is not None else services.settings.serve.port or DEFAULT_PORT
    run.out.note(f"MARGA listens on http://{host or services.settings.serve.host}:{shown} (health: /health)")
    serve_marga(services, host=host, port=port)


@command(app)
def rag(
    run: Run,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default 8082.")
    ] = None,
) -> None:
    """Runbook answers: HTTP API, MCP at /mcp, push webhooks, an index that keeps itself fresh."""
    from avyay.serve.rag import DEFAULT_PORT, serve_rag

    services = run.services
    shown = port if port is not None else services.settings.serve.port or DEFAULT_PORT
    run.out.note(f"RAG listens on http://{host or services.settings.serve.host}:{shown} (health: /health, MCP: /mcp)")
    serve_rag(services, host=host, port=port)
