"""A repair is written only when the file still parses, the finding is gone and none is new."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.raksha.baseline import Baseline
from avyay.raksha.engines.bandit import BanditEngine
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.files import collect
from avyay.raksha.fix import Fixes, apply_edits, plan_fixes
from avyay.raksha.registry import PatternRules
from avyay.raksha.scan import CodeScanner
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Edit

RULES = """\
rules:
  - id: demo-yaml
    languages: [python]
    severity: ERROR
    message: Unsafe loader.
    metadata: {cwe: CWE-502, aliases: ["bandit:B506"], fix-safety: safe}
    pattern: yaml.load($X)
    fix: yaml.safe_load($X)
  - id: demo-breaks
    languages: [python]
    severity: ERROR
    message: The repair is no Python.
    metadata: {fix-safety: safe}
    pattern: broken($X)
    fix: "broken((("
  - id: demo-stays
    languages: [python]
    severity: ERROR
    message: The repair repairs nothing.
    metadata: {fix-safety: safe}
    pattern: stays(...)
    fix: stays(1, 2)
  - id: demo-worse
    languages: [python]
    severity: ERROR
    message: The repair brings another fault.
    metadata: {fix-safety: safe}
    pattern: worse($X)
    fix: stays($X)
  - id: demo-unsafe
    languages: [python]
    severity: ERROR
    message: Changes what callers see.
    pattern: risky($X)
    fix: careful($X)
"""


@pytest.fixture
def fixer(tmp_path: Path) -> CodeScanner:
    (tmp_path / "rules.yaml").write_text(RULES)
    return CodeScanner([SemgrepEngine(PatternRules((tmp_path / "rules.yaml",))), BanditEngine()])


def plan(scanner: CodeScanner, root: Path, *, unsafe: bool = False) -> Fixes:
    files = {file.name: file for file in collect([root]).files}
    return plan_fixes(scanner.scan([root]), files, scanner, unsafe=unsafe)


def test_repairs_keep_the_declared_encoding(fixer: CodeScanner, write) -> None:
    text = "# coding: latin-1\nimport yaml\ns = 'é'; a = yaml.load(f)\n"
    wide = "\ufeffimport yaml\ns = 'é'; a = yaml.load(f)\n"
    root = write(
        {"a.py": text.encode("latin-1"), "b.py": wide.encode("utf-16-le"), "c.py": b"# caf\xe9\nyaml.load(f)\n"}
    )
    fixes = plan(fixer, root)
    for item in fixes.files:
        item.write()
    assert (root / "a.py").read_bytes() == text.replace("load", "safe_load").encode("latin-1")
    assert (root / "b.py").read_bytes() == wide.replace("load", "safe_load").encode("utf-16-le")
    assert [(finding.path, reason) for finding, reason in fixes.refused] == [("c.py", "the file is not UTF-8")]


def test_safe_repairs(fixer: CodeScanner, write) -> None:
    text = "\ufeffimport yaml\r\n\r\ns = 'é'; a = yaml.load(f)\r\nb = yaml.load(\r\n    g,\r\n)\r\nrisky(1)\r\n"
    root = write({"a.py": text, "b.py": "x = 1\n"})
    (root / "a.py").chmod(0o750)
    fixes = plan(fixer, root)
    (item,) = fixes.files
    assert (root / "a.py").read_bytes() == text.encode(), "nothing is written by planning"
    assert "-s = 'é'; a = yaml.load(f)" in item.diff
    item.write()
    after = (root / "a.py").read_bytes().decode()
    assert after.startswith("\ufeffimport yaml\r\n\r\ns = 'é'; a = yaml.safe_load(f)\r\nb = yaml.safe_load(")
    assert after.endswith("risky(1)\r\n")
    assert (root / "a.py").stat().st_mode & 0o777 == 0o750
    assert [f.rule for f in fixer.scan([root]).findings] == ["demo-unsafe"]
    assert not plan(fixer, root).files, "a second time there is nothing to do"
    assert sorted(path.name for path in root.iterdir()) == ["a.py", "b.py"]


def test_unsafe_repairs_are_asked_for(fixer: CodeScanner, write) -> None:
    root = write({"a.py": "risky(1)\n"})
    assert not plan(fixer, root).files
    assert plan(fixer, root, unsafe=True).files[0].text == "careful(1)\n"


def test_repairs_that_do_not_prove_themselves_are_left_out(fixer: CodeScanner, write) -> None:
    root = write({"a.py": "import yaml\nbroken(1)\nstays(1)\nworse(1)\nyaml.load(f)\n"})
    fixes = plan(fixer, root)
    assert fixes.files[0].text == "import yaml\nbroken(1)\nstays(1)\nworse(1)\nyaml.safe_load(f)\n"
    assert {finding.rule for finding, _ in fixes.refused} == {"demo-breaks", "demo-stays", "demo-worse"}


def test_a_file_that_changed_meanwhile_is_left_alone(fixer: CodeScanner, write) -> None:
    root = write({"a.py": "import yaml\nyaml.load(f)\n"})
    (item,) = plan(fixer, root).files
    (root / "a.py").write_text("other")
    with pytest.raises(OSError, match="changed meanwhile"):
        item.write()
    assert (root / "a.py").read_text() == "other"


def test_what_a_baseline_holds_back_does_not_stand_in_the_way(fixer: CodeScanner, write) -> None:
    root = write({"a.py": "import yaml\nrisky(1)\n"})
    baseline = Baseline(frozenset(finding.fingerprint for finding in fixer.scan([root]).findings))
    root = write({"a.py": "import yaml\nrisky(1)\nyaml.load(f)\n"})
    files = {file.name: file for file in collect([root]).files}
    fixes = plan_fixes(fixer.scan([root], baseline=baseline), files, fixer, unsafe=False)
    assert fixes.files[0].text.endswith("yaml.safe_load(f)\n")


def test_odd_bytes_are_not_rewritten(fixer: CodeScanner, write) -> None:
    root = write({"a.py": b"# \xff\nimport yaml\nyaml.load(f)\n"})
    fixes = plan(fixer, root)
    assert not fixes.files
    assert [reason for _, reason in fixes.refused] == ["the file is not UTF-8"]


def test_edits_that_overlap_or_miss_are_refused() -> None:
    file = SourceFile("a.py", b"abc\ndef\n", "python")
    assert apply_edits(file, [Edit(1, 1, 1, 3, "x"), Edit(1, 2, 1, 4, "y")]) is None
    assert apply_edits(file, [Edit(9, 1, 9, 3, "x")]) is None
    assert apply_edits(file, [Edit(1, 1, 1, 2, "X"), Edit(1, 1, 1, 2, "X"), Edit(2, 3, 2, 4, "F")]) == "Xbc\ndeF\n"
    assert apply_edits(file, [Edit(1, 4, 2, 1, " ")]) == "abc def\n"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.text("xyz\n", max_size=3)), max_size=6))
def test_edits_are_independent_of_their_order(edits: list[tuple[int, int, str]]) -> None:
    file = SourceFile("a.txt", b"one two\nthree four\nfive six\n", "text")
    made = []
    for start, length, text in edits:
        end = min(start + length, len(file.text))
        line, column = file.position(min(start, end))
        end_line, end_column = file.position(end)
        made.append(Edit(line, column, end_line, end_column, text))
    assert apply_edits(file, made) == apply_edits(file, list(reversed(made)))
