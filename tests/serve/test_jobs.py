"""Jobs on disk: accepted once, run, called off, and found again by the next daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from daemon import wait_for

from avyay.clock import SystemClock
from avyay.errors import PolicyError, UnreachableError, UsageError
from avyay.events.reader import Cursor, EventReader
from avyay.ports import Progress
from avyay.serve import jobs as module
from avyay.serve.jobs import ENDED, Job, JobBoard, JobKind


class Work:
    """Work that counts to what it is told, waiting at `gate` after its first step where it is told to wait."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = 0

    def __call__(self, arguments: Mapping[str, Any], payload: bytes | None, progress: Progress) -> Any:
        self.begun += 1
        if "error" in arguments:
            raise UnreachableError("The other side is gone.")
        if "bug" in arguments:
            raise ZeroDivisionError
        for step in range(arguments.get("steps", 1)):
            progress(step, arguments.get("steps", 1), "counting")
            if arguments.get("wait"):
                while not self.gate.wait(0.005):
                    progress(step, None, "waiting")
        return {"sum": arguments.get("steps", 1), "payload": (payload or b"").decode()}


async def ended(board: JobBoard, identity: str) -> Job:
    async with asyncio.timeout(60):
        while (job := board.get(identity)).state not in ENDED:
            await asyncio.sleep(0.005)
    return job


async def begun(board: JobBoard, identity: str) -> None:
    async with asyncio.timeout(60):
        while board.get(identity).what != "waiting":
            await asyncio.sleep(0.005)


def with_board(folder: Path, body: Callable[[JobBoard, Work], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        work = Work()
        kinds = (JobKind("count", work, again=True), JobKind("pay", work))
        board = JobBoard(folder / "rag" / "jobs.db", *kinds, **options)
        await board.open()
        try:
            await body(board, work)
        finally:
            await board.drain()

    asyncio.run(main())


def test_a_job_runs_and_is_kept(tmp_path: Path) -> None:
    async def body(board: JobBoard, work: Work) -> None:
        accepted = await board.start("count", {"steps": 3}, payload=b"input")
        assert accepted.state in ("queued", "running")
        job = await ended(board, accepted.id)
        assert (job.state, job.result, job.runs) == ("done", {"sum": 3, "payload": "input"}, 1)
        assert [one.id for one in board.jobs()] == [job.id]
        assert board.jobs()[0].result is None
        with pytest.raises(UsageError):
            board.get("nope")

    with_board(tmp_path, body)

    async def again(board: JobBoard, work: Work) -> None:
        assert board.jobs()[0].state == "done"  # a restart later

    with_board(tmp_path, again)
    reader = EventReader(tmp_path)
    (event,) = reader.read(Cursor()).events
    reader.close()
    assert (event.name, event.data["state"]) == ("rag.job.ended", "done")


@pytest.mark.parametrize(
    "arguments, error", [({"error": 1}, "The other side is gone."), ({"bug": 1}, "internal error: ZeroDivisionError")]
)
def test_a_job_that_fails_says_why(tmp_path: Path, arguments: dict[str, Any], error: str) -> None:
    async def body(board: JobBoard, work: Work) -> None:
        job = await ended(board, (await board.start("count", arguments)).id)
        assert (job.state, job.error) == ("failed", error)

    with_board(tmp_path, body)


def test_called_off_while_it_runs_and_while_it_waits(tmp_path: Path) -> None:
    async def body(board: JobBoard, work: Work) -> None:
        first = await board.start("count", {"wait": True})
        second = await board.start("count", {"steps": 1})
        await begun(board, first.id)
        assert board.get(second.id).state == "queued"  # one at once
        board.cancel(second.id)
        board.cancel(first.id)
        assert (await ended(board, first.id)).state == "cancelled"
        assert (await ended(board, second.id)).state == "cancelled"
        assert board.cancel(first.id).state == "cancelled"
        assert work.begun == 1

    with_board(tmp_path, body, at_once=1)


def test_the_same_key_is_the_same_job(tmp_path: Path) -> None:
    async def body(board: JobBoard, work: Work) -> None:
        first = await board.start("count", {"steps": 2}, key="k")
        assert (await board.start("count", {"steps": 2}, key="k")).id == first.id
        await ended(board, first.id)
        assert (await board.start("count", {"steps": 2}, key="k")).state == "done"
        with pytest.raises(UsageError, match="another request"):
            await board.start("count", {"steps": 3}, key="k")
        assert (await board.start("pay", {"steps": 2}, key="k")).id != first.id
        with pytest.raises(UsageError):
            await board.start("count", {}, key="x" * 256)
        assert work.begun <= 2

    with_board(tmp_path, body)


def test_many_at_once_with_one_key_are_one_job(tmp_path: Path) -> None:
    async def body(board: JobBoard, work: Work) -> None:
        jobs = await asyncio.gather(*(board.start("count", {}, key="k") for _ in range(20)))
        assert len({job.id for job in jobs}) == 1
        await ended(board, jobs[0].id)
        assert work.begun == 1

    with_board(tmp_path, body)


def test_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPEN", 3)
    monkeypatch.setattr(module, "KEPT", 2)

    async def body(board: JobBoard, work: Work) -> None:
        jobs = [await board.start("count", {"wait": True}) for _ in range(3)]
        with pytest.raises(PolicyError, match="Too many"):
            await board.start("count", {})
        work.gate.set()
        for job in jobs:
            await ended(board, job.id)
        last = await board.start("count", {})
        await ended(board, last.id)
        assert len(board.jobs()) == 3  # two that had ended, and the last

    with_board(tmp_path, body)


def test_a_drain_leaves_to_the_next_daemon_what_may_run_again(tmp_path: Path) -> None:
    identities: dict[str, str] = {}

    async def first(board: JobBoard, work: Work) -> None:
        for kind in ("count", "pay"):
            identities[kind] = (await board.start(kind, {"wait": True, "steps": 2}, payload=b"kept")).id
        for identity in identities.values():
            await begun(board, identity)

    async def second(board: JobBoard, work: Work) -> None:
        job = board.get(identities["pay"])
        assert (job.state, job.error) == ("interrupted", "The daemon ended while it ran.")
        work.gate.set()
        job = await ended(board, identities["count"])
        assert (job.state, job.runs, job.result) == ("done", 2, {"sum": 2, "payload": "kept"})

    with_board(tmp_path, first)
    with_board(tmp_path, second)


SCRIPT = """
import asyncio, sys, time
from pathlib import Path
from avyay.serve.jobs import JobBoard, JobKind

def work(arguments, payload, progress):
    while True:
        progress(1, 2, "working")
        time.sleep(0.01)

async def main():
    board = JobBoard(Path(sys.argv[1]), JobKind("count", work, again=True), JobKind("pay", work))
    await board.open()
    for kind in ("count", "pay"):
        print((await board.start(kind, {"steps": 1})).id, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_kill_9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rag" / "jobs.db"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    assert process.stdout is not None
    count, pay = (process.stdout.readline().strip() for _ in range(2))

    class Quick(SystemClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(min(seconds, 0.02))

    async def body(board: JobBoard, work: Work) -> None:
        wait_for(lambda: board.get(count).state == board.get(pay).state == "running")
        assert board.running == 0  # they are another daemon's, which lives
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (await ended(board, count)).state == "done"
        assert (await ended(board, pay)).state == "interrupted"

    try:
        with_board(tmp_path, body, clock=Quick())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
