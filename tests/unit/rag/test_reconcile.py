"""Reconciliation finds what others broke, and mends it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from avyay.rag.service import RagService
from avyay.rag.stores.memory import MemoryStore
from tests.unit.rag.conftest import ETCD, Repository


def newest(rag: RagService):
    return max(rag.places.generations.iterdir(), key=lambda path: path.stat().st_mtime)


def test_a_sound_index(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))
    report = rag.reconcile()
    assert report.sound
    assert (report.chunks, report.vectors) == (4, 4)


def test_a_missed_push(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))
    repository.write("etcd.md", ETCD + "\nNew: call the storage team.\n")
    repository.commit()
    report = rag.reconcile()
    assert report.stale == ["runbooks"]
    assert "storage team" in rag.search("storage team")[0].text
    assert rag.reconcile().sound


@pytest.mark.parametrize("victim", ["vectors.npy", "rows.npy", "uids.npy", None])
def test_damaged_search_files(rag: RagService, repository: Repository, victim: str | None) -> None:
    rag.index(str(repository.root))
    before = [one.row.chunk.id for one in rag.retrieve("etcd kafka").found]
    if victim is None:
        shutil.rmtree(newest(rag))
    else:
        (newest(rag) / victim).write_bytes(b"nonsense")
    rag.close()
    assert rag.reconcile().mended == ["the search files were damaged or missing, and are made anew"]
    assert [one.row.chunk.id for one in rag.retrieve("etcd kafka").found] == before
    assert rag.retrieve("etcd").notes == ()
    assert rag.reconcile().sound


def test_a_bit_that_flipped_in_the_vectors(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))
    rag.close()
    vectors = np.load(newest(rag) / "vectors.npy")
    np.save(newest(rag) / "vectors.npy", -vectors)
    assert rag.reconcile().mended == ["4 vectors in the vector store differed from those searched"]
    assert np.allclose(np.load(newest(rag) / "vectors.npy"), vectors)
    assert rag.reconcile().sound


def test_a_store_that_lost_everything(rag: RagService, repository: Repository, store: MemoryStore) -> None:
    rag.index(str(repository.root))
    keys = store.keys()
    store.retain(set())
    assert rag.reconcile().mended == ["4 vectors were missing from the vector store"]
    assert store.keys() == keys


def test_vectors_of_nothing_are_dropped(rag: RagService, repository: Repository, store: MemoryStore) -> None:
    rag.index(str(repository.root))
    store.add(["0" * 32], np.ones((1, 256), np.float32))
    assert rag.reconcile().sound
    assert store.keys().isdisjoint({"0" * 32})


def test_a_source_that_is_gone_does_not_stop_the_others(rag: RagService, repository: Repository, tmp_path) -> None:
    other = Repository(tmp_path / "other")
    other.write("b.md", "# B\n\nbeta\n")
    other.commit()
    rag.index(str(repository.root))
    rag.index(str(other.root))
    shutil.rmtree(repository.root)
    other.write("c.md", "# C\n\ngamma\n")
    other.commit()
    report = rag.reconcile()
    assert (list(report.unchecked), report.stale) == (["runbooks"], ["other"])
    assert {one.row.document.path for one in rag.retrieve("etcd beta gamma").found} >= {"etcd.md", "b.md", "c.md"}
