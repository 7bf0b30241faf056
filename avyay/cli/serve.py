"""`avyay serve`: a component as a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command

app = command_group("Run a component as a daemon: gateway, marga, rag, raksha, siddhi, engine.")


@app.callback()
def serve() -> None:
    """Run a component as a daemon."""


@command(app)
def gateway(
    run: Run,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default 8080.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes that serve.")] = 1,
    worker_of: Annotated[Path | None, typer.Option("--worker-of", hidden=True)] = None,
    listen_fd: Annotated[int | None, typer.Option("--listen-fd", hidden=True)] = None,
) -> None:
    """The one door in front of all components: keys, limits, usage."""
    from avyay.serve.gateway.daemon import DEFAULT_PORT, serve_gateway, serve_worker

    services = run.services
    if worker_of is not None and listen_fd is not None:
        serve_worker(services, owner=worker_of, listen_fd=listen_fd)
        return
    shown = port if port is not None else services.settings.serve.port or DEFAULT_PORT
    run.out.note(f"The gateway listens on http://{host or services.settings.serve.host}:{shown} (health: /health)")
    arguments = () if run.config is None else ("--config", str(run.config))
    serve_gateway(services, host=host, port=port, workers=workers, arguments=arguments)


@command(app)
def marga(
    run: Run,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default 8081.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes that serve.")] = 1,
    worker_of: Annotated[Path | None, typer.Option("--worker-of", hidden=True)] = None,
    listen_fd: Annotated[int | None, typer.Option("--listen-fd", hidden=True)] = None,
) -> None:
    """The router: one endpoint for OpenAI, Anthropic and Ollama clients."""
    from avyay.serve.marga import DEFAULT_PORT, serve_marga, serve_worker

    services = run.services
    if worker_of is not None and listen_fd is not None:
        serve_worker(services, owner=worker_of, listen_fd=listen_fd)
        return
    shown = port if port is not None else services.settings.serve.port or DEFAULT_PORT
    run.out.note(f"MARGA listens on http://{host or services.settings.serve.host}:{shown} (health: /health)")
    arguments = () if run.config is None else ("--config", str(run.config))
    serve_marga(services, host=host, port=port, workers=workers, arguments=arguments)


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


@command(app)
def raksha(
    run: Run,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default 8083.")
    ] = None,
) -> None:
    """The scanner: code in, SARIF out."""
    from avyay.serve.raksha import DEFAULT_PORT, serve_raksha

    services = run.services
    shown = port if port is not None else services.settings.serve.port or DEFAULT_PORT
    run.out.note(f"RAKSHA listens on http://{host or services.settings.serve.host}:{shown} (health: /health)")
    serve_raksha(services, host=host, port=port)


@command(app)
def siddhi(
    run: Run,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default 8084.")
    ] = None,
    collector_port: Annotated[
        int, typer.Option("--collector-port", min=0, max=65535, help="Port of the public collector.")
    ] = 8085,
    collector: Annotated[bool, typer.Option("--collector/--no-collector", help="Run the collector as well.")] = True,
) -> None:
    """Hypotheses, runs, budget and a board; and on a port of its own the collector that pages report to."""
    from avyay.serve.siddhi import DEFAULT_PORT, serve_siddhi

    services = run.services
    where = host or services.settings.serve.host
    shown = port if port is not None else services.settings.serve.port or DEFAULT_PORT
    public = f", collector on port {collector_port}" if collector else ""
    run.out.note(f"SIDDHI listens on http://{where}:{shown} (health: /health, board: /{public})")
    serve_siddhi(services, host=host, port=port, collector_port=collector_port if collector else None)


@command(app)
def engine(
    run: Run,
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default 8086.")
    ] = None,
) -> None:
    """The build engine's queue: tasks, their stories, a board."""
    from avyay.serve.engine import DEFAULT_PORT, serve_engine

    services = run.services
    shown = port if port is not None else services.settings.serve.port or DEFAULT_PORT
    run.out.note(f"ENGINE listens on http://{host or services.settings.serve.host}:{shown} (health: /health, board: /)")
    serve_engine(services, host=host, port=port)
