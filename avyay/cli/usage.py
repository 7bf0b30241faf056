"""`avyay usage`: what the gateway counted, what the router billed, and whether the two agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode

if TYPE_CHECKING:
    from avyay.serve.gateway.reconcile import Ledger
    from avyay.wiring import Services

app = command_group("Who used what: requests, tokens, cost, reconciled.")


@command(app, name="usage", results=True)
def usage(
    run: Run,
    days: Annotated[int, typer.Option("--days", min=1, max=3660, help="Days, today included (UTC).")] = 7,
    key: Annotated[str | None, typer.Option("--key", help="Only this key: its id or name.")] = None,
) -> ExitCode:
    """Show requests per key, endpoint and day beside tokens and cost; exit 1 when gateway and router disagree."""
    from avyay.serve.gateway.daemon import open_keys, open_usage
    from avyay.serve.gateway.reconcile import compare

    services = run.services
    marga = services.settings.gateway.upstreams.marga
    book, reader = open_keys(services), open_usage(services)
    try:
        names = {one.id: one.name for one in book.all()}
        with _ledger(services) as ledger:
            found = compare(
                reader,
                ledger,
                days=days,
                until=services.clock.now(),
                key=next((i for i, name in names.items() if key == name), key),
                kept=services.settings.gateway.keep_requests,
                known=marga.api_key_env is None or marga.principal_key_env is not None,
            )
    finally:
        book.close()
        reader.close()
        services.close()
    data = found.data()
    run.out.result(data, lambda: _text(run, data, names))
    if found.failure is not None:
        if found.failure.hint is not None:
            run.out.note(found.failure.hint)
        return found.failure.exit_code
    return ExitCode.OK if all(one["agrees"] for one in data["reconciled"] or ()) else ExitCode.FINDINGS


@contextmanager
def _ledger(services: Services) -> Iterator[Ledger]:
    """The router's: its database in this home, or the router itself where the configuration finds it elsewhere."""
    from urllib.parse import urlsplit

    from avyay.serve.gateway.reconcile import StoreLedger
    from avyay.serve.run import is_loopback

    marga = services.settings.gateway.upstreams.marga
    another_home = marga.api_key_env is not None or marga.principal_key_env is not None
    if marga.url is None or (is_loopback(urlsplit(marga.url).hostname or "") and not another_home):
        yield StoreLedger(services.calls)
        return
    from avyay.serve.gateway.remote import asking_router

    with asking_router(services) as ledger:
        yield ledger


def _text(run: Run, data: dict[str, Any], names: dict[str, str]) -> None:
    def named(key: str | None) -> str:
        if key is None:
            return "no key"
        return f"{names[key]} ({key})" if key in names else key

    if not data["gateway"] and not data["router"]:
        run.out.note(data["router_problem"] or f"Nothing was used since {data['since']}.")
        return
    rows = [(row["day"], named(row["key"]), row["endpoint"], row["requests"], row["errors"]) for row in data["gateway"]]
    if rows:
        run.out.table(("Day", "Key", "Endpoint", "Requests", "Errors"), rows, title="Gateway")
    if data["router"] is None:
        run.out.note(data["router_problem"])
        return
    billed = [
        (row["day"], named(row["key"]), row["calls"], row["input"], row["output"], f"${row['cost_usd']}")
        for row in data["router"]
    ]
    run.out.table(("Day", "Key", "Calls", "In", "Out", "Cost"), billed, title="Router")
    if any(row["key"] is None for row in data["router"]):
        run.out.note("no key: the command line, or a daemon that asks for none.")
    for one in data["reconciled"]:
        counts = f"{one['gateway']} decisions at the gateway, {one['ledger']} in the ledger"
        if one["agrees"] and not one["unseen_by_gateway"]:
            run.out.line(f"{named(one['key'])}: {counts}: they agree.")
            continue
        what = []
        if one["missing_in_ledger"]:
            what.append(f"{one['missing_in_ledger']} missing in the ledger")
        if one["unseen_by_gateway"]:
            what.append(
                f"{one['unseen_by_gateway']} in the ledger without an answer at the gateway"
                f" ({one['ended_without_answer']} requests ended before one)"
            )
        verdict = "explained" if one["agrees"] else "they differ"
        run.out.line(f"{named(one['key'])}: {counts}; {', '.join(what)}: {verdict}.")
        if not one["agrees"] and one["examples"]:
            run.out.line(f"  for example {', '.join(one['examples'])} (avyay marga explain ID)")
