"""Many streams at once, a fifth of them left in the middle: nothing leaks or is mixed up, every row is written."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from daemon import wait_for
from parrot import WORDS, Door, Parrot, daemons, health

from avyay.serve.gateway.reconcile import reconcile
from avyay.serve.gateway.usage import UsageReader


@dataclass
class Tally:
    """What the callers saw."""

    whole: int = 0
    left: int = 0
    refused: list[bytes] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def all(self) -> int:
        return self.whole + self.left + len(self.refused)


async def caller(number: int, port: int, key: str, until: float, tally: Tally, dice: random.Random) -> None:
    """Ask again and again until the time is over; leave a fifth of the streams in the middle."""
    turn = 0
    while time.monotonic() < until:
        turn += 1
        word = f"w{number}x{turn}"
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": word}]}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        writer.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        leave = dice.random() < 0.2
        got = b""
        while piece := await reader.read(65_536):
            got += piece
            if leave and got.count(b"content") >= 3:
                break
        if not got.startswith(b"HTTP/1.1 200"):
            tally.refused.append(got)
            writer.close()
            continue
        if leave:
            tally.left += 1
            writer.transport.abort()
        else:
            tally.whole += 1
            writer.close()
        words = {part.split('"')[0].strip() for part in got.decode("latin-1").split('"content": "')[1:]}
        if words != {word} or (not leave and (got.count(word.encode()) != WORDS or b"[DONE]" not in got)):
            tally.wrong.append(f"{word}: {got[:300]!r} ... {got[-100:]!r}")


def descriptors(process: subprocess.Popen[bytes]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir())) if sys.platform == "linux" else 0


def resident(process: subprocess.Popen[bytes]) -> int:
    if sys.platform != "linux":
        return 0
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def providers(door: Door) -> dict[str, Any]:
    """What the router says of its providers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{door.router}/marga/providers", timeout=60) as reply:
        found: dict[str, Any] = json.loads(reply.read())
        return found


@dataclass(frozen=True)
class Held:
    """What a process holds while nobody asks it anything."""

    memory: int
    files: int
    tasks: int = 0

    @classmethod
    def by(cls, door: Door, name: str) -> Held:
        process = door.processes[name]
        tasks = int(door.metrics(name).get("gateway_tasks", 0))
        return cls(resident(process), descriptors(process), tasks)


def storm(folder: Path, *, streams: int, seconds: float, pause: float) -> tuple[Tally, dict[str, int]]:
    """Run it; returns what the callers saw, and by how many bytes the processes grew after the first round."""
    tally = Tally()
    with Parrot(pause) as provider, daemons(folder, provider.port) as door:

        async def play(callers: int, lasting: float) -> None:
            until = time.monotonic() + lasting
            dice = random.Random(7)
            await asyncio.gather(*(caller(n, door.port, door.key, until, tally, dice) for n in range(callers)))

        def calm() -> dict[str, Held]:
            wait_for(lambda: health(door.port)["active"] == 0 and door.metrics("marga")["marga_active"] == 0)
            return {name: Held.by(door, name) for name in door.processes}

        asyncio.run(play(streams, min(seconds / 4, 10.0)))  # what is made once is made
        before = calm()
        asyncio.run(play(streams, seconds))
        after = calm()
        for name, held in after.items():
            # Connections that are kept for the next caller are no leak: they are bounded by their pool.
            assert held.files <= before[name].files + 256, name
            assert held.tasks <= before[name].tasks + 2, name
        counts = door.metrics("gateway")
        assert counts["gateway_concurrent_held"] == 0
        assert counts['gateway_breaker_state{component="marga"}'] == 0
        assert counts["gateway_usage_unspooled_total"] == 0
        # Whoever leaves says nothing about the other side.
        (row,) = providers(door)["providers"]
        assert [endpoint["failed"] for endpoint in row["endpoints"]] == [0] * len(row["endpoints"])
        grown = {name: held.memory - before[name].memory for name, held in after.items()}
    assert not tally.wrong, tally.wrong[:3]
    assert not tally.refused, tally.refused[:3]
    reader = UsageReader(folder / "home" / "data" / "gateway" / "usage.db")
    rows = [row for row in reader.days(since="2000-01-01") if row.endpoint == "marga:chat"]
    assert sum(row.requests for row in rows) == tally.all  # not one lost, not one twice
    now = time.time() + 60
    from avyay.marga.store import SqliteStore

    ledger = SqliteStore(folder / "home" / "data" / "marga" / "marga.db")
    found = reconcile(
        reader.decisions(since=0, until=now), ledger.decisions(since=0, until=now), gone=reader.gone(since=0, until=now)
    )
    ledger.close()
    reader.close()
    assert all(one.agrees for one in found), found
    assert sum(one.ledger for one in found) >= tally.whole
    return tally, grown


def test_streams_and_aborts(tmp_path: Path) -> None:
    tally, _ = storm(tmp_path, streams=24, seconds=2.0, pause=0.02)
    assert tally.left > 0
    assert tally.whole > tally.left


@pytest.mark.soak
def test_two_hundred_streams_for_a_minute(tmp_path: Path) -> None:
    tally, grown = storm(tmp_path, streams=200, seconds=60.0, pause=0.05)
    assert tally.all > 1_000
    assert max(grown.values()) < 30_000_000, grown
