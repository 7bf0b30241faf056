"""Telling the service manager how the daemon does, where it asked for that: systemd's notification protocol.

A datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET` names (sd_notify(3)). Only the process that was
started speaks: the variables are taken out of the environment, so that workers and other programs do not get them.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import socket
import time
from typing import TYPE_CHECKING

from avyay.config.environment import withhold
from avyay.log import get_logger

if TYPE_CHECKING:
    from avyay.config.environment import Environment

__all__ = ["NOT_RELOADED", "RELOADED", "ServiceManager", "service_manager"]

RELOADED = "Uses the configuration as it was read last."
NOT_RELOADED = "The configuration cannot be used as it is now; the log says why. The old one stays."

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_PATIENCE = 0.5  # seconds that its full queue may hold us up
_NEVER = 0.0


class ServiceManager:
    """What it is told; without an address nothing is sent.

    Args:
        address: A socket's path, or `@` and an abstract name.
        watchdog: Seconds without a sign of life after which it ends the daemon; 0: never.
    """

    def __init__(self, address: str | None = None, watchdog: float = _NEVER) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._watchdog = watchdog
        self._reloading = self._ready = self._ending = False
        self._log = get_logger("serve")
        self._failed = False
        if self._watched and not faulthandler.is_enabled():
            faulthandler.enable()  # it ends a daemon that hangs by SIGABRT: the log then says where that hung

    @property
    def _watched(self) -> bool:
        return self._address is not None and self._watchdog > 0

    def ready(self, status: str) -> None:
        """The daemon answers: for the first time, or again, with what it has read anew."""
        if self._ending or (self._ready and not self._reloading):
            self.status(status)
            return
        self._ready, self._reloading = True, False
        self._send("READY=1", f"STATUS={_line(status)}")

    def status(self, text: str) -> None:
        """How it does, in a sentence."""
        if not self._ending:
            self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """It reads its configuration anew; `ready` ends that."""
        if self._ready and not self._ending:
            self._reloading = True
            self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self) -> None:
        """It drains."""
        if not self._ending:
            self._ending = True
            self._send("STOPPING=1", "STATUS=Drains.")

    async def watch(self) -> None:
        """Give signs of life until cancelled: as often as the event loop turns, twice in the manager's patience."""
        while self._watched:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.settimeout(_PATIENCE)
                end.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:  # once: it would be said with each sign of life
                self._log.warning("service_manager_not_told", error=error.strerror or str(error), what=lines[0])
            self._failed = True
        else:
            self._failed = False


def service_manager(environment: Environment) -> ServiceManager:
    """The one that started this process, or nobody; from here on no other process learns of it from us."""
    withhold(*_VARIABLES)
    address = environment.value("NOTIFY_SOCKET")
    if address is None or not hasattr(socket, "AF_UNIX"):
        return ServiceManager()
    if not address.startswith(("/", "@")):
        get_logger("serve").warning("service_manager_not_told", error="no Unix socket", address=address)
        return ServiceManager()
    microseconds = environment.value("WATCHDOG_USEC") or "0"
    of = environment.value("WATCHDOG_PID")
    ours = of is None or of == str(os.getpid())
    return ServiceManager(address, int(microseconds) / 1e6 if ours and microseconds.isdecimal() else _NEVER)


def _line(text: str) -> str:
    return " ".join(text.split())
