"""Every rule has fixtures and a section of documentation, finds its bad ones and leaves its good ones alone."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from avyay.raksha.engines.bandit_rules import NEEDS, RULES, may_report
from avyay.raksha.engines.base import Engine
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.project import Project
from avyay.raksha.reference import render_reference
from avyay.raksha.registry import PatternRules
from tests.unit.raksha.rules.conftest import FIXTURES, Scanned, fixture_samples

DOCS = Path(__file__).parents[4] / "docs" / "rules.md"


def packaged(engines: list[Engine]) -> dict[str, object]:
    return {rule.id: rule for engine in engines for rule in engine.rules()}


def test_rules_fixtures_and_sections_are_the_same_set(engines: list[Engine]) -> None:
    rules = set(packaged(engines))
    sections = set(re.findall(r"^### (\S+)$", DOCS.read_text(), re.MULTILINE))
    folders = {path.name for path in FIXTURES.iterdir() if path.is_dir()} - {"cases"}
    assert sections == rules
    assert folders == rules


def test_every_rule_has_bad_and_good_fixtures() -> None:
    labels: dict[str, set[str]] = {}
    for sample in fixture_samples():
        labels.setdefault(sample.subject, set()).add(sample.label)
    assert {subject: found for subject, found in labels.items() if found != {"bad", "good"}} == {}


def test_the_reference_is_up_to_date(engines: list[Engine]) -> None:
    rules = [rule for engine in engines for rule in engine.rules()]
    assert DOCS.read_text() == render_reference(rules), "run: python scripts/write_rules_reference.py"


def test_rules_find_their_bad_fixtures(scanned: Scanned) -> None:
    missed = []
    for sample in scanned.samples:
        if sample.label == "bad" and not sample.case:
            names = {scanned.rules[f.rule].id for f in scanned.of(sample)}
            origins = {origin.split(":", 1)[-1] for f in scanned.of(sample) for origin in f.origins}
            wanted = {sample.subject, *(alias.split(":", 1)[-1] for alias in scanned.rules[sample.subject].aliases)}
            if not wanted & (names | origins):
                missed.append((sample.subject, sample.title, sorted(names)))
    assert missed == []


def test_rules_leave_their_good_fixtures_alone(scanned: Scanned) -> None:
    wrong = [
        (sample.subject, sample.title, finding.rule, finding.line)
        for sample in scanned.samples
        if sample.label == "good" and not sample.case
        for finding in scanned.of(sample)
        if finding.rule == sample.subject
    ]
    assert wrong == []


def test_every_rule_says_what_people_need(engines: list[Engine]) -> None:
    for engine in engines:
        for rule in engine.rules():
            assert re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*", rule.id)
            assert rule.title, rule.id
            assert rule.cwe, rule.id
            assert rule.why, rule.id
            assert rule.bad, rule.id
            assert rule.good, rule.id
            assert rule.fix, rule.id


def test_leaving_files_out_leaves_no_finding_out(scanned: Scanned) -> None:
    """Engines are given only files in which they can find something; given all, they find the same."""
    everything = SemgrepEngine(PatternRules())
    everything.__dict__["_conditions"] = dict.fromkeys(everything._rules.raw, ())
    files = [
        sample.file
        for sample in scanned.samples
        if sample.file.language in ("python", "javascript", "typescript", "go")
    ]
    project = Project(Path("/"))

    def found(engine: SemgrepEngine) -> set[tuple[str, str, int]]:
        outcome = engine.run(files, project, step=lambda _: None, cancel=threading.Event())
        return {(f.path, f.rule, f.line) for result in outcome.results.values() for f in result.findings}

    assert found(SemgrepEngine(PatternRules())) == found(everything)


def test_bandit_is_asked_wherever_it_finds_something(scanned: Scanned) -> None:
    for sample in scanned.samples:
        if any(origin.startswith("bandit") for finding in scanned.of(sample) for origin in finding.origins):
            assert may_report(sample.file.text), sample.title
    assert set(NEEDS) == set(RULES)
