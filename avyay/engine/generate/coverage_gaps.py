"""Code that changes often and is tested little: lines no test runs, times how often the file changes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable

from avyay.engine.generate.types import Found, Need, Site
from avyay.engine.knowledge.coverage import find_report, read_report
from avyay.engine.knowledge.languages import is_test

__all__ = ["CoverageGaps"]

_ENOUGH = 0.9
_FEWEST = 5
_MOST = 50


class CoverageGaps:
    """Files below 90 % with at least five untested lines, the riskiest first."""

    def find(self, site: Site) -> Found:
        path = find_report(site.root)
        if path is None:
            return Found.not_checked("no coverage report (coverage.json, coverage.xml or lcov.info)")
        report = read_report(path, site.root)
        churn = site.knowledge.churn(site.root)
        risky = []
        for name, file in report.files.items():
            if file.share < _ENOUGH and len(file.missing) >= _FEWEST and not is_test(name) and name in churn:
                risky.append((len(file.missing) * math.log1p(churn[name]), name, file))
        risky.sort(key=lambda row: (-row[0], row[1]))
        most = risky[0][0] if risky else 1.0
        needs = []
        for risk, name, file in risky[:_MOST]:
            goal = min(95, math.ceil(100 * (file.share + (1 - file.share) / 2)))
            spans = _spans(file.missing)
            listed = ", ".join(_shown(span) for span in spans[:40])
            needs.append(
                Need(
                    key=name,
                    title=f"Test {name}: {file.share:.0%} covered, changed {churn[name]} times",
                    description=f"No test runs {len(file.missing)} lines of {name}, and it changes often: {churn[name]}"
                    f" commits. Write tests of its behaviour until at least {goal} % are covered. Change the code"
                    f" itself only where a test shows a fault.\n\nLines: {listed}",
                    evidence=tuple(f"{name}:{first}" for first, _ in spans[:10]),
                    accept=_accept(site, name, goal),
                    files=(name, *site.knowledge.tests_of(site.root, [name])),
                    size="small" if len(file.missing) <= 20 else "medium" if len(file.missing) <= 120 else "large",
                    weight=risk / most,
                    allow=frozenset({"tests"}),
                )
            )
        return Found(tuple(needs), whole=len(risky) <= _MOST)


def _accept(site: Site, name: str, goal: int) -> str:
    if name.endswith(".py"):
        tests = site.tests if "pytest" in site.tests else "python -m pytest -q"
        module = tests.removeprefix("python -m ").strip()
        return f"coverage run -m {module} && coverage report --include={shlex.quote(name)} --fail-under={goal}"
    return site.tests


def _spans(lines: Iterable[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for line in sorted(lines):
        if spans and line == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], line)
        else:
            spans.append((line, line))
    return spans


def _shown(span: tuple[int, int]) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
