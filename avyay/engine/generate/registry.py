"""The sources of evidence by name, loaded when asked for. Their order is their rank when the limit is short."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from avyay.engine.generate.types import Source
from avyay.errors import UsageError

__all__ = ["RANK", "SOURCES", "load_source"]

SOURCES: dict[str, str] = {
    "tests": "avyay.engine.generate.failing_tests:FailingTests",
    "findings": "avyay.engine.generate.scan_findings:ScanFindings",
    "anomalies": "avyay.engine.generate.anomalies:Anomalies",
    "types": "avyay.engine.generate.type_errors:TypeErrors",
    "issues": "avyay.engine.generate.github_issues:GitHubIssues",
    "lint": "avyay.engine.generate.lint:Lint",
    "dependencies": "avyay.engine.generate.dependencies:Dependencies",
    "coverage": "avyay.engine.generate.coverage_gaps:CoverageGaps",
    "todo": "avyay.engine.generate.todo:Todo",
}
RANK: dict[str, int] = {name: 10 * (len(SOURCES) - place) for place, name in enumerate(SOURCES)}
"""The priority that a source's tasks begin from."""


def load_source(name: str) -> Source:
    """The source of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in SOURCES:
        raise UsageError(f"There is no source {name!r}.", hint=f"Sources are: {', '.join(SOURCES)}.")
    module, _, attribute = SOURCES[name].partition(":")
    made: Source = getattr(import_module(module), attribute)()
    return made


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """The named sources, by default all.

    Raises:
        UsageError: one of them does not exist.
    """
    for name in names:
        if name not in SOURCES:
            raise UsageError(f"There is no source {name!r}.", hint=f"Sources are: {', '.join(SOURCES)}.")
    return tuple(names) or tuple(SOURCES)
