"""`avyay serve`: a component as a daemon, or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.cli.daemon import Reload, Unit, UserUnit, WorkerCount, arguments_of, daemon, print_unit
from avyay.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from avyay.serve.launch import Daemon

app = command_group("Run a component as a daemon: gateway, marga, rag, raksha, siddhi, engine; or all of them.")

FirstKey = Annotated[
    bool, typer.Option("--first-key", help="Where there is no API key yet, make one and print it, this once.")
]


@app.callback()
def serve() -> None:
    """Run a component as a daemon."""


@daemon(app)
def gateway(run: Run, first_key: FirstKey = False) -> Daemon:
    """The one door in front of all components: keys, limits, usage. Port 8080."""
    from avyay.serve.gateway.daemon import gateway_daemon

    if first_key:
        _show_first_key(run)
    return gateway_daemon()


@daemon(app)
def marga(run: Run) -> Daemon:
    """The router: one endpoint for OpenAI, Anthropic and Ollama clients. Port 8081."""
    from avyay.serve.marga import marga_daemon

    return marga_daemon()


@daemon(app)
def rag(run: Run) -> Daemon:
    """Runbook answers: HTTP API, MCP at /mcp, push webhooks, an index that keeps itself fresh. Port 8082."""
    from avyay.serve.rag import rag_daemon

    return rag_daemon()


@daemon(app)
def raksha(run: Run) -> Daemon:
    """The scanner: code in, SARIF out. Port 8083."""
    from avyay.serve.raksha import raksha_daemon

    return raksha_daemon()


@daemon(app)
def siddhi(
    run: Run,
    collector_port: Annotated[
        int, typer.Option("--collector-port", min=0, max=65535, help="Port of the public collector.")
    ] = 8085,
    collector: Annotated[bool, typer.Option("--collector/--no-collector", help="Run the collector as well.")] = True,
) -> Daemon:
    """Hypotheses, runs, budget and a board, port 8084; and on a port of its own the collector that pages report to."""
    from avyay.serve.siddhi import siddhi_daemon

    return siddhi_daemon(collector_port if collector else None)


@daemon(app)
def engine(
    run: Run,
    dispatch: Annotated[
        bool, typer.Option("--run", help="Also give tasks to agents, as avyay engine run does.")
    ] = False,
) -> Daemon:
    """The build engine's queue: tasks, their stories, a board; with --run also the loop. Port 8086."""
    from avyay.serve.engine import engine_daemon

    return engine_daemon(run=dispatch)


@command(app, "all")
def all_(
    run: Run,
    host: Annotated[str | None, typer.Option("--host", help="Address of the gateway; the rest is on loopback.")] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the gateway.")] = 8080,
    ports: Annotated[str, typer.Option("--ports", help="Ports of components: marga=9081,rag=9082.")] = "",
    collector_port: Annotated[
        int, typer.Option("--collector-port", min=1, max=65535, help="Port of SIDDHI's public collector.")
    ] = 8085,
    without: Annotated[list[str] | None, typer.Option("--without", help="Leave a component out; repeat it.")] = None,
    workers: WorkerCount = None,
    dispatch: Annotated[
        bool, typer.Option("--run", help="Have the engine give tasks to agents, for the repository of this folder.")
    ] = False,
    first_key: FirstKey = False,
    reload_config: Reload = False,
    unit: Unit = False,
    user_unit: UserUnit = False,
) -> ExitCode | None:
    """Everything on this machine: the gateway in front, the rest on loopback; what dies is started again."""
    from avyay.config import load_settings
    from avyay.serve.notify import service_manager
    from avyay.serve.tree import COMPONENTS, Tree, check_ports, check_shared, members

    if unit:
        print_unit(run, "all", user_unit)
        return None
    upstreams = run.loaded.settings.gateway.upstreams
    remote = [name for name in COMPONENTS if getattr(upstreams, name).url is not None]
    for name in remote:
        run.out.note(f"{name} is not run here: gateway.upstreams.{name}.url names another.")
    arguments = [*arguments_of(run), *([] if workers is None else ["--workers", str(workers)])]
    address = host or run.loaded.settings.serve.host
    family = members(
        _ports(ports),
        gateway=port,
        host=address,
        without=without or (),
        collector=collector_port,
        remote=remote,
        arguments=arguments,
        reload=reload_config,
        dispatch=dispatch,
    )
    check_shared(run.loaded)
    check_ports(family, address, collector_port)
    if first_key:
        _show_first_key(run)
    patience = run.loaded.settings.serve.worker_timeout
    manager = service_manager(run.loaded.environment)

    def up(status: str) -> None:
        run.out.note(f"{status} The gateway's console: http://{f'[{address}]' if ':' in address else address}:{port}/")

    def reload() -> None:
        check_shared(load_settings(config_file=run.config))

    code = Tree(family, reload=reload if reload_config else None, patience=patience, manager=manager, up=up).run()
    return ExitCode(code) if code else None


def _show_first_key(run: Run) -> None:
    from avyay.serve.gateway.daemon import make_first_key

    if (secret := make_first_key(run.services)) is not None:
        run.out.write(f"The first API key, shown this once: {secret}\n")


def _ports(text: str) -> dict[str, int]:
    found = {}
    for part in text.split(",") if text else ():
        name, _, number = part.partition("=")
        if not number.isdecimal() or not 1 <= int(number) <= 65535:
            raise UsageError(f"{part!r} is no port of a component.", hint="For example: --ports marga=9081,rag=9082")
        found[name.strip()] = int(number)
    return found
