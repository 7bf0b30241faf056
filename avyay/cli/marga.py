"""`avyay marga`: what the router knows and what it did."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli import marga_conformance, marga_judgement
from avyay.cli.app import command_group
from avyay.cli.command import Run, command

if TYPE_CHECKING:
    from avyay.marga.types import Model, Provider

app = command_group("The router: providers, decisions, prices, statistics.")

Since = Annotated[str | None, typer.Option("--since", help="Only the last 30m, 24h, 7d.", metavar="DURATION")]


@command(app, results=True)
def providers(
    run: Run,
    check: Annotated[bool, typer.Option("--check", help="Call each one (a request that costs nothing).")] = False,
) -> None:
    """List the providers, their models and what keeps them from being used."""
    import asyncio

    if (url := run.loaded.settings.marga.url) is not None:
        _show_providers(run, _live_providers(run, url))
        return
    router = run.services.router
    states: dict[str, str] = {}

    async def look() -> None:
        from avyay.errors import AvyayError

        async with router:
            await router.learn_models()
            if not check:
                return

            async def ask(name: str) -> None:
                try:
                    async with asyncio.timeout(run.loaded.settings.marga.health_check.timeout):
                        await router.backends[name].check()
                    states[name] = "answers"
                except AvyayError as error:
                    states[name] = error.message
                except TimeoutError:
                    states[name] = "no answer in time"

            await asyncio.gather(*(ask(provider.name) for provider in router.usable()))

    if check or any(provider.lists_models for provider in router.usable()):
        asyncio.run(look())
    _show_providers(run, [_provider(provider, states.get(provider.name)) for provider in router.providers.values()])
    if not router.usable():
        from avyay.marga.providers import SETUP_HINT

        run.out.note(f"No provider can be used yet.\n{SETUP_HINT}")
    run.services.close()


def _live_providers(run: Run, url: str) -> list[dict[str, Any]]:
    """The providers of the router daemon at `marga.url`, with the state of their breakers."""
    from avyay.http import client, request_json

    key = run.loaded.environment.value("MARGA_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with client(read=10.0, headers=headers) as http:
        root = url.rstrip("/").removesuffix("/v1")
        found = request_json(http, "GET", f"{root}/marga/providers", who="The router", check=lambda d: "providers" in d)
    return list(found["providers"])


def _show_providers(run: Run, rows: list[dict[str, Any]]) -> None:
    def text() -> None:
        columns = ("Provider", "Kind", "Endpoint", "State", "Models")
        cells = [
            (row["name"], row["kind"], row["endpoint"], _state(row), ", ".join(_tiered(row["models"]))) for row in rows
        ]
        run.out.table(columns, cells)

    run.out.result({"providers": rows}, text)


def _state(row: dict[str, Any]) -> str:
    """A provider's state, and which of its endpoints it holds for when it is not all of them."""
    endpoints = row.get("endpoints") or ()
    failing = [each["endpoint"] for each in endpoints if each["state"] != "closed"]
    partly = failing and len(failing) < len(endpoints)
    return f"{row['state']} ({', '.join(failing)})" if partly else str(row["state"])


def _tiered(models: list[dict[str, str]]) -> list[str]:
    return [f"{model['name']} ({model['tier']})" for model in models]


def _provider(provider: Provider, state: str | None) -> dict[str, Any]:
    default = "no models known" if not provider.models else "ready"
    return {
        "name": provider.name,
        "kind": provider.kind,
        "endpoint": provider.endpoint,
        "state": provider.problem or state or default,
        "usable": provider.usable,
        "origin": provider.origin,
        "priority": provider.priority,
        "region": provider.region,
        "models": [{"name": model.name, "tier": model.tier} for model in provider.models],
    }


@command(app, results=True)
def prices(
    run: Run,
    model: Annotated[str | None, typer.Argument(help="Only models whose name contains this.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The whole table, not only the usual models.")] = False,
) -> None:
    """Show the price table: USD per million tokens."""
    from avyay.errors import UsageError
    from avyay.marga.catalogue import USUAL_MODELS, bundled_catalogue

    catalogue = bundled_catalogue()
    usual = {name for names in USUAL_MODELS.values() for name in names}
    found: dict[tuple[str, str], Model] = {}
    for vendor, entry in catalogue.rows():
        shown = everything or entry.name in usual
        wanted = shown if model is None else model.lower() in entry.name.lower()
        if wanted:
            found[vendor, entry.name] = entry
    own = {
        (provider.name, entry.name): entry
        for provider in run.services.router.providers.values()
        for entry in provider.models
        if model is None or model.lower() in entry.name.lower()
    }
    if not found and not own:
        raise UsageError(f"No model of the table has {model!r} in its name.", hint="See all: avyay marga prices --all")
    rows = [_price(vendor, entry, "table") for (vendor, _), entry in found.items()]
    rows += [_price(name, entry, "in use") for (name, _), entry in own.items()]
    names = ("input", "output", "cached", "cache_write")

    def text() -> None:
        columns = ("Of", "Model", "Tier", *(name.replace("_", " ").capitalize() for name in names), "Context", "")
        cells = [
            (
                row["of"],
                row["model"],
                row["tier"],
                *(row["usd_per_million"].get(n) or "-" for n in names),
                row["context"] or "-",
                row["from"],
            )
            for row in rows
        ]
        run.out.table(columns, cells, title=f"USD per million tokens; {catalogue.source}, {catalogue.date}")

    run.out.result({"source": catalogue.source, "date": catalogue.date, "prices": rows}, text)
    run.services.close()


def _price(of: str, model: Model, origin: str) -> dict[str, Any]:
    from avyay.money import Picodollars, usd_string

    prices = model.prices
    values = {
        name: usd_string(Picodollars(value * 1_000_000))
        for name in ("input", "output", "cached", "cache_write", "cache_write_1h")
        if prices is not None and (value := getattr(prices, name)) is not None
    }
    return {
        "of": of,
        "model": model.name,
        "tier": model.tier,
        "usd_per_million": values,
        "context": model.context,
        "max_output": model.max_output,
        "capabilities": sorted(model.capabilities or ()),
        "retires": model.retires,
        "from": origin,
    }


class CallEnd(StrEnum):
    """How a call can have ended."""

    OK = "ok"
    ERROR = "error"
    ABORTED = "aborted"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    KILLED = "killed"


@command(app, results=True)
def decisions(
    run: Run,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many, newest first.")] = 20,
    status: Annotated[CallEnd | None, typer.Option("--status", help="Only calls that ended so.")] = None,
    since: Since = None,
) -> None:
    """List what was routed where, newest first."""
    rows = [
        _call(row)
        for row in run.services.calls.calls(
            limit=limit, status=status.value if status else None, since=_since(run, since)
        )
    ]

    def text() -> None:
        if not rows:
            asked = status is not None or since is not None
            run.out.note(
                "No such call." if asked else 'Nothing has been routed yet. Try: avyay route "What is a monad?"'
            )
            return
        columns = ("Decision", "When (UTC)", "Model", "Tier", "Complexity", "In", "Out", "Cost", "Seconds", "Status")
        cells = [
            (
                row["id"][-12:],
                row["at"][:19],
                f"{row['provider']}/{row['model']}" if row["model"] else "-",
                row["tier"] or row["decided_tier"],
                f"{row['complexity']:.2f}",
                row["input"],
                row["output"],
                "?" if row["status"] == "killed" else ("~" if row["estimated"] else "") + f"${row['cost_usd']}",
                f"{row['seconds']:.2f}",
                row["status"],
            )
            for row in rows
        ]
        run.out.table(columns, cells)

    run.out.result({"decisions": rows}, text)
    run.services.close()


def _since(run: Run, text: str | None) -> float | None:
    if text is None:
        return None
    from avyay.config.types import parse_duration
    from avyay.errors import UsageError

    try:
        return run.services.clock.now() - float(parse_duration(text))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--since {text}: {error}.", hint="For example: --since 24h") from error


def _call(row: dict[str, Any]) -> dict[str, Any]:
    from datetime import UTC, datetime

    from avyay.money import Picodollars, usd_string

    shown = {name: value for name, value in row.items() if name != "cost"}
    shown["at"] = datetime.fromtimestamp(row["at"], UTC).isoformat()
    shown["cost_usd"] = usd_string(Picodollars(row["cost"]))
    for name in ("stream", "estimated", "priced"):
        shown[name] = bool(row[name])
    return shown


@command(app, results=True)
def explain(
    run: Run,
    decision: Annotated[
        str | None, typer.Argument(help="Its id, or how that begins or ends; without one, the newest.")
    ] = None,
) -> None:
    """Show one decision: its reasons, every attempt, and what it cost."""
    from avyay.errors import UsageError

    calls = run.services.calls
    if decision is None:
        decision = next((row["id"] for row in calls.calls(limit=1)), None)
    if decision is None:
        raise UsageError("Nothing has been routed yet.", hint='Try: avyay route "What is a monad?"')
    row = _call(calls.call(decision))
    detail = row["detail"]

    def text() -> None:
        served = f"{row['provider']}/{row['model']}" if row["model"] else "nobody"
        run.out.line(f"{row['id']} at {row['at'][:19]} UTC: {served}, {row['status']}")
        run.out.line(f"asked for {row['requested_model']}, decided {row['decided_tier']}:")
        for reason in detail["reasons"]:
            run.out.line(f"  {reason}")
        run.out.line("attempts:" if detail["attempts"] else "no attempt was made")
        for attempt in detail["attempts"]:
            outcome = f"HTTP {attempt['status']}" if attempt["status"] else attempt["outcome"]
            run.out.line(f"  {attempt['provider']}/{attempt['model']}: {outcome} after {attempt['seconds']:.3f} s")
        kind = "estimated" if row["estimated"] else "reported"
        run.out.line(
            f"tokens ({kind}): {row['input']} in ({row['cached']} cached), {row['output']} out;"
            f" ${row['cost_usd']}"
            + ("" if row["priced"] else " (not known)" if row["status"] == "killed" else " (no price known)")
        )
        first = f", first byte {row['first_byte_seconds']:.3f} s" if row["first_byte_seconds"] is not None else ""
        run.out.line(f"time: {row['seconds']:.3f} s, deciding {row['decide_seconds'] * 1000:.2f} ms{first}")
        if row["error"]:
            run.out.line(f"error: {row['error']}")
        for note in detail["notes"]:
            run.out.line(f"note: {note}")

    run.out.result({"decision": row}, text)
    run.services.close()


@command(app, results=True)
def stats(
    run: Run,
    by: Annotated[
        str,
        typer.Option(
            "--by", help="model, provider, tier, key, service, customer, session, class, status, cache, day or hour."
        ),
    ] = "model",
    since: Since = None,
) -> None:
    """Add up calls, tokens, money and time."""
    from dataclasses import asdict

    from avyay.money import Picodollars, total, usd_string

    rows = run.services.calls.stats(by, since=_since(run, since))
    data = []
    for row in rows:
        entry = asdict(row)
        entry["cost_usd"] = usd_string(Picodollars(entry.pop("cost")))
        entry["saved_usd"] = usd_string(Picodollars(entry.pop("saved")))
        entry["estimated_cost_usd"] = usd_string(Picodollars(entry.pop("estimated_cost")))
        data.append(entry)
    spent = usd_string(total(Picodollars(row.cost) for row in rows))

    def text() -> None:
        columns = (by.capitalize(), "Calls", "Errors", "In", "Out", "Cost", "p50 s", "p95 s")
        cells = [
            (r.group, r.calls, r.errors, r.input, r.output, f"${d['cost_usd']}", f"{r.p50:.2f}", f"{r.p95:.2f}")
            for r, d in zip(rows, data, strict=True)
        ]
        run.out.table(columns, cells, title=f"{sum(row.calls for row in rows)} calls, ${spent}")

    run.out.result({"by": by, "total_cost_usd": spent, "groups": data}, text)
    run.services.close()


@command(app, results=True)
def budgets(run: Run) -> None:
    """Show what is spent and reserved of every cap."""
    found = run.services.budgets
    rows = [] if found is None else found.rows()

    def text() -> None:
        if not rows:
            run.out.note("No cap is configured. See: marga.budgets in `avyay config schema`")
            return
        columns = ("Budget", "Spent", "Reserved", "Cap")
        cells = [(r["budget"], f"${r['spent_usd']}", f"${r['reserved_usd']}", f"${r['cap_usd']}") for r in rows]
        run.out.table(columns, cells)

    run.out.result({"budgets": rows}, text)
    run.services.close()


marga_judgement.add_commands(app)
marga_conformance.add_commands(app)
