"""A suppression needs a reason, speaks of one place, and is reported when it has nothing left to suppress."""

from __future__ import annotations

import pytest

from avyay.raksha.files import collect
from avyay.raksha.fix import plan_fixes
from avyay.raksha.scan import CodeScanner
from avyay.raksha.source import SourceFile
from avyay.raksha.suppress import NO_REASON, UNUSED, apply, find
from avyay.raksha.types import Finding, Rule

RULE = Rule("demo", "A demo", "high", ("CWE-1",), why="w", bad="b", good="g", fix="f")


def outcome(
    text: str, line: int, name: str = "a.py", language: str = "python", end: int | None = None
) -> tuple[list[str], ...]:
    file = SourceFile(name, text.encode(), language)
    finding = Finding("demo", "high", "m", name, line, 1, end or line, 9, ("semgrep:demo", "bandit:B602"))
    kept, faults, suppressed = apply([finding], [file], judged={name: {"demo", "other", "B602"}})
    return [f.rule for f in kept], [f.rule for f in faults], [item.reason for item in suppressed]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("bad()  # avyay: ignore[demo] tested by hand", 1),
        ("bad()  # avyay: ignore[other-name, demo] tested by hand", 1),
        ("bad()  # avyay: ignore[B602]: tested by hand", 1),
        ("# avyay: ignore[demo] tested by hand\nbad()", 2),
        ("# avyay: ignore[demo] tested by hand\n\n# a comment\nbad()", 4),
    ],
)
def test_suppressed_with_a_reason(text: str, line: int) -> None:
    kept, faults, reasons = outcome(text, line)
    assert (kept, reasons) == ([], ["tested by hand"])
    assert set(faults) <= {UNUSED.id}


@pytest.mark.parametrize(
    ("name", "language", "text"),
    [
        ("a.js", "javascript", "bad() // avyay: ignore[demo] why not"),
        ("a.js", "javascript", "bad() /* avyay: ignore[demo] why not */"),
        ("a.html", "html", "<bad> <!-- avyay: ignore[demo] why not -->"),
        ("a.yaml", "yaml", "bad: 1 # avyay: ignore[demo] why not"),
        ("a.sql", "text", "bad -- avyay: ignore[demo] why not"),
    ],
)
def test_every_comment_style(name: str, language: str, text: str) -> None:
    assert outcome(text, 1, name, language) == ([], [], ["why not"])


def test_last_line_of_a_finding_counts() -> None:
    text = "bad(\n  1,\n)  # avyay: ignore[demo] fine"
    assert outcome(text, 1, end=3) == ([], [], ["fine"])
    assert outcome(text, 1, end=2)[0] == ["demo"]


def test_without_a_reason_it_is_not_honoured() -> None:
    assert outcome("bad()  # avyay: ignore[demo]", 1) == (["demo"], [NO_REASON.id], [])
    assert outcome("bad()  # avyay: ignore[demo]  ", 1)[1] == [NO_REASON.id]
    assert outcome("bad()  # avyay: ignore[] because", 1) == (["demo"], [NO_REASON.id], [])


def test_unused_is_reported_only_for_rules_that_were_looked_for() -> None:
    assert outcome("x  # avyay: ignore[demo] gone\nbad()", 2) == (["demo"], [UNUSED.id], [])
    assert outcome("x  # avyay: ignore[not-run] gone\nbad()", 2) == (["demo"], [], [])
    assert outcome("x\nbad()  # avyay: ignore[other] wrong rule", 2) == (["demo"], [UNUSED.id], [])


def test_the_mark_in_a_string_is_text() -> None:
    assert find(SourceFile("a.md", b"x  # avyay: ignore[demo] an example\n", "text")) == []
    assert len(find(SourceFile("a.md", b"x <!-- avyay: ignore[demo] a reason -->\n", "text"))) == 1
    assert find(SourceFile("a.py", b's = "# avyay: ignore[demo] no comment"\n', "python")) == []
    assert len(find(SourceFile("a.py", b"def (:  # avyay: ignore[demo] unparsable\n", "python"))) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1  # avyay: ignore[demo-shell] gone\ny = 2\n", "x = 1\ny = 2\n"),
        ("# avyay: ignore[demo-shell] gone\nx = 1\n", "x = 1\n"),
        ("x = 1\n    # avyay: ignore[demo-shell] gone\n", "x = 1\n"),
    ],
)
def test_an_unused_suppression_can_be_taken_away(scanner: CodeScanner, write, before: str, after: str) -> None:
    root = write({"a.py": before})
    report = scanner.scan([root])
    assert [finding.rule for finding in report.findings] == ["suppression-unused"]
    fixes = plan_fixes(report, {file.name: file for file in collect([root]).files}, scanner, unsafe=False)
    assert [item.text for item in fixes.files] == [after]
