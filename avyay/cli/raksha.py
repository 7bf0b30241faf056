"""`avyay raksha`: the scanner's rules."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import UsageError

app = command_group("The scanner's rules and its advisory database.")
db = command_group("The local copy of known vulnerabilities.")
app.add_typer(db, name="db")


class Ecosystem(StrEnum):
    """Package registries with advisories."""

    PYPI = "PyPI"
    NPM = "npm"
    GO = "Go"


@command(app, results=True)
def rules(run: Run) -> None:
    """List every rule."""
    found = sorted(run.services.scanner.rules().values(), key=lambda rule: (rule.engine, rule.id))
    run.out.result(
        {
            "rules": [
                {
                    "id": rule.id,
                    "title": rule.title,
                    "severity": rule.severity,
                    "precision": rule.precision,
                    "category": rule.category,
                    "languages": list(rule.languages),
                    "cwe": list(rule.cwe),
                    "engine": rule.engine,
                    "repair": rule.repair,
                }
                for rule in found
            ]
        },
        lambda: run.out.table(
            ("Rule", "Severity", "Languages", "Finds"),
            [(rule.id, rule.severity, ", ".join(rule.languages) or "any", rule.title) for rule in found],
        ),
    )


@command(app, results=True)
def explain(
    run: Run, rule_id: Annotated[str, typer.Argument(metavar="ID", help="A rule's id, as a finding shows it.")]
) -> None:
    """Explain a rule: why, an example, the better way, what to do."""
    import difflib
    from dataclasses import asdict

    from avyay.raksha.reference import render_rule

    known = run.services.scanner.rules()
    rule = known.get(rule_id)
    if rule is None:
        close = difflib.get_close_matches(rule_id, known, n=1, cutoff=0.4)
        raise UsageError(
            f"There is no rule {rule_id!r}.",
            hint=f"Did you mean {close[0]!r}?" if close else "List them with: avyay raksha rules",
            code="unknown_rule",
        )
    run.out.result({"rule": asdict(rule)}, render_rule(rule))


@command(db, results=True)
def update(
    run: Run,
    ecosystem: Annotated[
        list[Ecosystem] | None, typer.Option("--ecosystem", help="Only these; repeat it. By default all.")
    ] = None,
) -> None:
    """Fetch the advisories of OSV; scans use them offline."""
    from avyay.raksha.build import advisories_file
    from avyay.raksha.sca.update import ECOSYSTEMS, update_database

    names = [name for name in ECOSYSTEMS if not ecosystem or Ecosystem(name) in ecosystem]
    file = advisories_file(run.loaded.paths)
    with run.out.progress("Fetching advisories") as progress:
        counts = update_database(
            file, ecosystems=names, source=run.loaded.settings.raksha.advisories_url, progress=progress
        )
    run.out.result(
        {"file": str(file), "advisories": counts},
        "\n".join(f"{name}: {count:,} advisories" for name, count in counts.items()),
    )


@command(db, results=True)
def show(run: Run) -> None:
    """Say how old the advisories are."""
    from avyay.raksha.build import advisories_file
    from avyay.raksha.sca.database import AdvisoryDatabase

    file = advisories_file(run.loaded.paths)
    database = AdvisoryDatabase(file)
    try:
        fetched = database.fetched()
    finally:
        database.close()
    run.out.result(
        {"file": str(file), "fetched": {name: at.isoformat() for name, at in fetched.items()}},
        "\n".join(f"{name}: fetched {at:%Y-%m-%d %H:%M} UTC" for name, at in sorted(fetched.items())),
    )
