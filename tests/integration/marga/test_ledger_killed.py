"""A router that is killed: every call whose end a caller has is in the ledger, once, at its exact cost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import wait_for
from upstream import Reply, Request, Upstream

from avyay.clock import SYSTEM_CLOCK
from avyay.config.marga import BudgetSettings
from avyay.db import open_database
from avyay.db_gaps import read_gaps
from avyay.marga.budgets import Budgets
from avyay.marga.store import SqliteStore
from avyay.money import DOLLAR, Picodollars
from avyay.spool import left_behind, still_kept

INPUT, OUTPUT = 1_500_000, 6_000_000  # picodollars a token
ENDS = {"/v1/chat/completions": b"data: [DONE]", "/v1/messages": b"event: message_stop"}
CAPS = {"per": "all", "daily": "1000"}


def tokens(name: str) -> tuple[int, int]:
    draw = random.Random(name)
    return draw.randint(10, 5000), draw.randint(1, 900)


def cost(name: str) -> int:
    read, written = tokens(name)
    return read * INPUT + written * OUTPUT


@dataclass
class Provider:
    """Answers by the name in the request, and knows whom it was asked for."""

    asked: set[str] = field(default_factory=set)

    def reply_to(self, request: Request) -> Reply:
        found = re.search(rb"call-\d+-\d+", request.raw)
        if found is None:
            return Reply()
        name = found[0].decode()
        self.asked.add(name)
        read, written = tokens(name)
        return Reply("one two three four", input=read, output=written, delay=0.004, pause=0.002)


class Router:
    """The daemon as a process, with so many workers."""

    def __init__(self, folder: Path, providers: list[dict[str, Any]], workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        patient = {"stream_min": "30s", "stream_start": "30s", "answer_min": "30s", "answer_start": "30s"}
        marga = {"discover": False, "providers": providers, "timeouts": patient, "budgets": [CAPS]}
        config = folder / "avyay.yaml"
        config.write_text(yaml.safe_dump({"marga": marga}))
        self.workers = workers
        self.home = folder / "home"
        command = [sys.executable, "-m", "avyay", "serve", "marga", "--port", str(self.port), "--config", str(config)]
        self._command = [*command, "-q", "--workers", str(workers)]
        self.start()

    @property
    def database(self) -> Path:
        return self.home / "data" / "marga" / "marga.db"

    def start(self) -> None:
        environment = {**os.environ, "K": "k", "AVYAY_HOME": str(self.home)}
        self.process = subprocess.Popen(self._command, env=environment, stderr=subprocess.DEVNULL)
        self.wait()

    def wait(self) -> None:
        """Until all of it is there."""
        if self.workers > 1:
            wait_for(lambda: len(self.children()) == self.workers, 90)
        wait_for(self._ready, 90)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=10) as reply:
                return bool(json.loads(reply.read())["ready"])
        except OSError:
            return False

    def children(self) -> list[int]:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def kill(self, dice: random.Random) -> None:
        """One process of it, with which all of it ends or one worker; returns when that is gone."""
        victim = self.process.pid if self.workers == 1 else dice.choice(self.children())
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: self.process.poll() is not None if self.workers == 1 else victim not in self.children())

    def again(self) -> None:
        """Have it whole again, and what was left taken over."""
        if self.workers == 1:
            self.process.wait(10)
            self.start()
        self.wait()
        wait_for(lambda: left_behind(self.database) == [])

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


@contextmanager
def running(folder: Path, workers: int) -> Iterator[tuple[Router, Provider]]:
    provider = Provider()
    with Upstream() as first, Upstream() as second:
        providers = []
        for number, (upstream, kind) in enumerate([(first, "openai"), (second, "anthropic")]):
            upstream.reply_to = provider.reply_to
            model = {"name": f"m{number}", "input_price": "1.5", "output_price": "6", "max_output": 1000}
            url = upstream.url + ("/v1" if kind == "openai" else "")
            providers.append(
                {"name": f"p{number}", "kind": kind, "endpoint": url, "api_key_env": "K", "models": [model]}
            )
        router = Router(folder, providers, workers)
        try:
            yield router, provider
        finally:
            if router.process.poll() is None:
                router.end()


async def caller(number: int, router: Router, received: dict[str, str], first: int) -> None:
    """Ask again and again over a kept connection: either dialect in, either provider, streamed and whole."""
    turn = first
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        try:
            while True:
                turn += 1
                await ask(reader, writer, f"call-{number}-{turn}", turn, received)
        except (OSError, asyncio.IncompleteReadError):
            continue
        finally:
            writer.transport.abort()


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str, turn: int, received: dict[str, str]
) -> None:
    path = list(ENDS)[turn % 2]
    body: dict[str, Any] = {"model": f"m{turn // 2 % 2}", "stream": bool(turn // 4 % 2), "max_tokens": 900}
    body["messages"] = [{"role": "user", "content": name}]
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-avyay-session: {name}\r\ncontent-length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    answer = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in answer[1:] if line)
    if b"content-length" in fields:
        said = await reader.readexactly(int(fields[b"content-length"]))
        assert answer[0].startswith(b"HTTP/1.1 200"), said
        received[name] = fields[b"x-avyay-decision-id"].decode()
        return
    said = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        said += await reader.readexactly(size + 2)
        if ENDS[path] in said:  # the dialect's end: most clients read no further
            received[name] = fields[b"x-avyay-decision-id"].decode()
    await reader.readexactly(2)
    assert name in received, said


def kills(folder: Path, *, times: int, callers: int, workers: int) -> None:
    dice, received = random.Random(11), dict[str, str]()  # which call has which decision, once its end was read
    with running(folder, workers) as (router, provider):

        async def play(round_: int, enough: int) -> None:
            at_work = [asyncio.ensure_future(caller(n, router, received, round_ * 100_000)) for n in range(callers)]
            while len(received) < enough:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(router.kill, dice)
            for task in at_work:
                task.cancel()
            for ended in await asyncio.gather(*at_work, return_exceptions=True):
                if ended is not None and not isinstance(ended, asyncio.CancelledError):
                    raise ended

        for round_ in range(times):
            asyncio.run(play(round_, len(received) + dice.randint(20, 120)))
            if workers == 1 or round_ < times - 1:  # the last worker is not replaced any more: all are told to end
                router.again()
        router.end()
        compare(router, provider, received, crashes=times)


def compare(router: Router, provider: Provider, received: dict[str, str], *, crashes: int) -> None:
    """The ledger with the callers' record, with the provider's and with the budgets."""
    with closing(open_database(router.database)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        missing = [gap.missing for gap in read_gaps(database)]
    with closing(SqliteStore(router.database)) as store:
        rows = list(store.columns(("id", "session", "status", "cost", "estimated", "priced", "input", "output")))
        details = [store.call(row[0])["detail"] for row in rows if row[2] == "killed"]
    by_id = {row[0]: row for row in rows}
    assert set(Counter(row[1] for row in rows).values()) == {1}
    lost = [name for name, decision in received.items() if decision not in by_id]
    assert not lost, f"{len(lost)} of {len(received)} answers have no row: {lost[:3]}"
    for name, decision in received.items():
        assert by_id[decision][1:] == (name, "ok", cost(name), 0, 1, *tokens(name))
    # Whatever a provider was asked for is there too; what was under way says that nobody knows what it cost.
    sessions = {row[1]: row for row in rows}
    assert provider.asked <= set(sessions)
    killed = [row for row in rows if row[2] == "killed"]
    assert all(row[3:6] == (0, 1, 0) for row in killed)
    assert len(missing) == crashes if router.workers == 1 else len(missing) <= crashes  # killed before it wrote
    assert sum(one or 0 for one in missing) == len(killed)
    assert None not in missing
    # Nothing is held of the cap any more, and what is spent of it is what the ledger says, or more.
    rules = (BudgetSettings(**CAPS),)
    budgets = Budgets(rules, router.database.with_name("budgets.db"), SYSTEM_CLOCK, block=DOLLAR, calls=router.database)
    budgets.settle_orphans()
    (balance,) = budgets.ledger.balances()
    assert balance.reserved == 0
    assert Picodollars(sum(row[3] for row in rows)) <= balance.spent
    assert all(detail["held"] > 0 for detail in details)
    budgets.close()
    assert still_kept(router.database) == []  # after an orderly end nothing is left to take over
    assert not list(router.database.parent.glob("*marga.db-spool*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_no_acknowledged_call_is_lost_to_a_kill(tmp_path: Path, workers: int) -> None:
    kills(tmp_path, times=2, callers=8, workers=workers)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_no_acknowledged_call_is_lost_to_30_kills(tmp_path: Path, workers: int) -> None:
    kills(tmp_path, times=30, callers=24, workers=workers)
