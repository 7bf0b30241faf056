"""Several workers of one gateway: what one learns of a component, the others know; without their owner they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from daemon import wait_for
from gate import Gate, make_key
from upstream import Upstream

from avyay.clock import SYSTEM_CLOCK
from avyay.resilience.breaker import Outcome
from avyay.serve.gateway.limit_stores import LimitOwner, LocalLimiter
from avyay.serve.gateway.limits import Counters
from avyay.serve.gateway.relay import Timeouts
from avyay.serve.gateway.relay import Upstream as Component
from avyay.serve.gateway.shared_breakers import BreakerMember, BreakerOwner
from avyay.worker_socket import MemberEnd, OwnerEnd

CHAT = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).encode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def owner_at(path: Path, url: str) -> Iterator[dict[str, Component]]:
    """The owner of several workers, in a loop of its own."""
    ready, found = threading.Event(), []

    async def main() -> None:
        end, counters = OwnerEnd(), Counters()
        LimitOwner(end, LocalLimiter(SYSTEM_CLOCK, counters), counters)
        names = ("marga", "rag", "raksha", "siddhi", "engine")
        components = {name: Component(name, url, timeouts=Timeouts(connect=1)) for name in names}
        breakers = BreakerOwner(end, components, 5.0)
        await end.serve(path)
        breakers.start()
        over = asyncio.Event()
        found.append((components, asyncio.get_running_loop(), over))
        ready.set()
        await over.wait()
        await breakers.stop()
        await end.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(60)
    components, loop, over = found[0]
    try:
        yield components
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)


def test_a_breaker_that_one_worker_opens_is_open_in_the_other(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    headers = {"authorization": f"Bearer {key}"}
    with Upstream() as component:
        component.down()
        with (
            owner_at(tmp_path / "s", component.url) as kept,
            Gate(tmp_path, {"marga": component.url}, owner=tmp_path / "s") as one,
            Gate(tmp_path, {"marga": component.url}, owner=tmp_path / "s") as other,
        ):
            assert not other.gateway.upstreams["marga"].breaker.reason
            for _ in range(5):
                assert one.chat(**headers).status == 503
            wait_for(lambda: not other.gateway.upstreams["marga"].breaker.allow())
            got = other.chat(**headers)
            assert (got.status, got.body["error"]["code"]) == (503, "component_unavailable")
            assert "5 failures in a row" in got.body["error"]["message"]
            assert other.get("/health").body["components"]["marga"]["problem"].startswith("connect")
            component.up()
            kept["marga"].breaker._open_until = 0.0
            # The owner alone looks; what it sees holds for both.
            wait_for(lambda: one.chat(**headers).status == 200 and other.chat(**headers).status == 200)
            assert other.get("/health").body["components"]["marga"]["problem"] is None


def test_successes_of_one_worker_end_a_row_of_failures_of_another(tmp_path: Path) -> None:
    async def play() -> None:
        def components() -> dict[str, Component]:
            return {"marga": Component("marga", "http://127.0.0.1:9")}

        def counted() -> tuple[int, int]:
            return owned["marga"].breaker.error_rate(SYSTEM_CLOCK.monotonic())

        owned = components()
        end = OwnerEnd()
        BreakerOwner(end, owned, 5.0)
        await end.serve(tmp_path / "s")
        lost: list[int] = []
        ends = [MemberEnd(lambda: lost.append(1), dict) for _ in range(2)]
        workers = [components() for _ in ends]
        for one, known in zip(ends, workers, strict=True):
            BreakerMember(one, known)
            await one.start(tmp_path / "s")
        first, second = (known["marga"] for known in workers)
        for _ in range(4):
            first.report(Outcome.FAILURE, first.breaker.generation)
        await until(lambda: counted() == (4, 4))
        second.report(Outcome.SUCCESS, second.breaker.generation)
        await until(lambda: counted() == (4, 5))
        first.report(Outcome.FAILURE, first.breaker.generation)
        await until(lambda: counted() == (5, 6))
        assert owned["marga"].breaker.allow()
        for _ in range(4):
            second.report(Outcome.FAILURE, second.breaker.generation)
        await until(lambda: not first.breaker.allow() and not second.breaker.allow())
        second.report(Outcome.FAILURE, 0)  # of a call from before: it says nothing any more
        late, known = MemberEnd(lambda: None, dict), components()
        BreakerMember(late, known)
        await late.start(tmp_path / "s")
        await until(lambda: not known["marga"].breaker.allow())
        await late.stop()
        await end.close()
        await until(lambda: len(lost) == 2)
        # Alone, for as long as it still answers, a worker counts by itself.
        first.mirror(is_open=False, reason="for this test")
        for _ in range(5):
            first.report(Outcome.FAILURE, first.breaker.generation)
        assert not first.breaker.allow()
        for one in ends:
            await one.stop()

    asyncio.run(play())


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """Two workers before a component that is not there, and one that never answers: their parent, their port, a key."""
    key = make_key(tmp_path)
    silent = socket.create_server(("127.0.0.1", 0))
    config = tmp_path / "avyay.yaml"
    nobody = {"url": f"http://127.0.0.1:{free_port()}", "connect": 1}
    mute = {"url": f"http://127.0.0.1:{silent.getsockname()[1]}"}
    config.write_text(yaml.safe_dump({"gateway": {"upstreams": {"marga": nobody, "rag": mute}}}))
    port = free_port()
    command = [sys.executable, "-m", "avyay", "serve", "gateway", "--workers", "2", "--port", str(port), "-q"]
    environment = {**os.environ, "AVYAY_HOME": str(tmp_path / "home")}
    process = subprocess.Popen([*command, "--config", str(config)], env=environment)
    try:
        wait_for(lambda: ask(port) == (401, ""), 60)
        yield process, port, key
    finally:
        process.kill()
        process.wait(40)
        wait_for(lambda: ask(port) == (0, ""), 40)  # workers outlive no owner
        silent.close()


def ask(port: int, key: str = "") -> tuple[int, str]:
    """Status and message of a request over a connection of its own; 0 when nobody listens."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", CHAT, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return int(reply.status), ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]["message"] if key else ""
    except OSError:
        return 0, ""


def asked_each(parent: int, port: int, key: str) -> list[str]:
    """What every worker says: the others are stopped while one is asked."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    pids, found = set(map(int, listed.stdout.split())), []
    for one in pids:
        try:
            for other in pids - {one}:
                os.kill(other, signal.SIGSTOP)
            found.append(ask(port, key)[1])
        finally:
            for other in pids - {one}:
                os.kill(other, signal.SIGCONT)
    return found


@pytest.mark.needs("ps")
def test_two_workers_give_a_component_up_together(workers: tuple[subprocess.Popen[bytes], int, str]) -> None:
    process, port, key = workers
    for _ in range(5):
        assert ask(port, key)[0] == 503

    def given_up(message: str) -> bool:
        return "5 failures in a row" in message or "the probe failed" in message

    # Whoever of the two takes it; the other has heard of it a moment later.
    wait_for(lambda: [given_up(message) for message in asked_each(process.pid, port, key)] == [True, True], 60)


def test_what_is_under_way_is_told_by_any_worker(workers: tuple[subprocess.Popen[bytes], int, str]) -> None:
    _, port, key = workers

    def everywhere(expected: int) -> bool:
        """Connections in a row until both have answered."""
        told: dict[int, int] = {}
        while len(told) < 2:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as reply:
                found = json.loads(reply.read())
            told[found["worker"]] = found["active"]
        return set(told.values()) == {expected}

    with socket.create_connection(("127.0.0.1", port)) as caller:
        head = f"POST /v1/ask HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 2\r\n\r\n{{}}"
        caller.sendall(head.encode())
        wait_for(lambda: everywhere(1))
    wait_for(lambda: everywhere(0))


def test_workers_end_with_their_owner(workers: tuple[subprocess.Popen[bytes], int, str]) -> None:
    process, port, key = workers
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    wait_for(lambda: ask(port, key) == (0, ""), 40)
