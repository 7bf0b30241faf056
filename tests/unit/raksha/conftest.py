"""Small trees to scan, and a scanner of real engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from avyay.raksha.engines.bandit import BanditEngine
from avyay.raksha.engines.base import Engine
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.registry import PatternRules
from avyay.raksha.scan import CodeScanner

RULES = """\
rules:
  - id: demo-eval
    languages: [javascript, typescript]
    severity: ERROR
    message: Code is evaluated.
    metadata: {severity: critical, cwe: "CWE-95: Eval", precision: high, why: It runs text., bad: eval(x), good: f(x)}
    pattern: eval($X)
  - id: demo-shell
    languages: [python]
    severity: ERROR
    message: A shell runs $CMD.
    metadata: {severity: high, cwe: [CWE-78], aliases: ["bandit:B506"], fix: Pass a list.}
    pattern-either: [{pattern: "subprocess.run($CMD, shell=True)"}, {pattern: "yaml.load($CMD)"}]
  - id: demo-world
    languages: [regex]
    severity: WARNING
    message: World-writable.
    pattern-regex: chmod 777
"""

Write = Callable[[Mapping[str, str | bytes]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files (name -> content) below a fresh folder."""

    def writer(files: Mapping[str, str | bytes]) -> Path:
        root = tmp_path / "project"
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return writer


@pytest.fixture
def pattern_rules(tmp_path: Path) -> PatternRules:
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "demo.yaml").write_text(RULES)
    return PatternRules((folder,))


@pytest.fixture
def engines(pattern_rules: PatternRules) -> list[Engine]:
    return [SemgrepEngine(pattern_rules), BanditEngine()]


@pytest.fixture
def scanner(engines: list[Engine]) -> CodeScanner:
    return CodeScanner(engines)
