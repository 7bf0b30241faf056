"""A daemon's application, replaced while it runs: a signal has the configuration read anew, and nobody is cut off."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.serve.notify import NOT_RELOADED, RELOADED, ServiceManager
from avyay.serve.run import App, Stopping

if TYPE_CHECKING:
    from avyay.wiring import Services

__all__ = ["FIXED", "Reloading"]

_WORKERS = ("serve", "gateway", "marga", "rag", "raksha", "siddhi", "engine")
FIXED = (
    *("serve.host", "serve.port", "serve.tailscale_serve", "serve.worker_timeout", "telemetry"),
    *(f"{name}.workers" for name in _WORKERS),
    *("gateway.max_head", "gateway.head_timeout", "gateway.max_connections"),
)
"""Settings that only a restart changes."""
_LOOK = 0.2
_PATIENCE = 3_600.0  # seconds that requests and jobs of the old configuration may take

Build = Callable[["Services", Stopping], App]


class _Generation:
    """An application with its lifespan, and how many requests it is at."""

    def __init__(self, app: App, services: Services, stopping: Stopping) -> None:
        self.app, self.services, self.stopping = app, services, stopping
        self.active = 0
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._started = asyncio.Event()
        self._ended = asyncio.Event()
        self._problem: str | None = None
        self.failure: AvyayError | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Run its startup.

        Raises:
            RuntimeError: it failed; the log has the reason.
        """
        self._task = asyncio.create_task(self._live())
        await self._inbox.put({"type": "lifespan.startup"})
        await self._started.wait()
        if self._problem is not None:
            await self._task
            raise RuntimeError(self._problem)

    async def stop(self) -> None:
        """Run its shutdown."""
        await self._inbox.put({"type": "lifespan.shutdown"})
        await self._ended.wait()
        if self._task is not None:
            await self._task

    @property
    def busy(self) -> bool:
        """Whether somebody still waits for it."""
        kit = getattr(getattr(self.app, "state", None), "kit", None)
        return self.active > 0 or (kit is not None and kit.jobs is not None and kit.jobs.running > 0)

    async def _live(self) -> None:
        async def send(message: Any) -> None:
            kind = message["type"]
            if kind.endswith(".failed"):
                self._problem = message.get("message") or "it did not start"
            if kind.startswith("lifespan.startup"):
                self._started.set()
            else:
                self._ended.set()

        scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        try:
            await self.app(scope, self._inbox.get, send)
        except AvyayError as error:
            self.failure, self._problem = error, error.message
        except Exception as error:  # noqa: BLE001 - whatever a startup raises: the old application stays
            get_logger("serve").exception("application_failed")
            self._problem = self._problem or type(error).__name__
        finally:
            self._started.set()
            self._ended.set()


class Reloading:
    """The ASGI application that stands before its generations.

    Args:
        services: The first configuration's.
        build: Makes an application, in the loop's thread.
        load: Reads the configuration anew; raises an `AvyayError` when it cannot be used.
        stopping: Told when the daemon drains.
        manager: Told of it.
        name: Of the daemon, for the log.
    """

    def __init__(
        self,
        services: Services,
        build: Build,
        load: Callable[[], Services],
        *,
        stopping: Stopping | None = None,
        manager: ServiceManager | None = None,
        name: str = "serve",
    ) -> None:
        self._build, self._load = build, load
        own = Stopping()
        self._now = _Generation(build(services, own), services, own)
        if stopping is not None:
            stopping.add(lambda: self._now.stopping.begin())
        self._log = get_logger(name)
        self._manager = manager or ServiceManager()
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.reloads = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        generation = self._now
        generation.active += 1
        try:
            await generation.app(scope, receive, send)
        finally:
            generation.active -= 1

    async def reload(self) -> bool:
        """Read the configuration anew and put it to use; says whether it was. The old one stays when it is bad."""
        async with self._one:
            self._manager.reloading()
            used = False
            try:
                used = await self._renew(self._now)
            finally:
                self._manager.ready(RELOADED if used else NOT_RELOADED)
            return used

    async def _renew(self, old: _Generation) -> bool:
        try:
            services = await asyncio.to_thread(self._load)
        except AvyayError as error:
            self._log.error("reload_refused", error=error.message, hint=error.hint)
            return False
        stopping = Stopping()
        try:
            fresh = _Generation(self._build(services, stopping), services, stopping)
            await fresh.start()
        except (AvyayError, RuntimeError) as error:
            self._log.error("reload_refused", error=str(error))
            services.close()
            return False
        self._now = fresh
        self.reloads += 1
        fixed = [key for key in FIXED if _value(old.services, key) != _value(services, key)]
        self._log.warning("reloaded", needs_restart=fixed)
        self._spawn(self._retire(old))
        return True

    async def _retire(self, old: _Generation) -> None:
        old.stopping.begin()  # streams without an end: their callers come back to the new one
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while old.busy:  # noqa: ASYNC110 - threads count jobs as well
                    await asyncio.sleep(_LOOK)
        await old.stop()

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            await self._now.start()
        except RuntimeError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            if self._now.failure is not None:
                raise self._now.failure from None
            return
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread: tests, embedders
            loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_once()))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGHUP)
        await self._now.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _reload_once(self) -> None:
        await self.reload()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _value(services: Services, key: str) -> Any:
    found: Any = services.settings
    for name in key.split("."):
        found = getattr(found, name)
    return found
