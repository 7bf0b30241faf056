"""A gateway that is killed: every answer that a caller has whole has its row, once, and the ledger agrees."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from daemon import wait_for
from parrot import Door, Parrot, daemons, health

from avyay.db import open_database
from avyay.marga.store import SqliteStore
from avyay.serve.gateway.reconcile import reconcile
from avyay.serve.gateway.usage import UsageReader


@dataclass
class Received:
    """What callers have got, by decision."""

    whole: list[str] = field(default_factory=list)
    broken: int = 0
    cut: int = 0  # begun, and not ended
    enough: bool = False  # nobody begins another


async def caller(number: int, door: Door, received: Received) -> None:
    """Ask again and again, streams and whole answers in turn, over connections that are kept as long as they last."""
    turn, stream = 0, bool(number % 2)
    while not received.enough:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        try:
            while not received.enough:
                turn += 1
                stream = not stream
                word = f"w{number}x{turn}"
                body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": word}]}
                await ask(reader, writer, door, json.dumps(body).encode(), received)
        except (OSError, asyncio.IncompleteReadError):
            received.broken += 1
        finally:
            writer.transport.abort()


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, door: Door, body: bytes, received: Received
) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {door.key}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    assert answer[0].startswith(b"http/1.1 200"), answer
    fields = dict(line.split(b": ", 1) for line in answer[1:] if line)
    received.cut += 1
    if b"content-length" in fields:
        await reader.readexactly(int(fields[b"content-length"]))
    else:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    received.cut -= 1
    received.whole.append(fields[b"x-avyay-decision-id"].decode())


def kills(folder: Path, *, times: int, callers: int, workers: int = 1) -> None:
    dice, received = random.Random(11), Received()
    with Parrot(0.004) as provider, daemons(folder, provider.port, workers=workers) as door:

        async def play(answers: int) -> None:
            """Kill it once there are so many more answers, in the middle of others."""
            answers += len(received.whole)
            received.enough = False
            at_work = [asyncio.ensure_future(caller(n, door, received)) for n in range(callers)]
            while len(received.whole) < answers:
                await asyncio.sleep(0.005)
            gateway = door.processes["gateway"]
            victim = gateway.pid if workers == 1 else dice.choice(children(gateway.pid))
            os.kill(victim, signal.SIGKILL)
            await asyncio.to_thread(wait_for, lambda: gone(gateway, victim))
            received.enough = True
            await asyncio.gather(*at_work)

        for round_ in range(times):
            asyncio.run(play(dice.randint(20, 120)))
            if workers == 1:
                door.processes["gateway"].wait(60)
                door.start("gateway")
            elif round_ < times - 1:  # the last one is not replaced any more: all are told to end
                wait_for(lambda: len(children(door.processes["gateway"].pid)) == workers and bool(health(door.port)))
    assert workers > 1 or received.broken >= times  # it was in the middle of something each time
    compare(folder / "home" / "data", received.whole)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(gateway: subprocess.Popen[bytes], pid: int) -> bool:
    """Whether it is gone, the gateway or a worker of it."""
    return gateway.poll() is not None if pid == gateway.pid else pid not in children(gateway.pid)


def compare(data: Path, whole: list[str]) -> None:
    """With the callers' own record, and with the router's ledger."""
    database = open_database(data / "gateway" / "usage.db")
    assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    found = Counter(row[0] for row in database.execute("SELECT decision FROM requests WHERE decision IS NOT NULL"))
    lost = [decision for decision in whole if decision not in found]
    assert not lost, f"{len(lost)} of {len(whole)} answers have no row: {lost[:3]}"
    assert set(found.values()) == {1}
    totals = database.execute("SELECT sum(requests), sum(decided) FROM days").fetchone()
    assert totals == database.execute("SELECT count(*), count(decision) FROM requests").fetchone()
    database.close()
    ledger, reader, now = SqliteStore(data / "marga" / "marga.db"), UsageReader(data / "gateway" / "usage.db"), 1e12
    assert set(whole) <= {decision for decision, _, _ in ledger.decisions(since=0, until=now)}
    difference = reconcile(
        reader.decisions(since=0, until=now), ledger.decisions(since=0, until=now), gone=reader.gone(since=0, until=now)
    )
    assert [one.agrees for one in difference] == [True], difference
    assert not difference[0].missing
    ledger.close()
    reader.close()
    assert not list((data / "gateway").glob("*spool*"))  # after an orderly end nothing is left to take over


def test_no_acknowledged_row_is_lost_to_a_kill(tmp_path: Path) -> None:
    kills(tmp_path, times=3, callers=8)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_nor_to_the_kill_of_one_worker(tmp_path: Path) -> None:
    kills(tmp_path, times=2, callers=8, workers=2)


@pytest.mark.soak
def test_no_acknowledged_row_is_lost_to_many_kills(tmp_path: Path) -> None:
    kills(tmp_path, times=30, callers=32)
