"""From a component's recipe to a running daemon: the port, the word about it, workers, reloading, the tailnet."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from avyay.errors import AvyayError, UsageError
from avyay.log import get_logger
from avyay.serve.notify import NOT_RELOADED, RELOADED, ServiceManager, service_manager
from avyay.serve.reload import Reloading
from avyay.serve.run import App, Stopping, bind, hold_end, serve
from avyay.serve.siblings import Hub, Joined, Siblings
from avyay.serve.workers import Supervisor, worker_command
from avyay.telemetry import enable_tracing, flush_tracing

if TYPE_CHECKING:
    from avyay.wiring import Services

__all__ = ["Daemon", "Launch", "Owner", "Site", "Worker", "launch"]

Owner = Callable[["Services", Path], AbstractAsyncContextManager[Callable[[], int]]]
"""What the parent of several workers keeps for them, at a Unix socket; tells how many are connected."""
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One of several processes of a daemon.

    Args:
        folder: Where the parent's sockets are.
        listeners: The daemon's own socket and its further ones, inherited.
    """

    folder: Path
    listeners: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a daemon is started.

    Args:
        host, port: Where; by default as configured, and the daemon's own port.
        workers: Processes that serve; by default as configured, else one.
        reload: Reads the configuration anew on SIGHUP; None: SIGHUP ends the daemon, as usual.
        bound: Told the address once it is bound.
        arguments: Of the command line, for workers.
        worker: This process is a worker, and this its place.
    """

    host: str | None = None
    port: int | None = None
    workers: int | None = None
    reload: Callable[[], Services] | None = None
    bound: Callable[[str], None] = lambda url: None
    arguments: tuple[str, ...] = ()
    worker: Worker | None = None

    def place(self, services: Services, port: int) -> tuple[str, int]:
        """The address and the port; `port` is the daemon's own."""
        settings = services.settings.serve
        chosen = self.port if self.port is not None else settings.port
        return self.host or settings.host, port if chosen is None else chosen


@dataclass(frozen=True, slots=True)
class Site:
    """Where an application runs.

    Args:
        host: The address its daemon is bound to.
        stopping: Tells it that the daemon drains, or that a newer configuration has taken over.
        siblings: What it shares with the other workers.
        folder: Where the parent's sockets are, when it is one of several workers.
        sockets: Those of the daemon's further ports.
        manager: Whoever started the daemon, where this process speaks for it.
    """

    host: str
    stopping: Stopping = field(default_factory=Stopping)
    siblings: Siblings = field(default_factory=Siblings)
    folder: Path | None = None
    sockets: tuple[socket.socket, ...] = ()
    manager: ServiceManager = field(default_factory=ServiceManager)

    @property
    def owner(self) -> Path | None:
        """The socket of what the parent keeps for its workers."""
        return None if self.folder is None else self.folder / "owner"


@dataclass(frozen=True, slots=True)
class Daemon:
    """A component as a daemon.

    Args:
        title, about: For the line that says where it listens.
        port: Its own.
        check: Refuses what must not be started on an address; raises an `AvyayError`.
        build: Makes the application.
        further: More ports, bound on the same address.
        owner: What the parent of several workers keeps for them.
        protocol: Makes a protocol with limits of its own, for who meets strangers.
        arguments: Of the command line, for workers.
        fixed: Why it cannot change its configuration while it runs.
    """

    name: str
    title: str
    about: str
    port: int
    check: Callable[[Services, str], object]
    build: Callable[[Services, Site], App]
    further: tuple[int, ...] = ()
    owner: Owner | None = None
    protocol: Callable[[Services], type[asyncio.Protocol]] | None = None
    arguments: tuple[str, ...] = ()
    fixed: str = ""


def launch(services: Services, daemon: Daemon, how: Launch) -> int:
    """Run a daemon, or one of its workers, until it is told to end; returns the exit code.

    Raises:
        AvyayError: it cannot be started.
    """
    host, number = how.place(services, daemon.port)
    if how.worker is not None:
        first, *rest = (socket.socket(fileno=one) for one in how.worker.listeners)
        _serve(services, daemon, how, Site(host, folder=how.worker.folder, sockets=tuple(rest)), first, hold_end())
        return 0
    if how.reload is not None and daemon.fixed:
        raise UsageError(daemon.fixed, hint="Leave --reload-config out, and restart it.")
    manager = service_manager(services.loaded.environment)
    daemon.check(services, host)  # before anybody could connect
    with ExitStack() as stack:
        listener = stack.enter_context(closing(bind(host, number, name=daemon.name)))
        told_to_end = hold_end()
        further = [stack.enter_context(closing(bind(host, one, name=daemon.name))) for one in daemon.further]
        number = listener.getsockname()[1]
        workers = _workers(services, daemon.name, how)

        def made() -> None:
            how.bound(f"http://{f'[{host}]' if ':' in host else host}:{number}")
            if services.settings.serve.tailscale_serve:
                stack.enter_context(_published(daemon.name, number, how.bound))

        if workers > 1:
            made()
            return _Family(services, daemon, how, host, [listener, *further], manager).run(workers, told_to_end)
        _serve(services, daemon, how, Site(host, sockets=tuple(further), manager=manager), listener, told_to_end, made)
    return 0


def _workers(services: Services, name: str, how: Launch) -> int:
    own = getattr(services.settings, name).workers
    return how.workers or own or services.settings.serve.workers


def _application(services: Services, daemon: Daemon, how: Launch, site: Site) -> App:
    def build(services: Services, stopping: Stopping) -> App:
        daemon.check(services, site.host)
        return daemon.build(services, replace(site, stopping=stopping))

    if how.reload is None:
        app = build(services, site.stopping)
    else:
        app = reloading = Reloading(
            services, build, how.reload, stopping=site.stopping, manager=site.manager, name=daemon.name
        )
        site.siblings.reload = reloading.reload
    return app if site.folder is None else Joined(app, site.siblings, site.folder / "hub")


def _serve(
    services: Services,
    daemon: Daemon,
    how: Launch,
    site: Site,
    listener: socket.socket,
    told_to_end: Callable[[], bool],
    made: Callable[[], None] = lambda: None,
) -> None:
    app = _application(services, daemon, how, site)
    made()
    if (endpoint := services.settings.telemetry.otlp_endpoint) is not None:
        enable_tracing(endpoint, service="marga-router" if daemon.name == "marga" else f"avyay-{daemon.name}")
    protocol = daemon.protocol(services) if daemon.protocol is not None else None
    try:
        serve(
            app,
            listener,
            stopping=site.stopping,
            protocol=protocol,
            manager=site.manager,
            told_to_end=told_to_end,
        )
    finally:
        flush_tracing()


@contextmanager
def _published(name: str, port: int, bound: Callable[[str], None]) -> Iterator[None]:
    """Known to the tailnet for the length of a block."""
    from avyay.tailnet import publish, unpublish

    address = publish(port)
    bound(address)
    try:
        yield
    finally:
        if not unpublish(port):
            get_logger(name).warning("still_published", address=address, undo=f"tailscale serve --https={port} off")


class _Family:
    """The parent of several workers, and what it keeps for them."""

    def __init__(
        self,
        services: Services,
        daemon: Daemon,
        how: Launch,
        host: str,
        listeners: Sequence[socket.socket],
        manager: ServiceManager,
    ) -> None:
        self._services, self._daemon, self._how, self._host = services, daemon, how, host
        self._descriptors = [one.fileno() for one in listeners]
        self._log = get_logger(daemon.name)
        self._manager = manager
        # Short: the path of a Unix socket holds about 100 characters. Nobody else may enter it.
        self._folder = Path(tempfile.mkdtemp(prefix="avyay-"))
        self._owners: list[_Owned] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._numbers = count(1)
        self._hub = Hub()

    def run(self, workers: int, told_to_end: Callable[[], bool]) -> int:
        """Until told to end; returns the exit code."""
        try:
            return asyncio.run(self._run(workers, told_to_end))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self, workers: int, told_to_end: Callable[[], bool]) -> int:
        place = ["--quiet", "--host", self._host, "--worker-of", str(self._folder)]
        for descriptor in self._descriptors:
            place += ["--listen-fd", str(descriptor)]
        command = worker_command(self._daemon.name, *self._how.arguments, *self._daemon.arguments, *place)
        supervisor = Supervisor(
            command,
            workers,
            self._descriptors,
            reload=self._reload if self._how.reload is not None else None,
            patience=self._services.settings.serve.worker_timeout,
            told_to_end=told_to_end,
            ending=self._manager.stopping,
        )
        self._hub.born, self._hub.heard = supervisor.born, supervisor.heard
        self._hub.changed = partial(self._tell, workers)
        watching = asyncio.ensure_future(self._manager.watch())
        try:
            await self._hub.serve(self._folder / "hub")
            self._point_at(await self._own(self._services))
            return await supervisor.run()
        finally:
            watching.cancel()
            for task in self._retiring:
                task.cancel()
            await asyncio.gather(*self._retiring, return_exceptions=True)
            for owned in self._owners:
                await owned.stack.aclose()
            await self._hub.close()

    def _tell(self, workers: int, serving: int) -> None:
        """One that serves is enough: they have one socket."""
        status = f"{serving} of {workers} workers serve."
        self._manager.ready(status) if serving else self._manager.status(status)

    async def _own(self, services: Services) -> _Owned:
        """Keep for the workers what a configuration asks for."""
        path = self._folder / f"owner-{next(self._numbers)}"
        stack = AsyncExitStack()
        stack.callback(services.close)
        connected: Callable[[], int] = lambda: 0  # noqa: E731
        try:
            if self._daemon.owner is not None:
                connected = await stack.enter_async_context(self._daemon.owner(services, path))
        except BaseException:
            await stack.aclose()
            raise
        owned = _Owned(path, stack, connected)
        self._owners.append(owned)
        return owned

    def _point_at(self, owned: _Owned) -> None:
        """Have workers find it from now on."""
        link = self._folder / "owner.next"
        with suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to(owned.path.name)
        link.replace(self._folder / "owner")

    async def _reload(self) -> None:
        """Put the configuration to use in one worker after the other; a bad one changes nothing."""
        self._manager.reloading()
        fine = False
        try:
            fine = await self._reload_workers()
        finally:
            self._manager.ready(RELOADED if fine else NOT_RELOADED)

    async def _reload_workers(self) -> bool:
        """Says whether they use it."""
        old = self._owners[-1]
        load = self._how.reload
        assert load is not None
        try:
            services = await asyncio.to_thread(load)
            try:
                await asyncio.to_thread(self._daemon.check, services, self._host)
            except AvyayError:
                services.close()
                raise
            fresh = await self._own(services)
        except AvyayError as error:
            self._log.error("reload_refused", error=error.message, hint=error.hint)
            return False
        self._point_at(fresh)
        used = await self._hub.reload()
        if used:
            self._log.warning("reloaded_all")
            left = old
        else:
            self._log.error("reload_refused", error="A worker cannot use it; its own words stand above.")
            self._point_at(old)
            self._owners.remove(fresh)
            self._owners.insert(0, fresh)
            left = fresh
        task = asyncio.create_task(self._retire(left))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return used

    async def _retire(self, owned: _Owned) -> None:
        """Let go of it once no worker has requests of its configuration any more."""
        while owned.connected():  # noqa: ASYNC110 - requests may take an hour
            await asyncio.sleep(_LOOK)
        self._owners.remove(owned)
        await owned.stack.aclose()


@dataclass(frozen=True, slots=True, eq=False)
class _Owned:
    """What the parent keeps by one configuration."""

    path: Path
    stack: AsyncExitStack
    connected: Callable[[], int]
