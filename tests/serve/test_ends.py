"""Told to end while it still starts: quietly, in order, and not noted as a crash."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import wait_for
from family import Family

from avyay.serve.workers import workers_of

# A daemon that is told to end by itself while it is made, in its one process or as the parent of workers.
DAEMON = """
import os, signal, sys
from contextlib import asynccontextmanager
from avyay.serve.launch import Daemon, Launch, launch
from avyay.wiring import open_services

def end():
    os.kill(os.getpid(), signal.SIGTERM)
    print("told", flush=True)

async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    for step in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{step}"
        print(step, flush=True)
        await send({"type": f"lifespan.{step}.complete"})

def build(services, site):
    end()
    return app

@asynccontextmanager
async def owner(services, path):
    yield lambda: 0
    print("closed", flush=True)

daemon = Daemon("raksha", "RAKSHA", "told to end", 0, lambda services, host: None, build, owner=owner)
workers = int(sys.argv[1])
bound = lambda url: end() if workers > 1 else None
with open_services() as services:
    sys.exit(launch(services, daemon, Launch(port=0, workers=workers, bound=bound)))
"""


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path.cwd()), "AVYAY_HOME": str(home / "avyay"), "TMPDIR": str(home)}


def test_a_daemon_told_to_end_as_it_is_made_starts_and_ends_in_order(tmp_path: Path) -> None:
    """What it has opened by then is closed."""
    command = [sys.executable, "-c", DAEMON, "1"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["told", "startup", "shutdown"], "")


def test_a_parent_told_to_end_before_its_workers_starts_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DAEMON, "2"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["told", "closed"], "")
    assert list(tmp_path.glob("avyay-*")) == []  # where the workers would have met


@pytest.mark.needs("ps")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_worker_told_to_end_as_it_starts_is_replaced_without_a_crash(tmp_path: Path) -> None:
    family = Family("raksha", tmp_path, RAKSHA_KEY="k3y")
    try:
        wait_for(lambda: len(workers_of(family.process.pid)) == 2)
        victim = workers_of(family.process.pid)[0]
        os.kill(victim, signal.SIGTERM)  # most likely it imports; at any later time it is to be the same
        wait_for(lambda: victim not in family.workers())
        wait_for(lambda: '"worker_ended"' in family.words() and f'"pid": {victim}' in family.words())
        family.up()
        assert family.end() == 0
    finally:
        family.kill()
    assert "Traceback" not in family.words()
    assert "worker_died" not in family.words()


def test_a_worker_whose_parent_was_killed_meanwhile_says_so_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = ["--quiet", "--worker-of", str(tmp_path / "gone"), "--listen-fd", str(listener.fileno())]
        done = subprocess.run(
            [sys.executable, "-m", "avyay", "serve", "raksha", "--host", "127.0.0.1", *place],
            env=environment(tmp_path),
            pass_fds=[listener.fileno()],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (3, "avyay: The daemon that this worker belongs to has ended.\n")
