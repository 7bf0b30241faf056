"""Real repositories, a real index; the embedder is the shipped one without a model, so tests are quick."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from avyay.clock import FakeClock
from avyay.embed.hashing import Hashing
from avyay.rag.places import IndexPlaces
from avyay.rag.service import RagService
from avyay.rag.stores.base import VectorStore
from avyay.rag.stores.memory import MemoryStore


class Repository:
    """A git repository to write documents into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def write(self, path: str, content: str | bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    def commit(self, message: str = "change", *, date: str = "2026-03-01T12:00:00Z") -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--date", date, "-m", message)
        return self.git("rev-parse", "HEAD")


ETCD = """# etcdHighFsyncDurations

## Meaning

The disk under etcd is slow to flush its write-ahead log.

## Mitigation

```shell
fio --rw=write --ioengine=sync --fdatasync=1 --directory=/var/lib/etcd
```

Move etcd to a faster disk.
"""
KAFKA = """# Kafka broker is down

## Diagnosis

Look at the broker's log with `kubectl logs kafka-0`.

## Mitigation

Restart the broker: `kubectl delete pod kafka-0`.
"""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Two runbooks in one commit."""
    made = Repository(tmp_path / "runbooks")
    made.write("etcd.md", ETCD)
    made.write("messaging/kafka.md", KAFKA)
    made.commit("first", date="2026-01-01T00:00:00Z")
    return made


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_770_000_000.0)


@pytest.fixture
def rag(tmp_path: Path, store: VectorStore, clock: FakeClock) -> Iterator[RagService]:
    """A service whose index is in a temporary folder and whose vectors are in memory."""
    service = RagService(IndexPlaces.under(tmp_path / "index"), Hashing(), open_store=lambda: store, clock=clock)
    yield service
    service.close()
