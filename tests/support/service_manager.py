"""A service manager's socket, as systemd's is: what is told it, and by which process."""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from daemon import wait_for

_CREDENTIALS = struct.Struct("3i")


class Manager:
    """`with Manager(path) as manager:`; a path that begins with `@` is an abstract name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.told: list[dict[str, str]] = []
        self._unseen: deque[dict[str, str]] = deque()
        self.speakers: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        if not self.address.startswith("@"):
            Path(self.address).unlink()

    def read(self) -> list[dict[str, str]]:
        """What was told and has not been looked at."""
        came = []
        with suppress(BlockingIOError):
            while True:
                data, extra, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
                self.speakers |= {_CREDENTIALS.unpack(one[2])[0] for one in extra}
                came.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
        self.told += came
        came = [*self._unseen, *came]
        self._unseen.clear()
        return came

    def wait_for(self, name: str, which: Callable[[dict[str, str]], bool] = lambda message: True) -> dict[str, str]:
        """The next message with a variable of that name; those before it are passed over."""
        found: list[dict[str, str]] = []

        def look() -> bool:
            self._unseen.extend(self.read())
            while self._unseen and not found:
                message = self._unseen.popleft()
                if name in message and which(message):
                    found.append(message)
            return bool(found)

        wait_for(look, 120)
        return found[0]

    def states(self) -> list[str]:
        """What was told in all, without signs of life and sentences."""
        self._unseen.extend(self.read())
        return [name for message in self.told for name in message if name in ("READY", "RELOADING", "STOPPING")]


def stopped(pid: int) -> bool:
    """Whether a process is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def environment_of(pid: int) -> set[str]:
    """The names of a process's environment variables."""
    text = Path(f"/proc/{pid}/environ").read_bytes()
    return {os.fsdecode(entry.partition(b"=")[0]) for entry in text.split(b"\0") if entry}
