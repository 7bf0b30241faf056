"""Several worker processes behind one socket: the parent owns what they share, watches them and restarts them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from avyay.errors import InternalError
from avyay.log import get_logger

__all__ = ["supervise", "worker_command"]

_YOUNG = 5.0  # seconds: a worker that dies younger than this may die for the same reason again
_MOST_YOUNG_DEATHS = 5
_DRAIN = 35.0


def supervise(
    command: Sequence[str],
    count: int,
    listener: socket.socket,
    *,
    started: Callable[[], Awaitable[None]],
    stopped: Callable[[], Awaitable[None]],
) -> None:
    """Run `count` workers until SIGTERM or SIGINT.

    Args:
        command: What starts a worker; it inherits `listener` under the same number.
        started, stopped: Run in the parent's event loop before the first worker and after the last.

    Raises:
        InternalError: the workers die as soon as they start.
    """
    asyncio.run(_Supervisor(command, count, listener).run(started, stopped))


class _Supervisor:
    def __init__(self, command: Sequence[str], count: int, listener: socket.socket) -> None:
        self._command = command
        self._count = count
        self._listener = listener
        self._log = get_logger("serve")
        self._ending = asyncio.Event()
        self._young_deaths = 0

    async def run(self, started: Callable[[], Awaitable[None]], stopped: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        await started()
        workers = [asyncio.ensure_future(self._keep_one()) for _ in range(self._count)]
        try:
            await asyncio.gather(*workers)
        finally:
            self._ending.set()
            await asyncio.gather(*workers, return_exceptions=True)
            await stopped()
        if self._young_deaths >= _MOST_YOUNG_DEATHS:
            raise InternalError("The workers die as soon as they start; the log says why.", code="workers_die")

    async def _keep_one(self) -> None:
        """Keep one worker running."""
        while not self._ending.is_set():
            born = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *self._command, pass_fds=(self._listener.fileno(),), env=dict(os.environ)
            )
            ended = asyncio.ensure_future(process.wait())
            told = asyncio.ensure_future(self._ending.wait())
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            if ended.done():
                self._log.error("worker_died", pid=process.pid, code=process.returncode)
                if time.monotonic() - born < _YOUNG:
                    self._young_deaths += 1
                    if self._young_deaths >= _MOST_YOUNG_DEATHS:
                        self._ending.set()
                        return
                else:
                    self._young_deaths = 0
                continue
            await _end(process, ended)


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


def worker_command(component: str, *arguments: str) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "avyay", "serve", component, *arguments]
