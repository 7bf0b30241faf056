"""The index follows its sources: incremental, all or nothing, verified."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from avyay.embed.hashing import Hashing
from avyay.errors import CorruptError, UnreachableError, UsageError
from avyay.rag.index import Indexer
from avyay.rag.lock import exclusive
from avyay.rag.service import RagService
from avyay.rag.stores.memory import MemoryStore
from tests.unit.rag.conftest import ETCD, KAFKA, Repository


def paths(rag: RagService, query: str) -> list[str]:
    return [one.row.document.path for one in rag.retrieve(query).found]


def test_a_passage_knows_where_it_stands(rag: RagService, repository: Repository) -> None:
    head = repository.git("rev-parse", "HEAD")
    report = rag.index(str(repository.root))
    assert (report.added, report.head) == (("etcd.md", "messaging/kafka.md"), head)
    passage = rag.search("etcdHighFsyncDurations fdatasync")[0]
    assert passage.citation == f"etcd.md:7-13@{head[:7]} (Mitigation)"
    assert passage.text in ETCD
    assert passage.age_days == pytest.approx((1_770_000_000 - 1_767_225_600) / 86_400)


def test_only_what_changed_is_cut_again(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))
    repository.write("etcd.md", ETCD.replace("faster disk", "NVMe drive"))
    second = repository.commit()
    report = rag.index(str(repository.root))
    assert (report.changed, report.added, report.removed, report.unchanged) == (("etcd.md",), (), (), 1)
    assert report.embedded == 1
    assert rag.search("NVMe drive")[0].commit == second
    assert "faster disk" not in "".join(passage.text for passage in rag.search("faster disk", limit=50))
    assert rag.search("kafka broker")[0].commit == repository.git("rev-parse", "HEAD~1")


def test_deleted_and_renamed_documents_are_gone(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))
    repository.git("mv", "etcd.md", "storage.md")
    repository.git("rm", "--quiet", "messaging/kafka.md")
    repository.commit()
    report = rag.index(str(repository.root))
    assert (report.added, set(report.removed)) == (("storage.md",), {"etcd.md", "messaging/kafka.md"})
    assert set(paths(rag, "etcd kafka")) == {"storage.md"}


def test_nothing_to_do_makes_no_generation(rag: RagService, repository: Repository) -> None:
    first = rag.index(str(repository.root))
    repository.write("main.c", "int main;")
    head = repository.commit()
    again = rag.index(str(repository.root))
    assert again.up_to_date
    assert again.generation == first.generation
    assert rag.sources()[0].head == head


def test_the_work_tree_is_read_only_when_asked(rag: RagService, repository: Repository) -> None:
    repository.write("draft.md", "# Draft\n\nUnfinished zebra procedure.\n")
    rag.index(str(repository.root))
    assert "draft.md" not in paths(rag, "zebra")
    rag.index(str(repository.root), name="disk", worktree=True)
    found = rag.retrieve("zebra", sources=["disk"]).found[0]
    assert (found.row.document.path, found.passage.citation) == ("draft.md", "draft.md:1-3 (Draft)")


def test_a_branch_and_globs(rag: RagService, repository: Repository) -> None:
    repository.git("checkout", "--quiet", "-b", "next")
    repository.write("ops/new.md", "# New\n\nA procedure for walruses.\n")
    repository.commit()
    repository.git("checkout", "--quiet", "main")
    report = rag.index(str(repository.root), branch="next", include=("ops/**", "etcd.md"), exclude=("etcd.md",))
    assert report.added == ("ops/new.md",)
    with pytest.raises(UsageError, match="no branch, tag or commit called 'nope'"):
        rag.index(str(repository.root), name="other", branch="nope")


def test_a_folder_of_a_repository(rag: RagService, repository: Repository) -> None:
    report = rag.index(str(repository.root / "messaging"))
    assert (report.source, report.added) == ("messaging", ("messaging/kafka.md",))


def test_two_sources_and_filters(rag: RagService, repository: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "kafka.txt").write_text("Kafka broker notes\n")
    rag.index(str(repository.root))
    rag.index(str(folder))
    assert {row.spec.name: row.documents for row in rag.sources()} == {"runbooks": 2, "notes": 1}
    assert {one.row.document.source for one in rag.retrieve("kafka", sources=["notes"]).found} == {"notes"}
    assert {one.row.document.path for one in rag.retrieve("kafka", paths=["messaging/*"]).found} == {
        "messaging/kafka.md"
    }
    with pytest.raises(UsageError) as caught:
        rag.retrieve("kafka", sources=["note"])
    assert caught.value.hint == "Did you mean 'notes'?"


def test_a_removed_source_is_forgotten_and_its_name_is_free(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root), name="a")
    rag.index(str(repository.root / "messaging"), name="b")
    assert rag.remove("a") == 2
    assert [row.spec.name for row in rag.sources()] == ["b"]
    assert set(paths(rag, "etcd")) == {"messaging/kafka.md"}
    rag.index(str(repository.root), name="a")
    with pytest.raises(UsageError, match="No source is called 'c'"):
        rag.remove("c")


def test_a_name_belongs_to_one_place(rag: RagService, repository: Repository, tmp_path: Path) -> None:
    rag.index(str(repository.root))
    other = Repository(tmp_path / "elsewhere" / "runbooks")
    other.write("a.md", "# A\n\ntext\n")
    other.commit()
    with pytest.raises(UsageError) as caught:
        rag.index(str(other.root))
    assert caught.value.hint == "Give this one another name: --name NAME"


def test_a_rewritten_history(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))
    repository.git("commit", "--quiet", "--amend", "-m", "rewritten", "--date", "2025-06-01T00:00:00Z")
    head = repository.git("rev-parse", "HEAD")
    report = rag.index(str(repository.root))
    assert report.up_to_date
    assert report.head == head
    assert {passage.commit for passage in rag.search("etcd kafka")} == {head}


class LyingStore(MemoryStore):
    """Says yes and keeps nothing, or something else."""

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self.keep = keep

    def add(self, keys, vectors) -> None:
        if self.keep:
            super().add(keys, -np.asarray(vectors))


@pytest.mark.parametrize("keep", [False, True])
def test_a_store_that_loses_vectors_is_caught(rag: RagService, repository: Repository, keep: bool) -> None:
    indexer = Indexer(rag.places, Hashing(), lambda: LyingStore(keep=keep))
    from avyay.rag.sources import resolve_source

    with pytest.raises(CorruptError, match="vector store"):
        indexer.sync([resolve_source(str(repository.root))])
    with pytest.raises(UsageError, match="Nothing has been indexed"):
        rag.search("etcd")
    assert rag.sources() == []


class Failing(Hashing):
    """Fails when it meets a word."""

    def embed(self, texts, *, kind="document"):
        if any("explode" in text for text in texts):
            raise UnreachableError("The embedder is gone.")
        return super().embed(texts, kind=kind)


def test_a_failed_sync_leaves_the_old_state(rag: RagService, repository: Repository, store: MemoryStore) -> None:
    rag.index(str(repository.root))
    before = {one.row.uid for one in rag.retrieve("etcd kafka", limit=50).found}
    files = sorted(path.name for path in rag.places.generations.iterdir())
    repository.write("etcd.md", "# Other\n\nexplode\n")
    repository.git("rm", "--quiet", "messaging/kafka.md")
    repository.commit()
    from avyay.rag.sources import resolve_source

    with pytest.raises(UnreachableError):
        Indexer(rag.places, Failing(), lambda: store).sync([resolve_source(str(repository.root))])
    assert {one.row.uid for one in rag.retrieve("etcd kafka", limit=50).found} == before
    assert sorted(path.name for path in rag.places.generations.iterdir()) == files


def test_another_embedder_asks_for_a_rebuild(rag: RagService, repository: Repository, store: MemoryStore) -> None:
    rag.index(str(repository.root))
    other = RagService(rag.places, Hashing(dimensions=64), open_store=MemoryStore)
    result = other.retrieve("fdatasync")
    assert result.found[0].row.document.path == "etcd.md"
    assert "searched by keywords only" in result.notes[0]
    with pytest.raises(UsageError) as caught:
        other.index(str(repository.root))
    assert "--rebuild" in (caught.value.hint or "")
    other.index(str(repository.root), rebuild=True)
    assert other.retrieve("fdatasync").notes == ()
    other.close()


def test_vectors_are_computed_once(rag: RagService, repository: Repository) -> None:
    rag.index(str(repository.root))
    report = rag.index(str(repository.root), rebuild=True)
    assert (report.embedded, report.reused, report.chunks) == (0, 4, 4)


def test_a_reader_follows_the_index(rag: RagService, repository: Repository, store: MemoryStore) -> None:
    rag.index(str(repository.root))
    other = RagService(rag.places, Hashing(), open_store=lambda: store)
    assert other.search("etcd")
    for round_ in range(4):
        repository.write("etcd.md", ETCD + f"\nround{round_}\n")
        repository.commit()
        rag.index(str(repository.root))
        assert f"round{round_}" in other.search(f"etcd round{round_}")[0].text
    other.close()


def test_two_indexers_take_turns(rag: RagService, repository: Repository, tmp_path: Path) -> None:
    other = Repository(tmp_path / "second")
    other.write("b.md", "# B\n\nbeta\n")
    other.commit()
    failures: list[BaseException] = []

    def work(root: Path) -> None:
        try:
            rag.index(str(root))
        except BaseException as error:  # noqa: BLE001 - reported by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(one.root,)) for one in (repository, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(row.spec.name for row in rag.sources()) == ["runbooks", "second"]
    assert {"etcd.md", "b.md"} <= {one.row.document.path for one in rag.retrieve("etcd beta", limit=50).found}


def test_an_indexer_that_waits_too_long(rag: RagService, repository: Repository, store: MemoryStore) -> None:
    rag.places.root.mkdir(parents=True)
    told: list[bool] = []
    indexer = Indexer(rag.places, Hashing(), lambda: store, lock_wait=0.0, waiting=lambda: told.append(True))
    with exclusive(rag.places.lock, wait=0), pytest.raises(UnreachableError, match="Another avyay is indexing"):
        indexer.remove("x")


def test_files_of_dead_generations_are_swept(rag: RagService, repository: Repository) -> None:
    for number in range(5):
        repository.write("etcd.md", ETCD + f"\n{number}\n")
        repository.commit()
        rag.index(str(repository.root))
    assert len(list(rag.places.generations.iterdir())) == 2


@pytest.mark.parametrize("victim", ["vectors.npy", "rows.npy"])
def test_damaged_files(rag: RagService, repository: Repository, victim: str) -> None:
    rag.index(str(repository.root))
    newest = max(rag.places.generations.iterdir(), key=lambda path: path.stat().st_mtime)
    (newest / victim).write_bytes(b"nonsense")
    rag.close()
    if victim == "vectors.npy":
        result = rag.retrieve("fdatasync")
        assert result.found[0].row.document.path == "etcd.md"
        assert "keywords only" in result.notes[0]
    else:
        with pytest.raises(CorruptError) as caught:
            rag.retrieve("fdatasync")
        assert "avyay rag reconcile" in (caught.value.hint or "")


def test_what_cannot_be_read_is_reported(rag: RagService, repository: Repository) -> None:
    repository.write("binary.md", b"\x00\x01\x02" * 100)
    repository.write("lfs.md", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    repository.write("latin.md", "# Gerät\n\nDas Gerät läuft nicht.\n".encode("latin-1"))
    repository.write("values.yaml", "replicas: 3\n")
    repository.write("rules.yaml", "groups:\n- name: x\n  rules:\n  - alert: ZebraDown\n    expr: up == 0\n")
    repository.commit()
    report = rag.index(str(repository.root))
    assert {item.path: item.reason.split(":")[0] for item in report.unread} == {
        "binary.md": "a binary file",
        "lfs.md": "a Git LFS pointer",
    }
    assert set(report.added) == {"etcd.md", "messaging/kafka.md", "latin.md", "rules.yaml"}
    assert "Gerät läuft" in rag.search("Gerät läuft")[0].text
    assert rag.search("ZebraDown")[0].path == "rules.yaml"


@pytest.mark.parametrize("rebuild", [False, True])
def test_repeated_syncs_are_stable(rag: RagService, repository: Repository, rebuild: bool) -> None:
    rag.index(str(repository.root))
    first = [one.row.chunk for one in rag.retrieve(KAFKA, limit=50).found]
    rag.index(str(repository.root), rebuild=rebuild)
    assert [one.row.chunk for one in rag.retrieve(KAFKA, limit=50).found] == first


@pytest.mark.parametrize("damage", ["removed", "older"])
def test_a_sync_makes_damaged_files_again(rag: RagService, repository: Repository, damage: str) -> None:
    rag.index(str(repository.root))
    newest = max(rag.places.generations.iterdir(), key=lambda path: path.stat().st_mtime)
    if damage == "removed":
        shutil.rmtree(newest)
    else:
        (newest / "kinds.npy").unlink()  # an array that an earlier version did not write
    rag.close()
    repository.write("etcd.md", ETCD + "\nzebra\n")
    repository.commit()
    report = rag.index(str(repository.root))
    assert (report.changed, report.unchanged) == (("etcd.md",), 1)
    assert {one.row.document.path for one in rag.retrieve("zebra kafka").found} == {"etcd.md", "messaging/kafka.md"}
    assert rag.reconcile().sound


def test_another_way_of_cutting_cuts_everything_again(
    rag: RagService, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    rag.index(str(repository.root))
    monkeypatch.setattr("avyay.rag.index.pipeline_id", lambda: "another")
    report = rag.index(str(repository.root))
    assert (set(report.changed), report.embedded) == ({"etcd.md", "messaging/kafka.md"}, 0)
    assert rag.index(str(repository.root)).up_to_date


def test_terms_of_another_version_are_made_again_by_a_question(
    rag: RagService, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write("latin.md", "# Dépannage\n\nLa réplication est arrêtée.\n")
    repository.commit()
    monkeypatch.setattr("avyay.rag.generation.terms_id", lambda: "older")
    monkeypatch.setattr("avyay.rag.lexical.tokenise.ACCENTS", re.compile("never"))
    rag.index(str(repository.root))
    monkeypatch.undo()
    shutil.move(repository.root, repository.root.with_name("gone"))  # sources need not be in reach
    rag.close()
    first = rag.retrieve("replication arretee")
    assert first.found[0].row.document.path == "latin.md"
    assert first.confidence.coverage > 0
    assert first.notes == ("The index was of another version of avyay and has been made again.",)
    assert rag.retrieve("replication arretee").notes == ()
    assert paths(rag, KAFKA)[0] == "messaging/kafka.md"


def test_terms_of_another_version_that_cannot_be_made_again_are_told_of(
    rag: RagService, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avyay.rag.generation.terms_id", lambda: "older")
    rag.index(str(repository.root))
    monkeypatch.undo()
    with exclusive(rag.places.lock, wait=0.0):
        (note,) = rag.retrieve(KAFKA).notes
        assert note.startswith("The index is of another version of avyay, and words may be missed: Another avyay is")
        assert paths(rag, KAFKA)[0] == "messaging/kafka.md"
    assert "has been made again" in rag.retrieve(KAFKA).notes[0], "tried again when nobody else is at it"


def test_a_sync_of_one_source_makes_the_terms_of_all_again(
    rag: RagService, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.md").write_text("# Réplication\n\nZèbre.\n")
    monkeypatch.setattr("avyay.rag.generation.terms_id", lambda: "older")
    monkeypatch.setattr("avyay.rag.lexical.tokenise.ACCENTS", re.compile("never"))
    rag.index(str(tmp_path / "other"))
    monkeypatch.undo()
    rag.index(str(repository.root))
    found = rag.retrieve("zebre")
    assert (found.found[0].row.document.path, found.notes) == ("a.md", ())
    assert rag.reconcile().sound
