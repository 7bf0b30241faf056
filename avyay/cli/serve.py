"""`avyay serve`: a component as a daemon, or all of them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from avyay.serve.launch import Launch
    from avyay.wiring import Services

app = command_group("Run a component as a daemon: gateway, marga, rag, raksha, siddhi, engine; or all of them.")

Host = Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default the daemon's own.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes that serve.")]
Tailnet = Annotated[bool, typer.Option("--tailnet", help="Bind this machine's tailscale address and no other.")]
Published = Annotated[
    bool, typer.Option("--tailscale-serve", help="Bind loopback, and publish it through `tailscale serve`.")
]
Reload = Annotated[bool, typer.Option("--reload-config", help="Read the configuration anew on SIGHUP.")]
Unit = Annotated[bool, typer.Option("--print-unit", help="Print a systemd unit for this command, and run nothing.")]
UserUnit = Annotated[bool, typer.Option("--user-unit", help="With --print-unit: for systemctl --user.")]
FirstKey = Annotated[
    bool, typer.Option("--first-key", help="Where there is no API key yet, make one and print it, this once.")
]
Tether = Annotated[int | None, typer.Option("--tether", hidden=True)]
WorkerOf = Annotated[Path | None, typer.Option("--worker-of", hidden=True)]
ListenFd = Annotated[int | None, typer.Option("--listen-fd", hidden=True)]


@app.callback()
def serve() -> None:
    """Run a component as a daemon."""


@dataclass(frozen=True)
class _Asked:
    """What the options say that all daemons have."""

    host: str | None
    port: int | None
    tailnet: bool
    published: bool
    reload: bool
    unit: bool
    user_unit: bool
    tether: int | None


def _start(run: Run, name: str, title: str, about: str, asked: _Asked) -> Launch | None:
    """How to launch; None when only a unit was to be printed."""
    from avyay.serve.launch import Launch

    if asked.unit:
        _print_unit(run, name, asked.user_unit)
        return None
    if asked.tether is not None:
        from avyay.serve.tether import tether

        tether(asked.tether)
    host = _host(run.services, asked)

    def bound(url: str) -> None:
        run.out.note(f"{title} listens on {url} ({about})")

    return Launch(host, asked.port, _loader(run, asked) if asked.reload else None, bound)


def _host(services: Services, asked: _Asked) -> str | None:
    """The address to bind, after a look at the tailnet where it is wanted."""
    if asked.tailnet and (asked.published or asked.host is not None):
        raise UsageError("--tailnet excludes --host and --tailscale-serve.", hint="Name one of them.")
    if asked.tailnet:
        from avyay.tailnet import tailnet_address

        return tailnet_address()
    if asked.published:
        if asked.host is not None:
            raise UsageError("--tailscale-serve binds loopback: leave --host out.")
        _publish(services)
        return "127.0.0.1"
    return asked.host


def _publish(services: Services) -> None:
    serving = services.settings.serve.model_copy(update={"tailscale_serve": True})
    services.settings = services.settings.model_copy(update={"serve": serving})


def _loader(run: Run, asked: _Asked) -> Callable[[], Services]:
    def load() -> Services:
        from avyay.wiring import open_services

        services = open_services(config_file=run.config)
        if asked.published:
            _publish(services)
        return services

    return load


def _print_unit(run: Run, name: str, user_unit: bool) -> None:
    from avyay.serve.unit import systemd_unit

    program = shutil.which("avyay")
    words = [arg for arg in sys.argv[1:] if arg not in ("--print-unit", "--user-unit")]
    if "--reload-config" not in words and "--run" not in words:
        words.append("--reload-config")
    start = [str(Path(program).absolute())] if program else [sys.executable, "-m", "avyay"]
    home = run.loaded.environment.value("AVYAY_HOME")
    text = systemd_unit(name, [*start, *words], run.loaded.paths, home=home, user_unit=user_unit)
    run.out.write(text)


@command(app)
def gateway(
    run: Run,
    host: Host = None,
    port: Port = None,
    workers: Workers = 1,
    first_key: FirstKey = False,
    tailnet: Tailnet = False,
    published: Published = False,
    reload_config: Reload = False,
    print_unit: Unit = False,
    user_unit: UserUnit = False,
    tether: Tether = None,
    worker_of: WorkerOf = None,
    listen_fd: ListenFd = None,
) -> None:
    """The one door in front of all components: keys, limits, usage. Port 8080."""
    from avyay.serve.gateway.daemon import serve_gateway, serve_worker

    if worker_of is not None and listen_fd is not None:
        serve_worker(run.services, owner=worker_of, listen_fd=listen_fd)
        return
    _alone(workers, reload_config, published)
    if first_key and not print_unit:
        _show_first_key(run)
    asked = _Asked(host, port, tailnet, published, reload_config, print_unit, user_unit, tether)
    if (how := _start(run, "gateway", "The gateway", "health: /health", asked)) is not None:
        serve_gateway(run.services, how, workers=workers, arguments=_config(run))


@command(app)
def marga(
    run: Run,
    host: Host = None,
    port: Port = None,
    workers: Workers = 1,
    tailnet: Tailnet = False,
    published: Published = False,
    reload_config: Reload = False,
    print_unit: Unit = False,
    user_unit: UserUnit = False,
    tether: Tether = None,
    worker_of: WorkerOf = None,
    listen_fd: ListenFd = None,
) -> None:
    """The router: one endpoint for OpenAI, Anthropic and Ollama clients. Port 8081."""
    from avyay.serve.marga import serve_marga, serve_worker

    if worker_of is not None and listen_fd is not None:
        serve_worker(run.services, owner=worker_of, listen_fd=listen_fd)
        return
    _alone(workers, reload_config, published)
    asked = _Asked(host, port, tailnet, published, reload_config, print_unit, user_unit, tether)
    if (how := _start(run, "marga", "MARGA", "health: /health", asked)) is not None:
        serve_marga(run.services, how, workers=workers, arguments=_config(run))


@command(app)
def rag(
    run: Run,
    host: Host = None,
    port: Port = None,
    tailnet: Tailnet = False,
    published: Published = False,
    reload_config: Reload = False,
    print_unit: Unit = False,
    user_unit: UserUnit = False,
    tether: Tether = None,
) -> None:
    """Runbook answers: HTTP API, MCP at /mcp, push webhooks, an index that keeps itself fresh. Port 8082."""
    from avyay.serve.rag import serve_rag

    asked = _Asked(host, port, tailnet, published, reload_config, print_unit, user_unit, tether)
    if (how := _start(run, "rag", "RAG", "health: /health, MCP: /mcp", asked)) is not None:
        serve_rag(run.services, how)


@command(app)
def raksha(
    run: Run,
    host: Host = None,
    port: Port = None,
    tailnet: Tailnet = False,
    published: Published = False,
    reload_config: Reload = False,
    print_unit: Unit = False,
    user_unit: UserUnit = False,
    tether: Tether = None,
) -> None:
    """The scanner: code in, SARIF out. Port 8083."""
    from avyay.serve.raksha import serve_raksha

    asked = _Asked(host, port, tailnet, published, reload_config, print_unit, user_unit, tether)
    if (how := _start(run, "raksha", "RAKSHA", "health: /health", asked)) is not None:
        serve_raksha(run.services, how)


@command(app)
def siddhi(
    run: Run,
    host: Host = None,
    port: Port = None,
    collector_port: Annotated[
        int, typer.Option("--collector-port", min=0, max=65535, help="Port of the public collector.")
    ] = 8085,
    collector: Annotated[bool, typer.Option("--collector/--no-collector", help="Run the collector as well.")] = True,
    tailnet: Tailnet = False,
    published: Published = False,
    reload_config: Reload = False,
    print_unit: Unit = False,
    user_unit: UserUnit = False,
    tether: Tether = None,
) -> None:
    """Hypotheses, runs, budget and a board, port 8084; and on a port of its own the collector that pages report to."""
    from avyay.serve.siddhi import serve_siddhi

    asked = _Asked(host, port, tailnet, published, reload_config, print_unit, user_unit, tether)
    public = f", collector: port {collector_port}" if collector else ""
    if (how := _start(run, "siddhi", "SIDDHI", f"health: /health, board: /{public}", asked)) is not None:
        serve_siddhi(run.services, how, collector_port=collector_port if collector else None)


@command(app)
def engine(
    run: Run,
    host: Host = None,
    port: Port = None,
    dispatch: Annotated[
        bool, typer.Option("--run", help="Also give tasks to agents, as avyay engine run does.")
    ] = False,
    tailnet: Tailnet = False,
    published: Published = False,
    reload_config: Reload = False,
    print_unit: Unit = False,
    user_unit: UserUnit = False,
    tether: Tether = None,
) -> None:
    """The build engine's queue: tasks, their stories, a board; with --run also the loop. Port 8086."""
    from avyay.serve.engine import serve_engine

    if dispatch and reload_config:
        raise UsageError("--run and --reload-config exclude each other.", hint="Restart it: tasks are given back.")
    asked = _Asked(host, port, tailnet, published, reload_config, print_unit, user_unit, tether)
    if (how := _start(run, "engine", "ENGINE", "health: /health, board: /", asked)) is not None:
        serve_engine(run.services, how, run=dispatch)


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
    first_key: FirstKey = False,
    reload_config: Reload = False,
    print_unit: Unit = False,
    user_unit: UserUnit = False,
) -> ExitCode | None:
    """Everything on this machine: the gateway in front, the rest on loopback; what dies is started again."""
    from avyay.serve.tree import COMPONENTS, Tree, members

    if print_unit:
        _print_unit(run, "all", user_unit)
        return None
    upstreams = run.loaded.settings.gateway.upstreams
    remote = [name for name in COMPONENTS if getattr(upstreams, name).url is not None]
    for name in remote:
        run.out.note(f"{name} is not run here: gateway.upstreams.{name}.url names another.")
    family = members(
        _ports(ports),
        gateway=port,
        host=host or run.loaded.settings.serve.host,
        without=without or (),
        collector=collector_port,
        remote=remote,
        arguments=[*_config(run), *(["--reload-config"] if reload_config else [])],
    )
    if first_key:
        _show_first_key(run)
    code = Tree(family, reload=reload_config).run()
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


def _config(run: Run) -> tuple[str, ...]:
    return () if run.config is None else ("--config", str(run.config))


def _alone(workers: int, reload_config: bool, published: bool) -> None:
    if workers > 1 and (reload_config or published):
        raise UsageError(
            "--reload-config and --tailscale-serve work with one worker.", hint="Restart it, or leave --workers out."
        )
