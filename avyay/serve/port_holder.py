"""Who listens on a port of this machine, so that "the port is taken" can say by whom."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from avyay.log import redact
from avyay.process import run

__all__ = ["port_holder"]

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
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                return f"{_words(process)} (pid {process.name})"
        except OSError:
            continue  # it ended, or is another user's
    return "a process of another user"


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
