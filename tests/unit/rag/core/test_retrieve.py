"""Ranking over arrays: names win, documents and sections help each other, neighbours join."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.rag.chunk import chunk_document
from avyay.rag.confidence import Confidence
from avyay.rag.lexical.postings import Postings
from avyay.rag.query import analyse, with_concepts, without_keywords
from avyay.rag.retrieve import Weights, freshness, join_neighbours, lexical_fields, rank, search_lexical
from avyay.rag.types import Chunk, Hit

DOCUMENTS = {
    "KubePodCrashLooping.md": "# KubePodCrashLooping\n\n## Meaning\n\nThe pod restarts again and again.\n\n"
    "## Mitigation\n\nRoll back the deployment.\n",
    "NodeClockSkew.md": "# NodeClockSkew\n\n## Meaning\n\nThe clock of the node is off.\n\n## Mitigation\n\n"
    "Restart chrony.\n",
    "runbook.md": "# Runbook\n\n## Alert Name: RedisDown\n\nThe cache is gone. KubePodCrashLooping may fire too.\n\n"
    "## Alert Name: RedisFull\n\nEvict keys from redis.\n",
}


def cut() -> list[Chunk]:
    return [
        chunk
        for path, text in DOCUMENTS.items()
        for chunk in chunk_document(path, text, count_tokens=lambda words: len(words.split()))
    ]


@pytest.fixture(scope="module")
def chunks() -> list[Chunk]:
    return cut()


@pytest.fixture(scope="module")
def postings(chunks: list[Chunk]) -> Postings:
    numbers = {path: number for number, path in enumerate(DOCUMENTS)}
    return Postings.build([lexical_fields(chunk) for chunk in chunks], [numbers[chunk.path] for chunk in chunks])


def found(query: str, postings: Postings, chunks: list[Chunk], similarities=None, **options):
    analysed = analyse(query)
    hits = rank(analysed, postings, lexical=search_lexical(postings, analysed), similarities=similarities, **options)
    return [(chunks[hit.chunk].path, chunks[hit.chunk].heading) for hit in hits]


@pytest.mark.parametrize("name", ["KubePodCrashLooping", "kube_pod_crash_looping", "kube-pod-crash-looping"])
def test_a_name_finds_its_document_against_all_vectors(name: str, postings: Postings, chunks: list[Chunk]) -> None:
    against = np.array([-1.0 if chunk.path.startswith("Kube") else 1.0 for chunk in chunks], dtype=np.float32)
    assert found(name, postings, chunks, against)[0][0] == "KubePodCrashLooping.md"


def test_a_name_finds_its_section_in_a_long_runbook(postings: Postings, chunks: list[Chunk]) -> None:
    assert found("RedisFull", postings, chunks)[0] == ("runbook.md", "Alert Name: RedisFull")


def test_what_a_question_asks_for_decides_between_sections(postings: Postings, chunks: list[Chunk]) -> None:
    assert found("how do I fix crash looping", postings, chunks)[0] == ("KubePodCrashLooping.md", "Mitigation")
    assert found("what does crash looping mean", postings, chunks)[0] == ("KubePodCrashLooping.md", "Meaning")


def test_other_words_for_a_thing_find_it(postings: Postings, chunks: list[Chunk]) -> None:
    assert found("time is wrong on a server", postings, chunks)[0][0] == "NodeClockSkew.md"


def test_a_question_that_is_a_heading_finds_its_section() -> None:
    """A long page that speaks of tests all the time is about something else."""
    texts = {
        "CONTRIBUTING.md": "# Contributing\n\n## Run the tests\n\nCall make.\n\n## Style\n\nShort lines.\n",
        "engine.md": "# Engine\n\n## Verification\n\nTests run first. " + "The tests run; a test may run again. " * 6,
        "names.md": "# How names of tests that run twice a day in all of the regions are chosen\n\nBy hand.\n",
    }
    cut = [
        (number, chunk)
        for number, (path, text) in enumerate(texts.items())
        for chunk in chunk_document(path, text, count_tokens=lambda words: len(words.split()))
    ]
    made = Postings.build([lexical_fields(chunk) for _, chunk in cut], [number for number, _ in cut])
    chunks = [chunk for _, chunk in cut]
    likes = np.array([0.36 if chunk.path == "engine.md" else 0.3 for chunk in chunks], dtype=np.float32)
    assert found("How do I run the tests?", made, chunks, likes)[0] == ("CONTRIBUTING.md", "Run the tests")
    plain = found("How do I run the tests?", made, chunks, likes, weights=Weights(heading=0.0))
    assert plain[0][0] == "engine.md", "which it would not without the heading's bonus"


def test_a_table_of_contents_answers_nothing() -> None:
    page = "# Tool\n\n## Contents\n\n- [Install and run](#install)\n  1. [Features \\& more](#features)\n\n"
    page += "## Installation\n\nInstall it, then run it: see [Features](#features).\n\n## Features\n\nMany.\n"
    cut = chunk_document("README.md", page, count_tokens=lambda words: len(words.split()))
    made = Postings.build([lexical_fields(chunk) for chunk in cut], [0] * len(cut))
    assert found("how do I install and run it", made, cut)[0] == ("README.md", "Installation")
    assert [lexical_fields(chunk)[2] for chunk in cut] == ["# Tool\n\n## Contents\n\n", cut[1].text, cut[2].text]


def test_filters_hide_and_priors_lift(postings: Postings, chunks: list[Chunk]) -> None:
    eligible = np.array([chunk.path == "runbook.md" for chunk in chunks])
    assert {path for path, _ in found("pod restarts", postings, chunks, eligible=eligible)} == {"runbook.md"}
    prior = np.where(eligible, np.float32(5), np.float32(0)).astype(np.float32)
    assert found("pod restarts", postings, chunks, prior=prior)[0][0] == "runbook.md"


def test_a_prior_for_freshness_halves() -> None:
    prior = freshness(np.array([0.0, 365.0, -3.0], dtype=np.float32), weight=0.1)
    assert prior == pytest.approx([0.1, 0.05, 0.1])


def test_nothing_indexed_finds_nothing() -> None:
    empty = Postings.build((), np.empty(0, np.int32))
    query = analyse("anything at all here")
    assert rank(query, empty, lexical=search_lexical(empty, query), similarities=None) == ()


def test_vectors_alone(postings: Postings, chunks: list[Chunk]) -> None:
    query = without_keywords(analyse("KubePodCrashLooping"))
    similarities = np.zeros(len(chunks), dtype=np.float32)
    similarities[-1] = 1.0
    hits = rank(query, postings, lexical=search_lexical(postings, query), similarities=similarities)
    assert hits[0].chunk == len(chunks) - 1


def test_concepts_need_the_embedder_that_made_them() -> None:
    query = analyse("who may change this object")
    vector = np.ones(384, dtype=np.float32)
    assert with_concepts(query, vector, "another") is query


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6), st.integers(1, 9), st.sampled_from(["pod", "redis"])
)
def test_ranks_are_ordered_and_complete(similarities: list[float], limit: int, query: str) -> None:
    chunks = cut()
    numbers = {path: number for number, path in enumerate(DOCUMENTS)}
    postings = Postings.build([lexical_fields(chunk) for chunk in chunks], [numbers[chunk.path] for chunk in chunks])
    analysed = analyse(query)
    vector = np.resize(np.array(similarities, dtype=np.float32), len(chunks))
    lexical = search_lexical(postings, analysed)
    hits = rank(analysed, postings, lexical=lexical, similarities=vector, limit=limit)
    assert len(hits) == min(limit, len(chunks))
    assert len({hit.chunk for hit in hits}) == len(hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def hit(chunk: int, document: int = 0) -> Hit:
    return Hit(chunk, document, 1.0, {})


def test_neighbours_join_up_to_what_a_reader_takes_in() -> None:
    hits = [hit(4), hit(9, 1), hit(5), hit(3), hit(2), hit(6)]
    sections = [[f"s{one.chunk}"] for one in hits]
    joined = join_neighbours(hits, sections=sections, tokens=[100] * 6, limit=10)
    assert joined == [(0, 2, 3), (1,), (4,), (5,)]
    assert join_neighbours(hits, sections=sections, tokens=[400] * 6, limit=2) == [(0,), (1,)]


def test_neighbours_of_another_document_stay_apart() -> None:
    assert join_neighbours([hit(1, 0), hit(2, 1)], sections=[["a"], ["b"]], tokens=[1, 1], limit=5) == [(0,), (1,)]


@pytest.mark.parametrize(
    ("foreign", "coverage", "relevant"), [(False, 0.1, True), (True, 0.1, False), (True, 0.3, True)]
)
def test_a_question_in_another_language_needs_words_that_are_found(
    foreign: bool, coverage: float, relevant: bool
) -> None:
    assert Confidence(0.46, 0.5, coverage, is_name=False, foreign=foreign).relevant is relevant


def test_a_question_is_in_another_language_when_its_function_words_are() -> None:
    questions = {"Wie wird das Wetter in Berlin morgen sein?": True, "what was the weather in Berlin like?": False}
    assert {question: analyse(question).foreign for question in questions} == questions
