"""A machine of the tailnet as a node: found by name, asked by ssh, left alone while the tailnet says it is away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from avyay.config.engine import EngineNodeSettings
from avyay.engine.agents.base import Access
from avyay.engine.nodes.base import Node, NodeParts
from avyay.engine.nodes.ssh import loopback, make_remote_node
from avyay.engine.nodes.transport import CALL_TIMEOUT, SshTransport, Tunnel
from avyay.errors import ConfigError, UnreachableError
from avyay.tailnet import Peer, Tailnet, read_tailnet

__all__ = ["TailnetTransport", "find_peer", "make_node"]


def find_peer(tailnet: Tailnet, host: str) -> Peer:
    """The machine of that name, short or full, or address; `user@` in front is left aside.

    Raises:
        UnreachableError: the tailnet is down, has no such machine, or says that it is away.
    """
    if not tailnet.running:
        raise UnreachableError(f"The tailnet is {tailnet.state}.", hint="Run: tailscale up")
    wanted = host.rpartition("@")[2].lower()
    for peer in tailnet.peers:
        if wanted in (peer.name.lower(), peer.name.split(".", 1)[0].lower(), peer.address):
            if not peer.online:
                raise UnreachableError(f"{peer.name} is away.", hint="Its lid may be closed; tasks go elsewhere.")
            return peer
    names = ", ".join(sorted(peer.name.split(".", 1)[0] for peer in tailnet.peers)) or "none"
    raise UnreachableError(f"The tailnet has no machine {wanted!r}.", hint=f"It has: {names}.")


class TailnetTransport(SshTransport):
    """ssh to the address that the tailnet gives a machine: names and networks may change, the machine is the same."""

    def __init__(self, host: str, folder: str, read: Callable[[], Tailnet] = read_tailnet, **options: Any) -> None:
        super().__init__(host, folder, **options)
        self._read = read
        self._user = host.rpartition("@")[0]
        self._name = host

    def call(self, verb: str, *arguments: str, stdin: bytes = b"", timeout: float = CALL_TIMEOUT) -> bytes:
        peer = find_peer(self._read(), self._name)
        self._host = f"{self._user}@{peer.address}" if self._user else peer.address
        return super().call(verb, *arguments, stdin=stdin, timeout=timeout)

    def reachable(self, access: Access) -> tuple[Access, Tunnel | None]:
        """A router on this machine's loopback by this machine's tailnet address: it must listen there too."""
        if access.url is None or (place := loopback(access.url)) is None:
            return access, None
        this = self._read().this
        if this is None:
            raise UnreachableError("The tailnet gives this machine no address.", hint="Run: tailscale up")
        url = urlsplit(access.url)._replace(netloc=f"{this.address}:{place[1]}").geturl()
        return replace(access, url=url), None


def make_node(settings: EngineNodeSettings, parts: NodeParts) -> Node:
    """The node that the settings describe.

    Raises:
        ConfigError: no host.
    """
    if not settings.host:
        raise ConfigError(
            f"The node {settings.name} has no host.", hint="Set its host to a machine of `tailscale status`."
        )
    transport = TailnetTransport(settings.host, settings.folder)
    return make_remote_node(settings, parts, transport, reachable=transport.reachable)
