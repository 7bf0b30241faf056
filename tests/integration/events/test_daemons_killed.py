"""Whole daemons are killed: the scanner when it has said that a job is done, the gateway while it follows another."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Served, services_in, wait_for
from receiver import Receiver
from upstream import Reply, Upstream

from avyay.events.reader import Cursor, EventReader, Recorded
from avyay.ports import Event
from avyay.serve.raksha import build_app

BAD = "import yaml\n\n\ndef f{n}(text):\n    return yaml.load(text)\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ask(port: int, path: str, body: Any = None) -> Any:
    """The JSON of an answer; None when nobody is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@contextmanager
def daemon(name: str, home: Path, **settings: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A daemon in a process of its own, killed at the end of the block."""
    home.mkdir(parents=True, exist_ok=True)
    config, port = home / f"{name}.yaml", free_port()
    config.write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "avyay", "serve", name, "--port", str(port), "-q", "--config", str(config)],
        env={**os.environ, "AVYAY_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: ask(port, "/ready") is not None, 60)
        yield process, port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)


def events_in(home: Path) -> list[Recorded]:
    reader, cursor = EventReader(home / "data"), Cursor()
    found: list[Recorded] = []
    while (batch := reader.read(cursor, 1000)).events:
        found += batch.events
        cursor = batch.cursor
    reader.close()
    return found


def scan_and_kill(home: Path, baseline: Path, number: int) -> str:
    with daemon("raksha", home, raksha={"baseline": str(baseline)}) as (process, port):
        files = [{"path": f"a{number}.py", "content": BAD.format(n=number)}]
        job = ask(port, "/v1/scan?wait=false", {"files": files})["id"]
        while ask(port, f"/v1/jobs/{job}")["state"] != "done":
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    return str(job)


def check_scans(home: Path, rounds: int) -> None:
    home.mkdir(exist_ok=True)
    baseline = home / "baseline.json"
    baseline.write_text('{"raksha_baseline": 1, "findings": []}')
    jobs = [scan_and_kill(home, baseline, number) for number in range(rounds)]
    events = events_in(home)
    ended = [event.data["job"] for event in events if event.name == "raksha.job.ended"]
    assert ended == jobs
    paths = [event.data["path"] for event in events if event.name == "raksha.finding.found"]
    assert paths == [f"a{number}.py" for number in range(rounds)]


def test_a_scanner_killed_when_it_said_done(tmp_path: Path) -> None:
    check_scans(tmp_path / "home", 1)


@pytest.mark.soak
def test_a_scanner_killed_when_it_said_done_many_times(tmp_path: Path) -> None:
    check_scans(tmp_path / "home", 20)


def check_following(folder: Path, rounds: int) -> None:
    """A component elsewhere publishes without a pause, while the gateway that follows it is killed again and again."""
    events = {"keep": 1_000_000}
    services = services_in(folder / "there", {"raksha": {}, "events": events})
    here, ending, published = folder / "here", threading.Event(), 0

    def publish() -> None:
        nonlocal published
        while not ending.is_set():
            services.events.publish_now(Event("raksha.finding.found", {"n": published}))
            published += 1
            time.sleep(0.005)

    with Served(services, build_app(services, key="k")) as there:
        worker = threading.Thread(target=publish)
        worker.start()
        upstream = {"url": there.url, "api_key_env": "THERE"}
        settings = {"gateway": {"upstreams": {"raksha": upstream}}, "events": events}
        os.environ["THERE"] = "k"
        try:
            for number in range(rounds):
                with daemon("gateway", here, **settings):
                    before = len(events_in(here))
                    wait_for(lambda before=before: len(events_in(here)) > before, 60)  # type: ignore[misc]
                    time.sleep(0.003 * (number % 10))  # somewhere in between
            ending.set()
            worker.join()
            with daemon("gateway", here, **settings):
                wait_for(lambda: len(events_in(here)) >= published, 60)
        finally:
            del os.environ["THERE"]
            ending.set()
            worker.join()
    numbers = [event.data["n"] for event in events_in(here)]
    assert numbers == list(range(published))
    assert Counter(event.id for event in events_in(here)).most_common(1)[0][1] == 1


def test_a_gateway_killed_while_it_follows(tmp_path: Path) -> None:
    check_following(tmp_path, 2)


@pytest.mark.soak
def test_a_gateway_killed_while_it_follows_many_times(tmp_path: Path) -> None:
    check_following(tmp_path, 20)


PUMP = """
import asyncio, sys
from pathlib import Path
from avyay.config import Environment
from avyay.events.build import open_pump
from avyay.wiring import open_services
import os
services = open_services(config_file=Path(sys.argv[1]), environment=Environment(dict(os.environ)))
async def main():
    pump = open_pump(services.settings.events, services.paths, services.loaded.environment)
    print("ready", flush=True)
    await pump.run()
asyncio.run(main())
"""


def whole(receiver: Receiver) -> list[tuple[dict[str, str], bytes]]:
    """What came to its end: a sender that is killed may leave a piece."""
    return [(headers, body) for headers, body in receiver.got if len(body) == int(headers["content-length"])]


def check_deliveries(folder: Path, rounds: int) -> None:
    """Killed between a receipt and its record, it sends a message again, with its id; never not at all."""
    home = folder / "home"
    with Receiver() as receiver:
        hook = {"name": "ops", "url": receiver.url, "secret_env": "SECRET"}
        services = services_in(folder, {"events": {"webhooks": [hook], "keep": 1_000_000}})
        secret = "whsec_" + base64.b64encode(b"s" * 24).decode()
        environment = {"AVYAY_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "SECRET": secret}
        command = [sys.executable, "-c", PUMP, str(folder / "events.yaml")]
        published = 0

        def run() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            return process

        def end(process: subprocess.Popen[bytes]) -> None:
            process.kill()
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()

        def told() -> list[tuple[str, int]]:
            """Id and number of every message that counts."""
            found = [(headers["webhook-id"], json.loads(body)["data"]["n"]) for headers, body in whole(receiver)]
            return [(identity, number) for identity, number in found if number >= 0]

        first = run()
        while not receiver.got:  # it is told of what happens from its start on, which is some time after its first word
            services.events.publish_now(Event("rag.job.ended", {"n": -1}))
            with receiver.changed:
                receiver.changed.wait(0.05)
        end(first)
        for number in range(rounds):
            process = run()
            for _ in range(20):
                services.events.publish_now(Event("rag.job.ended", {"n": published}))
                published += 1
            before = len(receiver.got)
            receiver.wait(lambda before=before: len(receiver.got) > before + 3)  # type: ignore[misc]
            time.sleep(0.002 * (number % 10))
            end(process)
        process = run()
        receiver.wait(lambda: len({number for _, number in told()}) == published, 60)
        end(process)
        services.close()
        ids, numbers = ({each[place] for each in told()} for place in (0, 1))
    assert numbers == set(range(published))
    assert len(ids) == published


def test_what_delivers_killed_while_it_delivers(tmp_path: Path) -> None:
    check_deliveries(tmp_path, 2)


@pytest.mark.soak
def test_what_delivers_killed_while_it_delivers_many_times(tmp_path: Path) -> None:
    check_deliveries(tmp_path, 25)


def test_a_budget_that_came_near_its_cap_as_the_router_was_killed(tmp_path: Path) -> None:
    """What the killed process held (this call's worst case, or all of it) counts as spent: the next one tells, once."""
    home = tmp_path / "home"

    def told() -> list[str]:
        return [event.name for event in events_in(home) if ".budget." in event.name]

    with Upstream() as upstream:
        upstream.default = Reply(input=800, output=0)
        model = {"name": "m", "input_price": 1000, "output_price": 0}
        provider = {"name": "p", "kind": "openai-compatible", "endpoint": f"{upstream.url}/v1", "models": [model]}
        router = {"discover": False, "providers": [provider], "budgets": [{"daily": 2}]}
        settings = {"marga": router, "events": {"budget_share": 0.4}}
        with daemon("marga", home, **settings) as (process, port):
            body = {"model": "m", "messages": [{"role": "user", "content": "word " * 800}]}
            wait_for(lambda: "usage" in ask(port, "/v1/chat/completions", body), 60)
            process.send_signal(signal.SIGKILL)
        for _ in range(2):
            with daemon("marga", home, **settings):
                wait_for(lambda: bool(told()), 60)
        assert told() in (["marga.budget.neared"], ["marga.budget.neared", "marga.budget.exhausted"])
