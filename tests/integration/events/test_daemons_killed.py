"""Whole daemons are killed: the scanner when it has said that a job is done, the gateway while it follows another."""

from __future__ import annotations

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
