"""`avyay events`: what happened, what is on its way to webhooks, and what was given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avyay.cli.app import command_group
from avyay.cli.command import Run, command
from avyay.errors import AvyayError, ExitCode, UsageError

if TYPE_CHECKING:
    from avyay.events.deliveries import Deliveries, Delivery
    from avyay.events.reader import Recorded

app = command_group("What happened: events, their delivery, dead letters.")

_LOOK = 0.25  # seconds
_LOOKS_A_TELLING = 8  # a shared queue is a server, and asked less often

Names = Annotated[
    list[str] | None, typer.Option("--name", "--kind", help="Glob of event names, such as marga.*; repeat it.")
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many, the newest.")]


@command(app, results=True)
def tail(
    run: Run,
    name: Names = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Begin with so many, the newest.")] = 10,
    after: Annotated[str | None, typer.Option("--after", help="Begin behind this cursor; `start` for all.")] = None,
) -> None:
    """Show events as they happen, until Ctrl-C; with --json one JSON object a line."""
    _list(run, tuple(name or ()), limit, after, follow=True)


@command(app, "list", results=True)
def list_(
    run: Run,
    name: Names = None,
    limit: Limit = 50,
    after: Annotated[str | None, typer.Option("--after", help="Begin behind this cursor; `start` for all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events happen, until Ctrl-C.")] = False,
) -> None:
    """List what happened, oldest first; with --json --follow one JSON object a line."""
    _list(run, tuple(name or ()), limit, after, follow=follow)


def _list(run: Run, names: tuple[str, ...], limit: int, after: str | None, *, follow: bool) -> None:
    from avyay.events.build import open_reader
    from avyay.events.reader import Cursor

    _tell_history(run)
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
        from itertools import count

        for look in count(1):
            _lines(run, batch.events)
            run.out.stdout.flush()
            time.sleep(_LOOK)
            if look % _LOOKS_A_TELLING == 0:
                _tell_history(run)
            batch = reader.read(batch.cursor, 500, names)
    finally:
        reader.close()


def _tell_history(run: Run) -> None:
    """Bring the engine's history here; where its queue cannot be reached, everything else is shown all the same."""
    from avyay.log import get_logger

    try:
        run.services.tell_engine_history()
    except AvyayError as error:
        get_logger("events").warning("history_not_told", reason=error.message)


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
    """List dead letters: what was given up, newest first."""
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
    """Send dead letters once more; the daemon that delivers begins within a second."""
    if bool(event) == every:
        raise UsageError("Name events, or say --all.", hint="See: avyay events dead")
    found = _open(run)
    try:
        count = found.retry(tuple(event or ()))
    finally:
        found.close()
    run.out.result({"retried": count}, f"{count} will be sent again.")


@command(app, results=True)
def replay(
    run: Run,
    event: Annotated[list[str] | None, typer.Argument(help="Ids of events: evt_….", show_default=False)] = None,
    since: Annotated[str | None, typer.Option("--since", help="All of this time: 30m, 2h, 7d.")] = None,
    name: Names = None,
    to: Annotated[list[str] | None, typer.Option("--to", help="Receiver, by name; by default all.")] = None,
) -> None:
    """Send events again, delivered or not, with the ids they had; each receiver gets what it wants of them."""
    from pydantic import TypeAdapter, ValidationError

    from avyay.clock import SYSTEM_CLOCK
    from avyay.config.types import Seconds
    from avyay.events.build import open_reader
    from avyay.events.reader import matches

    if bool(event) == (since is not None):
        raise UsageError("Name events, or say since when.", hint="For example: avyay events replay --since 2h")
    settings = run.loaded.settings.events
    wanted: dict[str, tuple[str, ...]] = {hook.name: hook.events for hook in settings.webhooks}
    if settings.redis is not None:
        wanted["redis"] = settings.redis.events
    if unknown := [one for one in to or () if one not in wanted]:
        known = ", ".join(wanted) or "none is configured"
        raise UsageError(f"There is no receiver {unknown[0]!r}.", hint=f"Receivers: {known}.")
    if not wanted:
        raise UsageError("No receiver is configured.", hint="Set events.webhooks or events.redis in avyay.yaml.")
    reader = open_reader(run.loaded.paths)
    try:
        if since is not None:
            try:
                seconds = TypeAdapter(Seconds).validate_python(since)
            except ValidationError:
                raise UsageError(f"{since!r} is no time.", hint="Write 30m, 2h or 7d.") from None
            found = reader.since(SYSTEM_CLOCK.now() - seconds, tuple(name or ()))
        else:
            found = tuple(one for one in reader.find(event or ()) if matches(one.name, tuple(name or ())))
            if missing := set(event or ()) - {one.id for one in found}:
                raise UsageError(f"{min(missing)!r} is not kept.", hint="See: avyay events list", code="no_event")
    finally:
        reader.close()
    deliveries = _open(run)
    try:
        sent = {
            sink: deliveries.replay(sink, [one for one in found if matches(one.name, names)])
            for sink, names in wanted.items()
            if not to or sink in to
        }
    finally:
        deliveries.close()
    text = ", ".join(f"{count} to {sink}" for sink, count in sent.items())
    run.out.result({"replayed": sent}, f"Will be sent again: {text}.")


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
