"""What is kept of attempts on another machine: their folders, records and clock; git there. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from typing import Any

from avyay.engine import keeper

_GIT = ("-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "-c", "gc.auto=0")


class Refused(Exception):  # noqa: N818
    """What was asked cannot be done; the message is for the dispatcher."""


def now() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boot) if boot is not None else time.monotonic()  # macOS: monotonic counts sleep


def place(root: str, task: str, fence: int) -> str:
    """The folder of an attempt.

    Raises:
        Refused: the name leads elsewhere.
    """
    if not task or any(not (letter.isalnum() or letter in "._-") for letter in task) or task.startswith("."):
        raise Refused(f"{task!r} is no task's name")
    return os.path.join(root, "attempts", task, str(fence))


def read(path: str) -> dict[str, Any] | None:
    """A record; None when there is none, or it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write(path: str, value: dict[str, Any], mode: int = 0o600) -> None:
    """Write a record, whole or not at all."""
    new = f"{path}.{os.getpid()}.new"
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def git(folder: str, *arguments: str, stdin: bytes | None = None) -> bytes:
    """What git answers.

    Raises:
        Refused: it fails.
    """
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", *_GIT, *arguments],
            cwd=folder,
            input=stdin or b"",
            capture_output=True,
            timeout=600,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"git {arguments[0]}: {error}") from error
    if done.returncode != 0:
        raise Refused(f"git {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()[:300]}")
    return done.stdout


def program_path() -> str:
    """PATH, with the places that a login shell would add and ssh's does not."""
    home = os.path.expanduser("~")
    more = [f"{home}/.local/bin", f"{home}/.npm-global/bin", f"{home}/bin", "/opt/homebrew/bin", "/usr/local/bin"]
    return os.pathsep.join([os.environ.get("PATH", "/usr/bin:/bin"), *more])


def touch(folder: str) -> None:
    """Note a sign of life from the dispatcher."""
    write(os.path.join(folder, "contact.json"), {"at": now()})


def contact(folder: str) -> float:
    """When the dispatcher was last heard of, as `now` counts."""
    found = read(os.path.join(folder, "contact.json"))
    return float(found["at"]) if found else 0.0


def attempts(root: str) -> list[str]:
    """The folders of all attempts."""
    top = os.path.join(root, "attempts")
    found = []
    with contextlib.suppress(OSError):
        for task in sorted(os.listdir(top)):
            found += [os.path.join(top, task, f) for f in sorted(os.listdir(os.path.join(top, task))) if f.isdigit()]
    return found


def alive(folder: str) -> bool:
    """Whether an attempt's supervisor runs."""
    owner = read(os.path.join(folder, "owner.json"))
    return owner is not None and keeper.birth(int(owner["pid"])) == owner["birth"] is not None


def status(folder: str) -> dict[str, Any]:
    """How an attempt is getting on."""
    size = 0
    with contextlib.suppress(OSError):
        size = os.path.getsize(os.path.join(folder, "output.log"))
    outcome = read(os.path.join(folder, "outcome.json"))
    # A supervisor that was started a moment ago has not said who it is yet.
    young = not os.path.exists(os.path.join(folder, "owner.json")) and now() - contact(folder) < 30
    state = "ended" if outcome else "running" if young or alive(folder) else "lost"
    task, fence = folder.split(os.sep)[-2:]
    return {"task": task, "fence": int(fence), "state": state, "size": size, "outcome": outcome}
