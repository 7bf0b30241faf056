"""What a machine is, has and does: what a dispatcher asks before it gives it work. Standard library only."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import time
from typing import Any

from avyay.engine.nodes import records

VERSION = 1


def probe(root: str, programs: list[str]) -> dict[str, Any]:
    """What this machine is, which programs it has, how busy it is, and which attempts are under way."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    path = records.program_path()
    return {
        "version": VERSION,
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count() or 1,
        "load": round(load, 2),
        "user_idle": _user_idle(),
        "git": shutil.which("git", path=path) is not None,
        "programs": {name: found for name in programs if (found := shutil.which(name, path=path))},
        "models": _models(path),
        "home": os.path.realpath(root),
        "attempts": [records.status(folder) for folder in records.attempts(root) if records.alive(folder)],
    }


def _user_idle() -> float | None:
    """Seconds since somebody typed at this machine; None when nobody is logged in, or it cannot be known."""
    newest = None
    for folder in ("/dev/pts", "/dev"):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if (folder == "/dev/pts" and name.isdigit()) or name.startswith("ttys"):
                    with contextlib.suppress(OSError):
                        used = os.stat(f"{folder}/{name}").st_atime
                        newest = used if newest is None else max(newest, used)
    return None if newest is None else max(0.0, round(time.time() - newest, 1))


def _models(path: str) -> list[str]:
    """Models that a local Ollama has."""
    program = shutil.which("ollama", path=path)
    if program is None:
        return []
    try:
        done = subprocess.run([program, "list"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split()[0] for line in done.stdout.splitlines()[1:] if line.strip()]
