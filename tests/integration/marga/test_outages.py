"""Providers that fail in every way they know, and callers that leave: what the others see, and what the ledger says."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, wait_for
from upstream import Reply, Upstream

from avyay.db import open_database
from avyay.db_gaps import read_gaps
from avyay.marga.store import MARGA_SCHEMA

QUICK = {
    "stream_min": "150ms",
    "stream_start": "300ms",
    "answer_min": "150ms",
    "answer_start": "300ms",
    "connect": "1s",
}
BREAKER = {"failure_threshold": 3, "recovery_timeout": "300ms"}


def settings(*upstreams: Upstream, **more: Any) -> dict[str, Any]:
    providers = [
        {
            "name": f"p{number}",
            "kind": "openai",
            "endpoint": f"{upstream.url}/v1",
            "api_key_env": "K",
            "priority": number,
            "models": [{"name": "m", "input_price": 1, "output_price": 2}],
            "circuit_breaker": BREAKER,
        }
        for number, upstream in enumerate(upstreams, 1)
    ]
    return {"providers": providers, "timeouts": QUICK, **more}


@pytest.fixture
def pair() -> Iterator[tuple[Upstream, Upstream]]:
    with Upstream() as first, Upstream() as second:
        yield first, second


def attempts(daemon: Daemon, count: int = 1) -> list[tuple[str, int]]:
    row = daemon.services.calls.call(daemon.calls(count)[0]["id"])
    return [(attempt["provider"], attempt["status"]) for attempt in row["detail"]["attempts"]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=500),
        Reply(status=503),
        Reply(status=429, headers={"retry-after": "30"}),
        Reply(status=401),
        Reply(fault="refuse"),
        Reply(fault="hang"),
        Reply(fault="garbage"),
        Reply(fault="cut", cut=0),
    ],
    ids=["500", "503", "429", "401", "refuse", "hang", "garbage", "cut"],
)
def test_another_provider_answers(tmp_path: Path, pair: tuple[Upstream, Upstream], fault: Reply, stream: bool) -> None:
    first, second = pair
    first.default = fault
    with Daemon(tmp_path, settings(first, second), K="k") as daemon:
        got = daemon.chat(stream=stream)
        assert got.status == 200
        assert got.headers["x-avyay-provider"] == "p2"
        assert b"upstream" in got.raw
        assert "retry-after" not in got.headers  # that was the other one's
        assert [name for name, _ in attempts(daemon)] == ["p1", "p2"]


def test_a_refused_request_is_not_tried_elsewhere(tmp_path: Path, pair: tuple[Upstream, Upstream]) -> None:
    first, second = pair
    first.default = Reply(status=400, message="temperature must be a number")
    with Daemon(tmp_path, settings(first, second), K="k") as daemon:
        got = daemon.chat()
        assert (got.status, got.body["error"]["message"]) == (400, "temperature must be a number")
        assert second.calls == []
        assert daemon.get("/health").body["providers"]["p1"] == "closed"


def test_an_expired_key_of_ours_is_not_the_callers_fault(tmp_path: Path, pair: tuple[Upstream, Upstream]) -> None:
    for upstream in pair:
        upstream.default = Reply(status=401, message="Incorrect API key provided: sk-canary-0123456789abcdef")
    with Daemon(tmp_path, settings(*pair), K="k") as daemon:
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
            got = daemon.post(path, {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]})
            assert got.status == 502
            assert b"canary" not in got.raw
            assert b"provider_key_refused" in got.raw
            assert got.headers["x-should-retry"] == "false"  # clients would else try for minutes
        assert daemon.get("/health").body["providers"]["p1"] == "closed"


def test_retries_do_not_amplify_an_outage(tmp_path: Path, pair: tuple[Upstream, Upstream]) -> None:
    first, _ = pair
    draw = random.Random(5)
    with Daemon(tmp_path, settings(first), K="k") as daemon:
        asked = 200
        for _ in range(asked):
            first.default = Reply(status=500) if draw.random() < 0.3 else Reply()
            daemon.chat()
        callers = [call for call in first.calls if call.body["messages"][0]["content"] != "Say hi"]
        assert len(callers) <= 1.1 * asked + 10  # the budget's burst on top, once


def test_breaker_opens_fails_fast_and_recovers_by_a_probe(tmp_path: Path, pair: tuple[Upstream, Upstream]) -> None:
    first, second = pair
    first.default = Reply(status=500)
    with Daemon(tmp_path, settings(first, second), K="k") as daemon:
        for _ in range(3):
            assert daemon.chat().headers["x-avyay-provider"] == "p2"
        assert daemon.get("/health").body["providers"]["p1"] in ("open", "half_open")
        before = len(first.calls)
        assert daemon.chat().headers["x-avyay-provider"] == "p2"
        sent = first.calls[before:]
        assert all(call.body["messages"][0]["content"] == "Say hi" for call in sent)  # probes, never a caller's own
        first.default = Reply(status=400)  # a 400 on the probe is a sign of life
        wait_for(lambda: daemon.get("/health").body["providers"]["p1"] == "closed")
        first.default = Reply()
        assert daemon.chat().headers["x-avyay-provider"] == "p1"


def test_endpoints_of_a_provider_fail_apart(tmp_path: Path, pair: tuple[Upstream, Upstream]) -> None:
    first, second = pair
    first.by_path["/responses"] = first.by_path["/embeddings"] = Reply(status=500)
    config = settings(first, second)
    for provider in config["providers"]:
        provider["circuit_breaker"] = {"failure_threshold": 3, "recovery_timeout": "60s"}
    with Daemon(tmp_path, config, K="k") as daemon:
        for _ in range(4):
            assert daemon.post("/v1/responses", {"model": "m", "input": "hi"}).headers["x-avyay-provider"] == "p2"
            assert daemon.post("/v1/embeddings", {"model": "m", "input": "hi"}).headers["x-avyay-provider"] == "p2"
        assert daemon.chat("m").headers["x-avyay-provider"] == "p1"
        rows = daemon.get("/marga/providers").body["providers"]
        states = {each["endpoint"]: each["state"] for each in rows[0]["endpoints"]}
        assert states == {"chat": "closed", "responses": "open", "embeddings": "open"}
        assert daemon.get("/health").body["providers"] == {"p1": "open", "p2": "closed"}
        assert b'marga_breaker_state{provider="p1",endpoint="responses"} 2' in daemon.get("/metrics").raw
        # The chat endpoint is none the wiser, and responses are not tried at p1 again.
        before = len(first.calls)
        assert daemon.post("/v1/responses", {"model": "m", "input": "hi"}).headers["x-avyay-provider"] == "p2"
        assert len(first.calls) == before


def test_probes_are_billed(tmp_path: Path, pair: tuple[Upstream, Upstream]) -> None:
    first, second = pair
    first.default = Reply(status=500)
    with Daemon(tmp_path, settings(first, second), K="k") as daemon:
        for _ in range(3):
            daemon.chat("m")
        first.default = Reply(input=9, output=3)
        wait_for(lambda: daemon.get("/health").body["providers"]["p1"] == "closed")
        (probe,) = [row for row in daemon.calls(4) if row["service"] == "probe"]
        assert (probe["provider"], probe["status"], probe["input"], probe["output"]) == ("p1", "ok", 9, 3)
        assert probe["cost"] == 9 * 1_000_000 + 3 * 2_000_000


def test_all_down(tmp_path: Path, pair: tuple[Upstream, Upstream]) -> None:
    for upstream in pair:
        upstream.default = Reply(status=500, message="out of order")
    with Daemon(tmp_path, settings(*pair), K="k") as daemon:
        first = daemon.chat()
        assert (first.status, first.body["error"]["message"]) == (500, "out of order")
        while daemon.chat().body["error"]["code"] != "all_providers_down":
            pass
        got = daemon.chat()
        assert got.status == 503
        assert int(got.headers["retry-after"]) >= 1
        assert daemon.get("/ready").status == 503
        for upstream in pair:
            upstream.default = Reply()
        wait_for(lambda: daemon.chat().status == 200)


def test_a_request_that_waits_leaves_when_the_breaker_opens(tmp_path: Path, pair: tuple[Upstream, Upstream]) -> None:
    first, second = pair
    slow = {"stream_start": "60s", "answer_start": "60s"}  # nobody in this test waits for a timer
    with Daemon(tmp_path, settings(first, second) | {"timeouts": QUICK | slow}, K="k") as daemon:
        from threading import Thread

        first.default = Reply(fault="hang")
        got: list[str] = []
        waiting = Thread(target=lambda: got.append(daemon.chat().headers["x-avyay-provider"]))
        waiting.start()
        wait_for(lambda: len(first.calls) == 1)
        first.default = Reply(status=500)
        for _ in range(3):
            daemon.chat()
        waiting.join(60)
        assert got == ["p2"]


@pytest.mark.parametrize(
    ("path", "body", "sign"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, b'data: {"error"'),
        ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}, b"event: error"),
        ("/v1/responses", {"input": "hi"}, b"error"),
        ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}, b'{"error"'),
    ],
)
def test_a_stream_cut_in_the_middle_ends_in_a_typed_error(
    tmp_path: Path, pair: tuple[Upstream, Upstream], path: str, body: dict[str, Any], sign: bytes
) -> None:
    first, second = pair
    first.default = Reply("one two three four five six", fault="cut", cut=6)
    with Daemon(tmp_path, settings(first, second), K="k") as daemon:
        got = daemon.post(path, {"model": "m", "stream": True, **body})
        assert got.status == 200
        assert sign in got.raw
        assert b"one" in got.raw
        assert second.calls == []  # after the first byte there is no way back
        (row,) = daemon.calls(1)
        assert (row["status"], row["estimated"]) == ("truncated", 1)
        assert row["cost"] > 0


def leave(url: str, body: dict[str, Any], *, read: int) -> None:
    """Send a request, read so many bytes of the answer, hang up."""
    host, _, port = url.removeprefix("http://").partition(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), 10) as caller:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        caller.sendall(head.encode() + data)
        while read > 0:
            read -= len(caller.recv(read))
        if not read:
            time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_leaves_stops_the_provider(tmp_path: Path, pair: tuple[Upstream, Upstream], stream: bool) -> None:
    first, second = pair
    first.default = Reply("word " * 1000, pause=0.01) if stream else Reply(fault="hang")
    patient = {"timeouts": {**QUICK, "stream_start": "60s", "answer_start": "60s"}}
    with Daemon(tmp_path, settings(first, second) | patient, K="k") as daemon:
        body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
        leave(daemon.url, body, read=400 if stream else 0)
        wait_for(lambda: first.gone == 1)
        (row,) = daemon.calls(1)
        assert (row["status"], row["error"]) == ("aborted", None)
        assert second.calls == []
        if stream:
            assert row["estimated"] == 1
            assert 0 < row["output"] < 1000
        wait_for(lambda: daemon.get("/health").body["active"] == 0)
        assert daemon.get("/health").body["providers"]["p1"] == "closed"


def test_after_kill_9_the_ledger_is_whole_and_says_that_nothing_is_missing(tmp_path: Path, home: Path) -> None:
    with Upstream() as upstream:
        config = tmp_path / "avyay.yaml"
        config.write_text(yaml.safe_dump({"marga": {"discover": False, **settings(upstream)}}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "avyay", "serve", "marga", "--port", str(port), "--config", str(config), "-q"]
        daemon = subprocess.Popen(command, env={**os.environ, "K": "k"}, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"

        def up() -> bool:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
                    return bool(reply.status == 200)
            except OSError:
                return False

        try:
            wait_for(up)
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
            for _ in range(20):
                request = urllib.request.Request(f"{url}/v1/chat/completions", data=body)
                with urllib.request.urlopen(request, timeout=60) as reply:
                    assert reply.status == 200
        finally:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait(60)
        database = home / "avyay" / "data" / "marga" / "marga.db"
        again = Daemon(tmp_path / "again", settings(upstream), K="k", AVYAY_HOME=str(home / "avyay"))
        with again:
            assert again.chat().status == 200
        with closing(open_database(database, MARGA_SCHEMA)) as opened:
            assert opened.execute("SELECT count(*) FROM calls").fetchone()[0] == 21
            assert [gap.missing for gap in read_gaps(opened)] == [0]


def test_port_taken_names_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "avyay", "serve", "marga", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wide_open_router_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "avyay", "serve", "marga", "--host", "0.0.0.0", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5
    assert "api_key_env" in done.stderr
