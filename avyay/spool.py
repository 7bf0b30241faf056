"""What has been answered and is not yet in the database: lines in a file, which outlive a process that is killed.

A database that is written in groups follows some tens of milliseconds late; a caller must not have an answer whose row
a `kill -9` can take with it. So a line goes into a file before the last byte of the answer goes to the caller. It needs
no `fsync`: what the kernel has taken survives the process. A line costs a few microseconds, and no wait for a disk.

    ["c", 0, column ...]              the columns of the rows that follow
    ["b", number, word ...]           something begins
    ["a", number, word ...]           more is known of it; the last such line counts
    ["e", number, sequence, row]      it is over; `sequence` is the row's place in the writer's
    ["s", 0]                          what is under way has been said again since the beginning of this segment

Lines are kept in segments. A segment goes once all its rows are committed; what is still under way is written into the
next one again. Its file is locked for as long as its process lives: one that nobody holds is what a crash left.
`avyay.db_journal` joins this with a database.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from avyay.db_gaps import is_held
from avyay.log import get_logger

__all__ = ["Left", "Spool", "left_behind", "still_kept"]

_SEGMENT = 4 << 20  # bytes
_LOOK = 512  # lines between two looks at what is committed
_ALL_SAID = b'["s",0]\n'


class Spool:
    """The lines of one writer. Not thread-safe. Nothing raises: what cannot be written is said once, and counted.

    Words and rows are made of what JSON has; `bytes` in them are JSON already, of an object or an array.

    Args:
        path: Of the database, which the segments lie beside.
        token: The writer's.
        columns: Of the rows.
        committed: The last sequence that is in the database.
        segment: Bytes after which the next file begins.

    Attributes:
        failed: Lines that could not be written.
    """

    def __init__(
        self,
        path: Path,
        token: str,
        columns: Sequence[str],
        committed: Callable[[], int],
        *,
        segment: int = _SEGMENT,
    ) -> None:
        self._path = path
        self._token = token
        self._committed = committed
        self._most = segment
        self._log = get_logger(__name__).bind(database=path.name)
        self._numbers = 0
        self._open: dict[int, bytes] = {}  # the lines of what is under way
        self._last = 0  # sequence
        self._segments = 0
        self._file = -1
        self._room = 0  # bytes until the next segment begins
        self._old: list[tuple[int, int, Path]] = []  # descriptor, last sequence, file
        self._until_look = _LOOK
        self._failing = self._closed = False
        self.failed = 0
        self._head = self._encoded(["c", 0, *columns])
        self._begin_segment()

    def begin(self, words: Iterable[Any]) -> int:
        """Something begins; its number."""
        self._numbers = number = self._numbers + 1
        self._open[number] = line = self._encoded(["b", number, *words])
        self._write(line)
        return number

    def note(self, number: int, words: Iterable[Any]) -> None:
        """More is known of what has begun and is not over."""
        if number in self._open:
            line = self._encoded(["a", number, *words])
            self._open[number] += line
            self._write(line)

    def end(self, number: int, sequence: int, row: Sequence[Any]) -> None:
        """It is over. `number` is 0 for what never began here."""
        self._open.pop(number, None)
        self._last = sequence
        self._write(self._encoded(["e", number, sequence, row]))
        self._until_look -= 1
        if self._until_look <= 0:
            self._until_look = _LOOK
            self._drop()

    def forget(self, number: int) -> None:
        """It is over, and nobody takes its row."""
        self._open.pop(number, None)

    def close(self) -> None:
        """Remove what is in the database by now; what is not stays for whoever looks next. Again: nothing."""
        self._closed = True
        if self._file >= 0:
            self._old.append((self._file, self._last, self._file_of(self._segments)))
            self._file = -1
        self._drop()
        for descriptor, _, _ in self._old:
            _close(descriptor)
        self._old = []

    def _encoded(self, words: list[Any]) -> bytes:
        try:
            return orjson.dumps(words, orjson.Fragment, orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:  # orjson's: an integer beyond 64 bits, half a character
            self.failed += 1
            self._log.error("not_spooled", error=str(error))
            return b""

    def _write(self, line: bytes) -> None:
        if not line:
            return
        if self._room <= 0 and not self._closed:
            self._begin_segment()
        try:
            # What was cut short before must not spoil it: a line of its own.
            said = b"\n" + line if self._failing else line
            written = os.write(self._file, said)
            self._room -= written
            if written < len(said):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._fail(error.strerror or str(error))
        else:
            if self._failing:
                self._mended()

    def _mended(self) -> None:
        self._failing = False
        self._log.warning("spool_written_again", lines_lost=self.failed)
        self._begin_segment()  # of what ended meanwhile nothing is said: a new one says what is under way

    def _fail(self, reason: str) -> None:
        self.failed += 1
        if not self._failing:
            self._failing = True
            self._log.error("not_spooled", error=reason)

    def _begin_segment(self) -> None:
        """A new file, with what is still under way; seen by others only once it is whole and locked."""
        file = self._file_of(self._segments + 1)
        draft = file.with_name(f".{file.name}")
        descriptor = -1
        try:
            descriptor = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            said = b"".join((self._head, *self._open.values(), _ALL_SAID))
            if os.write(descriptor, said) < len(said):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            draft.rename(file)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            _close(descriptor)
            self._room = self._most if self._file >= 0 else 0  # the old one goes on
            return
        if self._file >= 0:
            self._old.append((self._file, self._last, self._file_of(self._segments)))
        self._file, self._room = descriptor, self._most
        self._segments += 1
        self._drop()

    def _drop(self) -> None:
        """Remove the segments whose rows are all in the database."""
        done = self._committed()
        while self._old and self._old[0][1] <= done:
            descriptor, _, file = self._old[0]
            try:
                file.unlink(missing_ok=True)
            except OSError:
                return  # nothing is lost by it: the next look tries again
            del self._old[0]
            _close(descriptor)

    def _file_of(self, segment: int) -> Path:
        return self._path.with_name(f"{self._path.name}-spool-{self._token}-{segment:06}")


@dataclass
class Left:
    """What stands in the spool of one writer.

    Attributes:
        columns: Of the rows.
        rows: By sequence, of what was over.
        under_way: (words it began with, the last ones that were added) of what was not.
    """

    token: str
    files: list[Path] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: dict[int, list[Any]] = field(default_factory=dict)
    under_way: list[tuple[list[Any], list[Any] | None]] = field(default_factory=list)

    def missing(self, done: int) -> int:
        """How many rows after a sequence are not there, of those that must have been."""
        later = sum(sequence > done for sequence in self.rows)
        return max((*self.rows, done)) - done - later

    def remove(self) -> None:
        """Take the files away."""
        for file in self.files:
            file.unlink(missing_ok=True)
            file.with_name(f".{file.name}").unlink(missing_ok=True)


def left_behind(path: Path) -> list[Left]:
    """What writers of a database have left whose processes are gone.

    Raises:
        OSError: a file cannot be read.
    """
    return _spools(path, lambda files: not any(map(is_held, files)))


def still_kept(path: Path) -> list[Left]:
    """What stands in any spool of a database, whether its writer lives or not.

    Raises:
        OSError: a file cannot be read.
    """
    return _spools(path, lambda files: True)


def _spools(path: Path, wanted: Callable[[list[Path]], bool]) -> list[Left]:
    found: dict[str, list[Path]] = {}
    for file in sorted(path.parent.glob(f"{path.name}-spool-*")):
        found.setdefault(file.name.split("-")[-2], []).append(file)
    made = []
    for token, files in found.items():
        if wanted(files):
            with suppress(FileNotFoundError):  # its writer, or who took it over, has just removed it
                made.append(_read(token, files))
    return made


def _read(token: str, files: list[Path]) -> Left:
    left = Left(token, files)
    begun: dict[int, tuple[list[Any], list[Any] | None]] = {}
    for file in files:
        here: dict[int, tuple[list[Any], list[Any] | None]] = {}  # what is under way, by this file alone
        for line in file.read_bytes().split(b"\n"):
            try:
                kind, number, *rest = orjson.loads(line)
            except (ValueError, TypeError):  # the process was killed while it wrote: nobody was answered yet
                continue
            if kind == "b":
                begun[number] = here[number] = (rest, None)
            elif kind == "a" and number in begun:
                begun[number] = here[number] = (begun[number][0], rest)
            elif kind == "e":
                begun.pop(number, None)
                here.pop(number, None)
                left.rows[rest[0]] = rest[1]
            elif kind == "c":
                left.columns = rest
            elif kind == "s":
                begun = dict(here)
    left.under_way = list(begun.values())
    return left


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)
