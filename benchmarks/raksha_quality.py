"""Detection quality of `avyay scan`: labelled cases by category, and noise on code that others keep well.

python benchmarks/raksha_quality.py                 # the labelled cases of tests/fixtures/raksha/cases
python benchmarks/raksha_quality.py PATH...         # besides: warnings or worse per thousand lines of each tree
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from avyay.raksha.engines.bandit import BanditEngine
from avyay.raksha.engines.checks import ChecksEngine
from avyay.raksha.engines.semgrep import SemgrepEngine
from avyay.raksha.registry import PatternRules, load_checks
from avyay.raksha.scan import CodeScanner
from avyay.raksha.types import at_least

CASES = Path(__file__).parents[1] / "tests" / "fixtures" / "raksha" / "cases"
TESTS = ("**/tests/**", "**/test/**", "**/testdata/**", "**/*_test.go", "**/*.po", "**/*.dist-info/**")
CODE = (".py", ".js", ".jsx", ".mjs", ".ts", ".tsx", ".go")
OWN = {
    "hardcoded-credential": {"invented-secret", "private-key-in-source", "credential-in-connection-url"},
    "permissive-cors": {"permissive-cors-credentials"},
    "token-in-url": {"api-key-in-url"},
}


def scanner(*exclude: str) -> CodeScanner:
    engines = (ChecksEngine(load_checks(plugins=False)), SemgrepEngine(PatternRules()), BanditEngine())
    return CodeScanner(engines, exclude=exclude)


def cases(path: Path) -> Iterator[tuple[str, str, str]]:
    """(label, suffix, text) of each section of a case file."""
    for part in re.split(r"^=== ", path.read_text(), flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        label, suffix, _ = head.split(" ", 2)
        yield label, suffix, body.replace("<>", "")


def score_cases() -> None:
    print(f"{'category':22} {'bad':>4} {'found':>6} {'good':>5} {'wrong':>6} {'Youden':>7}")
    total = Counter[str]()
    for path in sorted(CASES.glob("*.txt")):
        count = Counter[str]()
        with tempfile.TemporaryDirectory() as folder:
            labels = {}
            for number, (label, suffix, text) in enumerate(cases(path)):
                name = f"{number}/case.{suffix}"
                Path(folder, name).parent.mkdir()
                Path(folder, name).write_text(text)
                labels[name] = label
            report = scanner().scan([Path(folder)])
            own = {path.stem} | OWN.get(path.stem, set())
            for name, label in labels.items():
                rules = {f.rule for f in report.findings if f.path == name and at_least(f.severity, "medium")}
                any_level = {f.rule for f in report.findings if f.path == name}
                count[label] += 1
                count[f"{label} hit"] += bool(own & any_level) if label == "bad" else bool(rules)
        total += count
        print(_row(path.stem, count))
    print(_row("all", total))


def _row(name: str, count: Counter[str]) -> str:
    youden = count["bad hit"] / max(count["bad"], 1) - count["good hit"] / max(count["good"], 1)
    return f"{name:22} {count['bad']:4} {count['bad hit']:6} {count['good']:5} {count['good hit']:6} {youden:7.3f}"


def score_noise(root: Path) -> None:
    tree = [path for path in root.rglob("*") if path.suffix in CODE and path.is_file()]
    kept = [path for path in tree if not re.search(r"/tests?/|/testdata/|_test\.go$", str(path))]
    lines = sum(path.read_bytes().count(b"\n") for path in kept)
    report = scanner(*TESTS).scan([root])
    loud = Counter(f.rule for f in report.findings if at_least(f.severity, "medium"))
    rate = 1000 * loud.total() / max(lines, 1)
    print(f"{root.name:12} {lines / 1000:8.1f} KLOC {loud.total():4} = {rate:.3f}/KLOC {dict(loud)}")


if __name__ == "__main__":
    score_cases()
    for argument in sys.argv[1:]:
        score_noise(Path(argument))
