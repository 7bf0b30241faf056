"""`avyay events`: what happened, what is on its way to webhooks, and what was given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from avyay.events.deliveries import Deliveries, Delivery
    from avyay.events.reader import Recorded

app = command_group("What happened: events, their delivery, dead letters.")

Names = Annotated[list[str] | None, typer.Option("--name", help="Glob of event names, such as marga.*; repeat it.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many, the newest.")]


@command(app, "list", results=True)
def list_(
    run: Run,
    name: Names = None,
    limit: Limit = 50,
    after: Annotated[str | None, typer.Option("--after", help="Begin behind this cursor; `start` for all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events happen, until Ctrl-C.")] = False,
) -> None:
    """List what happened, oldest first; with --json --follow one JSON object a line."""
    from avyay.events.build import open_reader
    from avyay.events.reader import Cursor

    names = tuple(name or ())
    run.services.tell_engine_history()
    reader = open_reader(run.loaded.paths)
    try:
        if after is None:
            batch = reader.latest(limit, names)
        else:
            batch = reader.read(Cursor() if after == "start" else Cursor.parse(after), limit, names)
        if not follow:
            events = [_data(event) for event in batch.events]
            run.out.result(
                {"events": events, "cursor": str(batch.cursor), "missed": dict(batch.missed)},
                lambda: _lines(run, batch.events),
            )
            return
        import time

        while True:
            _lines(run, batch.events)
            run.out.stdout.flush()
            time.sleep(0.25)
            run.services.tell_engine_history()
            batch = reader.read(batch.cursor, 500, names)
    finally:
        reader.close()


@command(app, results=True)
def deliveries(run: Run, limit: Limit = 50) -> None:
    """List deliveries to webhooks and Redis, newest first, with their state."""
    found = _open(run)
    try:
        rows, counts = found.rows(limit=limit), found.counts()
    finally:
        found.close()
    run.out.result({"deliveries": [asdict(row) for row in rows], "counts": counts}, lambda: _table(run, rows))


@command(app, results=True)
def dead(run: Run, limit: Limit = 50) -> None:
    """List what was given up, newest first."""
    found = _open(run)
    try:
        rows = found.rows("dead", limit=limit)
    finally:
        found.close()
    run.out.result({"dead": [asdict(row) for row in rows]}, lambda: _table(run, rows))


@command(app, results=True)
def retry(
    run: Run,
    event: Annotated[list[str] | None, typer.Argument(help="Ids of events: evt_….", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
) -> None:
    """Send dead letters once more; the daemon that delivers does it within a second."""
    if bool(event) == every:
        raise UsageError("Name events, or say --all.", hint="See: avyay events dead")
    found = _open(run)
    try:
        count = found.retry(tuple(event or ()))
    finally:
        found.close()
    run.out.result({"retried": count}, f"{count} will be sent again.")


@command(app, results=True)
def test(run: Run) -> ExitCode | None:
    """Send one signed test message to every receiver now, and say what became of it."""
    import asyncio
    import secrets

    import orjson

    from avyay.clock import SYSTEM_CLOCK
    from avyay.events.build import open_sinks
    from avyay.events.reader import Cursor, Recorded
    from avyay.events.sinks import Message, NotDeliveredError

    loaded = run.loaded
    sinks = open_sinks(loaded.settings.events, loaded.environment)
    if not sinks:
        raise UsageError("No receiver is configured.", hint="Set events.webhooks or events.redis in avyay.yaml.")
    event = Recorded(f"evt_{secrets.token_hex(12)}", "avyay.events.tested", SYSTEM_CLOCK.now(), {}, Cursor())
    message = Message(event.id, event.name, orjson.dumps(event.body()))

    async def send_all() -> dict[str, str]:
        found = {}
        for sink in sinks:
            try:
                await sink.send(message)
                found[sink.name] = "delivered"
            except NotDeliveredError as error:
                found[sink.name] = error.why
            finally:
                await sink.close()
        return found

    found = asyncio.run(send_all())
    run.out.result({"receivers": found}, lambda: run.out.table(("Receiver", "Outcome"), list(found.items())))
    return None if all(outcome == "delivered" for outcome in found.values()) else ExitCode.DEPENDENCY


def _open(run: Run) -> Deliveries:
    from avyay.events.build import deliveries_file
    from avyay.events.deliveries import Deliveries

    return Deliveries(deliveries_file(run.loaded.paths))


def _data(event: Recorded) -> dict[str, Any]:
    return {**event.body(), "cursor": str(event.cursor)}


def _lines(run: Run, events: Sequence[Recorded]) -> None:
    import json

    for event in events:
        if run.out.json:
            run.out.line(json.dumps(_data(event), ensure_ascii=False))
        else:
            run.out.line(f"{_time(event.at)}  {event.name}  {json.dumps(event.data, ensure_ascii=False)}")


def _table(run: Run, rows: list[Delivery]) -> None:
    run.out.table(
        ("Event", "Name", "To", "State", "Tries", "Since", "Problem"),
        [(r.event, r.name, r.sink, r.state, r.attempts, _time(r.created_at), r.problem) for r in rows],
    )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
