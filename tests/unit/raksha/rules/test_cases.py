"""Detection quality on labelled cases of the seven faults that code generators make."""

from __future__ import annotations

import pytest

from tests.unit.raksha.rules.conftest import Scanned

RULES = {
    "hardcoded-credential": {
        "hardcoded-credential",
        "invented-secret",
        "private-key-in-source",
        "credential-in-connection-url",
    },
    "permissive-cors": {"permissive-cors", "permissive-cors-credentials"},
    "token-in-url": {"token-in-url", "api-key-in-url"},
}
CATEGORIES = (
    "fabricated-email",
    "get-mutates-state",
    "hardcoded-credential",
    "permissive-cors",
    "shell-injection",
    "sql-injection",
    "token-in-url",
)
NOTABLE = ("critical", "high", "medium")


@pytest.mark.parametrize("category", CATEGORIES)
def test_bad_cases_are_found_and_good_ones_left_alone(scanned: Scanned, category: str) -> None:
    rules = RULES.get(category, {category})
    cases = [sample for sample in scanned.samples if sample.subject == category and sample.case]
    bad = [sample for sample in cases if sample.label == "bad"]
    good = [sample for sample in cases if sample.label == "good"]
    missed = [sample.title for sample in bad if not rules & {f.rule for f in scanned.of(sample)}]
    wrong = [
        (sample.title, finding.rule, finding.line)
        for sample in good
        for finding in scanned.of(sample)
        if finding.severity in NOTABLE
    ]
    assert not wrong
    assert not missed
    assert len(bad) >= 12
    assert len(good) >= 12
