"""`@command`: what every command shares, so that a command's own code is only its own.

    app = command_group("Runbook indexes.")

    @command(app, results=True)
    def sources(run: Run) -> ExitCode | None:
        \"\"\"List the indexed sources.\"\"\"
        run.out.result(...)

The decorator adds `--config --quiet -v --no-color` (and `--json` when the command prints results) and hands in a `Run`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from typer.models import OptionInfo

from avyay.cli.output import Output

if TYPE_CHECKING:
    from avyay.config import Loaded
    from avyay.wiring import Services

__all__ = ["Run", "command"]

Config = Annotated[Path | None, typer.Option("--config", help="Use this configuration file.", metavar="FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for debug logs.", show_default=False)
]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours (also: NO_COLOR=1).")]


class Run:
    """One invocation: its output, its settings and its services, each made when first used."""

    def __init__(self, out: Output, config: Path | None = None, verbose: int = 0) -> None:
        self.out = out
        self._config = config
        self._verbose = verbose

    @property
    def config(self) -> Path | None:
        """What `--config` named."""
        return self._config

    @property
    def verbose(self) -> int:
        """How often `-v` was given."""
        return self._verbose

    @cached_property
    def loaded(self) -> Loaded:
        """The configuration of this run; logging is set up with it."""
        from avyay.config import load_settings
        from avyay.log import configure_logging

        loaded = load_settings(config_file=self._config)
        log = loaded.settings.log
        level = "debug" if self._verbose > 1 else "info" if self._verbose else log.level
        configure_logging(level, json=None if log.format == "auto" else log.format == "json")
        if loaded.ignored:
            more = f" and {len(loaded.ignored) - 1} more" if len(loaded.ignored) > 1 else ""
            self.out.note(f"Ignored until you run `avyay trust`: {loaded.ignored[0]}{more}")
            for ignored in loaded.ignored[1:]:
                self.out.detail(f"Ignored as well: {ignored}")
        for name in loaded.unknown_variables:
            self.out.note(f"Unknown environment variable {name}: see `avyay config show`.")
        return loaded

    @cached_property
    def services(self) -> Services:
        """The composition root."""
        from avyay.wiring import Services

        return Services(self.loaded)

    def close(self) -> None:
        """Let go of the services, if any were made: what they hold in memory, such as events, is written."""
        if "services" in self.__dict__:
            self.services.close()


def command(
    app: typer.Typer, name: str | None = None, *, results: bool = False, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function whose first parameter is a `Run` as a command of `app`.

    Args:
        results: The command prints data, so it also takes `--json`.
        options: Passed on to typer.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        for parameter in own:
            _name_values(parameter.annotation)
        shared: dict[str, Any] = {"config": Config, "quiet": Quiet, "verbose": Verbose, "no_color": NoColor}
        if results:
            shared = {"as_json": Json, **shared}

        @functools.wraps(function)
        def wrapper(*args: Any, **values: Any) -> Any:
            given = {name: values.pop(name) for name in shared}
            out = Output(
                json=given.get("as_json", False),
                quiet=given["quiet"],
                verbose=given["verbose"],
                color=False if given["no_color"] else None,
            )
            run = Run(out, given["config"], given["verbose"])
            try:
                return function(run, *args, **values)
            finally:
                run.close()

        defaults = {"config": None, "verbose": 0}
        added = [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(key, False), annotation=annotation
            )
            for key, annotation in shared.items()
        ]
        kept = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        wrapper.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
        del wrapper.__wrapped__  # typing would look for the annotations behind it
        app.command(name, **options)(wrapper)
        return function

    return decorate


_VALUES = {str: "TEXT", int: "N", float: "NUMBER", Path: "PATH"}


def _name_values(annotation: Any) -> None:
    """Let the help page say `--exclude TEXT`, as it says `--config FILE`, where typer would print Python's types."""
    if get_origin(annotation) is not Annotated:
        return
    kind, *details = get_args(annotation)
    while get_origin(kind) in (UnionType, Union, list):
        kind = next(inner for inner in get_args(kind) if inner is not NoneType)
    for detail in details:
        if isinstance(detail, OptionInfo) and detail.metavar is None and not detail.count:
            words = [str(one.value) for one in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []
            detail.metavar = "|".join(words) or _VALUES.get(kind)
