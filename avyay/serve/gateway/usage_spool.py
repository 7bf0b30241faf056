"""What has been answered and is not yet in the database: lines in a file, which outlive a process that is killed.

The database is written in groups, some tens of milliseconds late; a caller must not have an answer whose row a
`kill -9` can take with it. So a line goes into a file before the last byte of the answer goes to the caller. It needs
no `fsync`: what the kernel has taken survives the process. A line costs a few microseconds, and no wait for a disk.

    ["b", number, at, key, endpoint]        a request goes to a component
    ["a", number, decision]                 its answer has begun, and is not over
    ["e", number, sequence, row]            it is over; `sequence` is the row's place in the writer's

Lines are kept in segments. A segment goes once all its rows are committed; requests still under way are written into
the next one again. Its file is locked for as long as its process lives: one that nobody holds is what a crash left.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from avyay.db_gaps import is_held
from avyay.log import get_logger

__all__ = ["Left", "Spool", "left_behind"]

_SEGMENT = 4 << 20  # bytes
_LOOK = 512  # lines between two looks at what is committed


class Spool:
    """The lines of one writer. Not thread-safe; a file that cannot be written is said once, and counted.

    Args:
        path: Of the database, which the segments lie beside.
        token: The writer's.
        committed: The last sequence that is in the database.
    """

    def __init__(self, path: Path, token: str, committed: Callable[[], int], *, segment: int = _SEGMENT) -> None:
        self._path = path
        self._token = token
        self._committed = committed
        self._most = segment
        self._log = get_logger("gateway")
        self._numbers = 0
        self._open: dict[int, bytes] = {}  # the lines of requests under way
        self._last = 0  # sequence
        self._segments = 0
        self._file = -1
        self._size = 0
        self._old: list[tuple[int, int, Path]] = []  # descriptor, last sequence, file
        self._until_look = _LOOK
        self.failed = 0  # lines that could not be written
        self._begin_segment()

    def begin(self, at: float, key: str, endpoint: str) -> int:
        """A request goes to a component; its number."""
        self._numbers += 1
        line = orjson.dumps(["b", self._numbers, at, key, endpoint]) + b"\n"
        self._open[self._numbers] = line
        self._write(line)
        return self._numbers

    def answered(self, number: int, decision: str | None) -> None:
        """An answer has begun that takes some time."""
        line = orjson.dumps(["a", number, decision]) + b"\n"
        if number in self._open:
            self._open[number] += line
            self._write(line)

    def end(self, number: int, sequence: int, row: tuple[Any, ...]) -> None:
        """A request is over. `number` is 0 for one that went to no component."""
        self._open.pop(number, None)
        self._last = sequence
        self._write(orjson.dumps(["e", number, sequence, row]) + b"\n")
        self._until_look -= 1
        if self._until_look <= 0:
            self._until_look = _LOOK
            self._drop()

    def forget(self, number: int) -> None:
        """A request is over whose row nobody takes."""
        self._open.pop(number, None)

    def close(self) -> None:
        """Remove what is in the database by now; what is not stays for the next start."""
        self._old.append((self._file, self._last, self._file_of(self._segments)))
        self._file = -1
        self._drop()
        for descriptor, _, _ in self._old:
            _close(descriptor)
        self._old = []

    def _write(self, line: bytes) -> None:
        try:
            if self._size > self._most:
                self._begin_segment()
            self._size += os.write(self._file, line)
        except OSError as error:
            self.failed += 1
            if self.failed == 1:
                self._log.error("usage_not_spooled", error=error.strerror)

    def _begin_segment(self) -> None:
        """A new file, with the requests that are still under way."""
        if self._file >= 0:
            self._old.append((self._file, self._last, self._file_of(self._segments)))
            self._file = -1
        self._segments += 1
        self._size = 0
        file = self._file_of(self._segments)
        draft = file.with_name(f".{file.name}")
        try:
            self._file = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            draft.rename(file)  # nobody sees it unlocked
            if self._open:
                self._size = os.write(self._file, b"".join(self._open.values()))
        except OSError as error:
            self.failed += 1
            self._log.error("usage_not_spooled", error=error.strerror)
        self._drop()

    def _drop(self) -> None:
        """Remove the segments whose rows are all in the database."""
        done = self._committed()
        while self._old and self._old[0][1] <= done:
            descriptor, _, file = self._old.pop(0)
            file.unlink(missing_ok=True)
            _close(descriptor)

    def _file_of(self, segment: int) -> Path:
        return self._path.with_name(f"{self._path.name}-spool-{self._token}-{segment:06}")


@dataclass
class Left:
    """What a writer that is gone left behind.

    Attributes:
        rows: (sequence, row) of requests that were over.
        under_way: (at, key, endpoint, decision) of those that were not.
    """

    token: str
    files: list[Path] = field(default_factory=list)
    rows: dict[int, list[Any]] = field(default_factory=dict)
    under_way: list[tuple[float, str, str, str | None]] = field(default_factory=list)


def left_behind(path: Path) -> list[Left]:
    """What writers of a database have left whose processes are gone."""
    found: dict[str, list[Path]] = {}
    for file in sorted(path.parent.glob(f"{path.name}-spool-*")):
        found.setdefault(file.name.split("-")[-2], []).append(file)
    return [_read(token, files) for token, files in found.items() if not any(map(is_held, files))]


def _read(token: str, files: list[Path]) -> Left:
    left = Left(token, files)
    begun: dict[int, list[Any]] = {}
    for file in files:
        for line in file.read_bytes().splitlines():
            try:
                kind, number, *rest = orjson.loads(line)
            except ValueError:  # the process was killed while it wrote: nobody was answered yet
                continue
            if kind == "b":
                begun[number] = [*rest, None]
            elif kind == "a" and number in begun:
                begun[number][3] = rest[0]
            elif kind == "e":
                begun.pop(number, None)
                left.rows[rest[0]] = rest[1]
    left.under_way = [(at, key, endpoint, decision) for at, key, endpoint, decision in begun.values()]
    return left


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        with suppress(OSError):
            os.close(descriptor)
