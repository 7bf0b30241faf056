"""A caller that listens to server-sent events."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit


class Listener:
    """Reads server-sent events off a socket."""

    def __init__(self, url: str, path: str, **headers: str) -> None:
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("GET", path, headers=names)
        self.answer = self._connection.getresponse()

    def __iter__(self) -> Iterator[dict[str, str]]:
        fields: dict[str, str] = {}
        while line := self.answer.readline().decode():
            if line == "\n":
                yield fields
                fields = {}
            else:
                name, _, value = line.rstrip("\n").partition(": ")
                fields[name] = value

    def next(self) -> dict[str, str]:
        return next(iter(self))

    def close(self) -> None:
        self._connection.close()
