"""Where kept answers lie: in this process, or in a SQLite file that all workers and commands share.

Both are bounded in bytes (the least recently used goes first) and forget what has expired.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from avyay.db import Database, Migration, Schema, open_database
from avyay.marga.cache import Entry

__all__ = ["CacheSize", "CacheStore", "DiskCache", "MemoryCache", "Neighbour"]

_OVERHEAD = 500  # bytes an entry takes besides its body
_ROOM = 0.9  # of the bound that is left after making room


@dataclass(frozen=True, slots=True)
class CacheSize:
    """How much is kept, in entries and bytes."""

    entries: int
    size: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry that differs from a request in its newest user text only: that text's vector (float32) and marks."""

    key: bytes
    vector: bytes
    marks: bytes


class CacheStore(Protocol):
    """Keeps entries. Calls may come from several threads.

    Attributes:
        blocking: Whether a call may wait for a disk, so that it belongs off an event loop.
    """

    blocking: bool

    def get(self, key: bytes, now: float) -> Entry | None:
        """The entry, unless it has expired."""
        ...

    def put(self, entry: Entry, now: float, context: bytes | None = None, near: Neighbour | None = None) -> None:
        """Keep an entry; makes room where there is none. With `context` it is also found by `neighbours`."""
        ...

    def neighbours(self, context: bytes, now: float, *, most: int) -> Sequence[Neighbour]:
        """Entries of one context, the newest first."""
        ...

    def clear(self, tenant: bytes | None = None) -> int:
        """Forget everything, or all of one tenant.

        Returns:
            How many entries.
        """
        ...

    def size(self) -> CacheSize: ...

    def close(self) -> None: ...


class MemoryCache:
    """In this process.

    Args:
        most: Bytes of all entries at most.
    """

    blocking = False

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[bytes, tuple[Entry, bytes | None, Neighbour | None]] = OrderedDict()
        self._contexts: dict[bytes, OrderedDict[bytes, Neighbour]] = {}
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: bytes, now: float) -> Entry | None:
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            if now >= found[0].expires:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, entry: Entry, now: float, context: bytes | None = None, near: Neighbour | None = None) -> None:
        size = _size(entry, near)
        if size > self._most:
            return
        with self._lock:
            self._drop(entry.key)
            while self._entries and self._size + size > self._most:
                self._drop(next(iter(self._entries)))
            self._entries[entry.key] = (entry, context, near)
            self._size += size
            if context is not None and near is not None:
                self._contexts.setdefault(context, OrderedDict())[entry.key] = near

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is None:
            return
        entry, context, near = found
        self._size -= _size(entry, near)
        if context is not None and (known := self._contexts.get(context)) is not None:
            known.pop(key, None)
            if not known:
                del self._contexts[context]

    def neighbours(self, context: bytes, now: float, *, most: int) -> Sequence[Neighbour]:
        with self._lock:
            known = self._contexts.get(context)
            if known is None:
                return []
            found = [n for key, n in reversed(known.items()) if now < self._entries[key][0].expires]
        return found[:most]

    def clear(self, tenant: bytes | None = None) -> int:
        with self._lock:
            keys = [key for key, (entry, _, _) in self._entries.items() if tenant is None or entry.tenant == tenant]
            for key in keys:
                self._drop(key)
        return len(keys)

    def size(self) -> CacheSize:
        return CacheSize(len(self._entries), self._size)

    def close(self) -> None:
        self.clear()


def _size(entry: Entry, near: Neighbour | None) -> int:
    return len(entry.body) + _OVERHEAD + (len(near.vector) + len(near.marks) if near is not None else 0)


_SCHEMA = Schema(
    "marga_cache",
    (
        Migration(
            "0001_answers",
            """
            CREATE TABLE answers (
                key BLOB PRIMARY KEY,
                tenant BLOB NOT NULL,
                created REAL NOT NULL,
                expires REAL NOT NULL,
                used REAL NOT NULL,
                size INTEGER NOT NULL,
                streaming INTEGER NOT NULL,
                content_type TEXT NOT NULL,
                provider TEXT NOT NULL,
                model TEXT NOT NULL,
                tier TEXT NOT NULL,
                input INTEGER NOT NULL,
                output INTEGER NOT NULL,
                cost INTEGER NOT NULL,  -- picodollars
                decision TEXT NOT NULL,
                context BLOB,
                vector BLOB,  -- float32, of the newest user text
                marks BLOB,
                body BLOB NOT NULL
            ) STRICT;
            CREATE INDEX answers_expires ON answers (expires);
            CREATE INDEX answers_used ON answers (used, size);
            CREATE INDEX answers_context ON answers (context, created) WHERE context IS NOT NULL;
            """,
        ),
    ),
)
_ENTRY = (
    "key, tenant, created, expires, streaming, content_type, body, provider, model, tier, input, output, cost, decision"
)
_USED_EVERY = 60.0  # seconds between two notes that an entry was used: reading should not mean writing


class DiskCache:
    """In a SQLite file, which outlives this process and which others may use at the same time.

    Raises (every method): AvyayError, when the disk does not let us; a cache's user then does without.
    """

    blocking = True

    def __init__(self, path: Path, most: int) -> None:
        self._database: Database = open_database(path, _SCHEMA, check_same_thread=False)
        self._most = most
        self._lock = threading.Lock()

    def get(self, key: bytes, now: float) -> Entry | None:
        with self._lock, self._database.errors():
            row = self._database.execute(
                f"SELECT {_ENTRY}, used FROM answers WHERE key = ? AND expires > ?",  # noqa: S608
                (key, now),
            ).fetchone()
            if row is None:
                return None
            if now - row[-1] > _USED_EVERY:
                self._database.execute("UPDATE answers SET used = ? WHERE key = ?", (now, key))
        values = list(row[:-1])
        values[4] = bool(values[4])
        return Entry(*values)

    def put(self, entry: Entry, now: float, context: bytes | None = None, near: Neighbour | None = None) -> None:
        size = _size(entry, near)
        if size > self._most:
            return
        values = (
            *(entry.key, entry.tenant, entry.created, entry.expires, now, size, int(entry.streaming)),
            *(entry.content_type, entry.provider, entry.model, entry.tier, entry.input, entry.output, entry.cost),
            *(entry.decision, context if near is not None else None),
            *((near.vector, near.marks) if near is not None else (None, None)),
            entry.body,
        )
        with self._lock, self._database.errors(), self._database.transaction():
            self._database.execute(
                f"INSERT OR REPLACE INTO answers VALUES ({', '.join('?' * len(values))})",  # noqa: S608 - marks only
                values,
            )
            self._make_room(now)

    def _make_room(self, now: float) -> None:
        execute = self._database.execute
        execute("DELETE FROM answers WHERE expires <= ?", (now,))
        (total,) = execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()
        if total <= self._most:
            return
        # Of the least recently used, as many as bring the rest down to what there is room for.
        execute(
            """
            DELETE FROM answers WHERE key IN (
                SELECT key FROM (
                    SELECT key, sum(size) OVER (ORDER BY used, rowid) - size AS before FROM answers
                ) WHERE before < ?)
            """,
            (total - int(self._most * _ROOM),),
        )

    def neighbours(self, context: bytes, now: float, *, most: int) -> Sequence[Neighbour]:
        with self._lock, self._database.errors():
            rows = self._database.execute(
                "SELECT key, vector, marks FROM answers WHERE context = ? AND expires > ?"
                " ORDER BY created DESC LIMIT ?",
                (context, now, most),
            ).fetchall()
        return [Neighbour(*row) for row in rows]

    def clear(self, tenant: bytes | None = None) -> int:
        with self._lock, self._database.errors():
            if tenant is None:
                return self._database.execute("DELETE FROM answers").rowcount
            return self._database.execute("DELETE FROM answers WHERE tenant = ?", (tenant,)).rowcount

    def size(self) -> CacheSize:
        with self._lock, self._database.errors():
            return CacheSize(*self._database.execute("SELECT count(*), coalesce(sum(size), 0) FROM answers").fetchone())

    def close(self) -> None:
        with self._lock:
            self._database.close()
