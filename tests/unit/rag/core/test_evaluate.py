"""Metrics against figures worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from avyay.errors import UsageError
from avyay.rag.evaluate import EvalQuery, EvalResult, compare, evaluate, judge, load_queries, macro


def query(qid: str = "1", *, documents=("a.md",), sections=(), variant="question") -> EvalQuery:
    levels = {"doc", "section"} if sections else {"doc"}
    return EvalQuery(qid, "text", variant, frozenset(documents), tuple(sections), frozenset(levels))


def result(path: str, *headings: str) -> EvalResult:
    return EvalResult(path, headings)


def test_a_document_counts_once_at_its_best_place() -> None:
    scores = judge(query(), [result("b.md", "x"), result("b.md", "y"), result("a.md", "x")])["doc"]
    assert scores == pytest.approx((0.0, 1.0, 0.5, 1 / math.log2(3)))


def test_alternatives_share_the_ideal() -> None:
    scores = judge(query(documents=("a.md", "b.md")), [result("a.md", ""), result("c.md", ""), result("b.md", "")])
    assert scores["doc"][3] == pytest.approx((1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3)))


def test_sections_need_path_and_heading() -> None:
    wanted = query(sections=[("a.md", frozenset({"howtofix"}))])
    assert judge(wanted, [result("b.md", "How to fix"), result("a.md", "Other", "How to: fix!")])["section"][2] == 0.5
    assert judge(wanted, [result("a.md", "1", "2", "3", "How to fix")])["section"][3] == 0.0


def test_no_result_is_zero_and_macro_weighs_groups_alike() -> None:
    queries = [query("1", variant="x"), query("2", variant="y"), query("3", variant="y")]
    rows = evaluate(queries, {"1": [result("a.md")]})
    assert macro(rows, "doc").mean == pytest.approx(0.5)
    assert macro(rows, "section").mean == 0.0
    assert macro(rows, "doc").low <= 0.5 <= macro(rows, "doc").high


def test_comparison_is_paired() -> None:
    queries = [query("1"), query("2")]
    gain = compare(queries, {"1": [result("a.md")]}, {"1": [result("a.md")], "2": [result("a.md")]})
    assert macro(gain, "doc").mean == pytest.approx(0.5)


def test_queries_are_read(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    line = {"qid": 7, "query": "q", "gold_docs": ["a.md"], "gold_sections": [{"path": "a.md", "heading": "Fix It"}]}
    file.write_text(json.dumps(line) + "\n\n", encoding="utf-8")
    (read,) = load_queries(file)
    assert read.sections == (("a.md", frozenset({"fixit"})),)
    assert read.levels == {"doc", "section"}


@pytest.mark.parametrize("text", ["{", "[]", '{"qid": 1}', '{"qid": 1, "query": "x", "gold_sections": [1]}'])
def test_what_is_no_query_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_text("\n" + text, encoding="utf-8")
    with pytest.raises(UsageError, match="queries.jsonl:2"):
        load_queries(file)
    with pytest.raises(UsageError, match="Cannot read"):
        load_queries(tmp_path / "none")
