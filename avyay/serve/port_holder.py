"""Who listens on a port of this machine, so that "the port is taken" can say by whom."""

from __future__ import annotations

import shlex
import shutil
from contextlib import suppress
from pathlib import Path

from avyay.log import redact
from avyay.process import run

__all__ = ["parent_of", "port_holder"]

_LISTEN = "0A"
_TIMEOUT = 3.0
_MOST = 2_000  # characters of a command line: a terminal's page


def port_holder(port: int) -> str | None:
    """The process that listens on a TCP port, as "COMMAND (pid N)"; None when it cannot be told."""
    proc = Path("/proc/net/tcp")
    return _from_proc(port) if proc.exists() else _from_lsof(port)


def _from_proc(port: int) -> str | None:
    sockets = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    if not sockets:
        return None
    holders: dict[str, tuple[str, str]] = {}  # parent and words
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or is another user's
            if any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                holders[process.name] = parent_of(process), _words(process)
    # Workers hold it as well: whoever ends one of them gets another.
    first = next((pid for pid, (parent, _) in holders.items() if parent not in holders), None)
    return "a process of another user" if first is None else f"{holders[first][1]} (pid {first})"


def parent_of(process: Path) -> str:
    """The parent of a process, by its folder in /proc.

    Raises:
        OSError: it is gone.
    """
    return (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]


def _words(process: Path) -> str:
    """Its command line, whole, to be recognised by and typed again; without credentials that stand in it."""
    words = (process / "cmdline").read_bytes().rstrip(b"\0").decode("utf-8", "replace").split("\0")
    text = redact(shlex.join(words) if any(words) else (process / "comm").read_text(errors="replace").strip())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"


def _from_lsof(port: int) -> str | None:
    program = shutil.which("lsof")
    if program is None:
        return None
    found = run([program, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"], timeout=_TIMEOUT).text
    fields = {line[0]: line[1:] for line in found.splitlines() if line}
    return f"{fields['c']} (pid {fields['p']})" if {"p", "c"} <= fields.keys() else None
