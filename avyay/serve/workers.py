"""Several worker processes behind one socket: the parent owns what they share, watches them and restarts them."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from avyay.errors import ExitCode, InternalError
from avyay.log import get_logger
from avyay.resilience.backoff import Backoff
from avyay.serve.port_holder import parent_of
from avyay.serve.watchdog import Watchdog

__all__ = ["ORDERLY", "Supervisor", "worker_command", "workers_of"]

_YOUNG = 5.0  # seconds: a worker that dies younger than this may die for the same reason again
_MOST_YOUNG_DEATHS = 5
_RESTART = Backoff(base=0.2, cap=10.0, attempts=1_000_000)
_DRAIN = 35.0
_WORKER = b"\0--worker-of\0"
ORDERLY = (0, -signal.SIGTERM)
"""How a process ends that was told to: having drained, or while it still started and had nothing to let go of."""
_HOPELESS = (ExitCode.USAGE, ExitCode.AUTH, ExitCode.POLICY)


class Supervisor:
    """Keeps `count` workers running until SIGTERM or SIGINT. One that dies is replaced, at first at once.

    Where one of the first refuses its configuration, all end with its exit code. One that is silent for too long is
    killed, and replaced like one that died.

    Args:
        command: What starts a worker.
        descriptors: Open files that it inherits under the same numbers.
        reload: Run on SIGHUP; None: SIGHUP ends the daemon.
        patience: Seconds a worker may be silent (`heard`); 0: for ever.
        told_to_end: Whether SIGTERM came before.
        ending: Told when the end begins.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        descriptors: Sequence[int],
        *,
        reload: Callable[[], Awaitable[None]] | None = None,
        patience: float = 0.0,
        told_to_end: Callable[[], bool] = lambda: False,
        ending: Callable[[], None] = lambda: None,
    ) -> None:
        self._command, self._count, self._descriptors = command, count, tuple(descriptors)
        self._reload = reload
        self._told_to_end, self._tell_end = told_to_end, ending
        self._watchdog: Watchdog[int] = Watchdog(patience)
        self._patience = patience
        self._log = get_logger("serve")
        self._ending = asyncio.Event()
        self._deaths = [0] * count  # young ones in a row
        self._born = [math.inf] * count
        self._births: dict[int, float] = {}
        self._reloading: asyncio.Task[None] | None = None
        self._again = False
        self._code = 0

    async def run(self) -> int:
        """Watch over the workers; returns the exit code.

        Raises:
            InternalError: they all die as soon as they start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._ending.set if self._reload is None else self._hung_up)
        if self._told_to_end():
            self._ending.set()
        telling = asyncio.ensure_future(self._tell_of_end())
        workers = [asyncio.ensure_future(self._keep_one(slot)) for slot in range(self._count)]
        watching = asyncio.ensure_future(self._watchdog.run(self._hung))
        try:
            await asyncio.gather(*workers)
        finally:
            self._ending.set()
            await asyncio.gather(*workers, return_exceptions=True)
            watching.cancel()
            await asyncio.gather(watching, telling, return_exceptions=True)
            if self._reloading is not None:
                self._reloading.cancel()
                await asyncio.gather(self._reloading, return_exceptions=True)
        if self._none_lives():
            raise InternalError("The workers die as soon as they start; the log says why.", code="workers_die")
        return self._code

    async def _tell_of_end(self) -> None:
        await self._ending.wait()
        self._tell_end()

    def born(self, pid: int) -> float:
        """When a worker was started, on the monotonic clock."""
        return self._births.get(pid, math.inf)

    def heard(self, pid: int, serving: bool) -> None:
        """A worker gave a sign of life."""
        self._watchdog.heard(pid, serving=serving)

    def _hung(self, pid: int) -> None:
        """End a worker that nothing else would: stopped or blocked, it does not see SIGTERM."""
        self._log.error("worker_hung", pid=pid, silent_for=self._patience)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _hung_up(self) -> None:
        if self._reloading is not None and not self._reloading.done():
            self._again = True  # the file may have been written since it was read
            return
        self._reloading = asyncio.ensure_future(self._reload_all())

    async def _reload_all(self) -> None:
        assert self._reload is not None
        self._again = True
        while self._again:
            self._again = False
            await self._reload()

    def _none_lives(self) -> bool:
        now = time.monotonic()
        return all(
            deaths >= _MOST_YOUNG_DEATHS and now - born < _YOUNG
            for deaths, born in zip(self._deaths, self._born, strict=True)
        )

    async def _keep_one(self, slot: int) -> None:
        """Keep one worker running."""
        first = True
        while not self._ending.is_set():
            self._born[slot] = born = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *self._command,
                pass_fds=self._descriptors,
                env=dict(os.environ),
                process_group=0,  # Ctrl-C is for the parent; it ends the others in order
            )
            self._births[process.pid] = born
            self._watchdog.begin(process.pid)
            ended = asyncio.ensure_future(process.wait())
            told = asyncio.ensure_future(self._ending.wait())
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            del self._births[process.pid]
            self._watchdog.end(process.pid)
            if not ended.done():
                await _end(process, ended)
                return
            if self._ending.is_set():
                return
            self._born[slot] = math.inf
            code = process.returncode
            if code in ORDERLY:
                self._log.warning("worker_ended", pid=process.pid, code=code)
            else:
                self._log.error("worker_died", pid=process.pid, code=code)
            if first and code in _HOPELESS:
                self._code = self._code or int(code)  # its own words stand above
                self._ending.set()
                return
            first = False
            self._deaths[slot] = self._deaths[slot] + 1 if time.monotonic() - born < _YOUNG else 0
            if self._none_lives():
                self._ending.set()
                return
            if self._deaths[slot] > 1:
                delay = _RESTART.delay(self._deaths[slot] - 1, random.random) or 0.0
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), delay)


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_DRAIN):
            await asyncio.shield(ended)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await ended


def workers_of(parent: int) -> list[int]:
    """The workers of a daemon, by its process id; none where the system has no /proc."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if parent_of(process) == str(parent) and _WORKER in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def worker_command(component: str, *arguments: str) -> list[str]:
    """The command line of a daemon or of one of its workers."""
    return [sys.executable, "-m", "avyay", "serve", component, *arguments]
