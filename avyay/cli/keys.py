"""`avyay keys`: who may pass the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command

if TYPE_CHECKING:
    from avyay.serve.gateway.keys import KeyInfo, MadeKey

app = command_group("The gateway's API keys: create, list, revoke, rotate.")

Which = Annotated[str, typer.Argument(help="The key's id or name, or the beginning of a secret: avy_PREFIX.")]


@app.callback()
def keys() -> None:
    """The gateway's API keys: create, list, revoke, rotate."""


@command(app, results=True)
def create(
    run: Run,
    name: Annotated[str, typer.Argument(help="What it is for; shown in lists.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="What it may do, repeated: marga, marga:chat, rag:ask, admin, * ...", metavar="S"),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="Lifetime: 12h, 90d; by default none.", metavar="DURATION")
    ] = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Its class in gateway.limits.")] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Who answers for it.")] = None,
    customer: Annotated[str | None, typer.Option("--customer", help="Who its calls are for, in the ledger.")] = None,
    service: Annotated[str | None, typer.Option("--service", help="What makes its calls, in the ledger.")] = None,
) -> None:
    """Make a key; its secret is shown once and never again."""
    from avyay.serve.gateway.keys import DEFAULT_SCOPES

    with _book(run) as book:
        open_until_now = not book.any and not run.loaded.settings.gateway.jwt
        made = book.create(
            name,
            scopes=tuple(scope) if scope else DEFAULT_SCOPES,
            tier=tier,
            owner=owner,
            customer=customer,
            service=service,
            lifetime=_duration(expires, "--expires"),
        )
        _show_made(run, made)
    if open_until_now:
        run.out.note("It is the first one: from now on the gateway asks every caller for a key, also on this machine.")


@command(app, name="list", results=True)
def list_keys(run: Run) -> None:
    """List the keys; secrets are not known here."""
    with _book(run) as book:
        rows = [_data(run, key) for key in book.all()]

        def text() -> None:
            if not rows:
                run.out.note(
                    "There is no key yet: the gateway answers this machine only. Make one: avyay keys create NAME"
                )
                return
            columns = ("Id", "Name", "State", "Scopes", "Tier", "Owner", "Customer", "Expires", "Secrets")
            cells = [
                (
                    *(row["id"], row["name"], row["state"], " ".join(row["scopes"]), row["tier"] or "-"),
                    *(row["owner"] or "-", row["customer"] or "-", (row["expires_at"] or "never")[:16]),
                    " ".join(f"avy_{prefix}" for prefix in row["prefixes"]),
                )
                for row in rows
            ]
            run.out.table(columns, cells)

        run.out.result({"keys": rows}, text)


@command(app, results=True)
def revoke(run: Run, key: Which) -> None:
    """End a key and all its secrets; running gateways notice within a second."""
    with _book(run) as book:
        info = book.revoke(key)
        run.out.result({"key": _data(run, info)}, f"{info.id} ({info.name}) is revoked.")


@command(app, results=True)
def rotate(
    run: Run,
    key: Which,
    grace: Annotated[
        str,
        typer.Option("--grace", help="How long the old secret still works; 0s ends it at once.", metavar="DURATION"),
    ] = "1h",
) -> None:
    """Give a key a new secret under the same id; shown once."""
    with _book(run) as book:
        made = book.rotate(key, grace=_duration(grace, "--grace") or 0.0)
        _show_made(run, made)
        if not run.out.json:
            run.out.note(f"Its old secrets work for another {grace}.")


class _book:  # noqa: N801 - used like a function
    """The keys, and the services closed behind them."""

    def __init__(self, run: Run) -> None:
        from avyay.serve.gateway.daemon import open_keys

        self._run = run
        self._book = open_keys(run.services)

    def __enter__(self) -> Any:
        return self._book

    def __exit__(self, *_: object) -> None:
        self._book.close()
        self._run.services.close()


def _show_made(run: Run, made: MadeKey) -> None:
    def text() -> None:
        run.out.line(made.secret)
        run.out.note(f"{made.info.id} ({made.info.name}), scopes: {' '.join(made.info.scopes)}")
        run.out.note("This is the only time it is shown: only its SHA-256 is kept.")

    run.out.result({"key": _data(run, made.info), "secret": made.secret}, text)


def _data(run: Run, key: KeyInfo) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(run.services.clock.now()),
        "scopes": list(key.scopes),
        "tier": key.tier,
        "owner": key.owner,
        "customer": key.customer,
        "service": key.service,
        "created_at": _time(key.created_at),
        "expires_at": _time(key.expires_at),
        "revoked_at": _time(key.revoked_at),
        "prefixes": list(key.prefixes),
    }


def _time(at: float | None) -> str | None:
    from datetime import UTC, datetime

    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _duration(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    from avyay.config.types import parse_duration
    from avyay.errors import UsageError

    try:
        return float(parse_duration(text))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{option} {text}: {error}.", hint=f"For example: {option} 90d") from error
