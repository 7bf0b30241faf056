"""`@daemon`: what every `avyay serve` command shares: where it listens, how many processes, the tailnet, its unit.

    @daemon(app)
    def rag(run: Run) -> Daemon:
        \"\"\"Runbook answers.\"\"\"
        from avyay.serve.rag import rag_daemon

        return rag_daemon()

The decorator adds the options, hands the function its own ones, and launches what it returns.
"""

from __future__ import annotations

import functools
import inspect
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from avyay.serve.launch import Daemon
    from avyay.wiring import Services

__all__ = ["Reload", "Unit", "UserUnit", "WorkerCount", "arguments_of", "daemon", "print_unit"]

Host = Annotated[str | None, typer.Option("--host", help="Address to bind; by default 127.0.0.1.")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; by default the daemon's own.")
]
WorkerCount = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=64, help="Processes that serve; by default as configured, else 1."),
]
Tailnet = Annotated[bool, typer.Option("--tailnet", help="Bind this machine's tailscale address and no other.")]
Published = Annotated[
    bool, typer.Option("--tailscale-serve", help="Bind loopback, and publish it through `tailscale serve`.")
]
Reload = Annotated[bool, typer.Option("--reload-config", help="Read the configuration anew on SIGHUP.")]
Unit = Annotated[bool, typer.Option("--print-unit", help="Print a systemd unit for this command, and run nothing.")]
UserUnit = Annotated[bool, typer.Option("--user-unit", help="With --print-unit: for systemctl --user.")]
Tether = Annotated[int | None, typer.Option("--tether", hidden=True)]
WorkerOf = Annotated[Path | None, typer.Option("--worker-of", hidden=True)]
ListenFd = Annotated[list[int] | None, typer.Option("--listen-fd", hidden=True)]


@dataclass(frozen=True)
class _Asked:
    """What the options say that all daemons have."""

    host: Host = None
    port: Port = None
    workers: WorkerCount = None
    tailnet: Tailnet = False
    published: Published = False
    reload_config: Reload = False
    print_unit: Unit = False
    user_unit: UserUnit = False
    tether: Tether = None
    worker_of: WorkerOf = None
    listen_fd: ListenFd = None


_COMMON = {field.name: field.default for field in fields(_Asked)}


def daemon(app: typer.Typer) -> Callable[[Callable[..., Daemon]], Callable[..., Daemon]]:
    """Register a function that makes a `Daemon` as a command of `app` that runs it."""

    def decorate(function: Callable[..., Daemon]) -> Callable[..., Daemon]:
        # What it returns is a type of modules that stay unloaded until a daemon runs.
        function.__annotations__.pop("return", None)
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        hints = inspect.get_annotations(_Asked, eval_str=True)

        @functools.wraps(function)
        def wrapper(run: Run, **values: Any) -> ExitCode | None:
            asked = _Asked(**{name: values.pop(name) for name in _COMMON})
            if asked.print_unit:
                print_unit(run, function.__name__, asked.user_unit)
                return None
            return _run(run, asked, lambda: function(run, **values))

        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
            for name, default in _COMMON.items()
        ]
        kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own[1:]]
        wrapper.__signature__ = inspect.Signature([own[0], *added[:3], *kept, *added[3:]])  # type: ignore[attr-defined]
        command(app)(wrapper)
        return function

    return decorate


def _run(run: Run, asked: _Asked, make: Callable[[], Daemon]) -> ExitCode | None:
    from avyay.serve.launch import Launch, Worker, launch

    if asked.tether is not None:
        from avyay.serve.tether import tether

        tether(asked.tether)
    load = _loader(run, asked) if asked.reload_config else None
    if asked.worker_of is not None:
        if asked.published:
            _publish(run.services)
        worker = Worker(asked.worker_of, tuple(asked.listen_fd or ()))
        how = Launch(asked.host, reload=load, worker=worker)
        return _code(launch(run.services, make(), how))
    host = _host(run.services, asked)
    made = make()

    def bound(url: str) -> None:
        run.out.note(f"{made.title} listens on {url} ({made.about})")

    arguments = [*arguments_of(run), *(["--tailscale-serve"] if asked.published else [])]
    arguments += ["--reload-config"] if asked.reload_config else []
    how = Launch(host, asked.port, asked.workers, load, bound, tuple(arguments))
    return _code(launch(run.services, made, how))


def _code(code: int) -> ExitCode | None:
    return ExitCode(code) if code else None


def arguments_of(run: Run) -> list[str]:
    """What a process started for this one gets of its command line."""
    return [*([] if run.config is None else ["--config", str(run.config)]), *["-v"] * run.verbose]


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


def print_unit(run: Run, name: str, user_unit: bool) -> None:
    """Print a systemd unit for the command line that is running."""
    from avyay.serve.unit import systemd_unit

    program = shutil.which("avyay")
    words = [arg for arg in sys.argv[1:] if arg not in ("--print-unit", "--user-unit")]
    if "--reload-config" not in words and not ("--run" in words and name == "engine"):
        words.append("--reload-config")
    start = [str(Path(program).absolute())] if program else [sys.executable, "-m", "avyay"]
    home = run.loaded.environment.value("AVYAY_HOME")
    patience = run.loaded.settings.serve.worker_timeout
    text = systemd_unit(name, [*start, *words], run.loaded.paths, home=home, user_unit=user_unit, patience=patience)
    run.out.write(text)
