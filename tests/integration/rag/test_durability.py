"""The index on a real disk with a real vector store: killed in the middle, written by two processes, out of space."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from avyay.embed.hashing import Hashing
from avyay.errors import AvyayError, CorruptError
from avyay.rag.index import Indexer
from avyay.rag.places import IndexPlaces
from avyay.rag.service import RagService
from avyay.rag.sources import resolve_source
from avyay.rag.stores.lance import LanceStore

WORKER = """
import sys
from pathlib import Path
from avyay.embed.hashing import Hashing
from avyay.rag.index import Indexer
from avyay.rag.places import IndexPlaces
from avyay.rag.sources import resolve_source

places = IndexPlaces.under(Path(sys.argv[1]))
embedder = Hashing()

def store():
    from avyay.rag.stores.lance import LanceStore

    return LanceStore(places.vectors, embedder=embedder.name, dimensions=embedder.dimensions)

print("ready", flush=True)
sys.stdin.readline()
Indexer(places, embedder, store).sync([resolve_source(sys.argv[2], worktree=True)])
print("done", flush=True)
"""


def worker(places: IndexPlaces, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(places.root), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> int:
    code = process.wait(timeout=60)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    return code


def open_service(places: IndexPlaces) -> RagService:
    embedder = Hashing()
    return RagService(
        places,
        embedder,
        open_store=lambda: LanceStore(places.vectors, embedder=embedder.name, dimensions=embedder.dimensions),
    )


def write(folder: Path, version: int, documents: int = 60) -> None:
    """Every document says the same version, so a mixture would show."""
    folder.mkdir(exist_ok=True)
    for number in range(documents):
        text = f"# Document {number}\n\nversion v{version} of runbook r{number}\n"
        (folder / f"{number}.md").write_text(text)


def versions(rag: RagService) -> set[str]:
    found = rag.retrieve("version runbook", limit=1000).found
    assert len(found) == 60
    return {word for one in found for word in one.row.chunk.text.split() if word.startswith("v") and word[1:].isdigit()}


def test_killed_anywhere_the_index_is_old_or_new(tmp_path: Path) -> None:
    places, folder = IndexPlaces.under(tmp_path / "index"), tmp_path / "docs"
    write(folder, 0)
    rag = open_service(places)
    rag.index(str(folder))
    assert versions(rag) == {"v0"}
    chance = random.Random(7)
    seen = 0
    for round_ in range(1, 9):
        write(folder, round_)
        process = worker(places, folder)
        go(process)
        time.sleep(chance.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        end(process)
        now = versions(rag)
        assert now in ({f"v{round_}"}, {f"v{seen}"})
        seen = int(now.pop()[1:])
    process = worker(places, folder)
    go(process)
    assert end(process) == 0
    assert versions(rag) == {"v8"}
    assert len(list(places.generations.iterdir())) <= 2
    assert rag.reconcile().unchecked == {}
    assert rag.reconcile().sound
    rag.close()


def test_two_processes_index_at_once(tmp_path: Path) -> None:
    places = IndexPlaces.under(tmp_path / "index")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        write(folder, 1, documents=20)
    processes = [worker(places, folder) for folder in folders]
    for process in processes:
        go(process)
    assert [end(process) for process in processes] == [0, 0]
    rag = open_service(places)
    assert [(row.spec.name, row.documents) for row in rag.sources()] == [("one", 20), ("two", 20)]
    assert len(rag.retrieve("version runbook", limit=1000).found) == 40
    assert rag.reconcile().sound
    rag.close()


def test_small_changes_wait_and_reach_the_store(tmp_path: Path) -> None:
    places, folder = IndexPlaces.under(tmp_path / "index"), tmp_path / "docs"
    write(folder, 0, documents=5)
    rag = open_service(places)
    rag.index(str(folder))
    embedder = Hashing()
    store = LanceStore(places.vectors, embedder=embedder.name, dimensions=embedder.dimensions)
    assert len(store.keys()) == 5
    (folder / "new.md").write_text("# New\n\nsomething else\n")
    rag.index(str(folder))
    assert len(store.keys()) == 5  # it waits in the catalog, and is found all the same
    assert rag.search("something else")[0].path == "new.md"
    assert rag.reconcile().sound
    assert len(store.keys()) == 6
    rag.close()


def test_a_full_disk_leaves_the_old_index(tmp_path: Path) -> None:
    places, folder = IndexPlaces.under(tmp_path / "index"), tmp_path / "docs"
    write(folder, 0)
    rag = open_service(places)
    rag.index(str(folder))
    write(folder, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # No file may grow beyond 20 kB: the vectors of a generation have 60.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(AvyayError) as caught:
            rag.index(str(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.hint
    assert versions(rag) == {"v0"}
    rag.index(str(folder))
    assert versions(rag) == {"v1"}
    rag.close()


class TestLanceStore:
    def store(self, folder: Path, dimensions: int = 8, name: str = "test") -> LanceStore:
        return LanceStore(str(folder / "vectors.lance"), embedder=name, dimensions=dimensions)

    def test_what_goes_in_comes_out(self, tmp_path: Path) -> None:
        store = self.store(tmp_path)
        rows = np.random.default_rng(1).normal(size=(2500, 8)).astype(np.float32)
        keys = [f"{number:032x}" for number in range(2500)]
        store.add(keys, rows)
        store.add(keys[:10], rows[:10])  # again: nothing happens
        again = self.store(tmp_path)
        found = again.get([*keys, "f" * 32])
        assert len(found) == 2500
        assert all(np.array_equal(found[key], row) for key, row in zip(keys, rows, strict=True))
        assert again.keys() == set(keys)
        best = again.search(rows[3] / np.linalg.norm(rows[3]), 1)[0]
        assert best[0] == keys[3]
        assert best[1] == pytest.approx(1.0, abs=1e-5)
        assert again.retain(set(keys[:5])) == 2495
        assert store.keys() == set(keys[:5])

    def test_embedders_do_not_mix(self, tmp_path: Path) -> None:
        self.store(tmp_path).add(["0" * 32], np.ones((1, 8), np.float32))
        assert self.store(tmp_path, dimensions=4).keys() == set()
        assert self.store(tmp_path, name="other/model:v1").keys() == set()

    def test_two_writers_at_once(self, tmp_path: Path) -> None:
        stores = [self.store(tmp_path) for _ in range(3)]
        for number in range(30):
            stores[number % 3].add([f"{number:032x}"], np.full((1, 8), number + 1, np.float32))
        assert len(stores[0].keys()) == 30

    def test_a_damaged_store(self, tmp_path: Path) -> None:
        self.store(tmp_path).add(["0" * 32], np.ones((1, 8), np.float32))
        for path in (tmp_path / "vectors.lance").rglob("*.manifest"):
            path.write_bytes(b"nonsense")
        with pytest.raises(CorruptError, match="cannot be used"):
            self.store(tmp_path).keys()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_a_folder_that_is_not_ours(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(AvyayError, match="cannot be written"):
            self.store(tmp_path)


def test_a_schema_of_another_version(tmp_path: Path) -> None:
    places, folder = IndexPlaces.under(tmp_path / "index"), tmp_path / "docs"
    write(folder, 0, documents=3)
    rag = open_service(places)
    rag.index(str(folder))
    rag.close()
    import sqlite3

    with sqlite3.connect(places.database) as database:
        database.execute("INSERT INTO avyay_migrations VALUES ('rag', 1, '0002_of_the_future', 0)")
    database.close()
    with pytest.raises(AvyayError, match="newer avyay"):
        rag.search("version")
    indexer = Indexer(places, Hashing(), lambda: LanceStore(places.vectors, embedder="x", dimensions=8))
    with pytest.raises(AvyayError, match="newer avyay"):
        indexer.sync([resolve_source(str(folder))])


def test_an_index_of_an_older_version(tmp_path: Path) -> None:
    """Its catalog has no tables yet, or its search files lack an array: a search says what to do."""
    import sqlite3

    places, folder = IndexPlaces.under(tmp_path / "index"), tmp_path / "docs"
    write(folder, 0)
    places.root.mkdir(parents=True, mode=0o700)
    sqlite3.connect(places.database).close()
    rag = open_service(places)
    with pytest.raises(AvyayError) as caught:
        rag.search("version")
    assert caught.value.hint
    rag.index(str(folder))
    assert versions(rag) == {"v0"}
    (generation,) = places.generations.iterdir()
    (generation / "kinds.npy").unlink()
    other = open_service(places)
    with pytest.raises(CorruptError) as damaged:
        other.search("version")
    assert "reconcile" in (damaged.value.hint or "")
    assert other.reconcile().mended
    assert versions(other) == {"v0"}
    rag.close()
    other.close()
