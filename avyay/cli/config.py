"""`avyay config`: what is set, where it was set, what could be set."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ConfigError, ExitCode, UsageError
from avyay.log import redact

app = command_group("Show settings with their origin; check them; print the schema.")


@command(app, results=True)
def show(
    run: Run,
    key: Annotated[str | None, typer.Argument(help="Only keys that start with this, for example marga.")] = None,
) -> None:
    """Print every setting with its value and where it came from."""
    rows = [row for row in run.loaded.rows() if key is None or row[0] == key or row[0].startswith(f"{key}.")]
    if key is not None and not rows:
        from difflib import get_close_matches

        names = [name for name, _, _ in run.loaded.rows()]
        sections = sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)} | set(names))
        close = get_close_matches(key, sections, n=1)
        raise UsageError(
            f"There is no key {key!r}.",
            hint=f"Did you mean {close[0]!r}?" if close else "See: avyay config show",
            code="unknown_key",
        )
    # A URL may hold a password, and this output is what people paste into reports.
    rows = [(name, redact(value) if isinstance(value, str) else value, origin) for name, value, origin in rows]
    settings = [{"key": name, "value": value, "origin": str(origin)} for name, value, origin in rows]
    files: dict[str, Any] = {
        "project_file": str(run.loaded.project_file) if run.loaded.project_file else None,
        "user_file": str(run.loaded.paths.user_config_file),
        "ignored": list(run.loaded.ignored),
    }
    run.out.result(
        {"settings": settings, **files},
        lambda: run.out.table(("Key", "Value", "Origin"), [(n, _brief(v), str(o)) for n, v, o in rows]),
    )


@command(app, results=True)
def check(run: Run) -> ExitCode:
    """Print everything that is wrong with the configuration, and what to do about it; exit 2 when something is."""
    from avyay.config.faults import Fault, FaultyConfigError
    from avyay.config.load import load_settings
    from avyay.serve.gateway.daemon import gateway_options

    faults: list[Fault] = []
    doubts: list[Fault] = []
    files: list[str] = []
    try:
        loaded = load_settings(config_file=run.config)
        doubts = list(loaded.doubts())
        files = sorted({origin.where.rpartition(":")[0] for origin in loaded.origins.values() if ":" in origin.where})
        gateway_options(loaded.settings.gateway)
    except FaultyConfigError as error:
        faults = list(error.faults)
    except ConfigError as error:
        faults = [Fault.of(error)]

    def shown(found: list[Fault]) -> list[dict[str, Any]]:
        return [{name: redact(str(text or "")) for name, text in asdict(fault).items()} for fault in found]

    def text() -> None:
        for title, found in (("", faults), ("Not sure: ", doubts)):
            for fault in found:
                run.out.line(redact(f"{title}{fault.sentence}\n  {fault.hint or ''}").rstrip())
        if not faults:
            run.out.line(f"The configuration can be used: {', '.join(files) or 'defaults and environment'}.")

    run.out.result({"ok": not faults, "problems": shown(faults), "doubts": shown(doubts), "files": files}, text)
    return ExitCode.USAGE if faults else ExitCode.OK


@command(app)
def schema(run: Run) -> None:
    """Print the JSON Schema of avyay.yaml, for your editor."""
    import json

    from avyay.config import Settings

    run.out.line(json.dumps(Settings.json_schema(), indent=2))


def _brief(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
