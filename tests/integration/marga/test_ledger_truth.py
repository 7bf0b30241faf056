"""The ledger against the providers' own count, call by call: whole and streamed, retried, failed over, cached, left."""

from __future__ import annotations

import http.client
import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import pytest
from daemon import Daemon, wait_for
from upstream import Reply, Request, Upstream

PRICES = {"input_price": "1.5", "output_price": "6", "cached_price": "0.15", "cache_write_price": "1.875"}
CALLERS = 12
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat")


def cost(reply: Reply) -> Decimal:
    """What a provider bills for an answer it gave whole."""
    millions = (
        (reply.input - reply.cached - reply.cache_written) * Decimal("1.5")
        + reply.cached * Decimal("0.15")
        + reply.cache_written * Decimal("1.875")
        + reply.output * Decimal(6)
    )
    return millions / 1_000_000


@dataclass(frozen=True)
class Plan:
    """What becomes of one call, drawn from its name alone."""

    path: str
    stream: bool
    leaves: bool
    faults: int  # tries that fail before one is answered
    input: int
    output: int
    cached: int
    written: int

    @classmethod
    def of(cls, name: str) -> Plan:
        draw = random.Random(name)
        stream = draw.random() < 0.5
        return cls(
            draw.choice(PATHS),
            stream,
            stream and draw.random() < 0.1,
            draw.choices([0, 1, 2], [80, 15, 5])[0],
            draw.randint(200, 5000),
            draw.randint(1, 900),
            draw.choice([0, 0, 60, 128]),
            draw.choice([0, 0, 40]),
        )


class Truth:
    """The providers: they answer by the name in the request, and remember what they would bill."""

    def __init__(self) -> None:
        self.bills: dict[str, Decimal] = {}
        self.tries: Counter[str] = Counter()
        self._lock = Lock()

    def reply_to(self, request: Request) -> Reply:
        found = re.search(rb"call-\d+", request.raw)
        if found is None:
            return Reply()  # a probe
        name = found[0].decode()
        plan = Plan.of(name)
        with self._lock:
            self.tries[name] += 1
            if self.tries[name] <= plan.faults:
                return Reply(status=random.Random(f"{name}{self.tries[name]}").choice([500, 503, 529]))
            written = plan.written if request.path.endswith("/messages") else 0  # chat has no such count
            pause = 0.02 if plan.leaves else 0.0
            text = "one two three four five six seven eight"
            reply = Reply(
                text, input=plan.input, output=plan.output, cached=plan.cached, cache_written=written, pause=pause
            )
            self.bills[name] = cost(reply)
            return reply


def body_of(name: str, plan: Plan) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "m", "stream": plan.stream}
    if plan.path == "/v1/responses":
        return {**body, "input": name, "store": False}
    if plan.path == "/v1/messages":
        body["max_tokens"] = 900
    return {**body, "messages": [{"role": "user", "content": name}]}


def call_all(daemon: Daemon, names: list[str]) -> None:
    """Make calls one after the other, over a connection that is kept."""
    place = urlsplit(daemon.url).netloc
    connection = http.client.HTTPConnection(place, timeout=60)
    for name in names:
        plan = Plan.of(name)
        headers = {"content-type": "application/json", "x-avyay-session": name}
        connection.request("POST", plan.path, json.dumps(body_of(name, plan)), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        if plan.leaves:
            answer.read(40)
            answer.close()
            connection.close()
            connection = http.client.HTTPConnection(place, timeout=60)
        else:
            answer.read()
    connection.close()


def check(folder: Path, count: int) -> None:
    truth = Truth()
    with Upstream() as first, Upstream() as second, Upstream() as third:
        providers = []
        for number, (upstream, kind) in enumerate([(first, "openai"), (second, "anthropic"), (third, "openai")], 1):
            upstream.reply_to = truth.reply_to
            providers.append(
                {
                    "name": f"p{number}",
                    "kind": kind,
                    "endpoint": upstream.url + ("/v1" if kind == "openai" else ""),
                    "api_key_env": "K",
                    "priority": number,
                    "models": [{"name": "m", "max_output": 1000, "tier": "medium", "mode": "chat", **PRICES}],
                }
            )
        patient = {"stream_min": "20s", "stream_start": "20s", "answer_min": "20s", "answer_start": "20s"}
        config = {"providers": providers, "timeouts": patient, "budgets": [{"daily": 1_000_000}]}
        names = [f"call-{number}" for number in range(count)]
        with Daemon(folder, config, K="k") as daemon:
            with ThreadPoolExecutor(CALLERS) as pool:
                list(pool.map(lambda at: call_all(daemon, names[at::CALLERS]), range(CALLERS)))
            wanted = ("session", "status", "cost", "estimated", "attempts", "service")

            def made() -> list[tuple[Any, ...]]:
                return [row for row in daemon.services.calls.columns(wanted) if row[5] != "probe"]

            wait_for(lambda: len(made()) >= count, 60)
            rows = made()
            wait = {row[0]: row for row in rows}
        assert len(rows) == len(wait) == count
        whole = {name: row for name, row in wait.items() if row[1] == "ok"}
        left = {name: row for name, row in wait.items() if row[1] == "aborted"}
        assert len(whole) + len(left) == count
        wrong = [(n, row[2], truth.bills[n]) for n, row in whole.items() if Decimal(row[2]) / 10**12 != truth.bills[n]]
        assert wrong == []
        assert not any(row[3] for row in whole.values())
        total = Decimal(sum(row[2] for row in whole.values())) / 10**12
        assert abs(total - sum(truth.bills[name] for name in whole)) < Decimal("1e-9")
        # What callers left is billed, marked as estimated, and so can be told apart.
        assert left
        assert all(Plan.of(name).leaves and row[3] and row[2] > 0 for name, row in left.items())
        retried = [row for name, row in whole.items() if row[4] > 1]
        assert len(retried) > count // 10


def test_the_ledger_equals_the_providers_count(tmp_path: Path) -> None:
    check(tmp_path, 300)


@pytest.mark.soak
def test_the_ledger_equals_the_providers_count_over_10_000_calls(tmp_path: Path) -> None:
    check(tmp_path, 10_000)
