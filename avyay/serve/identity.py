"""Who calls through `tailscale serve`: its headers are believed only on connections that the local tailscaled made."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from avyay.errors import AuthError

__all__ = ["Check", "is_tailscaled", "require_user"]

_LOGIN = b"tailscale-user-login"
_FORWARDED = (_LOGIN, b"tailscale-user-name", b"tailscale-headers-info", b"x-forwarded-for", b"x-forwarded-host")
Address: TypeAlias = tuple[str, int]
Check: TypeAlias = Callable[[Address, Address], bool]


def require_user(scope: Any, users: Sequence[str], check: Check) -> bool:
    """Whether a request came through `tailscale serve`, from one of `users`; False for one that came directly.

    Raises:
        AuthError: it claims to come through, and does not, or from somebody else.
    """
    headers = dict(scope["headers"])
    if not any(name in headers for name in _FORWARDED):
        return False
    peer, here = scope.get("client"), scope.get("server")
    login = headers.get(_LOGIN, b"").decode("latin-1").strip().lower()
    if not peer or not here or not check((peer[0], peer[1]), (here[0], here[1])):
        raise AuthError("Only the local tailscaled may say who calls.", code="forged_identity")
    if not login or not any(fnmatchcase(login, user.lower()) for user in users):
        raise AuthError("You are not among serve.tailnet_users.", code="not_a_tailnet_user")
    return True


def is_tailscaled(peer: Address, here: Address) -> bool:
    """Whether the other end of a loopback connection belongs to the user that tailscaled runs as.

    Linux only: elsewhere nobody can be told from anybody, and nobody is believed.
    """
    owner = _owner(peer, here)
    return owner is not None and owner in _tailscaled_users()


def _owner(peer: Address, here: Address) -> int | None:
    """The user of the socket whose own address is `peer` and whose other end is `here`."""
    try:
        wanted = (_hex(peer), _hex(here))
        lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return None
    for fields in map(str.split, lines):
        if (fields[1], fields[2]) == wanted:
            return int(fields[7])
    return None


def _hex(address: Address) -> str:
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"


def _tailscaled_users() -> set[int]:
    found = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if (process / "comm").read_text().strip() == "tailscaled":
                found.add(process.stat().st_uid)
        except OSError:
            continue
    return found
