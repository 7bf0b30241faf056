"""Many streams at once, a fifth of them left in the middle: nothing leaks or is mixed up, every row is written."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import wait_for
from gate import make_key

from avyay.serve.gateway.usage import UsageReader, reconcile

WORDS = 12


class Parrot:
    """A provider whose stream repeats the caller's own word, so that a mixed-up answer shows."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Parrot:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        async def serve() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=512)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        self._loop.run_until_complete(serve())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)  # fmt: skip  # noqa: E501
                body = await reader.readexactly(size)
                if head.startswith(b"GET"):
                    writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"data":[]}')
                    continue
                await self._stream(writer, json.loads(body)["messages"][-1]["content"])
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, word: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        chunks: list[dict[str, Any]] = [
            {**head, "choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]}
        ] * WORDS
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append({**head, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": WORDS, "total_tokens": 3 + WORDS}})  # fmt: skip  # noqa: E501
        for chunk in chunks:
            piece = b"data: " + json.dumps(chunk).encode() + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(self.pause)
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()


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


@contextmanager
def daemons(folder: Path, provider: int) -> Iterator[tuple[int, list[subprocess.Popen[bytes]], str]]:
    """Router and gateway as processes; the gateway's port, both, a key."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    model = {"name": "m", "input_price": "1", "output_price": "1"}
    up = {"name": "p", "kind": "openai-compatible", "endpoint": f"http://127.0.0.1:{provider}/v1", "models": [model]}
    config = folder / "avyay.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "marga": {"discover": False, "providers": [up]},
                "gateway": {
                    "upstreams": {"marga": {"url": f"http://127.0.0.1:{ports[0]}"}},
                    "limits": [{"concurrent": 1_000}, {"requests": 1_000_000}],
                },
            }
        )
    )
    key = make_key(folder, "load")
    environment = {**os.environ, "AVYAY_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "avyay", "serve"]
    started = [
        subprocess.Popen([*command, name, "--port", str(port), "-q", "--config", str(config)], env=environment)
        for name, port in zip(("marga", "gateway"), ports, strict=True)
    ]
    try:
        for port in ports:
            wait_for(lambda port=port: bool(health(port)), 90)
        yield ports[1], started, key
    finally:
        for one in reversed(started):
            one.send_signal(signal.SIGTERM)
        for one in started:
            assert one.wait(60) == 0


def health(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as reply:
            found: dict[str, Any] = json.loads(reply.read())
            return found
    except OSError:
        return {}


def descriptors(process: subprocess.Popen[bytes]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir())) if sys.platform == "linux" else 0


def resident(process: subprocess.Popen[bytes]) -> int:
    if sys.platform != "linux":
        return 0
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def storm(folder: Path, *, streams: int, seconds: float, pause: float) -> tuple[Tally, int]:
    """Run it; returns what the callers saw, and by how many bytes the gateway grew after its first round."""
    tally = Tally()
    with Parrot(pause) as provider, daemons(folder, provider.port) as (port, (_, gateway), key):

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
