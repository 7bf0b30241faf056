"""The table of transitions, exhaustively, and the history that records them."""

from __future__ import annotations

import sqlite3
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.clock import FakeClock
from avyay.db import open_database
from avyay.errors import AvyayError, UsageError
from avyay.siddhi.machine import FINAL, TRANSITIONS, Change, IllegalTransitionError, State, change, replay
from avyay.siddhi.store import SCHEMA, Store
from avyay.siddhi.types import EXCERPT, Complaint, content_hash, excerpt

S = State
PATH = [S.DISCOVERED, S.SCORED, S.GENERATING, S.TESTING, S.ANALYZING]
LEGAL = {
    *pairwise(PATH),
    (S.ANALYZING, S.PROMISING),
    (S.ANALYZING, S.VALIDATED),
    (S.ANALYZING, S.KILLED),
    (S.PROMISING, S.GENERATING),
}


@pytest.mark.parametrize("before, after", list(product(S, S)))
def test_every_pair_of_states(before: State, after: State) -> None:
    if (before, after) in LEGAL:
        assert change(before, after, "because") == Change(before, after, "because")
    else:
        with pytest.raises(IllegalTransitionError) as refused:
            change(before, after, "because")
        assert refused.value.hint
    if before is not after:
        assert change(before, after, "I say so", manual=True).manual


@pytest.mark.parametrize("after", list(S))
def test_a_new_one_is_discovered(after: State) -> None:
    if after is S.DISCOVERED:
        assert change(None, after, "found").before is None
    else:
        for manual in (False, True):
            with pytest.raises(IllegalTransitionError):
                change(None, after, "found", manual=manual)


def test_a_reason_is_needed() -> None:
    for reason in ("", "  \n"):
        with pytest.raises(UsageError, match="needs a reason"):
            change(S.DISCOVERED, S.SCORED, reason)


def test_all_states_are_in_the_table_and_reachable() -> None:
    assert set(TRANSITIONS) == set(S)
    assert {S.VALIDATED, S.KILLED} == FINAL
    reached = {S.DISCOVERED}
    while more := {after for before in reached for after in TRANSITIONS[before]} - reached:
        reached |= more
    assert reached == set(S)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(list(S)), st.booleans()), max_size=30))
def test_a_history_replays_to_the_state_it_led_to(wishes: list[tuple[State, bool]]) -> None:
    steps = [change(None, S.DISCOVERED, "found")]
    for after, manual in wishes:
        try:
            steps.append(change(steps[-1].after, after, "x", manual=manual))
        except IllegalTransitionError:
            continue
    assert replay(steps) is steps[-1].after
    with pytest.raises(IllegalTransitionError):
        replay(steps[1:])


def complaint(number: int, **values: object) -> Complaint:
    text = f"I hate doing this by hand {number}"
    defaults = {
        "source": "hn",
        "id": str(number),
        "permalink": f"https://news.ycombinator.com/item?id={number}",
        "title": "",
        "text": text,
        "hash": content_hash(text),
        "created_at": 1000.0 + number,
    }
    return Complaint(**(defaults | values))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(tmp_path / "siddhi.db", clock=FakeClock())
    yield opened
    opened.close()


def test_a_life_in_the_store(store: Store) -> None:
    store.add_page("hn", "q", [complaint(1)], "c")
    found = store.discover("Invoices by hand", "accounting", [complaint(1)], "3 complaints agree")
    assert (found.id, found.state, found.round) == ("h1", S.DISCOVERED, 1)
    scored = store.change("h1", S.SCORED, "rule score 0.7", score=(0.7, "rule", {"pain": 0.9}))
    assert (scored.score, scored.scored_by, scored.reasons) == (0.7, "rule", {"pain": 0.9})
    with pytest.raises(IllegalTransitionError):
        store.change("h1", S.VALIDATED, "hope")
    assert store.hypothesis("h1").state is S.SCORED
    for state in (S.GENERATING, S.TESTING, S.ANALYZING, S.PROMISING, S.GENERATING):
        store.change("h1", state, "next")
    assert store.hypothesis("h1").round == 2
    store.note("h1", "page", "made a page", {"variant": "a"})
    store.change("h1", S.KILLED, "not our market", manual=True)
    history = store.history("h1")
    assert [event.kind for event in history] == ["changed"] * 7 + ["page", "overridden"]
    assert history[-1].manual
    assert history[-2].data == {"variant": "a"}
    steps = [Change(e.before, e.after, e.reason, e.manual) for e in history if e.after]
    assert replay(steps) is store.hypothesis("h1").state


def test_the_history_cannot_be_rewritten(store: Store, tmp_path: Path) -> None:
    store.discover("x", "s", [], "found")
    other = open_database(tmp_path / "siddhi.db", SCHEMA)
    for statement in ("DELETE FROM events", "UPDATE events SET reason = 'better'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            other.execute(statement)
    other.close()


@pytest.mark.parametrize("name", ["h9", "9", "", "hx", "h-1"])
def test_unknown_hypotheses(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="There is no hypothesis"):
        store.change(name, S.SCORED, "x")
    with pytest.raises(AvyayError):
        store.hypothesis(name)


def test_pages_are_kept_once_with_their_cursor(store: Store) -> None:
    assert store.cursor("hn", "q") is None
    assert store.add_page("hn", "q", [complaint(1), complaint(2)], "page2") == 2
    assert store.add_page("hn", "q", [complaint(2, points=7), complaint(3)], "page3") == 1
    assert store.cursor("hn", "q") == "page3"
    assert [(c.id, c.points) for c in store.complaints()] == [("1", 0), ("2", 7), ("3", 0)]
    assert store.complaint_count() == {"hn": 3}


def test_what_is_forgotten_stays_forgotten(store: Store) -> None:
    store.add_page("hn", "q", [complaint(1), complaint(2)], "c")
    store.discover("x", "s", [complaint(1), complaint(2)], "found")
    assert store.forget("hn", "1")
    assert not store.forget("hn", "1")
    assert store.add_page("hn", "q", [complaint(1)], "c") == 0
    assert [c.id for c in store.complaints("h1")] == ["2"]


def test_evidence_belongs_to_one_hypothesis(store: Store) -> None:
    store.add_page("hn", "q", [complaint(1), complaint(2), complaint(3)], "c")
    store.discover("x", "s", [complaint(1)], "found")
    store.discover("y", "s", [complaint(1), complaint(2)], "found")
    assert [c.id for c in store.complaints("h1")] == ["1"]
    assert [c.id for c in store.complaints("h2")] == ["2"]
    assert [c.id for c in store.unclaimed()] == ["3"]


def test_best_first(store: Store) -> None:
    for score in (None, 0.2, 0.9):
        made = store.discover("x", "s", [], "found")
        if score is not None:
            store.change(made.id, S.SCORED, "s", score=(score, "rule", {}))
    assert [h.score for h in store.hypotheses()] == [0.9, 0.2, None]
    assert [h.id for h in store.hypotheses(S.DISCOVERED)] == ["h1"]


@given(st.text(max_size=1500))
def test_excerpts_are_short_and_one_line(text: str) -> None:
    cut = excerpt(text)
    assert len(cut) <= EXCERPT
    assert "\n" not in cut
