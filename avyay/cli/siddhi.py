"""`avyay siddhi`: from complaints to validated products, under a budget."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any, cast

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError

app = command_group("Find what people would sign up for: mine, score, test, decide, under a hard budget.")


def _mode(name: str) -> Any:
    if name not in ("value", "strict"):
        raise UsageError(f"There is no mode {name!r}.", hint="Modes are: value, strict.")
    return name


@command(app)
def decide(
    run: Run,
    stdio: Annotated[bool, typer.Option("--stdio", help="Answer JSON lines from standard input.")] = False,
    mode: Annotated[str, typer.Option("--mode", help="value (most money) or strict (few false alarms).")] = "value",
) -> None:
    """Run the decision policy: buy more clicks, or call the test."""
    from avyay.siddhi.stdio import converse

    if not stdio:
        raise UsageError("Say where the offers come from.", hint="avyay siddhi decide --stdio < offers.jsonl")
    for answer in converse(iter(sys.stdin.readline, ""), cast("Any", _mode(mode)), warn=run.out.note):
        run.out.write(f"{answer}\n")


@command(app, results=True)
def power(
    run: Run,
    price: Annotated[float, typer.Option("--price", help="US dollars a click.")],
    cap: Annotated[float, typer.Option("--cap", help="US dollars for one hypothesis.")] = 30.0,
    bar: Annotated[float, typer.Option("--bar", help="Sign-up rate from which it is worth building.")] = 0.05,
    rate: Annotated[float | None, typer.Option("--rate", help="The rate to tell from the bar; default: twice.")] = None,
    gain: Annotated[float, typer.Option("--gain", help="US dollars won by a product at twice the bar.")] = 300.0,
    overspend: Annotated[float, typer.Option("--overspend", help="Most a platform bills, times the order.")] = 1.0,
    mode: Annotated[str, typer.Option("--mode", help="value or strict.")] = "value",
) -> ExitCode:
    """Say what the money can tell apart, before it is spent. Exit 5 when the test cannot decide."""
    from avyay.siddhi.decide import Rules
    from avyay.siddhi.power import assess, expensive, require_decidable

    rules = Rules(cap=cap, bar=bar, gain=gain, overspend=overspend)
    found = assess(rules, price, rate=rate, mode=_mode(mode))
    if words := expensive(rules, price):
        run.out.note(words)
    detectable = f"{found.detectable:.1%}" if found.detectable is not None else "none"
    run.out.result(
        asdict(found),
        f"${cap:.2f} at ${price:.2f} a click, billed up to {overspend:g} times: {found.clicks} clicks\n"
        f"Telling {found.rate:.1%} from {bar:.1%}: power {found.fixed:.2f} with one look at the end,"
        f" {found.strict:.2f} looking after every click (strict)\n"
        f"Smallest rate found with 80 %: {detectable}\n"
        f"Worth of testing instead of deciding now: ${found.worth:.2f} (value)",
    )
    require_decidable(found)
    return ExitCode.OK
