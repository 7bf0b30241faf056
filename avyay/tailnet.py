"""The tailscale command line: this machine's address, its peers, and what it publishes."""

from __future__ import annotations

import ipaddress
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from avyay.errors import DependencyError, UsageError
from avyay.process import find_program, run

__all__ = [
    "Peer",
    "Probe",
    "Tailnet",
    "find_peer",
    "probe_peers",
    "publish",
    "read_tailnet",
    "tailnet_address",
    "tailscale_installed",
    "unpublish",
]

TIMEOUT = 5.0
_TAILNET = ipaddress.IPv4Network("100.64.0.0/10")


@dataclass(frozen=True, slots=True)
class Peer:
    """A machine of the tailnet. `online` may be stale: probe before relying on it."""

    name: str
    address: str
    os: str
    online: bool


@dataclass(frozen=True, slots=True)
class Tailnet:
    """What `tailscale status` says."""

    state: str
    this: Peer | None
    peers: tuple[Peer, ...]

    @property
    def running(self) -> bool:
        return self.state == "Running" and self.this is not None


def tailscale_installed() -> bool:
    """Whether there is a tailscale command."""
    return shutil.which("tailscale") is not None


def read_tailnet() -> Tailnet:
    """Ask the local tailscale for its state.

    Raises:
        DependencyError: not installed, not running, or an answer that cannot be read.
    """
    program = shutil.which("tailscale")
    if program is None:
        raise DependencyError("tailscale is not installed.", hint="See https://tailscale.com/download.")
    done = run([program, "status", "--json"], timeout=TIMEOUT)
    try:
        status = json.loads(done.stdout)
        this = _peer(status.get("Self"))
        peers = tuple(peer for entry in (status.get("Peer") or {}).values() if (peer := _peer(entry)) is not None)
        return Tailnet(str(status.get("BackendState", "Unknown")), this, peers)
    except (ValueError, AttributeError, TypeError) as error:
        what = done.error_text.strip() or "no answer"
        raise DependencyError(
            f"tailscale status could not be read: {what}", hint="Is tailscaled running? Try: tailscale up"
        ) from error


def _peer(entry: dict[str, object] | None) -> Peer | None:
    if not entry or not isinstance(addresses := entry.get("TailscaleIPs"), list) or not addresses:
        return None
    name = str(entry.get("DNSName") or entry.get("HostName") or "").rstrip(".")
    address = next((str(a) for a in addresses if ":" not in str(a)), str(addresses[0]))
    return Peer(name, address, str(entry.get("OS", "")), bool(entry.get("Online")))


def tailnet_address() -> str:
    """The IPv4 address of this machine on its tailnet.

    Raises:
        DependencyError: tailscale is not installed, not running, or gives none.
    """
    tailnet = read_tailnet()
    if not tailnet.running:
        raise DependencyError(
            f"This machine is not on a tailnet ({tailnet.state}).", hint="Bring it up: tailscale up", code="no_tailnet"
        )
    done = run([_program(), "ip", "-4"], timeout=TIMEOUT)
    address = done.text.strip().splitlines()[0].strip() if done.text.strip() else ""
    try:
        if done.code == 0 and ipaddress.IPv4Address(address) in _TAILNET:
            return address
    except ValueError:
        pass
    raise DependencyError(
        f"tailscale ip -4 gave no address of a tailnet: {done.error_text.strip()[:200] or address[:60] or 'nothing'}.",
        hint="Look at: tailscale status",
        code="no_tailnet",
    )


def publish(port: int) -> str:
    """Have `tailscale serve` publish a port of loopback to the tailnet over HTTPS; returns its address there.

    Raises:
        DependencyError: tailscale will not.
    """
    tailnet = read_tailnet()
    if not tailnet.running or tailnet.this is None:
        raise DependencyError(
            f"This machine is not on a tailnet ({tailnet.state}).", hint="Bring it up: tailscale up", code="no_tailnet"
        )
    done = run([_program(), "serve", "--bg", f"--https={port}", f"http://127.0.0.1:{port}"], timeout=TIMEOUT)
    if done.code != 0 or done.timed_out:
        raise DependencyError(
            f"tailscale serve did not publish port {port}: {done.error_text.strip()[:300] or 'no answer'}.",
            hint="HTTPS must be enabled for the tailnet; look at: tailscale serve status",
            code="not_published",
        )
    return f"https://{tailnet.this.name}:{port}"


def unpublish(port: int) -> bool:
    """Undo `publish`; says whether it was done."""
    program = shutil.which("tailscale")
    return program is not None and run([program, "serve", f"--https={port}", "off"], timeout=TIMEOUT).code == 0


def find_peer(name: str, tailnet: Tailnet) -> Peer:
    """A peer by its short or its whole name.

    Raises:
        UsageError: there is none, or several of that short name.
    """
    wanted = name.rstrip(".").lower()
    found = [peer for peer in tailnet.peers if wanted in (peer.name.lower(), peer.name.lower().partition(".")[0])]
    if len(found) == 1:
        return found[0]
    names = ", ".join(peer.name for peer in found or tailnet.peers) or "none"
    raise UsageError(
        f"There {'are several peers' if found else 'is no peer'} {name!r}.", hint=f"Peers: {names}", code="no_peer"
    )


@dataclass(frozen=True, slots=True)
class Probe:
    """What a peer's daemon said when asked for its health just now; `problem` is empty when it answered."""

    peer: Peer
    url: str
    component: str
    status: str
    problem: str


def probe_peers(peers: Sequence[Peer], ports: Sequence[int], *, timeout: float = 3.0) -> list[Probe]:
    """Ask peers for `/health`, all at once. What `tailscale status` says of them is not relied on: it may be stale."""
    from concurrent.futures import ThreadPoolExecutor

    from avyay.http import client

    def probe(place: tuple[Peer, int]) -> Probe:
        peer, port = place
        url = f"http://{peer.address}:{port}"
        try:
            with client(read=timeout, connect=timeout) as http:
                answer = http.get(f"{url}/health")
                data = answer.json()
                found = str(data.get("component", "")), str(data.get("status", ""))
                return Probe(peer, url, *found, "" if answer.is_success else f"HTTP {answer.status_code}")
        except Exception as error:  # noqa: BLE001 - a stranger's port may answer anything at all
            return Probe(peer, url, "", "", type(error).__name__)

    places = [(peer, port) for peer in peers for port in ports]
    with ThreadPoolExecutor(max(1, min(16, len(places)))) as pool:
        return list(pool.map(probe, places))


def _program() -> str:
    return find_program("tailscale", hint="See https://tailscale.com/download.")
