"""What the gateway costs a request, next to a bare pass-through (floor) and, when given, LiteLLM's proxy (peer).

    python benchmarks/gateway.py [--seconds 4] [--litellm PYTHON] [--soak REQUESTS]

Everything runs on this machine in one run: the target on one core, a scripted provider and the load on another. The
floor is bare ASGI under uvicorn with aiohttp as client: no routing, no ledger, no breakers, no budgets; ours has all of
them switched on. PYTHON is an interpreter that has `litellm[proxy]`. Ratios and CPU per request hold up on a busy
machine; absolute rates and p99 do not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
TICK = os.sysconf("SC_CLK_TCK")
MOST_GROWTH = 1.05
WARM = 20_000  # requests before the memory of a soak is first looked at
PROMPT = "What is the capital of France? Answer in one short sentence."
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 8, "total_tokens": 32},
    }
).encode()
CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}

FLOOR = """
import os, aiohttp, orjson, uvicorn
session = None
async def app(scope, receive, send):
    global session
    if scope["type"] != "http":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"].endswith("shutdown"):
                return
    if session is None:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    orjson.loads(body)
    headers = {"content-type": "application/json", "authorization": "Bearer k"}
    async with session.post(os.environ["UPSTREAM"] + "/v1/chat/completions", data=body, headers=headers) as reply:
        kind = reply.headers["content-type"].encode()
        await send({"type": "http.response.start", "status": reply.status, "headers": [(b"content-type", kind)]})
        async for part in reply.content.iter_any():
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
uvicorn.run(app, port=int(os.environ["PORT"]), http="httptools", loop="uvloop", log_level="error", access_log=False)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pin(core: int) -> Callable[[], None]:
    """For subprocesses: stay on a core, where the machine has so many."""
    cores = sorted(os.sched_getaffinity(0))

    def stay() -> None:
        os.sched_setaffinity(0, {cores[core % len(cores)]})

    return stay


# ---------------------------------------------------------------- the scripted provider


class Provider(asyncio.Protocol):
    """Answers every request at once: whole, or in eight pieces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, separator, rest = self.buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            lowered = head.lower()
            at = lowered.find(b"content-length:")
            size = int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(rest) < size:
                return
            body, self.buffer = rest[:size], rest[size:]
            stream = b'"stream":true' in body or b'"stream": true' in body
            self.transport.write(STREAMED if stream else WHOLE)  # type: ignore[attr-defined]


def _streamed() -> bytes:
    events = [{**CHUNK, "choices": [{"index": 0, "delta": {"content": f"word{n} "}}]} for n in range(8)]
    events.append({**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events.append({**CHUNK, "choices": [], "usage": {"prompt_tokens": 24, "completion_tokens": 8, "total_tokens": 32}})
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + chunks + b"0\r\n\r\n"


WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
STREAMED = _streamed()


def provide(port: int) -> None:
    """Be the provider until killed."""
    import uvloop

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(main())


# ---------------------------------------------------------------- load


@dataclass
class Load:
    """What some connections saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: int = 0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def p50(self) -> float:
        return statistics.median(self.latencies) * 1000


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered; of a stream the first piece is timed."""

    def __init__(self, request: bytes, load: Load, end: float, stream: bool, done: asyncio.Future[None]) -> None:
        self.request, self.load, self.end, self.stream, self.done = request, load, end, stream, done
        self.buffer = b""
        self.first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if time.perf_counter() >= self.end:
            self.transport.close()
            return
        self.buffer, self.first = b"", 0.0
        self.began = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.stream and not self.first and b"word0" in self.buffer:
            self.first = time.perf_counter()
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        size = int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else None
        if rest.endswith(b"0\r\n\r\n") if size is None else len(rest) >= size:
            if not head.startswith(b"HTTP/1.1 200"):
                self.load.errors += 1
            self.load.latencies.append((self.first or time.perf_counter()) - self.began)
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def request(port: int, *, stream: bool = False) -> bytes:
    body = json.dumps(
        {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer sk-bench\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def run_load(port: int, connections: int, seconds: float, *, stream: bool = False) -> Load:
    import uvloop

    load = Load()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        waiting = []
        for _ in range(connections):
            done = loop.create_future()
            waiting.append(done)
            data = request(port, stream=stream)
            await loop.create_connection(
                lambda done=done, data=data: Caller(data, load, began + seconds, stream, done), "127.0.0.1", port
            )
        await asyncio.gather(*waiting)
        load.seconds = time.perf_counter() - began

    uvloop.run(main())
    return load


# ---------------------------------------------------------------- targets


@dataclass
class Target:
    name: str
    command: list[str]
    environment: dict[str, str]
    port: int
    process: subprocess.Popen[bytes] | None = None
    cold: float = 0.0

    def start(self) -> None:
        began = time.perf_counter()
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            preexec_fn=pin(0),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not answers(self.port):
            if self.process.poll() is not None or time.perf_counter() - began > 90:
                raise SystemExit(f"{self.name} did not start")
            time.sleep(0.005)
        self.cold = time.perf_counter() - began

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def cpu(self) -> float:
        """CPU seconds so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self) -> float:
        """Resident MiB."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as caller:
            caller.settimeout(10)
            caller.sendall(request(port))
            return caller.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


def targets(folder: Path, upstream: str, litellm: str | None) -> list[Target]:
    ports = [free_port() for _ in range(3)]
    config = folder / "avyay.yaml"
    provider = f"{{name: up, kind: openai, endpoint: '{upstream}/v1', api_key_env: UPKEY, models: [gpt-4o-mini]}}"
    backup = provider.replace("name: up", "name: backup, priority: 2")
    config.write_text(
        f"marga:\n  discover: false\n  budgets: [{{daily: 1000000}}]\n  providers:\n    - {provider}\n    - {backup}\n"
    )
    found = [
        Target(
            "bare ASGI + aiohttp (floor)",
            [sys.executable, "-c", FLOOR],
            {"UPSTREAM": upstream, "PORT": str(ports[0])},
            ports[0],
        ),
        Target(
            "avyay serve marga",
            [sys.executable, "-m", "avyay", "serve", "marga", "-q", "--config", str(config), "--port", str(ports[1])],
            {"AVYAY_HOME": str(folder / "home"), "UPKEY": "k"},
            ports[1],
        ),
    ]
    if litellm:
        yaml = folder / "litellm.yaml"
        yaml.write_text(
            "model_list:\n  - model_name: gpt-4o-mini\n    litellm_params: "
            f"{{model: openai/gpt-4o-mini, api_base: '{upstream}/v1', api_key: k}}\n"
        )
        tool = str(Path(litellm).parent / "litellm")
        command = [tool, "--config", str(yaml), "--host", "127.0.0.1", "--port", str(ports[2])]
        quiet = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        found.append(Target("LiteLLM proxy (peer)", command, quiet, ports[2]))
    return found


def ask_and_leave(target: Target, count: int) -> tuple[int, int]:
    """At least so many requests, a fifth of them streams that are left in the middle: (asked, left)."""
    asked = left = 0
    while asked + left < count:
        asked += len(run_load(target.port, 16, 4.0).latencies)
        for _ in range(asked // 4 - left):
            with socket.create_connection(("127.0.0.1", target.port), 5) as caller:
                caller.sendall(request(target.port, stream=True))
                caller.recv(64)
            left += 1
    return asked, left


def soak(target: Target, count: int) -> bool:
    """Whether the memory stays where it was over so many requests, once what a load fills is full."""
    idle = target.memory()
    # By number, not by time: on a busy machine a few seconds do not fill SQLite's page caches and the newest calls.
    ask_and_leave(target, WARM)
    before, began = target.memory(), time.perf_counter()
    asked, left = ask_and_leave(target, count)
    after = target.memory()
    print(
        f"{target.name}: {asked + left} requests, {left} of them left, in {time.perf_counter() - began:.0f} s, "
        f"RSS {idle:.1f} MiB idle, {before:.1f} -> {after:.1f} MiB ({(after / before - 1) * 100:+.1f} %)"
    )
    return after < before * MOST_GROWTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--litellm", metavar="PYTHON", help="an interpreter that has litellm[proxy]")
    parser.add_argument("--soak", type=int, metavar="REQUESTS", help="measure memory instead")
    parser.add_argument("--provide", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.provide:
        provide(options.provide)
        return
    upstream = free_port()
    pin(1)()
    provider = subprocess.Popen([sys.executable, __file__, "--provide", str(upstream)], preexec_fn=pin(1))
    with tempfile.TemporaryDirectory() as folder:
        found = targets(Path(folder), f"http://127.0.0.1:{upstream}", options.litellm)
        try:
            while not answers(upstream):
                time.sleep(0.01)
            if options.soak:
                ours = next(target for target in found if target.name.startswith("avyay"))
                ours.start()
                if not soak(ours, options.soak):
                    raise SystemExit(f"the memory grew by more than {(MOST_GROWTH - 1) * 100:.0f} %")
                return
            report(found, upstream, options.seconds)
        finally:
            for target in found:
                target.stop()
            provider.terminate()
            provider.wait()


def report(found: list[Target], upstream: int, seconds: float) -> None:
    direct, direct_stream = run_load(upstream, 1, seconds), run_load(upstream, 1, seconds, stream=True)
    print(f"direct: p50 {direct.p50:.3f} ms, first token {direct_stream.p50:.3f} ms")
    header = (
        "target",
        "req/s c=16",
        "x floor",
        "added p50 ms",
        "added first token ms",
        "CPU us/req",
        "RSS MiB",
        "cold s",
    )
    print(" | ".join(header))
    floor = 0.0
    for target in found:
        target.start()
        idle = target.memory()
        run_load(target.port, 16, 1.0)
        one, stream = run_load(target.port, 1, seconds), run_load(target.port, 1, seconds, stream=True)
        cpu = target.cpu()
        many = run_load(target.port, 16, seconds)
        cpu = (target.cpu() - cpu) / len(many.latencies) * 1e6
        floor = floor or many.rate
        cells = (
            target.name,
            f"{many.rate:.0f}",
            f"{many.rate / floor:.2f}",
            f"{one.p50 - direct.p50:.2f}",
            f"{stream.p50 - direct_stream.p50:.2f}",
            f"{cpu:.0f}",
            f"{idle:.0f}",
            f"{target.cold:.2f}",
        )
        errors = one.errors + stream.errors + many.errors
        print(" | ".join(cells) + (f" | {errors} errors" if errors else ""))
        target.stop()
        target.process = None


if __name__ == "__main__":
    main()
