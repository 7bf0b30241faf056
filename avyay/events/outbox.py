"""The writing side: each component keeps what it published in a table of its own data, bounded, numbered in order.

Three ways in. `append_event` writes inside a transaction of the component's own file, so that the event exists exactly
when the change does. `Outboxes.publish_now` returns when the event is on disk, for what is done elsewhere and not yet
acknowledged. `Outboxes.publish` never waits: a thread writes the event within tens of milliseconds, which is what a
`kill -9` may cost; it is for what was in memory only, and for what is found again after a restart.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Migration, Schema, open_database
from avyay.db_insert import Insert, Value
from avyay.db_writer import GroupCommitWriter
from avyay.errors import AvyayError
from avyay.log import get_logger, redact
from avyay.ports import Event

__all__ = ["LARGEST", "OUTBOX", "Outboxes", "append_event", "event_row", "keep_events", "outbox_files"]

OUTBOX = Schema(
    "outbox",
    (
        Migration(
            "0001_events",
            # Numbers commit in order, because SQLite has one writer at a time. The trigger bounds the table in
            # whoever's transaction; `pruned` lets a reader that was away say how much it missed.
            """
            CREATE TABLE outbox (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                id TEXT NOT NULL UNIQUE, at REAL NOT NULL, name TEXT NOT NULL, data TEXT NOT NULL
            );
            CREATE TABLE outbox_bounds (
                one INTEGER PRIMARY KEY CHECK (one = 1),
                keep INTEGER NOT NULL, keep_for REAL NOT NULL, pruned INTEGER NOT NULL
            );
            INSERT INTO outbox_bounds VALUES (1, 10000, 2592000, 0);
            CREATE TRIGGER outbox_stays_bounded AFTER INSERT ON outbox WHEN NEW.number % 64 = 0 BEGIN
                UPDATE outbox_bounds SET pruned = max(pruned, NEW.number - keep, coalesce(
                    (SELECT max(number) FROM outbox WHERE at < NEW.at - (SELECT keep_for FROM outbox_bounds)), 0));
                DELETE FROM outbox WHERE number <= (SELECT pruned FROM outbox_bounds);
            END;
            """,
        ),
        Migration(
            "0002_salt",
            # What happens once here may happen once elsewhere too (the budget of a day): ids must differ between them.
            """
            ALTER TABLE outbox_bounds ADD COLUMN salt TEXT NOT NULL DEFAULT '';
            UPDATE outbox_bounds SET salt = lower(hex(randomblob(8)));
            """,
        ),
    ),
)
_INSIDE = {  # files of components that hold an outbox beside their own tables
    "gateway": ("followed.db",),
    "marga": ("verdicts.db", "budgets.db"),
    "rag": ("rag.db",),
    "siddhi": ("siddhi.db", "budget.db"),
}
LARGEST = 64_000
"""Bytes of an event's data as JSON."""
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,4}")
_INSERT = Insert("outbox", ("id", "at", "name", "data"), "IGNORE")
_MOST_WAITING = 10_000


def outbox_files(data: Path, component: str) -> dict[str, Path]:
    """Where a component may have outboxes, by the outbox's name: a file of events, its jobs, files of its own."""
    folder = data / component
    inside = {f"{component}_{Path(name).stem}": folder / name for name in _INSIDE.get(component, ())}
    inside = {name.replace(f"{component}_{component}", f"{component}_main"): path for name, path in inside.items()}
    return {component: folder / "events.db", f"{component}_jobs": folder / "jobs.db", **inside}


def event_row(event: Event, at: float, salt: str = "") -> tuple[str, float, str, str]:
    """An event as its row. Whatever has the shape of a credential is taken out of its data.

    Args:
        salt: The outbox's own: with it the same occasion has the same id in one outbox only.

    Raises:
        ValueError: its name is not `component.noun.verb_past`, or its data is no JSON or too large.
    """
    _check_name(event.name)
    try:
        data = orjson.dumps(_clean(event.data), default=str)
    except TypeError as error:
        raise ValueError(f"the data of {event.name} is no JSON: {error}") from error
    if len(data) > LARGEST:
        raise ValueError(f"the data of {event.name} is {len(data)} bytes, more than {LARGEST}")
    if event.everywhere is not None:
        identity = hashlib.sha256(event.everywhere.encode()).hexdigest()[:24]
    elif event.once is not None:
        identity = hashlib.sha256(f"{salt}\0{event.name}\0{event.once}".encode()).hexdigest()[:24]
    else:
        identity = secrets.token_hex(12)
    return f"evt_{identity}", at, event.name, data.decode()


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"no name of an event: {name!r}")


def fitting_row(event: Event, at: float, salt: str) -> tuple[str, float, str, str]:
    """`event_row`; data that is too large is cut, and then says so (`cut`), and what is no JSON is left out.

    Raises:
        ValueError: its name is not `component.noun.verb_past`.
    """
    _check_name(event.name)
    try:
        return event_row(event, at, salt)
    except ValueError:
        return event_row(replace(event, data=_cut(event.data)), at, salt)


def append_event(database: sqlite3.Connection, event: Event, at: float) -> None:
    """Publish within a transaction of the component's own file, which was opened with `OUTBOX` among its schemas.

    Raises:
        ValueError: as `fitting_row`: what is told must not undo what is done.
    """
    (salt,) = database.execute("SELECT salt FROM outbox_bounds").fetchone()
    database.execute(_INSERT.sql(), fitting_row(event, at, salt))


def keep_events(database: sqlite3.Connection, keep: int, keep_for: float) -> None:
    """Set the bounds of a file's outbox: so many events, and none older than so many seconds."""
    if database.execute("SELECT keep, keep_for FROM outbox_bounds").fetchone() == (keep, keep_for):
        return  # and wait for nobody who writes
    database.execute("UPDATE outbox_bounds SET keep = ?, keep_for = ?", (keep, keep_for))


class Outboxes:
    """The port `Events`. Publishing never waits and never fails its caller: what cannot be kept is logged and counted.

    Args:
        data: The folder with the components' folders.
        keep: Events kept per component.
        keep_for: Seconds after which an event may go.
    """

    def __init__(
        self, data: Path, *, clock: Clock = SYSTEM_CLOCK, keep: int = 10_000, keep_for: float = 2_592_000.0
    ) -> None:
        self.data = data
        self._clock = clock
        self._keep, self._keep_for = keep, keep_for
        self._lock = threading.Lock()
        self._writers: dict[str, tuple[GroupCommitWriter, str]] = {}  # with the salt
        self._closed = False
        self.dropped = 0

    def prepare(self, *components: str) -> None:
        """Open the outboxes of components now, so that their first event costs what every later one costs; those
        inside files of their own get the configured bounds.
        """
        for component in components:
            try:
                self._writer(component)
                for path in outbox_files(self.data, component).values():
                    if path.is_file():
                        with closing(open_database(path)) as database, database.errors(), suppress(sqlite3.Error):
                            keep_events(database, self._keep, self._keep_for)
            except AvyayError as error:
                get_logger("events").error("outbox_not_opened", outbox=component, error=error.message)

    def publish(self, event: Event) -> None:
        """Keep an event in the outbox of the component that its name begins with. Any thread."""
        try:
            self._append(event)
        except (AvyayError, ValueError) as error:
            self.dropped += 1
            get_logger("events").error("event_dropped", name=event.name[:100], error=str(error)[:300])

    def publish_now(self, *events: Event) -> None:
        """Keep events, and return when they are on disk. Blocks for a commit; not for an event loop.

        Raises:
            AvyayError: they could not be kept.
            ValueError: as `fitting_row`.
        """
        for writer in {id(writer): writer for writer in [self._append(event) for event in events]}.values():
            writer.flush()

    def _append(self, event: Event) -> GroupCommitWriter:
        _check_name(event.name)  # before a folder is made of it
        writer, salt = self._writer(event.name.split(".")[0])
        row: Sequence[Value] = fitting_row(event, self._clock.now(), salt)
        writer.append(_INSERT, row)
        return writer

    def flush(self) -> None:
        """Block until all that was published so far is on disk.

        Raises:
            UnreachableError: it could not be.
        """
        for writer, _ in list(self._writers.values()):
            writer.flush()

    def close(self) -> None:
        """Write what is in memory, and end."""
        with self._lock:
            self._closed = True
            writers, self._writers = list(self._writers.values()), {}
        for writer, _ in writers:
            try:
                writer.close()
            except AvyayError as error:
                get_logger("events").error("events_lost", error=error.message)

    def _writer(self, component: str) -> tuple[GroupCommitWriter, str]:
        with self._lock:
            if self._closed:
                raise AvyayError("the outboxes are closed", code="closed")
            found = self._writers.get(component)
            if found is None:
                path = self.data / component / "events.db"
                with closing(open_database(path, OUTBOX)) as database, database.errors():
                    keep_events(database, self._keep, self._keep_for)
                    (salt,) = database.execute("SELECT salt FROM outbox_bounds").fetchone()
                writer = GroupCommitWriter(path, OUTBOX, capacity=_MOST_WAITING, tolerant=True, clock=self._clock)
                found = writer, str(salt)
                self._writers[component] = found
            return found


_CUT_TEXT, _CUT_FIELDS = 500, 40


def _cut(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something in a few words, so that they fit."""
    kept: dict[str, Any] = {"cut": True}
    for key, value in list(data.items())[:_CUT_FIELDS]:
        if isinstance(value, str):
            kept[str(key)[:60]] = value[:_CUT_TEXT]
        elif isinstance(value, bool | float | None) or (isinstance(value, int) and abs(value) < 2**53):
            kept[str(key)[:60]] = value
    return kept


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        # Names of files may hold bytes that are no text; JSON may not.
        return redact(value if value.isascii() else value.encode("utf-8", "backslashreplace").decode())
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(inner) for inner in value]
    return value
