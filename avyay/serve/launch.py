"""From a component's application to a running daemon: the port, the word about it, reloading, the tailnet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avyay.log import get_logger
from avyay.serve.reload import Build, Reloading
from avyay.serve.run import App, Stopping, bind, serve
from avyay.telemetry import enable_tracing, flush_tracing

if TYPE_CHECKING:
    from avyay.wiring import Services

__all__ = ["Launch", "launch", "trace"]


@dataclass(frozen=True, slots=True)
class Launch:
    """How a daemon is started.

    Args:
        host, port: Where; by default as configured, and the daemon's own port.
        reload: Reads the configuration anew on SIGHUP; None: SIGHUP ends the daemon, as usual.
        bound: Told the address once it is bound.
    """

    host: str | None = None
    port: int | None = None
    reload: Callable[[], Services] | None = None
    bound: Callable[[str], None] = lambda url: None

    def place(self, services: Services, port: int) -> tuple[str, int]:
        """The address and the port; `port` is the daemon's own."""
        settings = services.settings.serve
        chosen = self.port if self.port is not None else settings.port
        return self.host or settings.host, port if chosen is None else chosen


def launch(
    services: Services,
    name: str,
    build: Build,
    how: Launch,
    *,
    port: int,
    protocol: type[asyncio.Protocol] | None = None,
) -> None:
    """Run a daemon until it is told to end.

    Args:
        build: Makes the application; also refuses what must not be started.
        port: The daemon's own port.

    Raises:
        AvyayError: it cannot be started.
    """
    host, number = how.place(services, port)
    listener = bind(host, number, name=name)
    number = listener.getsockname()[1]
    stopping = Stopping()
    try:
        app: App
        if how.reload is not None:
            app = Reloading(services, build, how.reload, stopping=stopping)
        else:
            app = build(services, stopping)
    except BaseException:
        listener.close()
        raise
    trace(services, name)

    def run() -> None:
        try:
            serve(app, listener, stopping=stopping, protocol=protocol)
        finally:
            flush_tracing()

    how.bound(f"http://{f'[{host}]' if ':' in host else host}:{number}")
    if not services.settings.serve.tailscale_serve:
        run()
        return
    from avyay.tailnet import publish, unpublish

    address = publish(number)
    how.bound(address)
    try:
        run()
    finally:
        if not unpublish(number):
            get_logger(name).warning("still_published", address=address, undo=f"tailscale serve --https={number} off")


def trace(services: Services, name: str) -> None:
    """Have this process export its spans, where the configuration says where to."""
    if (endpoint := services.settings.telemetry.otlp_endpoint) is not None:
        enable_tracing(endpoint, service="marga-router" if name == "marga" else f"avyay-{name}")
