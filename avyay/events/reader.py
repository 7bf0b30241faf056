"""The reading side: the outboxes of all components, merged by time; a cursor says where a reader stands in each."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import orjson

from avyay.db import Database, open_database
from avyay.errors import AvyayError, UsageError
from avyay.events.outbox import outbox_files

__all__ = ["FOLLOWED", "Batch", "Cursor", "EventReader", "Recorded", "matches"]

_Row: TypeAlias = tuple[float, str, tuple[Any, ...]]  # time, outbox, columns
_T = TypeVar("_T")
_CURSOR = re.compile(r"(?:[a-z0-9_]{1,40}-\d{1,18}(?:\.[a-z0-9_]{1,40}-\d{1,18}){0,63})?")


FOLLOWED = "gateway_followed"
"""The outbox of what other homes published."""


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a name fits one of the globs; without globs every name does."""
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the merged stream: the last number read of each outbox; without one it is read from the start."""

    positions: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return ".".join(f"{name}-{number}" for name, number in sorted(self.positions.items()))

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The inverse of `str`.

        Raises:
            UsageError: it is no cursor.
        """
        if _CURSOR.fullmatch(text) is None:
            raise UsageError("That is no id of an event stream.", hint="Send back the last id as it came.")
        pairs = (part.rpartition("-") for part in text.split(".")) if text else ()
        return cls({name: int(number) for name, _, number in pairs})

    def moved(self, source: str, number: int) -> Cursor:
        return Cursor({**self.positions, source: number})


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event as it was kept. `cursor` is the place just behind it; `at` is in Unix seconds."""

    id: str
    name: str
    at: float
    data: Mapping[str, Any]
    cursor: Cursor

    def body(self) -> dict[str, Any]:
        """What streams and webhooks carry."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"id": self.id, "type": self.name, "timestamp": at, "data": self.data}


@dataclass(frozen=True, slots=True)
class Batch:
    """Some events in order; `missed` counts those that were pruned before this reader came, by outbox."""

    events: tuple[Recorded, ...]
    cursor: Cursor
    missed: Mapping[str, int] = field(default_factory=dict)


class EventReader:
    """Reads the outboxes below a data folder, also those that appear later. Thread-safe.

    Args:
        own: Leave out what was followed from other homes.
        unreadable: Told of an outbox that cannot be read; the others are read all the same.
    """

    def __init__(
        self, data: Path, *, own: bool = False, unreadable: Callable[[str, AvyayError], None] | None = None
    ) -> None:
        self._data = data
        self._own = own
        self._unreadable = unreadable or (lambda name, error: None)
        self._lock = threading.Lock()
        self._open: dict[str, tuple[tuple[int, int], Database]] = {}

    def close(self) -> None:
        with self._lock:
            for _, database in self._open.values():
                database.close()
            self._open.clear()

    def head(self) -> Cursor:
        """The place behind everything that has been published."""
        return Cursor(dict(self._each(lambda name, database: [(name, _last(database))])))

    def latest(self, limit: int, names: Sequence[str] = (), *, within: Sequence[str] = ()) -> Batch:
        """The newest events, oldest first.

        Args:
            names: Globs; an event fits one of them.
            within: Globs of what the asker may see; it fits one of these too.
        """
        head = self.head()

        def fits(name: str) -> bool:
            return matches(name, names) and matches(name, within)

        def look(name: str, database: Database) -> list[_Row]:
            query = "SELECT number, id, at, name, data FROM outbox ORDER BY number DESC"
            fitting = ((row[2], name, row) for row in database.execute(query) if fits(row[3]))
            return list(islice(fitting, limit))

        found = sorted(self._each(look), key=_by_time)
        return Batch(tuple(_recorded(row, head) for _, _, row in found[-limit:]), head)

    def since(self, at: float, names: Sequence[str] = (), *, limit: int = 10_000) -> tuple[Recorded, ...]:
        """Events of a time (Unix seconds) and later, oldest first; of more than `limit` the newest."""
        return tuple(event for event in self.latest(limit, names).events if event.at >= at)

    def find(self, identities: Sequence[str]) -> tuple[Recorded, ...]:
        """The events of these ids that are kept, oldest first."""
        head = self.head()
        marks = ", ".join("?" * len(identities))
        query = f"SELECT number, id, at, name, data FROM outbox WHERE id IN ({marks})"  # noqa: S608 - marks only

        def look(name: str, database: Database) -> list[_Row]:
            return [(row[2], name, row) for row in database.execute(query, tuple(identities))]

        return tuple(_recorded(row, head) for _, _, row in sorted(self._each(look), key=_by_time))

    def read(self, cursor: Cursor, limit: int = 500, names: Sequence[str] = (), *, within: Sequence[str] = ()) -> Batch:
        """What follows a cursor, at most `limit` events of every outbox looked at; `names` and `within` as in `latest`.

        The batch's own cursor also passes over what the names leave out, so that reading on never looks twice.
        """
        missed: dict[str, int] = {}
        positions = dict(cursor.positions)

        def look(name: str, database: Database) -> list[_Row]:
            since = positions.get(name)
            if since is not None and since > _last(database):
                since = positions[name] = 0  # the file was made anew since
            if since is not None and (gone := _pruned(database) - since) > 0:
                missed[name] = gone
            query = "SELECT number, id, at, name, data FROM outbox WHERE number > ? ORDER BY number LIMIT ?"
            return [(row[2], name, row) for row in database.execute(query, (since or 0, limit))]

        rows = sorted(self._each(look), key=_by_time)
        # Within one outbox numbers go up even where a clock went back: a cursor must never point back.
        here = Cursor(positions)
        events = []
        for _, name, row in _in_order(rows):
            here = here.moved(name, row[0])
            if matches(row[3], names) and matches(row[3], within):
                events.append(_recorded(row, here))
        return Batch(tuple(events), here, missed)

    def _each(self, look: Callable[[str, Database], Sequence[_T]]) -> list[_T]:
        found: list[_T] = []
        with self._lock:
            for name, path in _places(self._data):
                if self._own and name == FOLLOWED:
                    continue
                try:
                    database = self._database(name, path)
                    if database is not None:
                        with database.errors():
                            found += look(name, database)
                except AvyayError as error:
                    self._unreadable(name, error)
                    if (broken := self._open.pop(name, None)) is not None:
                        broken[1].close()
        return found

    def _database(self, name: str, path: Path) -> Database | None:
        try:
            status = path.stat()
        except OSError:
            return None
        inode = (status.st_dev, status.st_ino)
        known = self._open.get(name)
        if known is not None and known[0] == inode:
            return known[1]
        if known is not None:
            self._open.pop(name)[1].close()
        database = open_database(path, read_only=True, check_same_thread=False)
        with database.errors():
            made = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox'").fetchone()
        if made is None:  # written by an older avyay, or just being made
            database.close()
            return None
        self._open[name] = (inode, database)
        return database


def _places(data: Path) -> Iterator[tuple[str, Path]]:
    try:
        folders = sorted(entry.name for entry in data.iterdir() if entry.is_dir())
    except OSError:
        return
    for folder in folders:
        if re.fullmatch(r"[a-z0-9_]{1,30}", folder):
            yield from outbox_files(data, folder).items()


def _in_order(rows: list[_Row]) -> Iterator[_Row]:
    """Rows sorted by time, with those of one outbox in the order of their numbers."""
    queues: dict[str, list[tuple[Any, ...]]] = {}
    for _, name, row in rows:
        queues.setdefault(name, []).append(row)
    for queue in queues.values():
        queue.sort(key=lambda row: -row[0])
    for at, name, _ in rows:
        yield at, name, queues[name].pop()


def _by_time(row: _Row) -> tuple[float, str, int]:
    return row[0], row[1], row[2][0]


def _recorded(row: tuple[Any, ...], cursor: Cursor) -> Recorded:
    return Recorded(row[1], row[3], row[2], orjson.loads(row[4]), cursor)


def _last(database: Database) -> int:
    row = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    return int(row[0]) if row else 0


def _pruned(database: Database) -> int:
    row = database.execute("SELECT pruned FROM outbox_bounds").fetchone()
    return int(row[0]) if row else 0
