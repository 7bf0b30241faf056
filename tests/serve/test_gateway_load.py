"""Many streams at once, a fifth of them left in the middle: nothing leaks or is mixed up, every row is written."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from daemon import wait_for
from parrot import WORDS, Parrot, daemons, health

from avyay.serve.gateway.usage import UsageReader, reconcile


@dataclass
class Tally:
    """What the callers saw."""

    whole: int = 0
    left: int = 0
    refused: int = 0  # a machine that is overloaded may answer 504: that is no answer of somebody else
    wrong: list[str] = field(default_factory=list)

    @property
    def all(self) -> int:
        return self.whole + self.left + self.refused


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
        if got and not got.startswith(b"HTTP/1.1 200"):
            tally.refused += 1
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


def storm(folder: Path, *, streams: int, seconds: float, pause: float) -> tuple[Tally, int]:
    """Run it; returns what the callers saw, and by how many bytes the gateway grew after its first round."""
    tally = Tally()
    with Parrot(pause) as provider, daemons(folder, provider.port) as door:
        port, key, gateway = door.port, door.key, door.processes["gateway"]

        async def play(callers: int, lasting: float) -> None:
            until = time.monotonic() + lasting
            dice = random.Random(7)
            await asyncio.gather(*(caller(n, port, key, until, tally, dice) for n in range(callers)))

        asyncio.run(play(streams, min(seconds / 4, 10.0)))  # what is made once is made
        wait_for(lambda: health(port)["active"] == 0)
        before, open_before = resident(gateway), descriptors(gateway)
        asyncio.run(play(streams, seconds))
        wait_for(lambda: health(port)["active"] == 0)
        # Connections to the router that are kept for the next caller are no leak: they are bounded by their pool.
        assert descriptors(gateway) <= open_before + 256
        grown = resident(gateway) - before
    assert not tally.wrong, tally.wrong[:3]
    assert tally.refused <= tally.all // 100
    reader = UsageReader(folder / "home" / "data" / "gateway" / "usage.db")
    rows = reader.days(since="2000-01-01")
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
    assert grown < 30_000_000
