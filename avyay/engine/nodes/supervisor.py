"""Runs an agent on a machine without avyay, and needs no connection for it. Standard library only.

It works on while ssh is away, keeps log and result, and looks at its lease once a second: when the dispatcher has shown
no sign of life for the lease's timeout, it has given the task to somebody else, so all processes of the attempt are
ended. A machine that slept does so on waking: the clock that counts goes on during sleep.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

from avyay.engine import keeper
from avyay.engine.nodes import records

PULSE = 1.0


def detach(folder: str) -> None:
    """Start the supervisor in a session of its own: it outlives this ssh connection."""
    with open(os.path.join(folder, "supervisor.log"), "ab") as log:
        subprocess.Popen(
            [sys.executable, os.path.abspath(sys.argv[0]), "supervise", folder],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )


def supervise(folder: str) -> None:
    """Run the agent under a keeper until it ends, is told to end, or its lease is lost; then save what it made."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    order = records.read(os.path.join(folder, "order.json"))
    if order is None:
        raise records.Refused("the order is gone")
    records.write(os.path.join(folder, "owner.json"), {"pid": os.getpid(), "birth": keeper.birth(os.getpid())})
    tree, home = os.path.join(folder, "tree"), os.path.join(folder, "home")
    result = os.path.join(folder, "result.json")
    spec = os.path.join(folder, "spec.json")
    environment = {name: os.environ[name] for name in order["passed_on"] if name in os.environ}
    environment.update(
        {"PATH": records.program_path(), "HOME": home, "TMPDIR": os.path.join(home, "tmp"), **order["environment"]}
    )
    records.write(
        spec,
        {
            "argv": order["argv"], "cwd": tree, "env": environment, "mark": order["mark"], "folder": folder,
            "result": result, "stdin": os.path.join(home, "prompt.md") if order["prompt_on_stdin"] else None,
            "wall": order["wall"],
        },
    )  # fmt: skip
    # The prompt's keys and the agent's environment are in no log: the order is kept without them.
    records.write(os.path.join(folder, "order.json"), {**order, "environment": {}, "argv": order["argv"][:1]})
    output = os.path.join(folder, "output.log")
    with open(output, "ab") as log, open(os.path.join(folder, "errors.log"), "ab") as errors:
        keeping = subprocess.Popen(
            [sys.executable, os.path.abspath(sys.argv[0]), "keeper", spec],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log if order.get("errors_in_log") else errors,
        )
        ended_by, detail = _watch(folder, order, keeping, output)
        with contextlib.suppress(OSError):
            assert keeping.stdin is not None
            keeping.stdin.close()
        try:
            keeping.wait(timeout=30)
        except subprocess.TimeoutExpired:
            keeping.kill()
            keeping.wait()
    told = records.read(result)
    if told is None:  # the keeper itself was killed: sweep up after it
        killed, _ = keeper.end_marked(order["mark"], folder)
        told = {"code": None, "signal": None, "ended_by": "abandoned", "seconds": 0.0, "killed": killed}
    if ended_by is not None:
        told.update(ended_by=ended_by, detail=detail)
    try:
        told.update(_collect(tree, order))
    except records.Refused as error:
        told.update(head=None, error=str(error))
    records.write(os.path.join(folder, "outcome.json"), told)


def _watch(folder: str, order: dict[str, Any], keeping: subprocess.Popen[bytes], output: str) -> tuple[str | None, str]:
    """Wait for the agent's end; returns who ended it and why, if somebody did."""
    grown, heard = -1, time.monotonic()
    while True:
        try:
            keeping.wait(timeout=order.get("pulse", PULSE))
        except subprocess.TimeoutExpired:
            pass
        else:
            return None, ""
        asked = records.read(os.path.join(folder, "stop.json"))
        size = os.path.getsize(output)
        if size != grown:
            grown, heard = size, time.monotonic()
        silent = records.now() - records.contact(folder)
        ended: tuple[str, str] | None = None
        if asked is not None:
            ended = (str(asked.get("by", "cancel")), str(asked.get("detail", "")))
        elif silent > order["lease_timeout"]:
            ended = ("lease", f"no sign of the dispatcher for {silent:.0f} s")
        elif time.monotonic() - heard > order["stall"]:
            ended = ("stall", f"showed nothing for {order['stall']:.0f} s")
        if ended is not None:
            with contextlib.suppress(OSError):
                assert keeping.stdin is not None
                keeping.stdin.write(b"stop\n" if ended[0] == "cancel" else b"kill\n")
                keeping.stdin.flush()
            return ended


def _collect(tree: str, order: dict[str, Any]) -> dict[str, Any]:
    """Commit what was left uncommitted; the branch then points at the result."""
    records.git(tree, "add", "--all", "--", ".", *(f":(exclude){glob}" for glob in order.get("ignore", ())))
    if records.git(tree, "diff", "--cached", "--name-only").strip():
        name, email = order["identity"]
        message = order["leftover_message"].encode()
        records.git(
            tree, "-c", f"user.name={name}", "-c", f"user.email={email}", "commit", "--quiet", "--no-verify", "-F", "-",
            stdin=message,
        )  # fmt: skip
    head = records.git(tree, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
    records.git(tree, "update-ref", "refs/avyay/results/" + order["mark"].replace("/", "-"), head)
    return {"head": head}
