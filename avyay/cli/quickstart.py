"""`avyay quickstart`: the first walk through a repository."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode

if TYPE_CHECKING:
    from avyay.marga.explain import Explanation
    from avyay.quickstart import Asked, Step
    from avyay.raksha.types import Report

app = command_group("Index, ask, route and scan a repository, offline.")
app.info.no_args_is_help = False

EXCERPT = 6  # lines of a passage shown
FINDINGS = 8  # rows of the severity table shown


@command(app, results=True)
def quickstart(
    run: Run,
    repository: Annotated[Path, typer.Argument(help="The repository to walk through.")] = Path(),
) -> ExitCode:
    """Index, ask, route and scan a repository: no key, no network. Exit 3 when a step could not run."""
    from avyay.quickstart import NEXT, walk

    steps: list[Step] = []
    with run.services, run.out.progress("Working") as progress:
        for number, step in enumerate(walk(run.services, repository, progress=progress), 1):
            steps.append(step)
            if not run.out.json:
                _show(run, number, step)
    if run.out.json:
        data = {"steps": [_step_data(step) for step in steps], "next": [command for command, _ in NEXT]}
        run.out.result(data)
    else:
        run.out.line("5. Try next")
        for line, why in NEXT:
            run.out.line(f"   {line}\n      {why}")
    return ExitCode.OK if all(step.state == "done" for step in steps) else ExitCode.DEPENDENCY


TITLES = {
    "doctor": "What is here",
    "ask": "Your documents, asked",
    "route": "Where three prompts would go",
    "scan": "Your code, scanned",
}


def _show(run: Run, number: int, step: Step) -> None:
    run.out.line(f"{number}. {TITLES[step.name]} ({step.seconds:.1f} s)")
    if step.state == "failed":
        run.out.line(f"   could not run: {step.problem}")
        if step.fix:
            run.out.line(f"   -> {step.fix}")
    elif step.name == "doctor":
        from avyay.cli.doctor import show

        show(run, step.result)  # type: ignore[arg-type]
    elif step.name == "ask":
        _show_answers(run, step.result)  # type: ignore[arg-type]
    elif step.name == "route":
        _show_routes(run, step.result)  # type: ignore[arg-type]
    else:
        _show_scan(run, step.result)  # type: ignore[arg-type]
    run.out.line()


def _show_answers(run: Run, asked: Asked) -> None:
    report = asked.report
    documents = len(report.added) + len(report.changed) + report.unchanged
    where = f"commit {report.head[:7]}" if report.head else "the folder as it is"
    run.out.line(f"   {documents} documents, {report.chunks} passages, from {where}")
    for answer in asked.answers:
        run.out.line(f"\n   ? {answer.question}")
        if not answer.found:
            run.out.line("     The documents do not seem to say.")
            continue
        for passage in answer.passages[:1]:
            for line in [line for line in passage.text.splitlines() if line.strip()][:EXCERPT]:
                run.out.line(f"     | {line}")
        for number, passage in enumerate(answer.passages, 1):
            run.out.line(f"     [{number}] {passage.citation}")


def _show_routes(run: Run, found: tuple[Explanation, ...]) -> None:
    from avyay.money import format_usd
    from avyay.quickstart import PROMPTS

    if found and not found[0].configured:
        run.out.line("   No provider is configured: these are models one could have.")
    for prompt, explanation in zip(PROMPTS, found, strict=True):
        decision, chosen = explanation.decision, explanation.decision.chosen
        cost = decision.ranked[0].cost if decision.ranked else None
        price = "price unknown" if cost is None else f"about {format_usd(cost, places=6)}"
        run.out.line(f"\n   > {prompt if len(prompt) <= 90 else prompt[:87] + '...'}")
        run.out.line(f"     {decision.tier} -> {chosen.name if chosen else 'nobody'}, {price}")
        for reason in decision.reasons:
            run.out.line(f"       {reason}")


def _show_scan(run: Run, report: Report) -> None:
    from avyay.raksha.report.text import print_report

    worst = report.findings[:FINDINGS]  # sorted: the worst come first
    print_report(report, run.out.console(), fail_on=run.loaded.settings.raksha.fail_on, shown=worst)
    if more := len(report.findings) - len(worst):
        run.out.line(f"   and {more} more: avyay scan {report.root}")


def _step_data(step: Step) -> dict[str, Any]:
    data: dict[str, Any] = {"name": step.name, "state": step.state, "seconds": round(step.seconds, 3)}
    if step.state == "failed":
        return data | {"problem": step.problem, "fix": step.fix}
    result: Any = step.result
    if step.name == "doctor":
        return data | {"checks": [asdict(check) for check in result]}
    if step.name == "ask":
        from avyay.cli.ask import as_data

        answers = [as_data(answer) for answer in result.answers]
        return data | {"source": result.report.source, "chunks": result.report.chunks, "answers": answers}
    if step.name == "route":
        return data | {"decisions": [explanation.as_data() for explanation in result]}
    from avyay.raksha.report.json import report_data

    return data | {"report": report_data(result, fail_on="high", shown=result.findings)}
