"""Planted pains are found, copies count once, and no claim stands without a permalink."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_pains import PAINS, corpus
from scripted_model import Model

from avyay.embed.hashing import Hashing
from avyay.errors import UnreachableError
from avyay.siddhi.cluster import Cluster, cluster, copies
from avyay.siddhi.score import WEIGHTS, rule_score, score
from avyay.siddhi.store import Store
from avyay.siddhi.types import Complaint, content_hash

BASELINE = re.compile(r"\b(hate|wish|frustrat\w*|need|annoying|pain\w*|problem|tired|nightmare)\b", re.IGNORECASE)


def told(number: int, text: str, source: str = "hn") -> Complaint:
    return Complaint(source, str(number), f"https://{source}.example/{number}", "", text, content_hash(text), 0.0)


def quality(ranked: Sequence[Sequence[Complaint]], planted: dict[str, str]) -> tuple[float, float]:
    """Share of the first 20 that are a planted pain not seen above, and share of all pains found in the first 40."""
    hits, seen = 0, set()
    for place, members in enumerate(ranked[:40]):
        pain, votes = Counter(planted.get(one.id, "") for one in members).most_common(1)[0]
        if pain and pain not in seen and votes * 2 > len(members):
            seen.add(pain)
            hits += place < 20
    return hits / 20, len(seen) / len(PAINS)


def baseline(complaints: list[Complaint]) -> list[list[Complaint]]:
    """What one would do without SIDDHI: rank the texts by words of complaint."""
    return [[one] for one in sorted(complaints, key=lambda one: -len(BASELINE.findall(one.text)))]


def ranked(complaints: list[Complaint]) -> list[Cluster]:
    found = cluster(complaints, Hashing(dimensions=512))
    return sorted(found, key=lambda one: -rule_score(one.complaints).value)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_planted_pains(seed: int) -> None:
    complaints, planted = corpus(seed)
    precision, recall = quality([one.complaints for one in ranked(complaints)], planted)
    theirs = quality(baseline(complaints), planted)
    assert precision >= 0.9
    assert recall >= 0.8
    assert precision > theirs[0]
    assert recall > theirs[1]


def test_copies_count_once() -> None:
    text = "We copy laboratory results into patient charts by hand each morning and it is a nightmare for all of us"
    same = [told(1, text), told(2, text + "!!", "reddit"), told(4, text.upper(), "x")]
    other = told(3, "I hate rain", "reddit")
    groups = copies([*same, other])
    assert [[one.id for one in group] for group in groups] == [["1", "2", "4"], ["3"]]
    reworded = told(5, "Copying laboratory results into charts by hand, patient after patient")
    (found,) = cluster([*same, other, reworded], Hashing(), threshold=0.3)
    assert (len(found.complaints), found.copies) == (2, 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=60), max_size=12))
def test_nothing_is_lost_or_doubled(texts: list[str]) -> None:
    posts = [told(i, text) for i, text in enumerate(texts)]
    assert sorted(one.id for group in copies(posts) for one in group) == sorted(one.id for one in posts)
    found = [one.id for each in cluster(posts, Hashing(), least=1) for one in each.complaints]
    assert len(found) == len(set(found))
    made = rule_score(posts)
    assert 0 <= made.value <= 1


def test_the_rule_shows_its_working() -> None:
    posts = [told(1, "I hate matching invoices. I'd pay for a cure."), told(2, "Tedious invoices every week", "reddit")]
    made = rule_score(posts)
    assert made.by == "rule"
    assert "no model was asked" in made.note
    assert set(made.parts) == set(WEIGHTS)
    links = {one.permalink for one in posts}
    assert made.claims
    assert all(claim.permalink in links for claim in made.claims)
    alone = rule_score([replace(one, source="hn") for one in posts])
    assert alone.value < made.value


GOOD = {
    "pain": 9,
    "frequency": 7,
    "willingness": 8,
    "market": 5,
    "competition": 2,
    "summary": "People hate it.",
    "claims": [
        {"about": "pain", "words": "hates it", "complaint": 0},
        {"about": "market", "words": "millions", "complaint": 99},
    ],
}


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(tmp_path / "s.db")
    yield opened
    opened.close()


POSTS = [told(1, "I hate matching invoices"), told(2, "Tedious invoices every week", "reddit")]


def test_a_model_with_a_rubric(store: Store) -> None:
    model = Model("Sure!\n" + json.dumps(GOOD))
    made = asyncio.run(score(POSTS, hypothesis="h1", completer=model, store=store))
    assert made.by == "small"
    assert [claim.permalink for claim in made.claims] == [POSTS[0].permalink]
    (request,) = model.asked
    assert (request.tier, request.service, request.customer) == ("local", "siddhi", "h1")
    assert request.json_schema
    again = asyncio.run(score(POSTS, hypothesis="h1", completer=model, store=store))
    assert again == made
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    "text, words",
    [
        ("I cannot do that", "form asked for"),
        (json.dumps({**GOOD, "claims": []}), "named no complaint"),
        (json.dumps({**GOOD, "pain": "very"}), "form asked for"),
        (UnreachableError("nobody is home"), "nobody is home"),
    ],
)
def test_without_a_usable_answer_the_rule_stands(text: str | Exception, words: str, store: Store) -> None:
    model = Model(text)
    made = asyncio.run(score(POSTS, hypothesis="h1", completer=model, store=store))
    assert made.by == "rule"
    assert words in made.note
    assert made.value == rule_score(POSTS).value
    asyncio.run(score(POSTS, hypothesis="h1", completer=model, store=store))
    assert len(model.asked) == 2  # what was no answer is not kept


def test_without_a_model(store: Store) -> None:
    assert asyncio.run(score(POSTS, hypothesis="h1", completer=None, store=store)) == rule_score(POSTS)
