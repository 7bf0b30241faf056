"""Places in a source file are what an editor shows."""

from __future__ import annotations

import ast

from hypothesis import given
from hypothesis import strategies as st

from avyay.raksha.source import SourceFile
from avyay.raksha.types import Rule

RULE = Rule("demo", "A demo", "high", ("CWE-1",), why="w", bad="b", good="g", fix="f")


def source(text: str, name: str = "a.py", language: str = "python") -> SourceFile:
    return SourceFile(name, text.encode(), language)


@given(st.text(alphabet="ab\n\r é\U0001f600\x0c\u2028"))
def test_position_and_offset_agree(text: str) -> None:
    file = source(text, "a.txt", "text")
    for offset in range(len(file.text)):
        assert file.offset(*file.position(offset)) == offset


def test_columns_count_characters_not_bytes() -> None:
    file = source("name = 'é'; call()\n")
    call = next(node for node in file.nodes if isinstance(node, ast.Call))
    assert file.place(call) == (1, 13, 1, 19)
    assert file.finding(RULE, call).column == 13
    assert file.finding(RULE, file.text.index("call")).column == 13


def test_byte_order_mark_and_invalid_bytes_are_text() -> None:
    file = SourceFile("a.py", b"\xef\xbb\xbfx = '\xff'\n", "python")
    assert file.text == "x = '\ufffd'\n"
    assert file.tree is not None


def test_unparsable_python_has_no_tree() -> None:
    assert source("def (").tree is None
    assert source("\0").tree is None
    assert source("package main", "a.go", "go").tree is None


def test_is_test_reads_the_path() -> None:
    for name in ("tests/a.py", "test_a.py", "a_test.go", "x/__tests__/a.js", "a.spec.ts", "conftest.py"):
        assert source("", name).is_test, name
    for name in (
        "internal/testresources/key.pem",
        "db_testutil.go",
        "charts/x/ci/default-values.yaml",
        "unittests/a.yaml",
    ):
        assert source("", name).is_test, name
    for name in ("a.py", "contest.py", "latest/a.py", "testify.go", "ci/deploy.yaml", "charts/x/values.yaml"):
        assert not source("", name).is_test, name
