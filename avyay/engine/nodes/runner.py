"""An attempt on another machine, run there without avyay: standard library only, one file with the keeper in it.

    python3 runner.pyz VERB FOLDER [ARGUMENTS]

    probe FOLDER PROGRAM...        what this machine is, has and does, as JSON
    have FOLDER REPOSITORY COMMIT  whether a commit is there already
    start FOLDER                   an order on standard input: a line of JSON, then a git bundle
    poll FOLDER TASK FENCE OFFSET  a sign of life from the dispatcher; a line of JSON, then the log from OFFSET on
    stop FOLDER TASK FENCE BY      end it
    fetch FOLDER TASK FENCE        its commits, as a git bundle
    close FOLDER TASK FENCE        remove its worktree and home; log and result stay
    sweep FOLDER                   end and remove what lost its dispatcher

`start` leaves a supervisor behind that needs no connection. It works on while ssh is away, keeps log and result, and
looks at its lease once a second: when the dispatcher has shown no sign of life for the lease's timeout, it has given
the task to somebody else, so the supervisor ends all processes of the attempt. A machine that slept does so on waking:
the clock that counts goes on during sleep. A newer fence of the same task ends an older one at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avyay.engine import keeper
else:
    try:  # beside us in the file that is sent
        import keeper
    except ImportError:
        from avyay.engine import keeper

VERSION = 1
PULSE = 1.0
_GIT = ("-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "-c", "gc.auto=0")
_WORKING = ("tree", "home", "spec.json")


class Refused(Exception):  # noqa: N818
    """What was asked cannot be done; the message is for the dispatcher."""


def now() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boot) if boot is not None else time.monotonic()  # macOS: monotonic counts sleep


# ---------------------------------------------------------------- files


def _place(root: str, task: str, fence: int) -> str:
    if not task or any(not (letter.isalnum() or letter in "._-") for letter in task) or task.startswith("."):
        raise Refused(f"{task!r} is no task's name")
    return os.path.join(root, "attempts", task, str(fence))


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: str, value: dict[str, Any], mode: int = 0o600) -> None:
    new = f"{path}.{os.getpid()}.new"
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _git(folder: str, *arguments: str, stdin: bytes | None = None) -> bytes:
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


# ---------------------------------------------------------------- probe


def probe(root: str, programs: list[str]) -> dict[str, Any]:
    """What this machine is, which programs it has, how busy it is, and which attempts are under way."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    path = _path()
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
        "attempts": [_status(folder) for folder in _attempts(root) if _alive(folder)],
    }


def _path() -> str:
    """PATH, with the places that a login shell would add and ssh's does not."""
    home = os.path.expanduser("~")
    more = [f"{home}/.local/bin", f"{home}/.npm-global/bin", f"{home}/bin", "/opt/homebrew/bin", "/usr/local/bin"]
    return os.pathsep.join([os.environ.get("PATH", "/usr/bin:/bin"), *more])


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


# ---------------------------------------------------------------- start


def start(root: str) -> dict[str, Any]:
    """Make the worktree of an order and leave a supervisor behind."""
    order = json.loads(sys.stdin.buffer.readline())
    task, fence = order["task"], int(order["fence"])
    folder = _place(root, task, fence)
    top = os.path.dirname(folder)
    fences = sorted(int(name) for name in os.listdir(top) if name.isdigit()) if os.path.isdir(top) else []
    if fences and fences[-1] > fence:
        raise Refused(f"fence {fence} of {task} is stale: {fences[-1]} is known here")
    if fence in fences:
        return {"started": True, "again": True}  # the answer to the first try was lost on the way
    for older in fences:
        _end(os.path.join(top, str(older)), "lease")
    os.makedirs(folder, mode=0o700)
    try:
        _prepare(root, folder, order)
    except Refused:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _write(os.path.join(folder, "order.json"), {k: v for k, v in order.items() if k not in ("prompt", "files")})
    _touch(folder)
    _detach(folder)
    return {"started": True, "again": False}


def _prepare(root: str, folder: str, order: dict[str, Any]) -> None:
    repository = os.path.join(root, "repositories", f"{order['repository']}.git")
    if not os.path.isdir(repository):
        os.makedirs(repository, mode=0o700)
        _git(repository, "init", "--quiet", "--bare")
    base, branch = order["base"], order["branch"]
    bundle = os.path.join(folder, "base.bundle")
    with open(bundle, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if os.path.getsize(bundle):
        _git(repository, "fetch", "--quiet", "--force", bundle, f"+{order['ref']}:refs/avyay/base")
    os.unlink(bundle)
    tree, home = os.path.join(folder, "tree"), os.path.join(folder, "home")
    _git(repository, "worktree", "prune")
    _git(repository, "update-ref", f"refs/heads/{branch}", base)
    _git(repository, "worktree", "add", "--quiet", "--force", tree, branch)
    os.makedirs(os.path.join(home, "tmp"), mode=0o700)
    for name, content in {**order["files"], "prompt.md": order["prompt"]}.items():
        path = os.path.normpath(os.path.join(home, name))
        if not path.startswith(home + os.sep):
            raise Refused(f"{name!r} leads out of the attempt's home")
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(content)


def have(root: str, repository: str, base: str) -> dict[str, Any]:
    """Whether a commit is here already, and which base was sent last."""
    place = os.path.join(root, "repositories", f"{repository}.git")
    if not os.path.isdir(place):
        return {"base": False, "last": None}
    last = None
    with contextlib.suppress(Refused):
        last = _git(place, "rev-parse", "--verify", "--quiet", "refs/avyay/base").decode().strip()
    with contextlib.suppress(Refused):
        _git(place, "cat-file", "-e", f"{base}^{{commit}}")
        return {"base": True, "last": last}
    return {"base": False, "last": last}


def _detach(folder: str) -> None:
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


# ---------------------------------------------------------------- the supervisor


def supervise(folder: str) -> None:
    """Run the agent under a keeper until it ends, is told to end, or its lease is lost; then save what it made."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    order = _read(os.path.join(folder, "order.json"))
    if order is None:
        raise Refused("the order is gone")
    _write(os.path.join(folder, "owner.json"), {"pid": os.getpid(), "birth": keeper.birth(os.getpid())})
    tree, home = os.path.join(folder, "tree"), os.path.join(folder, "home")
    result = os.path.join(folder, "result.json")
    spec = os.path.join(folder, "spec.json")
    environment = {name: os.environ[name] for name in order["passed_on"] if name in os.environ}
    environment.update({"PATH": _path(), "HOME": home, "TMPDIR": os.path.join(home, "tmp"), **order["environment"]})
    _write(
        spec,
        {
            "argv": order["argv"], "cwd": tree, "env": environment, "mark": order["mark"], "folder": folder,
            "result": result, "stdin": os.path.join(home, "prompt.md") if order["prompt_on_stdin"] else None,
            "wall": order["wall"],
        },
    )  # fmt: skip
    # The prompt's keys and the agent's environment are in no log: the order is kept without them.
    _write(os.path.join(folder, "order.json"), {**order, "environment": {}, "argv": order["argv"][:1]})
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
    told = _read(result)
    if told is None:  # the keeper itself was killed: sweep up after it
        killed, _ = keeper.end_marked(order["mark"], folder)
        told = {"code": None, "signal": None, "ended_by": "abandoned", "seconds": 0.0, "killed": killed}
    if ended_by is not None:
        told.update(ended_by=ended_by, detail=detail)
    try:
        told.update(_collect(tree, order))
    except Refused as error:
        told.update(head=None, error=str(error))
    _write(os.path.join(folder, "outcome.json"), told)


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
        asked = _read(os.path.join(folder, "stop.json"))
        size = os.path.getsize(output)
        if size != grown:
            grown, heard = size, time.monotonic()
        silent = now() - _contact(folder)
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
    _git(tree, "add", "--all", "--", ".", *(f":(exclude){glob}" for glob in order.get("ignore", ())))
    if _git(tree, "diff", "--cached", "--name-only").strip():
        name, email = order["identity"]
        message = order["leftover_message"].encode()
        _git(
            tree, "-c", f"user.name={name}", "-c", f"user.email={email}", "commit", "--quiet", "--no-verify", "-F", "-",
            stdin=message,
        )  # fmt: skip
    head = _git(tree, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
    _git(tree, "update-ref", "refs/avyay/results/" + order["mark"].replace("/", "-"), head)
    return {"head": head}


# ---------------------------------------------------------------- under way


def _touch(folder: str) -> None:
    _write(os.path.join(folder, "contact.json"), {"at": now()})


def _contact(folder: str) -> float:
    found = _read(os.path.join(folder, "contact.json"))
    return float(found["at"]) if found else 0.0


def _attempts(root: str) -> list[str]:
    top = os.path.join(root, "attempts")
    found = []
    with contextlib.suppress(OSError):
        for task in sorted(os.listdir(top)):
            found += [os.path.join(top, task, f) for f in sorted(os.listdir(os.path.join(top, task))) if f.isdigit()]
    return found


def _alive(folder: str) -> bool:
    """Whether an attempt's supervisor runs."""
    owner = _read(os.path.join(folder, "owner.json"))
    return owner is not None and keeper.birth(int(owner["pid"])) == owner["birth"] is not None


def _status(folder: str) -> dict[str, Any]:
    size = 0
    with contextlib.suppress(OSError):
        size = os.path.getsize(os.path.join(folder, "output.log"))
    outcome = _read(os.path.join(folder, "outcome.json"))
    # A supervisor that was started a moment ago has not said who it is yet.
    young = not os.path.exists(os.path.join(folder, "owner.json")) and now() - _contact(folder) < 30
    state = "ended" if outcome else "running" if young or _alive(folder) else "lost"
    task, fence = folder.split(os.sep)[-2:]
    return {"task": task, "fence": int(fence), "state": state, "size": size, "outcome": outcome}


def poll(root: str, task: str, fence: int, offset: int, limit: int = 1_000_000) -> bytes:
    """Renew the lease; the status as a line of JSON, then the log from `offset` on."""
    folder = _place(root, task, fence)
    if not os.path.isdir(folder):
        raise Refused(f"there is no attempt {task}/{fence} here")
    _touch(folder)
    status = _status(folder)
    log = b""
    with contextlib.suppress(OSError), open(os.path.join(folder, "output.log"), "rb") as file:
        file.seek(offset)
        log = file.read(limit)
    return json.dumps(status).encode() + b"\n" + log


def stop(root: str, task: str, fence: int, by: str) -> dict[str, Any]:
    """Ask the supervisor to end the attempt."""
    folder = _place(root, task, fence)
    if os.path.isdir(folder) and not os.path.exists(os.path.join(folder, "stop.json")):
        _write(os.path.join(folder, "stop.json"), {"by": by})
    return {"asked": True}


def fetch(root: str, task: str, fence: int) -> bytes:
    """The commits of an attempt since its base, as a git bundle; empty when it made none."""
    folder = _place(root, task, fence)
    order, outcome = _read(os.path.join(folder, "order.json")), _read(os.path.join(folder, "outcome.json"))
    if order is None or outcome is None:
        raise Refused(f"{task}/{fence} has not ended")
    if not outcome.get("head") or outcome["head"] == order["base"]:
        return b""
    repository = os.path.join(root, "repositories", f"{order['repository']}.git")
    ref = "refs/avyay/results/" + order["mark"].replace("/", "-")
    return _git(repository, "bundle", "create", "-", ref, f"^{order['base']}")


def _end(folder: str, by: str) -> int:
    """End all processes of an attempt, its supervisor first."""
    order = _read(os.path.join(folder, "order.json"))
    owner = _read(os.path.join(folder, "owner.json"))
    if owner is not None and _alive(folder):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(owner["pid"]), signal.SIGKILL)
            os.kill(int(owner["pid"]), signal.SIGCONT)
    killed = 0
    if order is not None:
        killed, _ = keeper.end_marked(order["mark"], folder)
    if not os.path.exists(os.path.join(folder, "outcome.json")):
        ended = {"code": None, "signal": 9, "ended_by": by, "seconds": 0.0, "killed": killed, "head": None}
        _write(os.path.join(folder, "outcome.json"), ended)
    return killed


def close(root: str, task: str, fence: int) -> dict[str, Any]:
    """End what is left of an attempt and remove its worktree and home; log and result stay."""
    folder = _place(root, task, fence)
    if not os.path.isdir(folder):
        return {"closed": False}
    _end(folder, "abandoned")
    order = _read(os.path.join(folder, "order.json"))
    for name in _WORKING:
        path = os.path.join(folder, name)
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(path)
    if order is not None:
        repository = os.path.join(root, "repositories", f"{order['repository']}.git")
        with contextlib.suppress(Refused):
            _git(repository, "worktree", "prune")
            _git(repository, "update-ref", "-d", f"refs/heads/{order['branch']}")
            _git(repository, "update-ref", "-d", "refs/avyay/results/" + order["mark"].replace("/", "-"))
    with contextlib.suppress(OSError):
        os.rename(os.path.join(folder, "order.json"), os.path.join(folder, "closed.json"))
    return {"closed": True}


def sweep(root: str) -> dict[str, Any]:
    """End and remove attempts whose supervisor is gone, or that have heard nothing for twice their lease's timeout."""
    said = []
    for folder in _attempts(root):
        order = _read(os.path.join(folder, "order.json"))
        if order is None:
            continue  # closed
        silent = now() - _contact(folder)
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
        supervise(rest[0])
        return 0
    root = os.path.abspath(os.path.expanduser(rest[0]))
    try:
        if verb == "probe":
            answer: Any = probe(root, rest[1:])
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
            raise Refused(f"there is no verb {verb!r}")
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 3
    sys.stdout.buffer.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
