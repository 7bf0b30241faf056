"""Layers and pictures of the task graph."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.engine.drawing import Node, layers, svg
from avyay.engine.graph import ancestors, mermaid
from avyay.engine.types import STATES

graphs = st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=16).map(
    lambda rows: {f"t{i}": tuple({f"t{n}" for n in row if n < i}) for i, row in enumerate(rows)}
)


@given(graphs)
def test_every_task_stands_once_and_right_of_all_it_needs(needs: dict[str, tuple[str, ...]]) -> None:
    rows = layers(needs)
    column = {name: number for number, row in enumerate(rows) for name in row if not name.startswith(" ")}
    assert sorted(column) == sorted(needs)
    assert sum(name in column for row in rows for name in row) == len(needs)
    assert all(column[need] < column[task] for task, of_it in needs.items() for need in of_it)


@given(graphs, st.text(max_size=60), st.sampled_from(STATES))
def test_a_picture_is_well_formed_and_holds_every_task_and_edge(
    needs: dict[str, tuple[str, ...]], title: str, state: str
) -> None:
    title = "".join(letter for letter in title if letter.isprintable())
    picture = svg([Node(name, title, state) for name in needs], needs)
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}g")) == len(needs)
    assert len([p for p in root.findall(f"{space}path") if p.get("marker-end")]) == sum(map(len, needs.values()))
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")


def test_overlaps_are_drawn_and_named() -> None:
    tasks = [Node("a", "one", "ready"), Node("b", "two", "ready")]
    assert "both touch: x.py" in svg(tasks, {}, [("a", "b", ["x.py"]), ("a", "gone", ["y"])])
    assert "n0 -.- n1" in mermaid([tuple(task) for task in tasks], {}, [("a", "b", ["x.py"])])  # type: ignore[misc]


def test_cycles_are_refused() -> None:
    needs = {"a": ("b",), "b": ("a",)}
    for draw in (layers, ancestors, lambda n: svg([Node("a", "", ""), Node("b", "", "")], n)):
        with pytest.raises(ValueError, match="cycle: a -> b -> a"):
            draw(needs)


def test_ancestors() -> None:
    assert ancestors({"c": ("b",), "b": ("a",), "a": (), "x": ()}) == {
        "a": frozenset(), "b": {"a"}, "c": {"a", "b"}, "x": frozenset(),
    }  # fmt: skip
