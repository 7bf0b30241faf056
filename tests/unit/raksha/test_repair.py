"""Replacements become edits of exactly the text they name."""

from __future__ import annotations

import re

import pytest

from avyay.raksha.fix import apply_edits
from avyay.raksha.repair import Replacement, edits_of, kind_of, read_replacements
from avyay.raksha.source import SourceFile

FILE = SourceFile("a.py", "é = get(a, v=False); get(b, v=False)\nx = 1\n".encode(), "python")
OFF = Replacement(re.compile(r"\bv=(False)"), r"v=not \1", safe=True)


def test_the_finding_itself_is_looked_at_first() -> None:
    second = edits_of([OFF], FILE, (1, 23, 1, 37))
    assert apply_edits(FILE, second) == "é = get(a, v=False); get(b, v=not False)\nx = 1\n"
    assert second[0].safe


def test_then_its_lines() -> None:
    assert apply_edits(FILE, edits_of([OFF], FILE, (1, 1, 1, 2))) == "é = get(a, v=not False); get(b, v=False)\nx = 1\n"
    assert edits_of([OFF], FILE, (2, 1, 2, None)) == ()
    assert edits_of([OFF], FILE, (9, 1, 9, None)) == ()


def test_the_same_place_is_changed_once() -> None:
    assert len(edits_of([OFF, OFF], FILE, (1, 1, 1, None))) == 1


def test_rule_files_are_read() -> None:
    items = read_replacements([{"find": "a", "replace": "b"}, {"find": "c", "replace": "d", "safe": True}])
    assert [item.safe for item in items] == [False, True]
    assert kind_of(items) == "safe"
    assert kind_of(items[:1]) == "unsafe"
    assert kind_of(()) == "none"
    assert read_replacements(None) == ()


@pytest.mark.parametrize("broken", ["text", [1], [{"find": "a"}], [{"find": "(", "replace": ""}], {"find": "a"}])
def test_broken_ones_are_told(broken: object) -> None:
    with pytest.raises(ValueError, match="find, replace and safe"):
        read_replacements(broken)
