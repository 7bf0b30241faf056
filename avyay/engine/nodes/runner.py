"""An attempt on another machine, run there without avyay: standard library only, sent as one file.

    python3 runner.pyz VERB FOLDER [ARGUMENTS]

    probe FOLDER PROGRAM...        what this machine is, has and does, as JSON
    have FOLDER REPOSITORY COMMIT  whether a commit is there already
    start FOLDER                   an order on standard input: a line of JSON, then a git bundle
    poll FOLDER TASK FENCE OFFSET  a sign of life from the dispatcher; a line of JSON, then the log from OFFSET on
    stop FOLDER TASK FENCE BY      end it
    fetch FOLDER TASK FENCE        its commits, as a git bundle
    close FOLDER TASK FENCE        remove its worktree and home; log and result stay
    sweep FOLDER                   end and remove what lost its dispatcher

`start` leaves a supervisor behind (`avyay.engine.nodes.supervisor`) that needs no connection. A newer fence of the same
task ends an older one at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from typing import Any

from avyay.engine import keeper
from avyay.engine.nodes import probe as probing
from avyay.engine.nodes import records, supervisor

_WORKING = ("tree", "home", "spec.json")


# ---------------------------------------------------------------- start


def start(root: str) -> dict[str, Any]:
    """Make the worktree of an order and leave a supervisor behind."""
    order = json.loads(sys.stdin.buffer.readline())
    task, fence = order["task"], int(order["fence"])
    folder = records.place(root, task, fence)
    top = os.path.dirname(folder)
    fences = sorted(int(name) for name in os.listdir(top) if name.isdigit()) if os.path.isdir(top) else []
    if fences and fences[-1] > fence:
        raise records.Refused(f"fence {fence} of {task} is stale: {fences[-1]} is known here")
    if fence in fences:
        return {"started": True, "again": True}  # the answer to the first try was lost on the way
    for older in fences:
        _end(os.path.join(top, str(older)), "lease")
    os.makedirs(folder, mode=0o700)
    try:
        _prepare(root, folder, order)
    except records.Refused:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    records.write(os.path.join(folder, "order.json"), {k: v for k, v in order.items() if k not in ("prompt", "files")})
    records.touch(folder)
    supervisor.detach(folder)
    return {"started": True, "again": False}


def _prepare(root: str, folder: str, order: dict[str, Any]) -> None:
    repository = os.path.join(root, "repositories", f"{order['repository']}.git")
    if not os.path.isdir(repository):
        os.makedirs(repository, mode=0o700)
        records.git(repository, "init", "--quiet", "--bare")
    base, branch = order["base"], order["branch"]
    bundle = os.path.join(folder, "base.bundle")
    with open(bundle, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if os.path.getsize(bundle):
        records.git(repository, "fetch", "--quiet", "--force", bundle, f"+{order['ref']}:refs/avyay/base")
    os.unlink(bundle)
    tree, home = os.path.join(folder, "tree"), os.path.join(folder, "home")
    records.git(repository, "worktree", "prune")
    records.git(repository, "update-ref", f"refs/heads/{branch}", base)
    records.git(repository, "worktree", "add", "--quiet", "--force", tree, branch)
    os.makedirs(os.path.join(home, "tmp"), mode=0o700)
    for name, content in {**order["files"], "prompt.md": order["prompt"]}.items():
        path = os.path.normpath(os.path.join(home, name))
        if not path.startswith(home + os.sep):
            raise records.Refused(f"{name!r} leads out of the attempt's home")
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(content)


def have(root: str, repository: str, base: str) -> dict[str, Any]:
    """Whether a commit is here already, and which base was sent last."""
    place = os.path.join(root, "repositories", f"{repository}.git")
    if not os.path.isdir(place):
        return {"base": False, "last": None}
    last = None
    with contextlib.suppress(records.Refused):
        last = records.git(place, "rev-parse", "--verify", "--quiet", "refs/avyay/base").decode().strip()
    with contextlib.suppress(records.Refused):
        records.git(place, "cat-file", "-e", f"{base}^{{commit}}")
        return {"base": True, "last": last}
    return {"base": False, "last": last}


# ---------------------------------------------------------------- under way


def poll(root: str, task: str, fence: int, offset: int, limit: int = 1_000_000) -> bytes:
    """Renew the lease; the status as a line of JSON, then the log from `offset` on."""
    folder = records.place(root, task, fence)
    if not os.path.isdir(folder):
        raise records.Refused(f"there is no attempt {task}/{fence} here")
    records.touch(folder)
    status = records.status(folder)
    log = b""
    with contextlib.suppress(OSError), open(os.path.join(folder, "output.log"), "rb") as file:
        file.seek(offset)
        log = file.read(limit)
    return json.dumps(status).encode() + b"\n" + log


def stop(root: str, task: str, fence: int, by: str) -> dict[str, Any]:
    """Ask the supervisor to end the attempt."""
    folder = records.place(root, task, fence)
    if os.path.isdir(folder) and not os.path.exists(os.path.join(folder, "stop.json")):
        records.write(os.path.join(folder, "stop.json"), {"by": by})
    return {"asked": True}


def fetch(root: str, task: str, fence: int) -> bytes:
    """The commits of an attempt since its base, as a git bundle; empty when it made none."""
    folder = records.place(root, task, fence)
    order, outcome = (
        records.read(os.path.join(folder, "order.json")),
        records.read(os.path.join(folder, "outcome.json")),
    )
    if order is None or outcome is None:
        raise records.Refused(f"{task}/{fence} has not ended")
    if not outcome.get("head") or outcome["head"] == order["base"]:
        return b""
    repository = os.path.join(root, "repositories", f"{order['repository']}.git")
    ref = "refs/avyay/results/" + order["mark"].replace("/", "-")
    return records.git(repository, "bundle", "create", "-", ref, f"^{order['base']}")


def _end(folder: str, by: str) -> int:
    """End all processes of an attempt, its supervisor first."""
    order = records.read(os.path.join(folder, "order.json"))
    owner = records.read(os.path.join(folder, "owner.json"))
    if owner is not None and records.alive(folder):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(owner["pid"]), signal.SIGKILL)
            os.kill(int(owner["pid"]), signal.SIGCONT)
    killed = 0
    if order is not None:
        killed, _ = keeper.end_marked(order["mark"], folder)
    if not os.path.exists(os.path.join(folder, "outcome.json")):
        ended = {"code": None, "signal": 9, "ended_by": by, "seconds": 0.0, "killed": killed, "head": None}
        records.write(os.path.join(folder, "outcome.json"), ended)
    return killed


def close(root: str, task: str, fence: int) -> dict[str, Any]:
    """End what is left of an attempt and remove its worktree and home; log and result stay."""
    folder = records.place(root, task, fence)
    if not os.path.isdir(folder):
        return {"closed": False}
    _end(folder, "abandoned")
    order = records.read(os.path.join(folder, "order.json"))
    for name in _WORKING:
        path = os.path.join(folder, name)
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(path)
    if order is not None:
        repository = os.path.join(root, "repositories", f"{order['repository']}.git")
        with contextlib.suppress(records.Refused):
            records.git(repository, "worktree", "prune")
            records.git(repository, "update-ref", "-d", f"refs/heads/{order['branch']}")
            records.git(repository, "update-ref", "-d", "refs/avyay/results/" + order["mark"].replace("/", "-"))
    with contextlib.suppress(OSError):
        os.rename(os.path.join(folder, "order.json"), os.path.join(folder, "closed.json"))
    return {"closed": True}


def sweep(root: str) -> dict[str, Any]:
    """End and remove attempts whose supervisor is gone, or that have heard nothing for twice their lease's timeout."""
    said = []
    for folder in records.attempts(root):
        order = records.read(os.path.join(folder, "order.json"))
        if order is None:
            continue  # closed
        silent = records.now() - records.contact(folder)
        if silent > 2 * order["lease_timeout"]:
            task, fence = folder.split(os.sep)[-2:]
            killed = _end(folder, "lease")
            close(root, task, int(fence))
            said.append(f"{task}/{fence}: ended {killed} processes; no dispatcher for {silent:.0f} s")
    return {"said": said}


def main(arguments: list[str]) -> int:
    """One verb; the answer goes to standard output."""
    verb, rest = arguments[0], arguments[1:]
    if verb == "keeper":
        sys.argv = ["keeper", *rest]
        keeper.main()
        return 0
    if verb == "supervise":
        supervisor.supervise(rest[0])
        return 0
    root = os.path.abspath(os.path.expanduser(rest[0]))
    try:
        if verb == "probe":
            answer: Any = probing.probe(root, rest[1:])
        elif verb == "have":
            answer = have(root, rest[1], rest[2])
        elif verb == "start":
            answer = start(root)
        elif verb == "poll":
            answer = poll(root, rest[1], int(rest[2]), int(rest[3]))
        elif verb == "stop":
            answer = stop(root, rest[1], int(rest[2]), rest[3])
        elif verb == "fetch":
            answer = fetch(root, rest[1], int(rest[2]))
        elif verb == "close":
            answer = close(root, rest[1], int(rest[2]))
        elif verb == "sweep":
            answer = sweep(root)
        else:
            raise records.Refused(f"there is no verb {verb!r}")
    except records.Refused as error:
        sys.stderr.write(f"{error}\n")
        return 3
    sys.stdout.buffer.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
