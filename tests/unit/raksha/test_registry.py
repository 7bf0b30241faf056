"""Rule files: read with their place named when they are broken; plug-ins are checked before they run."""

from __future__ import annotations

import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from avyay.errors import ConfigError
from avyay.raksha.checks.base import Check
from avyay.raksha.registry import PatternRules, load_checks


def test_rules_in_our_words(pattern_rules: PatternRules) -> None:
    rule = pattern_rules.rules["demo-eval"]
    assert (rule.severity, rule.cwe, rule.precision, rule.score) == ("critical", ("CWE-95",), "high", 9.5)
    assert pattern_rules.rules["demo-world"].severity == "medium"
    assert pattern_rules.rules["demo-shell"].aliases == ("bandit:B506",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules:\n  - id: [\n", r"r\.yaml:3: broken YAML"),
        ("hello", "no `rules:` list"),
        ("rules: []", "no `rules:` list"),
        ("rules: [{id: x}]", "without `id` or `languages`"),
        ("rules: [{id: x, languages: [python]}, {id: x, languages: [python]}]", "is taken"),
    ],
)
def test_broken_rule_files_name_themselves(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        _ = PatternRules((tmp_path,)).rules


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rules folder"):
        _ = PatternRules((tmp_path / "none",)).rules


def test_digest_follows_content(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("rules: [{id: x, languages: [python]}]")
    before = PatternRules((tmp_path,)).digest
    assert PatternRules((tmp_path,)).digest == before
    (tmp_path / "r.yaml").write_text("rules: [{id: y, languages: [python]}]")
    assert PatternRules((tmp_path,)).digest != before


def test_every_packaged_check_is_a_check() -> None:
    for name, check in load_checks(plugins=False).items():
        assert isinstance(check, Check), name


def test_packaged_rules_load() -> None:
    packaged = PatternRules()
    for path, _ in packaged.texts:
        assert path.suffix == ".yaml"
    if packaged.texts:
        assert packaged.rules


def plugin(monkeypatch: pytest.MonkeyPatch, **attributes: object) -> None:
    module = types.ModuleType("demo_check")
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, "demo_check", module)
    entry = metadata.EntryPoint("demo", "demo_check", "avyay.checks")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == "avyay.checks" else [])


def test_entry_points_add_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch, RULES=(), LANGUAGES=frozenset(), USES_PROJECT=False, run=lambda file, project: [])
    assert "demo" in load_checks()


def test_a_plugin_that_is_no_check_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(monkeypatch)
    with pytest.raises(ConfigError, match="is no check"):
        load_checks()
