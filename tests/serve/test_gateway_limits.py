"""Rate limits at the gateway: in one process, across workers, in Redis, and when Redis is gone."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, wait_for
from gate import Gate, make_key
from upstream import Reply, Upstream

from avyay.clock import SYSTEM_CLOCK, FakeClock
from avyay.errors import ConfigError, UnreachableError
from avyay.serve.gateway import limit_stores
from avyay.serve.gateway.limit_stores import LimitMember, LimitOwner, LocalLimiter, RedisLimiter
from avyay.serve.gateway.limits import Claim, Counters, Verdict
from avyay.worker_socket import MemberEnd, OwnerEnd

MESSAGES = {"model": "auto", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limits")


@pytest.fixture(scope="module")
def router(upstream: Upstream, folder: Path) -> Iterator[Daemon]:
    provider = {
        "name": "scripted",
        "kind": "openai-compatible",
        "endpoint": f"{upstream.url}/v1",
        "models": [{"name": "test-model"}],
    }
    with Daemon(folder, {"providers": [provider]}) as daemon:
        yield daemon


def gate(folder: Path, router: Daemon, limits: list[dict[str, Any]], **options: Any) -> Gate:
    return Gate(folder, {"marga": router.url}, {"limits": limits, **options})


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_requests_a_minute(folder: Path, router: Daemon) -> None:
    free, gold = make_key(folder, "free", tier="free"), make_key(folder, "gold", tier="gold")
    rules = [{"tier": "free", "requests": 3}, {"endpoint": "marga:embeddings", "requests": 1}]
    with gate(folder, router, rules) as door:
        # Windows are cut at full minutes: what a cut in the middle lets through is at most as much again.
        found = [door.chat(**auth(free)) for _ in range(7)]
        assert {got.status for got in found[:3]} == {200}
        refused = next(got for got in found if got.status == 429)
        assert refused.body["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert refused.headers["ratelimit-policy"] == '"requests-free";q=3;w=60'
        assert refused.headers["ratelimit"].startswith('"requests-free";r=0;t=')
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        told = found[0].headers
        assert (told["x-ratelimit-limit-requests"], int(told["x-ratelimit-remaining-requests"]) < 3) == ("3", True)
        got = door.post("/v1/messages", MESSAGES, **auth(free))
        assert (got.status, got.body["type"], got.body["error"]["type"]) == (429, "error", "rate_limit_error")
        assert got.headers["anthropic-ratelimit-requests-limit"] == "3"
        assert "x-ratelimit-limit-requests" not in got.headers
        got = door.chat(**auth(gold))
        assert (got.status, "ratelimit" in got.headers) == (200, False)  # another tier, another counter
        admin = make_key(folder, "admin", scopes=["admin"])
        assert 'gateway_limited_total{unit="requests"}' in door.get("/metrics", **auth(admin)).raw.decode()


def test_streams_at_once(folder: Path, router: Daemon, upstream: Upstream) -> None:
    key = make_key(folder, "streams")
    upstream.default = Reply(text=" ".join(["word"] * 400), pause=0.05)
    with gate(folder, router, [{"concurrent": 1}]) as door:
        connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=60)
        body = json.dumps({**MESSAGES, "stream": True})
        connection.request("POST", "/v1/chat/completions", body, auth(key))
        connection.getresponse().read(50)
        upstream.default = Reply()
        got = door.chat(**auth(key))
        assert (got.status, got.headers["retry-after"]) == (429, "1")
        assert 'qu="concurrent-requests"' in got.headers["ratelimit-policy"]
        connection.close()  # the caller goes: his place is free again
        wait_for(lambda: door.chat(**auth(key)).status == 200)
        assert door.chat(**auth(key)).status == 200
        limiter = door.gateway.limiter
        assert isinstance(limiter, LocalLimiter)
        wait_for(lambda: limiter.counters.held == 0)


def test_tokens_are_guessed_and_then_put_right(folder: Path, router: Daemon, upstream: Upstream) -> None:
    key = make_key(folder, "tokens")
    with gate(folder, router, [{"endpoint": "marga", "tokens": 1_000}]) as door:
        limiter = door.gateway.limiter
        assert isinstance(limiter, LocalLimiter)

        def used() -> int:
            return sum(w.current + w.previous for name, w in limiter.counters._windows.items() if "tokens" in name)

        for stream in (False, True):
            before = used()
            got = door.chat(stream=stream, **auth(key))
            assert got.headers["x-ratelimit-limit-tokens"] == "1000"
            wait_for(lambda wanted=before + 17: used() == wanted)  # 12 in, 5 out, as the router counted
        upstream.default = Reply(output=5_000)
        assert door.chat(**auth(key)).status == 200
        wait_for(lambda: door.chat(**auth(key)).status == 429)  # the debt is waited for
        upstream.default = Reply()
        assert door.post("/v1/chat/completions", b"{", **auth(key)).status in (400, 429)


@pytest.mark.parametrize("rule", [{}, {"endpoint": "marga:nothing", "requests": 1}], ids=["nothing", "no endpoint"])
def test_limits_that_are_none(folder: Path, router: Daemon, rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        gate(folder, router, [rule])


# ---------------------------------------------------------------- several processes


def test_workers_share_their_owners_counters(tmp_path: Path) -> None:
    async def play() -> None:
        counters = Counters()
        owner = OwnerEnd()
        LimitOwner(owner, LocalLimiter(FakeClock(), counters), counters)
        await owner.serve(tmp_path / "s")
        lost: list[str] = []
        ends = [
            MemberEnd(lambda: lost.append("first"), lambda: {"finished marga 200": 2.0}),
            MemberEnd(lambda: lost.append("second"), lambda: {"finished marga 200": 3.0}),
        ]
        first, second = map(LimitMember, ends)
        for end in ends:
            await end.start(tmp_path / "s")
        rule = Claim("r|k", "requests", "requests", 3)
        found = [await one.acquire([rule], "x") for one in (first, second, first, second)]
        assert [verdict.refused is None for verdict in found] == [True, True, True, False]
        assert found[3].retry_after > 0
        assert found[0].standings[0].remaining == 2
        await first.settle(rule, -1, FakeClock().now())
        assert (await second.acquire([rule], "x")).refused is None
        held = Claim("c|k", "concurrent", "concurrent", 1)
        assert (await first.acquire([held], "a")).lease
        assert (await second.acquire([held], "b")).refused is not None
        await ends[0].stop()  # a worker that dies holds nothing
        while (await second.acquire([held], "b")).refused is not None:
            await asyncio.sleep(0.01)
        while ends[1].others.get("finished marga 200") != 2.0:  # what it did is not forgotten
            await asyncio.sleep(0.05)
        await owner.close()
        while not lost:
            await asyncio.sleep(0.01)
        assert lost == ["second"]
        with pytest.raises(UnreachableError):  # at once: nobody is left to wait for
            await second.acquire([rule], "x")
        await ends[1].stop()

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await play()

    asyncio.run(bounded())


class Withholding(LocalLimiter):
    """One whose answers are refused, as without Redis where `on_redis_loss` is `refuse`; or come too late."""

    refusing = True
    gate: asyncio.Event

    async def acquire(self, claims: Sequence[Claim], lease: str) -> Verdict:
        if self.refusing:
            raise UnreachableError("Redis does not answer")
        await self.gate.wait()
        return await super().acquire(claims, lease)


def test_what_a_worker_cannot_get_is_not_kept_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        counters = Counters()
        limiter = Withholding(FakeClock(), counters)
        limiter.gate = asyncio.Event()
        owner = OwnerEnd()
        LimitOwner(owner, limiter, counters)
        await owner.serve(tmp_path / "s")
        end = MemberEnd(lambda: None, dict)
        worker = LimitMember(end)
        await end.start(tmp_path / "s")
        held = Claim("c|k", "concurrent", "concurrent", 1)
        with pytest.raises(UnreachableError):
            await worker.acquire([held], "a")
        assert end.joined  # a refusal of the owner's is no reason to part
        limiter.refusing = False
        monkeypatch.setattr(limit_stores, "_PATIENCE", 0.05)
        with pytest.raises(UnreachableError):
            await worker.acquire([held], "b")  # the owner is late, and grants it to nobody
        limiter.gate.set()
        monkeypatch.undo()
        assert (await worker.acquire([held], "c")).refused is None
        await worker.release([held], "c")
        while counters.held:
            await asyncio.sleep(0.01)
        await end.stop()
        await owner.close()

    asyncio.run(play())


def test_two_workers_are_one_gateway(folder: Path, router: Daemon) -> None:
    key = make_key(folder, "workers")
    config = folder / "workers.yaml"
    rules = {"limits": [{"requests": 5}], "upstreams": {"marga": {"url": router.url}}}
    config.write_text(yaml.safe_dump({"gateway": rules}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "avyay", "serve", "gateway", "--workers", "2", "--port", str(port), "-q"]
    environment = {**os.environ, "AVYAY_HOME": str(folder / "home")}
    process = subprocess.Popen([*command, "--config", str(config)], env=environment)

    def ask(_: int) -> int:
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, auth(key))
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def up() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    try:
        wait_for(up, 60)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, range(20)))
        assert set(found) == {200, 429}
        assert 5 <= found.count(200) <= 10  # 5, or up to twice that where a minute ends in between
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0


# ---------------------------------------------------------------- Redis


@contextmanager
def redis_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: _listens(port))
        yield process
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.needs("redis-server")
def test_gateways_share_limits_in_redis(folder: Path, router: Daemon, port: int) -> None:
    key = make_key(folder, "shared")
    options = {"redis_url": f"redis://127.0.0.1:{port}"}
    rules = [{"requests": 4}, {"concurrent": 5}, {"tokens": 100_000}]
    with (
        redis_server(folder, port),
        gate(folder, router, rules, **options) as one,
        gate(folder, router, rules, **options) as other,
    ):
        found = [door.chat(**auth(key)) for door in (one, other) * 5]
        statuses = [got.status for got in found]
        assert statuses[:4] == [200] * 4
        assert 2 <= statuses.count(429) <= 6
        refused = next(got for got in found if got.status == 429)
        assert '"requests";r=0' in refused.headers["ratelimit"]
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert one.get("/health").body["limits"] == "ok"


@pytest.mark.needs("redis-server")
def test_counters_in_redis_do_what_those_in_memory_do(tmp_path: Path, port: int) -> None:
    async def play() -> None:
        limiter = RedisLimiter(f"redis://127.0.0.1:{port}", SYSTEM_CLOCK, fallback=None)
        held, tokens = Claim("c|k", "c", "concurrent", 2), Claim("t|k", "t", "tokens", 1_000, 400)
        first = await limiter.acquire([held, tokens], "a")
        assert (first.refused, first.lease) == (None, "a")
        assert [one.remaining for one in first.standings] == [1, 600]
        assert (await limiter.acquire([held, tokens], "b")).refused is None
        third = await limiter.acquire([tokens, held], "c")
        assert third.refused is not None
        assert third.refused.unit == "tokens"
        await limiter.settle(tokens, -400, SYSTEM_CLOCK.now())
        fourth = await limiter.acquire([tokens, held], "c")
        assert fourth.refused is not None
        assert fourth.refused.unit == "concurrent"  # nothing was taken of the tokens either
        await limiter.release([held], "a")
        assert (await limiter.acquire([tokens, held], "c")).refused is None
        await limiter.settle(tokens, 5_000, SYSTEM_CLOCK.now())
        debt = await limiter.acquire([tokens], "d")
        assert debt.refused is not None
        assert 0 < debt.retry_after <= 120
        await limiter.close()

    with redis_server(tmp_path, port):
        asyncio.run(play())


@pytest.mark.needs("redis-server")
@pytest.mark.parametrize("then", ["local", "refuse"])
def test_redis_is_lost_and_comes_back(folder: Path, router: Daemon, port: int, then: str) -> None:
    key = make_key(folder, f"lost-{then}")
    options = {"redis_url": f"redis://127.0.0.1:{port}", "on_redis_loss": then}
    with gate(folder, router, [{"requests": 1_000}], **options) as door:
        with redis_server(folder, port):
            assert door.chat(**auth(key)).status == 200
        got = door.chat(**auth(key))
        if then == "local":
            assert (got.status, "ratelimit" in got.headers) == (200, True)  # counted here
        else:
            assert (got.status, got.body["error"]["code"]) == (503, "limits_unreachable")
            assert got.headers["retry-after"] == "1"
        health = door.get("/health").body
        assert (health["status"], health["limits"]) == ("degraded", "lost")
        with redis_server(folder, port):
            wait_for(lambda: door.chat(**auth(key)).status == 200 and door.get("/health").body["limits"] == "ok")


def test_redis_that_was_never_there(port: int) -> None:
    async def play() -> None:
        url = f"redis://127.0.0.1:{port}"
        rule = Claim("r|k", "requests", "requests", 1)
        strict = RedisLimiter(url, SYSTEM_CLOCK, fallback=None)
        with pytest.raises(UnreachableError):
            await strict.acquire([rule], "a")
        assert (await strict.report()).lost
        lenient = RedisLimiter(url, SYSTEM_CLOCK, fallback=LocalLimiter(SYSTEM_CLOCK))
        assert (await lenient.acquire([rule], "a")).refused is None
        assert (await lenient.acquire([rule], "a")).refused is not None
        assert lenient.fallbacks == 2
        for one in (strict, lenient):
            await one.release([rule], "a")
            await one.settle(rule, -1, SYSTEM_CLOCK.now())
            await one.close()

    asyncio.run(play())
