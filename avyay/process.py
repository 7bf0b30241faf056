"""Running other programs: always a list of arguments, always a time limit, never a shell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from avyay.errors import DependencyError

__all__ = ["Completed", "find_program", "run"]


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended; `timed_out` when it was killed for its time."""

    code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        return self.stderr.decode("utf-8", "replace")


def find_program(name: str, *, hint: str, path: str | None = None) -> str:
    """The full path of a program.

    Raises:
        DependencyError: it is not installed.
    """
    found = shutil.which(name, path=path)
    if found is None:
        raise DependencyError(f"The program {name!r} is not on PATH.", hint=hint, code=f"no_{name}")
    return found


def run(
    command: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    cancel: threading.Event | None = None,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a program to its end or its time limit (seconds); its whole process group ends with it.

    Args:
        pass_fds: Descriptors the program gets: a lock on one of them lasts as long as the program, even without us.

    Raises:
        DependencyError: it cannot be started.
    """
    with ExitStack() as files:
        out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        given: int | IO[bytes] = subprocess.DEVNULL
        if stdin is not None:
            # A file, not a pipe: who waits a tenth of a second at a time would have to go on writing in between.
            given = files.enter_context(tempfile.TemporaryFile())
            given.write(stdin)
            given.seek(0)
        try:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(env) if env is not None else None,
                stdin=given,
                stdout=out,
                stderr=err,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except OSError as error:
            raise DependencyError(
                f"Cannot start {command[0]!r}: {error.strerror or error}.", hint="Is it installed and executable?"
            ) from error
        timed_out = False
        try:
            if cancel is None:
                process.wait(timeout)
            else:
                timed_out = _wait_or_cancel(process, timeout, cancel)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            if process.poll() is None:
                _kill_group(process)
        out.seek(0)
        err.seek(0)
        return Completed(process.returncode, out.read(), err.read(), timed_out)


def _wait_or_cancel(process: subprocess.Popen[bytes], timeout: float, cancel: threading.Event) -> bool:
    ends = time.monotonic() + timeout
    while True:
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            if cancel.is_set() or time.monotonic() >= ends:
                return True
        else:
            return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
