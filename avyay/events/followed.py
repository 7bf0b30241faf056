"""What homes elsewhere published, kept here as it came: an outbox of its own, with how far each home was read."""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from avyay.db import Migration, Schema, open_database
from avyay.events.outbox import LARGEST, OUTBOX, keep_events

__all__ = ["Followed", "FollowedStore", "missed_event", "read_event"]

_HOMES = Schema(
    "followed",
    (
        Migration(
            "0001_homes",
            "CREATE TABLE homes (home TEXT PRIMARY KEY, cursor TEXT NOT NULL) STRICT, WITHOUT ROWID",
        ),
    ),
)
_ID = re.compile(r"evt_[0-9a-f]{24}")
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,4}")
_FOREVER = (
    1e12  # seconds; events come in the order in which homes are reached, so their times say nothing of their place
)

Followed = tuple[str, float, str, str]
"""A row: id, time, name, data as JSON."""


class FollowedStore:
    """The file. Thread-safe.

    Args:
        keep: Events kept, of all homes together.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self._lock = threading.Lock()
        self._database = open_database(path, OUTBOX, _HOMES, check_same_thread=False)
        with self._database.errors():
            keep_events(self._database, keep, _FOREVER)

    def cursor(self, home: str) -> str | None:
        """Where a home was read to; None when it is met for the first time."""
        with self._lock, self._database.errors():
            row = self._database.execute("SELECT cursor FROM homes WHERE home = ?", (home,)).fetchone()
        return str(row[0]) if row is not None else None

    def add(self, home: str, events: Sequence[Followed], cursor: str | None) -> None:
        """Keep events of a home and the place reached, together; what is there already is left out.

        Args:
            cursor: None forgets the place: the home is read from its start again.
        """
        with self._lock, self._database.transaction() as database:
            database.executemany("INSERT OR IGNORE INTO outbox (id, at, name, data) VALUES (?, ?, ?, ?)", events)
            if cursor is None:
                database.execute("DELETE FROM homes WHERE home = ?", (home,))
            else:
                database.execute("INSERT OR REPLACE INTO homes VALUES (?, ?)", (home, cursor))

    def close(self) -> None:
        with self._lock:
            self._database.close()


def read_event(data: bytes) -> Followed | None:
    """An event as another home sends it; None when it is none: what comes over a wire is not believed to be well."""
    try:
        body: Any = orjson.loads(data)
        identity, name = body["id"], body["type"]
        at = datetime.fromisoformat(body["timestamp"]).timestamp()
        inner = orjson.dumps(body["data"]).decode()
        if not isinstance(body["data"], Mapping) or len(inner) > LARGEST:
            return None
        if _ID.fullmatch(identity) is None or _NAME.fullmatch(name) is None:
            return None
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return identity, at, name, inner


def missed_event(component: str, counts: bytes, at: float) -> Followed:
    """What tells readers here that a home had pruned events before they were followed: how many of each outbox."""
    try:
        given: Any = orjson.loads(counts)
    except ValueError:
        given = None
    known = given if isinstance(given, dict) else {}
    outboxes = {str(name)[:60]: count for name, count in list(known.items())[:64] if isinstance(count, int)}
    data = orjson.dumps({"component": component, "outboxes": outboxes}).decode()
    return f"evt_{secrets.token_hex(12)}", at, "gateway.events.missed", data
