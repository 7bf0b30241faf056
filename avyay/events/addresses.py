"""Where a webhook may lead. Its address comes from the configuration; what a name turns out to mean does not.

A name that points into this machine or its network, now or after the next look-up, must not make the daemon a way in.
So names are looked up here, every address is judged, and the connection is made to what was judged.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from avyay.errors import PolicyError

__all__ = ["Lookup", "allowed_address", "look_up"]

Lookup: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


async def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, as this machine knows them.

    Raises:
        OSError: it is not known.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def allowed_address(host: str, port: int, *, private: bool, lookup: Lookup = look_up) -> str:
    """The address to connect to.

    An address written out, and `localhost`, are the configuration's own word. A name must lead to the public Internet,
    with all it has, unless `private`. Nothing may lead to link-local addresses, where clouds keep their credentials.

    Raises:
        PolicyError: it leads where it may not (code "forbidden_address").
        OSError: the name is not known.
    """
    written = _parse(host)
    if written is not None:
        _refuse(host, written, private=True)
        return str(written)
    addresses = [address for text in await lookup(host, port) if (address := _parse(text)) is not None]
    if not addresses:
        raise OSError(f"{host} has no address")
    for address in addresses:
        _refuse(host, address, private=private or host.lower().rstrip(".") == "localhost")
    return str(addresses[0])


def _parse(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _refuse(host: str, found: _Address, *, private: bool) -> None:
    address = found
    if isinstance(found, ipaddress.IPv6Address):  # what it really leads to
        address = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else found)
    never = address.is_link_local or address.is_multicast or address.is_unspecified or address == _METADATA
    if not never and (private or address.is_global):
        return
    raise PolicyError(
        f"{host} leads to {found}, where no webhook may go.",
        hint="A receiver inside your own network: set `private: true` on it." if not never else None,
        code="forbidden_address",
    )


_METADATA = ipaddress.ip_address("fd00:ec2::254")
