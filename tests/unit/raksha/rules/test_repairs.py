"""Every rule that says it can be repaired is: the file is read, the finding is gone, and nothing new is found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from avyay.raksha.engines.base import Engine
from avyay.raksha.files import collect
from avyay.raksha.fix import Fixes, plan_fixes
from avyay.raksha.scan import CodeScanner
from avyay.raksha.types import Report, Rule
from tests.unit.raksha.rules.conftest import Sample, fixture_samples


@pytest.fixture(scope="module")
def scanner(engines: list[Engine]) -> CodeScanner:
    return CodeScanner(engines)


@pytest.fixture(scope="module")
def rules(scanner: CodeScanner) -> dict[str, Rule]:
    return scanner.rules()


@pytest.fixture(scope="module")
def bad(rules: dict[str, Rule], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Sample]]:
    root = tmp_path_factory.mktemp("repairs")
    samples = {}
    for sample in fixture_samples():
        if sample.label == "bad" and rules[sample.subject].repair != "none":
            path = root / sample.file.name
            path.parent.mkdir(parents=True)
            path.write_bytes(sample.file.data)
            samples[sample.file.name] = sample
    return root, samples


@pytest.fixture(scope="module")
def before(scanner: CodeScanner, bad: tuple[Path, dict[str, Sample]]) -> Report:
    return scanner.scan([bad[0]])


def repaired(scanner: CodeScanner, root: Path, report: Report, *, unsafe: bool) -> Fixes:
    return plan_fixes(report, {file.name: file for file in collect([root]).files}, scanner, unsafe=unsafe)


def test_every_repair_proves_itself(
    scanner: CodeScanner, bad: tuple[Path, dict[str, Sample]], before: Report, tmp_path: Path
) -> None:
    root, samples = bad
    fixes = repaired(scanner, root, before, unsafe=True)
    assert [(finding.rule, reason) for finding, reason in fixes.refused] == []
    done = {item.file.name: item for item in fixes.files}
    subjects = {samples[name].subject for name in done}
    assert {sample.subject for sample in samples.values()} - subjects == set()
    for name, item in done.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(item.text)
        assert item.diff.startswith(f"--- a/{name}\n+++ b/{name}\n@@ ")
    after = scanner.scan([tmp_path])
    assert after.skipped == ()
    rules_before = {name: Counter(f.rule for f in before.findings if f.path == name) for name in done}
    for name in done:
        rules_after = Counter(f.rule for f in after.findings if f.path == name)
        assert not rules_after - rules_before[name], name
        assert samples[name].subject not in rules_after, name


def test_unsafe_repairs_wait_to_be_asked_for(
    scanner: CodeScanner, bad: tuple[Path, dict[str, Sample]], before: Report, rules: dict[str, Rule]
) -> None:
    fixes = repaired(scanner, bad[0], before, unsafe=False)
    touched = {finding.rule for item in fixes.files for finding in item.findings}
    assert {rules[rule].repair for rule in touched} == {"safe"}
    assert {"bandit-b506", "tls-verification-off-python", "debug-on-python"} <= touched


def test_rules_that_cannot_be_repaired_carry_no_edits(before: Report, rules: dict[str, Rule]) -> None:
    assert {
        finding.rule for finding in before.findings if finding.edits and rules[finding.rule].repair == "none"
    } == set()
