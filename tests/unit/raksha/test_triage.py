"""Second opinions: routed by difficulty, bounded by money, and never the end of a finding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from avyay.errors import AuthError, PolicyError, UnreachableError
from avyay.money import Picodollars
from avyay.ports import Completion, CompletionReply, Tokens
from avyay.raksha.merge import finish
from avyay.raksha.report.json import report_data
from avyay.raksha.source import SourceFile
from avyay.raksha.triage import counts, tier_of, triage
from avyay.raksha.types import Finding, Report, Rule, verdict

SECRET = "a-secret-of-the-code"
PATTERN = Rule("sure", "Sure", "high", ("CWE-1",), why="w", bad="b", good="g", fix="f", precision="very-high")
DESIGN = replace(PATTERN, id="design", category="architecture")


class Model:
    """Says what it is told to say, at a price."""

    def __init__(self, *script: str | Exception, price: int = 1) -> None:
        self.script = list(script)
        self.price = price
        self.asked: list[Completion] = []

    def available(self) -> bool:
        return True

    async def complete(self, request: Completion) -> CompletionReply:
        line = self.script[min(len(self.asked), len(self.script) - 1)]
        self.asked.append(request)
        if isinstance(line, Exception):
            raise line
        return CompletionReply(line, "m", "p", "local", Tokens(), Picodollars(self.price), f"d{len(self.asked)}")


@pytest.fixture
def report() -> Report:
    file = SourceFile("a.py", f"key = '{SECRET}'\nrun(x)\nrun(y)\n".encode(), "python")
    found = [
        file.finding(PATTERN, 0, 5, secrets=(SECRET,)),
        replace(file.finding(DESIGN, file.offset(2, 1), file.offset(2, 3)), severity="critical"),
        replace(file.finding(DESIGN, file.offset(3, 1), file.offset(3, 3)), severity="low"),
    ]
    findings = tuple(finish(found, {"a.py": file}))
    return Report(Path("/x"), findings, (), 1, 0.1, rules=(PATTERN, DESIGN))


def ask(report: Report, model: Model, *, budget: int = 1000, limit: int = 50) -> tuple[Report, object]:
    return anyio.run(lambda: triage(report, model, budget=Picodollars(budget), limit=limit))  # type: ignore[arg-type]


REAL = '{"verdict": "real", "reason": "It is."}'
FALSE = 'Sure! {"verdict": "false-positive", "reason": "The lines\\nprove it."} Bye.'


def test_opinions_are_added_and_nothing_is_taken_away(report: Report) -> None:
    model = Model(REAL, FALSE, "gibberish")
    after, summary = ask(report, model)
    assert [f.fingerprint for f in after.findings] == [f.fingerprint for f in report.findings]
    assert verdict(after, "high") == verdict(report, "high") == "findings"
    said = {f.rule + f.severity: f.triage.verdict for f in after.findings if f.triage}
    assert said == {"designcritical": "real", "surehigh": "false-positive", "designlow": "unsure"}
    assert counts(after.findings) == {"real": 1, "false-positive": 1, "unsure": 1}
    assert (summary.asked, summary.cost, summary.stopped) == (3, 3, "")  # type: ignore[attr-defined]
    shown = report_data(after, fail_on="high")["findings"]
    assert shown[0]["triage"] == {
        "verdict": "false-positive",
        "reason": "The lines prove it.",
        "model": "m",
        "decision": "d2",
    }


def test_easy_questions_go_to_a_cheap_tier(report: Report) -> None:
    model = Model(REAL)
    ask(report, model)
    assert [request.tier for request in model.asked] == ["premium", "local", "premium"]
    assert tier_of(None) == tier_of(replace(PATTERN, precision="medium")) == "premium"
    assert {request.service for request in model.asked} == {"raksha"}


def test_no_secret_leaves_the_machine(report: Report) -> None:
    model = Model(REAL)
    ask(report, model)
    assert SECRET not in repr(model.asked)


def test_money_and_numbers_are_bounded(report: Report) -> None:
    model = Model(REAL, price=10)
    after, summary = ask(report, model, budget=15)
    assert (len(model.asked), summary.stopped) == (2, "the budget is spent")  # type: ignore[attr-defined]
    assert sum(f.triage is None for f in after.findings) == 1
    _, summary = ask(report, Model(REAL), limit=1)
    assert "only the first 1" in summary.stopped  # type: ignore[attr-defined]
    assert not ask(report, Model(REAL), budget=0)[1].asked  # type: ignore[attr-defined]


def test_a_router_that_refuses_or_fails(report: Report) -> None:
    after, summary = ask(report, Model(REAL, PolicyError("over budget")))
    assert (len(after.findings), summary.asked, summary.stopped) == (3, 1, "over budget")  # type: ignore[attr-defined]
    _, summary = ask(report, Model(REAL, UnreachableError("gone")))
    assert summary.stopped == "gone"  # type: ignore[attr-defined]
    with pytest.raises(AuthError):
        ask(report, Model(AuthError("no key")))


@pytest.mark.parametrize(
    "answer", ["", "{}", '{"verdict": "ignore", "reason": "x"}', '{"verdict": 1, "reason": 2}', "[]"]
)
def test_odd_answers_are_unsure(report: Report, answer: str) -> None:
    after, _ = ask(report, Model(answer))
    assert counts(after.findings) == {"unsure": 3}


def test_a_finding_without_code() -> None:
    bare = Report(Path("/x"), (Finding("gone", "low", "m", "a.py", 1),), (), 1, 0.1)
    after, _ = ask(bare, Model(REAL))
    assert counts(after.findings) == {"real": 1}
