"""Several workers are one router: one set of breakers, one budget, one word when they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from daemon import wait_for
from upstream import Reply, Upstream


def provider(number: int, upstream: Upstream) -> dict[str, Any]:
    return {
        "name": f"p{number}",
        "kind": "openai",
        "endpoint": f"{upstream.url}/v1",
        "api_key_env": "K",
        "priority": number,
        "models": [{"name": "m", "input_price": "1", "output_price": "10", "max_output": 1000}],
        "circuit_breaker": {"failure_threshold": 3, "recovery_timeout": "300ms"},
    }


class Router:
    def __init__(self, process: subprocess.Popen[bytes], url: str, config: Path, log: Path) -> None:
        self.process = process
        self.url = url
        self.config = config
        self.log = log

    def configure(self, marga: dict[str, Any], *, said: str) -> None:
        """Give it another configuration, and wait for what it says to that."""
        before = self.said(said)
        self.config.write_text(yaml.safe_dump({"marga": {"discover": False, **marga}}))
        self.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.said(said) > before, 60)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return json.loads(reply.read()) if path != "/metrics" else reply.read().decode()

    def chat(self, **headers: str) -> tuple[int, str]:
        body = {"model": "m", "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.headers["x-avyay-provider"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())["error"]["code"]

    def workers(self) -> list[int]:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def each(self, path: str) -> list[Any]:
        """What every worker answers: the others are stopped while one is asked."""
        workers, answers = self.workers(), []
        for worker in workers:
            others = [other for other in workers if other != worker]
            try:
                for other in others:
                    os.kill(other, signal.SIGSTOP)
                answers.append(self.get(path))
            finally:
                for other in others:
                    os.kill(other, signal.SIGCONT)
        return answers

    def states(self) -> set[str]:
        """What the workers say of p1."""
        return {answer["providers"]["p1"] for answer in self.each("/health")}

    def said(self, event: str) -> int:
        """How often the daemon's log has told of it."""
        return self.log.read_text().count(f'"event": "{event}"')


@contextmanager
def running(tmp_path: Path, marga: dict[str, Any]) -> Iterator[Router]:
    config = tmp_path / "avyay.yaml"
    config.write_text(yaml.safe_dump({"marga": {"discover": False, **marga}}))
    more = ("--workers", "2", "--reload-config")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "avyay", "serve", "marga", "--port", str(port), "--config", str(config), "-q"]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, *more], env={**os.environ, "K": "k"}, stderr=stderr)
    router = Router(process, f"http://127.0.0.1:{port}", config, log)
    try:
        wait_for(lambda: len(router.workers()) == 2, 60)
        wait_for(lambda: answers(router), 60)
        assert all(answer["ready"] for answer in router.each("/ready"))
        yield router
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def answers(router: Router) -> bool:
    try:
        return bool(router.get("/ready")["ready"])
    except OSError:
        return False


def test_breakers_are_shared_and_workers_replaced(tmp_path: Path) -> None:
    with Upstream() as first, Upstream() as second:
        first.default = Reply(status=500)
        with running(tmp_path, {"providers": [provider(1, first), provider(2, second)]}) as router:
            # Three failures trip it, whichever workers they happened in.
            for _ in range(3):
                assert router.chat() == (200, "p2")
            wait_for(lambda: router.get("/health")["providers"]["p1"] != "closed")
            callers = [call for call in first.calls if call.body["messages"][0]["content"] != "Say hi"]
            assert len(callers) == 3
            with ThreadPoolExecutor(8) as pool:
                assert set(pool.map(lambda _: router.chat(), range(24))) == {(200, "p2")}
            first.default = Reply()
            wait_for(lambda: router.states() == {"closed"})
            assert router.chat() == (200, "p1")
            # The counters of all workers are one sum, whoever is asked.
            total = 'marga_requests_total{status="ok"} 28'
            wait_for(lambda: all(total in metrics for metrics in router.each("/metrics")))
            victim = router.workers()[0]
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: len(router.workers()) == 2 and victim not in router.workers(), 60)
            assert router.chat() == (200, "p1")


def test_a_cap_holds_across_workers(tmp_path: Path) -> None:
    with Upstream() as upstream:
        upstream.default = Reply(input=100, output=1000, delay=0.01)  # $0.0101 a call
        marga = {"providers": [provider(1, upstream)], "budgets": [{"daily": "0.20"}]}
        with running(tmp_path, marga) as router:
            with ThreadPoolExecutor(16) as pool:
                got = list(pool.map(lambda _: router.chat(), range(64)))
            assert {what for status, what in got if status != 200} == {"budget_exceeded"}
            assert 10 <= len([status for status, _ in got if status == 200]) <= 19


def test_one_worker_gives_again_what_another_was_told(tmp_path: Path) -> None:
    """A cache on disk is one for all workers, and what they count is added up."""
    with Upstream() as upstream:
        marga = {"providers": [provider(1, upstream)], "cache": {"enabled": True, "storage": "disk"}}
        with running(tmp_path, marga) as router:
            first = router.chat()
            wait_for(lambda: router.get("/marga/cache")["entries"] == 1)
            with ThreadPoolExecutor(6) as pool:
                replies = list(pool.map(lambda _: router.chat(), range(30)))
            assert {first, *replies} == {(200, "p1")}
            assert len(upstream.calls) == 1
            wait_for(lambda: 'marga_cache_requests_total{result="hit"} 30' in router.get("/metrics"))


def test_a_new_configuration_has_breakers_that_are_shared_again(tmp_path: Path) -> None:
    with Upstream() as first, Upstream() as second:
        old = {"providers": [provider(1, first)]}
        with running(tmp_path, old) as router:
            pids = router.workers()
            assert router.chat() == (200, "p1")
            # One that cannot be used changes nothing, nor does what the parent keeps for the workers.
            both = [provider(1, first), provider(2, second)]
            router.configure({"providers": [{**provider(1, first), "kind": "nonsense"}]}, said="reload_refused")
            router.configure({"providers": both, "api_key_env": "NOT_SET"}, said="reload_refused")
            assert router.chat() == (200, "p1")
            router.configure({"providers": both}, said="reloaded_all")
            assert all("p2" in health["providers"] for health in router.each("/health"))
            first.default = Reply(status=500)
            for _ in range(3):
                assert router.chat() == (200, "p2")
            wait_for(lambda: "closed" not in router.states())
            first.default = Reply()
            wait_for(lambda: router.states() == {"closed"})
            # What was counted by the configuration before is not forgotten.
            wait_for(lambda: 'marga_requests_total{status="ok"} 5' in router.get("/metrics"))
            # A worker that is started anew finds the owner there is now.
            os.kill(router.workers()[0], signal.SIGKILL)
            wait_for(lambda: len(router.workers()) == 2 and router.workers() != pids, 60)
            wait_for(lambda: answers(router), 60)
            assert all("p2" in health["providers"] for health in router.each("/health"))
