"""Cycles, order, overlap and pictures of the dependency graph."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.engine.graph import find_cycle, mermaid, topological_order, tree_lines
from avyay.engine.overlap import globs_overlap

graphs = st.dictionaries(st.sampled_from("abcdefg"), st.lists(st.sampled_from("abcdefg"), max_size=4), max_size=7)


@given(graphs)
def test_a_graph_has_an_order_or_a_cycle(needs: dict[str, list[str]]) -> None:
    cycle = find_cycle(needs)
    if cycle is None:
        order = topological_order(needs)
        assert len(order) == len(set(order))
        assert all(order.index(need) < order.index(task) for task in needs for need in needs[task])
    else:
        assert cycle[0] == cycle[-1]
        assert all(after in needs[before] for before, after in pairwise(cycle))
        with pytest.raises(ValueError, match="cycle"):
            topological_order(needs)


def test_a_deep_graph_needs_no_deep_stack() -> None:
    needs = {str(i): [str(i - 1)] if i else [] for i in range(20_000)}
    assert find_cycle(needs) is None
    assert topological_order(needs)[:2] == ["0", "1"]


@pytest.mark.parametrize(
    "one, two, expected",
    [
        ("src/app.py", "src/app.py", True),
        ("src", "src/app.py", True),
        ("src/", "src/app.py", True),
        ("src/app.py", "src/apps.py", False),
        ("src/*.py", "src/app.py", True),
        ("src/*.py", "docs/app.md", False),
        ("**/*.md", "docs/a.md", True),
        ("src/**", "src/deep/er.py", True),
        ("src/**/*.py", "lib/*.py", False),
        ("src/a*", "src/ab*", True),
        ("", "anything", True),
        ("src/*/x.py", "src", True),
        ("src/**/*.py", "src/app.py", True),
    ],
)
def test_overlap(one: str, two: str, expected: bool) -> None:
    assert globs_overlap(one, two) is expected
    assert globs_overlap(two, one) is expected


@given(
    st.from_regex(r"[ab]{1,2}(/[ab*]{1,3}){0,2}", fullmatch=True),
    st.from_regex(r"[ab]{1,2}(/[ab]{1,2}){0,2}", fullmatch=True),
)
def test_a_path_that_matches_both_is_never_overlooked(pattern: str, path: str) -> None:
    if fnmatchcase(path, pattern):
        assert globs_overlap(pattern, path)


def test_pictures() -> None:
    tasks = [("a", 'Say "hi"', "done"), ("b", "Then", "ready"), ("c", "Alone", "blocked")]
    needs = {"b": ["a"]}
    drawn = mermaid(tasks, needs)
    assert drawn.startswith("flowchart LR")
    assert "n0 --> n1" in drawn
    assert "\"a: Say 'hi'\"" in drawn
    assert tree_lines(tasks, needs) == ['a [done] Say "hi"', "  b [ready] Then", "c [blocked] Alone"]
