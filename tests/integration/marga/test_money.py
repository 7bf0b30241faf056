"""Money: the ledger against the provider's own count, and caps that hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from upstream import Reply, Upstream

PRICES = {"input_price": "1.5", "output_price": "6", "cached_price": "0.15", "cache_write_price": "1.875"}


def settings(*upstreams: Upstream, kinds: tuple[str, ...] = ("openai",), **more: Any) -> dict[str, Any]:
    providers = [
        {
            "name": f"p{number}",
            "kind": kind,
            "endpoint": upstream.url,
            "api_key_env": "K",
            "priority": number,
            "models": [{"name": f"m-{kind}", "max_output": 1000, "tier": "medium", **PRICES}],
        }
        for number, (upstream, kind) in enumerate(zip(upstreams, kinds * len(upstreams), strict=False), 1)
    ]
    for setting in providers:
        if setting["kind"] == "openai":
            setting["endpoint"] += "/v1"
    return {"providers": providers, **more}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


def test_a_cap_holds_under_200_concurrent_calls(tmp_path: Path, upstream: Upstream) -> None:
    upstream.default = Reply(input=100, output=1000, delay=0.01)  # $0.00615 a call, its worst case a little more
    budgets = [{"per": "customer", "daily": "0.10"}]
    with Daemon(tmp_path, settings(upstream, budgets=budgets), K="k") as daemon:
        body = {"model": "m-openai", "max_tokens": 1000, "messages": [{"role": "user", "content": "x" * 300}]}
        with ThreadPoolExecutor(50) as pool:
            got = list(
                pool.map(lambda _: daemon.post("/v1/chat/completions", body, x_avyay_customer="acme"), range(200))
            )
        fine = [answer for answer in got if answer.status == 200]
        refused = [answer for answer in got if answer.status != 200]
        assert {answer.status for answer in refused} == {403}
        assert refused[0].body["error"]["code"] == "budget_exceeded"
        spent = sum(Decimal(answer.headers["x-avyay-cost"]) for answer in fine)
        assert Decimal("0.05") < spent <= Decimal("0.10")
        (balance,) = daemon.get("/marga/budgets").body["budgets"]
        assert balance["budget"].startswith("customer:acme/day:")
        assert Decimal(balance["cap_usd"]) == Decimal("0.1")
        # Others have a cap of their own.
        assert daemon.post("/v1/chat/completions", body, x_avyay_customer="other").status == 200
        statuses = {row["status"] for row in daemon.calls(201)}
        assert statuses == {"ok", "refused"}


def test_a_budget_needs_a_price(tmp_path: Path, upstream: Upstream) -> None:
    config = settings(upstream, budgets=[{"daily": 5}])
    config["providers"][0]["models"] = ["unheard-of"]
    with Daemon(tmp_path, config, K="k") as daemon:
        got = daemon.chat("unheard-of")
        assert (got.status, got.body["error"]["code"]) == (403, "price_unknown")
        assert upstream.calls == []


def test_chaos(tmp_path: Path) -> None:
    """While one provider lives, requests are answered, whatever the others do."""
    draw = random.Random(11)
    with Upstream() as first, Upstream() as second, Upstream() as third:
        config = settings(first, second, third) | {
            "timeouts": {"stream_min": "1s", "stream_start": "1s", "answer_min": "1s", "answer_start": "1s"}
        }
        for provider in config["providers"]:
            provider["models"][0]["name"] = "m"
            provider["circuit_breaker"] = {"recovery_timeout": "200ms"}
        faults = [
            Reply(),
            Reply(status=500),
            Reply(status=429, headers={"retry-after": "1"}),
            Reply(fault="hang"),
            Reply(fault="refuse"),
            Reply(fault="garbage"),
        ]
        with Daemon(tmp_path, config, K="k") as daemon:
            answered = asked = 0
            for _ in range(10):
                living = draw.choice([first, second, third])
                for server in (first, second, third):
                    server.default = Reply() if server is living else draw.choice(faults)
                with ThreadPoolExecutor(8) as pool:
                    got = list(pool.map(lambda _: daemon.chat("m", stream=draw.random() < 0.5).status, range(16)))
                answered += got.count(200)
                asked += len(got)
            failed = [row["error"] for row in daemon.calls(asked) if row["status"] != "ok"]
            assert answered / asked >= 0.995, failed
