"""Running an ASGI application as a daemon: one port, a clear word when it is taken, a drain before it ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, TypeAlias

from avyay.errors import AvyayError, UsageError
from avyay.serve.notify import ServiceManager

__all__ = ["App", "Stopping", "bind", "hold_end", "is_loopback", "serve", "serving_beside"]

App: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]
_BACKLOG = 2048
_OPTIONS: dict[str, Any] = {
    "ws": "none",
    "lifespan": "on",
    "interface": "asgi3",
    "access_log": False,
    "log_config": None,
    "server_header": False,
    "proxy_headers": False,
    "timeout_keep_alive": 75,
    "backlog": _BACKLOG,
}


class Stopping:
    """Tells streams without an end that the daemon is about to drain: requests under way must come to one."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[], None]] = []

    def add(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def begin(self) -> None:
        for callback in self._callbacks:
            callback()


def hold_end() -> Callable[[], bool]:
    """Have SIGTERM wait from here on; returns what tells whether it came.

    Until here it ends the process as it ends any, at once and without a word. What is made from here on is to be closed
    in order, so whoever listens next asks first.
    """
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    return lambda: bool(came)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int, *, name: str) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the port is taken, or the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by its name: only where asyncio reads it does it switch off Nagle's delay, which is 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            from avyay.serve.port_holder import port_holder

            holder = port_holder(port)
            raise UsageError(
                f"Port {port} on {host} is taken{f' by {holder}' if holder else ''}.",
                hint=f"Stop what listens there (ss -ltnp), or choose another: avyay serve {name} --port {port + 10}",
                code="port_taken",
            ) from error
        raise UsageError(
            f"Cannot listen on {host}:{port}: {error.strerror}.", hint="Choose another --host or --port."
        ) from error
    return listener


def serve(
    app: App,
    listener: socket.socket,
    *,
    drain: float = 30.0,
    stopping: Stopping | None = None,
    protocol: type[asyncio.Protocol] | None = None,
    manager: ServiceManager | None = None,
    told_to_end: Callable[[], bool] = lambda: False,
) -> None:
    """Serve until SIGTERM or SIGINT; requests under way get `drain` seconds to end, once `stopping` has told them.

    Args:
        protocol: One that knows limits of its own, for who meets strangers.
        manager: Told when requests are answered, when they no longer are, and that this process does not hang.
        told_to_end: Whether that came already; what was made is then closed in order.

    Raises:
        AvyayError: the application cannot start.
    """
    import uvicorn

    from avyay.serve.http_protocol import HttpProtocol

    told = manager or ServiceManager()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                told.ready("Answers requests.")

        async def main_loop(self) -> None:
            watching = asyncio.ensure_future(told.watch())
            try:
                await super().main_loop()
            finally:
                watching.cancel()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            told.stopping()
            if stopping is not None:
                stopping.begin()
            await super().shutdown(sockets)

    options = {**_OPTIONS, "http": protocol or HttpProtocol, "timeout_graceful_shutdown": int(drain)}
    life = _Life(app)
    # Of a start that fails the caller tells in words of its own.
    logging.getLogger("uvicorn.error").addFilter(lambda record: life.failure is None)
    config = uvicorn.Config(life, loop=_loop(), **options)
    # What is loaded by now stays: the collector need not look at it again, and may look less often at the rest.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 4)
    server = Server(config)

    def end(number: int, frame: object) -> None:
        server.should_exit = True

    # Until uvicorn listens itself; and it raises the signal anew once it has drained, when all is done that was asked.
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    if told_to_end():
        server.should_exit = True
    try:
        server.run(sockets=[listener])
    except SystemExit:
        if life.failure is not None:
            raise life.failure from None
        raise


class _Life:
    """ASGI middleware: keeps why an application could not start, which the server would print as a traceback."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.failure: AvyayError | None = None

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return self._live(scope, receive, send) if scope["type"] == "lifespan" else self._app(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        failed: list[Any] = []

        async def told(message: Any) -> None:
            if message["type"] == "lifespan.startup.failed":
                failed.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, told)
        except AvyayError as error:
            self.failure = error
            await send({"type": "lifespan.startup.failed", "message": ""})
        else:
            for message in failed:
                await send(message)


@asynccontextmanager
async def serving_beside(app: App, listener: socket.socket, *, drain: float = 5.0) -> AsyncIterator[None]:
    """Serve another application on a socket of its own, in the same loop, for the length of a block."""
    import uvicorn

    from avyay.serve.http_protocol import HttpProtocol

    class Server(uvicorn.Server):
        def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
            return nullcontext()  # they are the main server's

    config = uvicorn.Config(
        app, timeout_graceful_shutdown=int(drain), http=HttpProtocol, **(_OPTIONS | {"lifespan": "auto"})
    )
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener.dup()]))  # the server closes its own
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _loop() -> str:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return "asyncio"  # Windows
    return "uvloop"
