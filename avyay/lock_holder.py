"""Who holds a lock on a file, so that "it is locked" can say by whom, and whether that process is stopped.

Known on Linux only, from /proc/locks; elsewhere nobody can be named.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Holder", "file_locker", "sqlite_writer"]

_LOCKS = Path("/proc/locks")
_WAL_WRITE_LOCK = 120  # the byte of the -shm file that a writer locks, by SQLite's file format


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lock."""

    pid: int
    command: str
    stopped: bool

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}){', which is stopped' if self.stopped else ''}"

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.stopped:
            return f"Continue it (kill -CONT {self.pid}), or end it (kill -KILL {self.pid})."
        return f"Wait for it to finish, or end it (kill {self.pid})."


def sqlite_writer(path: Path) -> Holder | None:
    """The process that is in a writing transaction of a database in WAL mode; None when there is none, or unknown."""
    return _holder(path.with_name(f"{path.name}-shm"), "POSIX", _WAL_WRITE_LOCK)


def file_locker(path: Path) -> Holder | None:
    """The process that holds a `flock` on a file; None when there is none, or unknown."""
    return _holder(path, "FLOCK", None)


def _holder(path: Path, kind: Literal["POSIX", "FLOCK"], byte: int | None) -> Holder | None:
    try:
        inode = path.stat().st_ino
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) < 8 or fields[1] != kind or fields[3] != "WRITE":  # a line of somebody who waits has one more
            continue
        if fields[5].rpartition(":")[2] != str(inode) or (byte is not None and fields[6] != str(byte)):
            continue
        if (found := _process(int(fields[4]), path)) is not None:
            return found
    return None


def _process(pid: int, path: Path) -> Holder | None:
    """A process that has the file open: inode numbers alone do not tell two disks apart."""
    place = Path("/proc", str(pid))
    try:
        real = str(path.resolve())
        if not any(_leads_to(link, real) for link in (place / "fd").iterdir()):
            return None
        state = (place / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").split()
    except (OSError, IndexError):
        return None  # it ended, or is another user's
    return Holder(pid, " ".join(words)[:100], state in "Tt")


def _leads_to(link: Path, real: str) -> bool:
    with suppress(OSError):
        return str(link.readlink()) == real
    return False
