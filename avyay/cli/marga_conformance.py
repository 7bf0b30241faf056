"""`avyay marga conformance`: a gateway judged from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.command import Run, command
from avyay.errors import ExitCode

if TYPE_CHECKING:
    from avyay.marga.conformance.kit import Report
    from avyay.marga.wire.model import Dialect

__all__ = ["add_commands"]


def conformance(
    run: Run,
    target: Annotated[str | None, typer.Option("--target", help="Base URL of the gateway.", metavar="URL")] = None,
    own: Annotated[bool, typer.Option("--self", help="Start our own gateway and test that.")] = False,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="The gateway's model for an upstream, or the only one.", metavar="[DIALECT=]NAME"),
    ] = None,
    key_env: Annotated[
        str | None, typer.Option("--key-env", help="Variable with the key the gateway asks for.", metavar="NAME")
    ] = None,
    dialect: Annotated[
        list[str] | None,
        typer.Option("--dialect", help="Only callers of this dialect: chat, responses, messages, ollama, generate."),
    ] = None,
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case or trap.", metavar="ID")] = None,
    splits: Annotated[
        int, typer.Option("--splits", min=0, help="Streamed and unstreamed answers to compare; in full: 10000.")
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Of the compared answers.")] = 0,
    upstream_port: Annotated[
        int, typer.Option("--upstream-port", min=0, max=65535, help="Port of the kit's own provider; 0: any free one.")
    ] = 8087,
    listing: Annotated[bool, typer.Option("--list", help="Show the traps and their cases, and test nothing.")] = False,
) -> ExitCode:
    """Test a gateway against a scripted provider: what must arrive there, what must come back."""
    from avyay.errors import UsageError

    if listing:
        _list(run, dialect or (), case or ())
        return ExitCode.OK
    if own == (target is not None):
        raise UsageError("Say which gateway to test.", hint="Give either --target URL or --self.")
    if own and model:
        raise UsageError("--model is for --target: our own gateway brings its models.", hint="Leave one of them out.")
    import asyncio

    from avyay.marga.conformance.kit import choose

    choose(callers=dialect or (), only=case or ())  # a name nobody knows is told before anything starts
    environment = run.loaded.environment
    key = environment.value(key_env) if key_env else None
    if key_env and key is None:
        raise UsageError(f"--key-env names {key_env}, which is not set.", hint=f"export {key_env}=…")

    async def work() -> Report:
        from avyay.marga.conformance.kit import detect_models, run_kit
        from avyay.marga.conformance.own import own_gateway
        from avyay.marga.conformance.upstream import Upstream

        shared: dict[str, Any] = {"callers": dialect or (), "only": case or (), "splits": splits, "seed": seed}
        async with Upstream(0 if own else upstream_port) as upstream:
            with run.out.progress("Cases") as progress:
                if target is None:
                    async with own_gateway(upstream.url, environment) as urls:
                        return await run_kit(urls, upstream, priced=True, progress=progress, **shared)
                run.out.note(f"The scripted provider listens on {upstream.url}; the gateway must forward to it.")
                models = await detect_models(target, upstream, _models(model or ()), key)
                return await run_kit(target, upstream, models=models, key=key, progress=progress, **shared)

    report = asyncio.run(work())
    _show(run, report)
    return ExitCode.OK if report.passed else ExitCode.FINDINGS


def _models(given: list[str] | tuple[str, ...]) -> dict[Dialect | None, str]:
    """What `--model` says; the key is None for a model whose upstream is to be found out."""
    from avyay.errors import UsageError
    from avyay.marga.conformance.kit import DEFAULT_MODELS
    from avyay.marga.conformance.trial import NAMES

    found: dict[Dialect | None, str] = {}
    for word in given or [f"{name}={DEFAULT_MODELS[d]}" for name, d in NAMES.items() if d in DEFAULT_MODELS]:
        name, separator, model = word.partition("=")
        if not separator:
            found[None] = word
        elif name not in NAMES or NAMES[name] not in DEFAULT_MODELS:
            raise UsageError(
                f"--model {word}: there is no upstream {name!r}.", hint="Known: chat, responses, messages, ollama."
            )
        else:
            found[NAMES[name]] = model
    if None in found and len(given) > 1:
        raise UsageError(
            "Several models need their upstreams.", hint="For example: --model chat=gpt --model messages=claude"
        )
    return found


def _show(run: Run, report: Report) -> None:
    data = {
        "target": report.target,
        "passed": report.passed,
        "groups": report.groups(),
        "examples": report.examples,
        "cases": [
            {"id": o.id, "trap": o.trap, "group": o.group, "passed": o.passed, "problems": list(o.problems)}
            for o in report.outcomes
        ],
    }

    def text() -> None:
        for outcome in report.failed:
            run.out.line(f"FAIL {outcome.id}")
            for problem in outcome.problems[:5]:
                run.out.line(f"     {problem}")
        rows = [(row["group"], f"{row['passed']}/{row['cases']}") for row in report.groups()]
        run.out.table(("Group", "Passed"), rows)
        good = len(report.outcomes) - len(report.failed)
        run.out.line(
            f"{good} of {len(report.outcomes)} cases pass;"
            f" {report.examples} streamed and unstreamed answers were compared."
        )

    run.out.result(data, text)


def _list(run: Run, callers: tuple[str, ...] | list[str], only: tuple[str, ...] | list[str]) -> None:
    from avyay.marga.conformance.kit import choose
    from avyay.marga.conformance.registry import GROUPS, traps

    cases, _ = choose(callers=callers, only=only)
    ids: dict[str, list[str]] = {}
    for case in cases:
        ids.setdefault(case.trap.id, []).append(case.id)
    order = [trap for trap in traps() if trap.id in ids]
    data = [
        {
            "trap": trap.id,
            "group": trap.group,
            "sent": trap.sent,
            "arrives": trap.arrives,
            "back": trap.back,
            "modes": ["streamed" if mode else "whole" for mode in trap.modes],
            "cases": ids[trap.id],
        }
        for trap in order
    ]

    def text() -> None:
        group = ""
        for row in data:
            if row["group"] != group:
                group = str(row["group"])
                run.out.line(f"{group}: {GROUPS[group]}\n")
            run.out.line(f"  {row['trap']} ({len(row['cases'])} cases, {' and '.join(row['modes'])})")
            run.out.line(f"    sent:    {row['sent']}")
            run.out.line(f"    arrives: {row['arrives']}")
            run.out.line(f"    back:    {row['back']}\n")
        run.out.line(f"{len(data)} traps, {len(cases)} cases; a case is trap:caller>upstream.")

    run.out.result({"traps": data}, text)


def add_commands(app: typer.Typer) -> None:
    """Add this module's commands to the group."""
    command(app, results=True)(conformance)
