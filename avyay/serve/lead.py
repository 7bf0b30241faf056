"""The lead: which of several processes does what only one may do. Who holds the lock leads; its end frees the lock."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from avyay.errors import AvyayError, DependencyError
from avyay.events.election import try_lock
from avyay.log import get_logger

__all__ = ["Lead"]

_MOST = 30.0  # seconds between two tries where duties fail
LOOK = 0.5  # seconds between two tries to take the lead; the lock costs a few microseconds


class Lead:
    """Does its duties for as long as it holds a lock file, which the kernel frees when this process ends, however.

    Args:
        path: The lock's file, on a local disk.
        duties: Entered in order once this one leads, and left in reverse before another one can.
        name: Of the daemon, for the log.
    """

    def __init__(self, path: Path, duties: Sequence[Callable[[], AbstractAsyncContextManager[Any]]], name: str) -> None:
        self._path, self._duties, self._name = path, duties, name
        self._resigned = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.leads = False

    async def start(self) -> None:
        """Try once, and go on trying in the background.

        Raises:
            AvyayError: the lead is free, and a duty cannot be begun.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(first))
        await first

    def resign(self) -> None:
        """Leave the duties to another: what is under way ends first."""
        self._resigned.set()

    async def stop(self) -> None:
        """Resign, and wait until the duties have ended."""
        self.resign()
        if self._task is not None:
            await self._task

    async def _run(self, first: asyncio.Future[None]) -> None:
        log = get_logger(self._name)
        failures = 0
        while not self._resigned.is_set():
            try:
                held = self._try()
                if held is not None:
                    await self._lead(held, first, log)
            except Exception as error:  # a bug, too, must not keep this process from ever leading again
                if not first.done():
                    first.set_exception(error)  # it is the caller's
                    return
                failures += 1  # the next try may do better, or another process
                if isinstance(error, AvyayError):
                    log.error("duties_failed", error=error.message, hint=error.hint)
                else:
                    log.exception("duties_failed")
            if not first.done():
                first.set_result(None)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._resigned.wait(), min(LOOK * 2.0**failures, _MOST))
        if not first.done():
            first.set_result(None)

    def _try(self) -> int | None:
        try:
            return try_lock(self._path)
        except OSError as error:
            raise DependencyError(
                f"Cannot lock {self._path}: {error.strerror}.",
                hint="Set AVYAY_HOME to a folder on a local disk that you can write to.",
                code="no_lock",
            ) from error

    async def _lead(self, held: int, first: asyncio.Future[None], log: Any) -> None:
        try:
            async with AsyncExitStack() as stack:
                for duty in self._duties:
                    await stack.enter_async_context(duty())
                self.leads = True
                if first.done():
                    log.warning("lead_taken_over", lead=self._path.name)
                else:
                    first.set_result(None)
                await self._resigned.wait()
        finally:
            self.leads = False
            os.close(held)
