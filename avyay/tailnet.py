"""A reader of the tailscale command line: this machine's address and its peers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

from avyay.errors import DependencyError
from avyay.process import run

__all__ = ["Peer", "Tailnet", "read_tailnet", "tailscale_installed"]

TIMEOUT = 5.0


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
