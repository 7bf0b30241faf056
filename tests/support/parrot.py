"""Real daemons before a provider that says who asked: what load tests of the gateway stand on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from daemon import wait_for
from gate import make_key

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
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

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
                asked = json.loads(body)
                word = asked["messages"][-1]["content"]
                await (self._stream(writer, word) if asked.get("stream") else self._say(writer, word))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _say(self, writer: asyncio.StreamWriter, word: str) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": word}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        body = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}).encode()  # fmt: skip  # noqa: E501
        await asyncio.sleep(self.pause)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        await writer.drain()

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
class Door:
    """A router and the gateway before it, as processes."""

    folder: Path
    router: int
    port: int
    key: str
    admin: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def metrics(self, name: str) -> dict[str, float]:
        """What one of them counts, by name and labels."""
        port = self.port if name == "gateway" else self.router
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"x-api-key": self.admin})
        with urllib.request.urlopen(request, timeout=60) as reply:
            lines = [line.rpartition(" ") for line in reply.read().decode().splitlines() if line[:1] != "#"]
        return {series: float(value) for series, _, value in lines if series}

    def start(self, name: str) -> None:
        """Start one of them, and wait until it answers."""
        port = self.port if name == "gateway" else self.router
        command = [sys.executable, "-m", "avyay", "serve", name, "--port", str(port), "-q"]
        environment = {**os.environ, "AVYAY_HOME": str(self.home)}
        self.processes[name] = subprocess.Popen(
            [*command, "--config", str(self.folder / "avyay.yaml")], env=environment
        )
        wait_for(lambda: bool(health(port)), 90)


@contextmanager
def daemons(folder: Path, provider: int, *, workers: int = 1) -> Iterator[Door]:
    """Router and gateway as processes, the gateway with so many workers."""
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
                # The provider shares this machine, so it is slow whenever the machine is: patience for it.
                "marga": {"discover": False, "providers": [up], "timeouts": {"stream_min": 30.0}},
                "gateway": {
                    "workers": workers,
                    "upstreams": {"marga": {"url": f"http://127.0.0.1:{ports[0]}"}},
                    "limits": [{"concurrent": 1_000}, {"requests": 1_000_000}],
                },
            }
        )
    )
    door = Door(folder, ports[0], ports[1], make_key(folder, "load"), make_key(folder, "watch", scopes=["admin"]))
    try:
        door.start("marga")
        door.start("gateway")
        yield door
    finally:
        for name in ("gateway", "marga"):
            if name in door.processes:
                door.processes[name].send_signal(signal.SIGTERM)
        for process in door.processes.values():
            assert process.wait(60) == 0


def health(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as reply:
            found: dict[str, Any] = json.loads(reply.read())
            return found
    except OSError:
        return {}
