"""Runs one program and leaves nothing of it behind: one file, standard library only, needs no avyay installed.

    python keeper.py SPEC.json

Agents start shells, and shells start servers, in sessions of their own; when the agent is killed those go on writing.
The keeper adopts orphans (subreaper), marks all it starts in the environment, and ends whatever is left by every means
the system has: cgroup, descent, mark, working folder. It does so when the program ends, when it is told to (`stop` or
`kill` on standard input), when a limit is reached, and when whoever started it goes away: standard input is closed
then, also by kill -9. A keeper that is killed itself is swept up after by `end_marked`, which any process can call.

The specification: {"argv", "cwd", "env", "mark", "folder", "result", "stdin"?, "wall"?, "grace"?, "cgroup"?, "ps"?}.
The result: {"code", "signal", "ended_by", "seconds", "killed", "error"?}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping

MARK = "AVYAY_ATTEMPT"
"""The environment variable that says whose process it is."""

_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform.startswith("linux")
_PS = "/bin/ps"
_PS_ENVIRONMENT = ("axeww",) if _LINUX else ("-axww", "-E")
_LOOK = 1.0  # seconds between two looks at who descends from whom, where orphans cannot be adopted


def use_ps(yes: bool = True) -> None:
    """Do without /proc, adoption and cgroups, as on macOS; what is found then is what `ps` shows."""
    global _LINUX
    _LINUX = not yes and sys.platform.startswith("linux")


def uses_ps() -> bool:
    """Whether processes are found with `ps`."""
    return not _LINUX


# ---------------------------------------------------------------- finding processes


def _processes() -> dict[int, int]:
    """Every living process of this machine: pid to parent."""
    found: dict[int, int] = {}
    if _LINUX:
        for name in os.listdir("/proc"):  # noqa: PTH208 - this file runs on any Python
            if name.isdigit() and (fields := _stat(int(name))) is not None and fields[0] not in "ZX":
                found[int(name)] = int(fields[1])
        return found
    return {pid: parent for pid, (parent, _) in _listed().items()}


def _listed() -> dict[int, tuple[int, str]]:
    """Every living process by `ps`: pid to parent and birth."""
    found: dict[int, tuple[int, str]] = {}
    for line in _ps("-axww", "-o", "pid=,ppid=,stat=,lstart="):
        pid, parent, state, born = line.split(None, 3)
        if not state.startswith("Z"):
            found[int(pid)] = (int(parent), " ".join(born.split()))
    return found


def _ps(*arguments: str) -> list[str]:
    """The lines of `ps`, without the one about itself: it is a child of whoever asks, and gone when it has answered."""
    with subprocess.Popen(
        [_PS, *arguments], stdout=subprocess.PIPE, text=True, errors="replace", env={"LC_ALL": "C"}
    ) as listing:
        lines = listing.communicate(timeout=30)[0].splitlines()
    return [line for line in lines if line.split(None, 1)[:1] != [str(listing.pid)]]


def _stat(pid: int) -> list[str] | None:
    """State, parent and so on from /proc/PID/stat; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def birth(pid: int) -> str | None:
    """When a process began, in the system's own words: tells it from another that got its number. None: it is gone."""
    if _LINUX:
        fields = _stat(pid)
        return None if fields is None or fields[0] in "ZX" else fields[19]
    state, *born = " ".join(_ps("-ww", "-o", "stat=,lstart=", "-p", str(pid))).split() or ("Z",)
    return None if state.startswith("Z") else " ".join(born)


def marks(prefix: str) -> dict[int, str]:
    """Processes whose environment carries a mark that begins so, with their marks."""
    wanted = f"{MARK}={prefix}"
    found: dict[int, str] = {}
    if not _LINUX:
        for line in _ps(*_PS_ENVIRONMENT, "-o", "pid=,command="):
            number, _, rest = line.strip().partition(" ")
            _, seen, after = f" {rest}".partition(f" {wanted}")
            if seen and number.isdigit() and int(number) != os.getpid():
                found[int(number)] = prefix + after.partition(" ")[0]
        return found
    for pid in _processes():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                environment = file.read()
        except OSError:
            continue
        _, there, tail = (b"\0" + environment).partition(f"\0{wanted}".encode())
        if there and pid != os.getpid():
            found[pid] = prefix + tail.partition(b"\0")[0].decode(errors="replace")
    return found


def inside(folder: str) -> set[int]:
    """Orphans whose working folder lies in a folder (Linux): those that cleared their environment stay there.

    Only orphans: a person's shell that looks around has a parent.
    """
    if not _LINUX or not folder:
        return set()
    root = os.path.realpath(folder)
    found: set[int] = set()
    for pid, parent in _processes().items():
        if parent != 1:
            continue
        with contextlib.suppress(OSError):
            where = os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)")  # noqa: PTH115
            if where == root or where.startswith(root + "/"):
                found.add(pid)
    return found - {os.getpid()}


def descendants(root: int) -> set[int]:
    """All children of a process, and theirs."""
    return _tree((root,), _processes())


def _tree(roots: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


# ---------------------------------------------------------------- ending them


def end_marked(mark: str, folder: str = "", *, root: int | None = None, seconds: float = 10.0) -> tuple[int, set[int]]:
    """End everything that carries a mark, works in a folder or descends from a process.

    Returns how many were ended, and those that were still there after so many seconds.
    """
    until = time.monotonic() + seconds
    killed: set[int] = set()
    while True:
        found = {pid for pid, name in marks(mark).items() if name == mark}
        for pid in inside(folder):
            found |= {pid} | descendants(pid)
        if root is not None:
            found |= descendants(root) | _Family.left()
        found -= {os.getpid(), root or 0}
        if not found or time.monotonic() > until:
            return len(killed), found
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        _reap()
        time.sleep(0.02)


def _reap() -> None:
    """Take note of adopted children that died; the program itself is waited for by its owner."""
    if not _Program.pid or not _LINUX:
        return  # not a keeper: the children of whoever calls us are theirs to wait for; or nobody is adopted here
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid == _Program.pid:
                return
            os.waitpid(found.si_pid, os.WNOHANG)


class _Program:
    pid = 0


class _Family:
    """Where orphans cannot be adopted: who was ever seen to descend from us. Some systems hide environments, so that a
    mark is not always to be seen."""

    seen: dict[int, str] = {}  # noqa: RUF012
    looked = 0.0

    @classmethod
    def look(cls) -> None:
        if _LINUX or time.monotonic() - cls.looked < _LOOK:
            return
        everyone = _listed()
        known = cls._present(everyone)
        for pid in _tree({os.getpid(), *known}, {pid: parent for pid, (parent, _) in everyone.items()}):
            cls.seen[pid] = everyone[pid][1]
        cls.looked = time.monotonic()

    @classmethod
    def left(cls) -> set[int]:
        """Those that are still there, and all that descend from them."""
        if _LINUX or not cls.seen:
            return set()
        everyone = _listed()
        known = cls._present(everyone)
        return known | _tree(known, {pid: parent for pid, (parent, _) in everyone.items()})

    @classmethod
    def _present(cls, everyone: Mapping[int, tuple[int, str]]) -> set[int]:
        return {pid for pid, born in cls.seen.items() if pid in everyone and everyone[pid][1] == born}


# ---------------------------------------------------------------- cgroup v2, where it can be had


def _cgroup(mark: str) -> str | None:
    """A cgroup of our own, when the system lets us make one."""
    if not _LINUX:
        return None
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:  # noqa: PTH123
            own = next(line[3:].strip() for line in file if line.startswith("0::"))
        with open("/proc/self/mounts", encoding="utf-8") as file:  # noqa: PTH123
            mount = next(line.split()[1] for line in file if line.split()[2] == "cgroup2")
        name = "".join(letter if letter.isalnum() else "-" for letter in mark)
        path = f"{mount}{own.rstrip('/')}/avyay-{name}"
        os.mkdir(path)  # noqa: PTH102
        if not os.path.exists(f"{path}/cgroup.procs"):  # noqa: PTH110
            os.rmdir(path)  # noqa: PTH106
            return None
        return path
    except (OSError, StopIteration, IndexError):
        return None


def _enter(path: str) -> None:
    with open(f"{path}/cgroup.procs", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(str(os.getpid()))


def _end_cgroup(path: str) -> None:
    for _ in range(50):
        try:
            with open(f"{path}/cgroup.procs", encoding="ascii") as file:  # noqa: PTH123
                members = file.read().split()
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _reap()
            os.rmdir(path)  # noqa: PTH106
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


# ---------------------------------------------------------------- keeping


def keep(spec: dict) -> dict:  # type: ignore[type-arg]
    """Run the program of a specification to its end; returns the result."""
    if spec.get("ps"):
        use_ps()
    if _LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.setsid()
    environment = {**spec["env"], MARK: spec["mark"]}
    group = _cgroup(spec["mark"]) if spec.get("cgroup", True) else None
    started = time.monotonic()
    stdin = open(spec["stdin"], "rb") if spec.get("stdin") else subprocess.DEVNULL  # noqa: PTH123, SIM115
    try:
        program = subprocess.Popen(
            spec["argv"],
            cwd=spec["cwd"],
            env=environment,
            stdin=stdin,
            start_new_session=True,
            preexec_fn=(lambda: _enter(group)) if group else None,
        )
    except (OSError, subprocess.SubprocessError) as error:
        if group:
            _end_cgroup(group)
        return {"code": None, "signal": None, "ended_by": "start", "seconds": 0.0, "killed": 0, "error": str(error)}
    _Program.pid = program.pid
    # Whoever reads our output must see its end when the program's own copy is closed, not ours.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    ended_by = _watch(program, spec, started)
    if ended_by == "stop":
        _ask(program, spec.get("grace", 3.0))
    if ended_by is not None and program.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    killed, left = end_marked(spec["mark"], spec.get("folder", ""), root=os.getpid())
    if group:
        _end_cgroup(group)
    code = program.wait()
    return {
        "code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "ended_by": ended_by,
        "seconds": round(time.monotonic() - started, 3),
        "killed": killed,
        "left": sorted(left),
    }


def _watch(program: subprocess.Popen, spec: dict, started: float) -> str | None:  # type: ignore[type-arg]
    """Wait for the program's end (None), an order, a limit, or the end of whoever started us."""
    orders = b""
    wall = spec.get("wall") or float("inf")
    pause = 0.01
    while program.poll() is None:
        if time.monotonic() - started > wall:
            return "wall"
        ready, _, _ = select.select([0], [], [], pause)
        pause = min(0.1, pause * 1.5)
        if ready:
            read = os.read(0, 4096)
            if not read:
                return "abandoned"
            orders += read
            for word in (b"kill", b"stop"):
                if word in orders:
                    return word.decode()
        _reap()
        _Family.look()
    return None


def _ask(program: subprocess.Popen, grace: float) -> None:  # type: ignore[type-arg]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.wait(grace)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Orders come on standard input. A handler, for what is ignored would be ignored by the program too.
        signal.signal(number, lambda *_: None)
    # avyay: ignore[path-traversal-python] whoever starts a keeper names its files, and could write them itself
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        spec = json.load(file)
    # avyay: ignore[path-traversal-python] whoever starts a keeper names its files, and could write them itself
    os.unlink(sys.argv[1])  # noqa: PTH108 - it may hold keys
    result = keep(spec)
    # avyay: ignore[path-traversal-python] whoever starts a keeper names its files, and could write them itself
    with open(f"{spec['result']}.new", "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(result, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{spec['result']}.new", spec["result"])  # noqa: PTH105


if __name__ == "__main__":
    main()
