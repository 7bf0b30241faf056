"""A ledger's disk that is gone or full: calls go on, what cannot be limited is refused, and nothing is hidden."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, wait_for
from upstream import Reply, Upstream

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"input": "hi"},
    "/api/chat": {"stream": False, "messages": [{"role": "user", "content": "hi"}]},
}


def settings(upstream: Upstream, **more: Any) -> dict[str, Any]:
    provider = {
        "name": "p",
        "kind": "openai",
        "endpoint": f"{upstream.url}/v1",
        "api_key_env": "K",
        "models": [{"name": "m", "input_price": 1, "output_price": 2, "max_output": 100}],
    }
    return {"providers": [provider], **more}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


def fill_disk(pid: int, *, full: bool) -> None:
    """No file of a process can grow any more, as on a full disk; or all can again."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Process:
    """The daemon as a process of its own, whose disk can be filled."""

    def __init__(self, folder: Path, marga: dict[str, Any]) -> None:
        config = folder / "avyay.yaml"
        config.write_text(yaml.safe_dump({"marga": {"discover": False, **marga}}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "avyay", "serve", "marga", "--port", str(port), "--config", str(config), "-q"]
        environment = {**os.environ, "K": "k", "AVYAY_HOME": str(folder / "home")}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Process:
        wait_for(lambda: self.ask("/health")[0] == 200, 60)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0

    def ask(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON; (0, None) when nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, names), timeout=60) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
        except OSError:
            return 0, None


def test_a_ledger_that_cannot_be_opened(tmp_path: Path, upstream: Upstream) -> None:
    database = tmp_path / "home" / "data" / "marga" / "marga.db"
    database.mkdir(parents=True)  # a folder in its place: no rights help against that
    with Daemon(tmp_path, settings(upstream), K="k") as daemon:
        for path, body in BODIES.items():
            assert daemon.post(path, {"model": "m", **body}).status == 200
        health = daemon.get("/health").body
        assert health["status"] == "degraded"
        assert (health["ledger"]["healthy"], health["ledger"]["backlog"]) == (False, len(BODIES))
        assert str(database) in health["ledger"]["error"]
        database.rmdir()
        wait_for(lambda: daemon.get("/health").body["ledger"]["healthy"])
        assert len(daemon.calls(len(BODIES))) == len(BODIES)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit (Linux)")
def test_a_disk_that_is_full_for_a_while(tmp_path: Path, upstream: Upstream) -> None:
    with Process(tmp_path, settings(upstream)) as daemon:
        body = {"model": "m", **BODIES["/v1/chat/completions"]}
        assert daemon.ask("/v1/chat/completions", body)[0] == 200
        fill_disk(daemon.process.pid, full=True)
        for path, inner in BODIES.items():
            assert daemon.ask(path, {"model": "m", **inner})[0] == 200
        wait_for(lambda: not daemon.ask("/health")[1]["ledger"]["healthy"])
        _, health = daemon.ask("/health")
        assert health["status"] == "degraded"
        assert health["ledger"]["backlog"] >= 1
        fill_disk(daemon.process.pid, full=False)
        wait_for(lambda: daemon.ask("/health")[1]["ledger"]["healthy"])
        wait_for(lambda: daemon.ask("/health")[1]["ledger"]["backlog"] == 0)
        assert daemon.ask("/health")[1]["ledger"]["unspooled"] >= len(BODIES)  # a kill could have lost those
        _, found = daemon.ask("/marga/decisions?limit=100")
        assert len(found["decisions"]) == 1 + len(BODIES)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit (Linux)")
def test_a_cap_that_cannot_be_written_down_lets_nobody_spend(tmp_path: Path, upstream: Upstream) -> None:
    upstream.default = Reply(input=10, output=10)
    # Every customer needs a block of its own, so the disk is asked for each new one.
    with Process(tmp_path, settings(upstream, budgets=[{"per": "customer", "daily": 1}])) as daemon:
        body = {"model": "m", **BODIES["/v1/chat/completions"]}
        assert daemon.ask("/v1/chat/completions", body, x_avyay_customer="first")[0] == 200
        asked = len(upstream.calls)
        fill_disk(daemon.process.pid, full=True)
        for number, (path, inner) in enumerate(BODIES.items()):
            status, got = daemon.ask(path, {"model": "m", **inner}, x_avyay_customer=f"new-{number}")
            assert status == 503, got
            error = got["error"]
            text = error if isinstance(error, str) else error["message"]
            assert str(tmp_path) in text  # which disk
            if path.startswith("/v1/chat"):
                assert error["code"] == "disk_error"
        assert len(upstream.calls) == asked  # nobody spends unseen
        assert daemon.ask("/v1/chat/completions", body, x_avyay_customer="first")[0] == 200  # its block is in memory
        fill_disk(daemon.process.pid, full=False)
        wait_for(lambda: daemon.ask("/v1/chat/completions", body, x_avyay_customer="later")[0] == 200)
