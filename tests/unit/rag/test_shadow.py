"""Rankings as configuration: priors, a shadow on live questions, evaluation, answerability."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avyay.clock import FakeClock
from avyay.config import Environment
from avyay.embed.hashing import Hashing
from avyay.errors import ConfigError
from avyay.rag.answerability import Answerability, wilson
from avyay.rag.evaluate import load_queries
from avyay.rag.places import IndexPlaces
from avyay.rag.searcher import Ranking
from avyay.rag.service import RagService
from avyay.rag.shadow import Comparison, Shadow, summarise
from avyay.rag.stores.memory import MemoryStore
from avyay.wiring import open_services
from tests.unit.rag.conftest import Repository


def test_a_shadow_searches_unseen(tmp_path: Path, repository: Repository, clock: FakeClock) -> None:
    chances = iter([0.4, 0.6, 0.1])
    shadow = Shadow(Ranking(mode="keywords"), 0.5, chance=lambda: next(chances))
    rag = RagService(
        IndexPlaces.under(tmp_path / "index"), Hashing(), open_store=MemoryStore, shadow=shadow, clock=clock
    )
    rag.index(str(repository.root))
    ids = [rag.ask("etcd disk").id for _ in range(3)]
    rag.feedback(ids[0], "down")
    report = rag.shadow()
    assert (report.questions, report.same_first, report.disputed) == (2, 1.0, 0)
    rag.close()


def test_the_report() -> None:
    report = summarise([Comparison(0.5, False, 0.6, 0.7, False), Comparison(1.0, True, 0.4, 0.5, False)])
    assert (report.questions, report.overlap, report.same_first, report.disputed) == (2, 0.75, 0.5, 1)
    assert report.shadow_confidence == pytest.approx(0.6)
    assert summarise([]).questions == 0


def test_priors(rag: RagService, repository: Repository) -> None:
    text = "# Same\n\nidentical words about walruses\n"
    repository.write("old.md", text)
    repository.commit(date="2020-01-01T00:00:00Z")
    repository.write("young.md", text)
    repository.commit(date="2026-01-30T00:00:00Z")
    rag.index(str(repository.root))
    rag.index(str(repository.root / "messaging"), name="other")
    fresh = rag.retrieve("identical words walruses", ranking=Ranking(freshness=0.2)).found
    assert fresh[0].row.document.path == "young.md"
    assert fresh[0].hit.score > fresh[1].hit.score
    preferred = rag.retrieve("kafka broker", ranking=Ranking(sources={"other": 0.2})).found
    assert preferred[0].row.document.source == "other"


def test_documents_left_out(rag: RagService, repository: Repository, tmp_path: Path) -> None:
    rag.index(str(repository.root))
    assert {one.row.document.path for one in rag.retrieve("etcd", without={"etcd.md"}).found} == {"messaging/kafka.md"}
    queries = tmp_path / "queries.jsonl"
    rows = [
        {"qid": "1", "query": "etcdHighFsyncDurations", "gold_docs": ["etcd.md"]},
        {"qid": "2", "query": "Kafka broker is down", "gold_docs": ["messaging/kafka.md"]},
    ]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = rag.answerability(load_queries(queries))
    assert (told.queries, told.answered, told.refused, told.auc) == (2, 1.0, 1.0, 1.0)


def test_answerability_figures() -> None:
    told = Answerability.of([(True, True, 0.9), (True, False, 0.5), (False, True, 0.5), (False, False, 0.1)])
    assert (told.answered, told.refused, told.auc) == (0.5, 0.5, 0.875)
    assert Answerability.of([]) == Answerability(0, 0.0, 0.0, 0.5)


def test_intervals_of_shares() -> None:
    assert wilson(0, 36) == pytest.approx((0.0, 0.0964), abs=1e-4)
    assert wilson(35, 36) == pytest.approx((0.8583, 0.9951), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_weight_nobody_knows(home: Path) -> None:
    (home / "avyay.yaml").write_text("rag: {ranking: {weights: {keyword: 1}}}\n")
    with (
        open_services(directory=home, environment=Environment({"AVYAY_HOME": str(home)})) as services,
        pytest.raises(ConfigError, match="no weight 'keyword'"),
    ):
        _ = services.rag
