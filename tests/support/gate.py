"""The gateway for tests: the real application behind the real server's door, in front of whatever the test serves."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from daemon import Served, services_in

from avyay.serve.gateway.daemon import build_app, door_limits
from avyay.serve.gateway.door import door_protocol
from avyay.serve.gateway.keys import KeyBook


def keys_in(folder: Path) -> KeyBook:
    """The keys of the home in `folder`, as the command sees them."""
    return KeyBook(folder / "home" / "data" / "gateway" / "keys.db")


def make_key(folder: Path, name: str = "app", **options: Any) -> str:
    """A new key's secret."""
    book = keys_in(folder)
    try:
        return book.create(name, **options).secret
    finally:
        book.close()


class Gate(Served):
    """`with Gate(tmp_path, {"marga": daemon.url}) as gate:` then `gate.chat(authorization=f"Bearer {key}")`."""

    def __init__(
        self,
        folder: Path,
        upstreams: dict[str, str],
        gateway: dict[str, Any] | None = None,
        *,
        owner: Path | None = None,
        **environment: str,
    ) -> None:
        places = {name: {"url": url, "connect": 1} for name, url in upstreams.items()}
        self.folder = folder
        services = services_in(folder, {"gateway": {"upstreams": places, **(gateway or {})}}, **environment)
        self.gateway = build_app(services, owner=owner)
        super().__init__(services, self.gateway, protocol=door_protocol(door_limits(services.settings.gateway)))

    def raw(self, data: bytes, *, finish: bool = False) -> bytes:
        """What a connection answers to bytes, until it is closed or goes quiet after an answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            if finish:
                connection.shutdown(socket.SHUT_WR)
            got = b""
            try:
                while piece := connection.recv(65_536):
                    got += piece
            except ConnectionResetError:
                pass
            return got
