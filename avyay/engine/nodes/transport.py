"""Calls to the runner on another machine, through the user's own ssh: its keys, its config, its known hosts."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import time
import zipfile
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from avyay.engine import keeper
from avyay.engine.nodes import probe, records, runner, supervisor
from avyay.errors import AvyayError, ConfigError, UnreachableError
from avyay.process import find_program, run
from avyay.resilience.backoff import Backoff

__all__ = ["RefusedError", "SshTransport", "Transport", "Tunnel", "runner_archive"]

CALL_TIMEOUT = 30.0
_TRANSFER_TIMEOUT = 600.0
_SSH_LOST = 255
_REFUSED = 3


class RefusedError(AvyayError):
    """The runner on the node will not do it."""

    default_code = "node_refused"


class Transport(Protocol):
    """Reaches a runner."""

    @property
    def where(self) -> str:
        """The machine, for messages."""
        ...

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", timeout: float = CALL_TIMEOUT) -> bytes:
        """One verb of the runner.

        Raises:
            UnreachableError: the machine does not answer; whether the verb was carried out is not known.
            RefusedError: the runner will not.
        """
        ...


@cache
def runner_archive() -> tuple[str, bytes]:
    """The one file that is sent: the runner and what it imports. Its name tells its contents."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)

        put("__main__.py", f"import sys\nfrom {runner.__name__} import main\nsys.exit(main(sys.argv[1:]))\n".encode())
        for package in ("avyay", "avyay/engine", "avyay/engine/nodes"):
            put(f"{package}/__init__.py", b"")
        for module in (keeper, probe, records, runner, supervisor):
            assert module.__file__ is not None
            put(f"{module.__name__.replace('.', '/')}.py", Path(module.__file__).read_bytes())
    content = made.getvalue()
    return f"runner-{sha256(content).hexdigest()[:12]}.pyz", content


class SshTransport:
    """The runner of a host that ssh knows.

    Args:
        host: As in `ssh HOST`; no options.
        folder: On that machine, below the home unless absolute.
        backoff: Between tries to send the file; calls are repeated by those who know whether they may be.
    """

    def __init__(
        self,
        host: str,
        folder: str,
        *,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = lambda: 0.5,
    ) -> None:
        if host.startswith("-") or any(letter.isspace() for letter in host) or not host:
            raise ConfigError(
                f"{host!r} is no host that ssh takes.", hint="Write user@machine, or an alias of ~/.ssh/config."
            )
        self._host = host
        self._folder = folder
        self._backoff = backoff or Backoff(base=0.5, cap=5.0, attempts=3)
        self._sleep = sleep
        self._random = random

    @property
    def where(self) -> str:
        return self._host

    @property
    def folder(self) -> str:
        return self._folder

    def options(self) -> list[str]:
        """The beginning of every ssh command: nothing is asked, and a dead line is noticed."""
        program = find_program("ssh", hint="Install an OpenSSH client.")
        return [
            program, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
            "-o", "ServerAliveCountMax=2",
        ]  # fmt: skip

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", timeout: float = CALL_TIMEOUT) -> bytes:
        name, _ = runner_archive()
        path = shlex.quote(f"{self._folder}/{name}")
        words = " ".join(shlex.quote(word) for word in (verb, self._folder, *arguments))
        # The shell there decides: without our file it says so, and we send it.
        command = f"if [ -f {path} ]; then exec python3 {path} {words}; else exit 97; fi"
        if verb in ("start", "fetch"):
            timeout = max(timeout, _TRANSFER_TIMEOUT)
        code, out, err = self._ssh(command, stdin, timeout)
        if code == 97:
            self._install()
            code, out, err = self._ssh(command, stdin, timeout)
        if code == _REFUSED:
            raise RefusedError(
                f"{self._host}: {err.strip() or 'refused'}", hint="See the attempt's log on that machine."
            )
        if code != 0:
            raise RefusedError(
                f"{self._host}: the runner failed (exit {code}): {_last(err)}",
                hint="It needs python3 (3.8 or later) and git.",
            )
        return out

    def _install(self) -> None:
        name, content = runner_archive()
        folder, path = shlex.quote(self._folder), shlex.quote(f"{self._folder}/{name}")
        command = f"umask 077; mkdir -p {folder} && cat > {path}.$$ && mv {path}.$$ {path}"
        failures = 0
        while True:
            try:
                code, _, err = self._ssh(command, content, CALL_TIMEOUT)
            except UnreachableError:
                failures += 1
                delay = self._backoff.delay(failures, self._random)
                if delay is None:
                    raise
                self._sleep(delay)
                continue
            if code != 0:
                raise RefusedError(
                    f"{self._host}: cannot write to {self._folder}: {_last(err)}", hint="Set the node's folder."
                )
            return

    def _ssh(self, command: str, stdin: bytes, timeout: float) -> tuple[int, bytes, str]:
        done = run([*self.options(), self._host, command], timeout=timeout, stdin=stdin)
        if done.timed_out:
            raise UnreachableError(
                f"{self._host} did not answer within {timeout:.0f} s.", hint=f"Try: ssh {self._host} true"
            )
        if done.code == _SSH_LOST or done.code < 0:
            raise UnreachableError(
                f"ssh to {self._host} failed: {_last(done.error_text)}", hint=f"Try: ssh {self._host} true"
            )
        return done.code, done.stdout, done.error_text


def call_json(
    transport: Transport, verb: str, *arguments: str, stdin: bytes = b"", timeout: float = CALL_TIMEOUT
) -> Any:
    """A verb that answers in JSON.

    Raises:
        UnreachableError: no answer, or one that is no JSON (a login script that prints, for example).
    """
    answer = transport.call(verb, *arguments, stdin=stdin, timeout=timeout)
    try:
        return json.loads(answer)
    except ValueError as error:
        raise UnreachableError(
            f"{transport.where} answered nonsense: {answer[:80]!r}",
            hint="Does a login script print something there? `ssh HOST true` must print nothing.",
        ) from error


class Tunnel:
    """Lets a node reach a port of this machine, while it is open: `ssh -R`, started again when it breaks.

    Args:
        port: On the node's loopback.
        target: `host:port` as this machine reaches it.
    """

    def __init__(self, transport: SshTransport, port: int, target: str) -> None:
        self._command = [
            *transport.options(), "-o", "ExitOnForwardFailure=yes", "-N", "-R", f"127.0.0.1:{port}:{target}",
            transport.where,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        """Open it, or open it again if it broke."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
