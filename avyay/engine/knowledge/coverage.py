"""Coverage reports as other tools write them: coverage.py's JSON, Cobertura XML, LCOV."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from avyay.errors import AvyayError

__all__ = ["REPORT_NAMES", "Coverage", "CoverageError", "FileCoverage", "find_report", "read_report"]

REPORT_NAMES = (
    "coverage.json",
    "coverage.xml",
    "lcov.info",
    "coverage/lcov.info",
    "htmlcov/coverage.json",
    "build/coverage.xml",
)


class CoverageError(AvyayError):
    """The report is not in a known format."""

    default_code = "coverage_report"


@dataclass(frozen=True, slots=True)
class FileCoverage:
    """One file: its executable lines, split; `tests` are the contexts that ran any of it, where the report tells."""

    covered: frozenset[int]
    missing: frozenset[int]
    tests: frozenset[str] = frozenset()

    @property
    def share(self) -> float:
        total = len(self.covered) + len(self.missing)
        return len(self.covered) / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """A report: paths relative to the repository."""

    source: str
    files: Mapping[str, FileCoverage]


def find_report(root: Path) -> Path | None:
    """The newest report in one of the usual places, or None."""
    present = [path for name in REPORT_NAMES if (path := root / name).is_file()]
    return max(present, key=lambda path: path.stat().st_mtime, default=None)


def read_report(path: Path, root: Path) -> Coverage:
    """Read a report.

    Raises:
        CoverageError: not a report, or one of another kind.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".json":
            files = _json(json.loads(text))
        elif path.suffix == ".xml":
            files = _cobertura(text)
        else:
            files = _lcov(text)
    except (ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError, OSError) as error:
        raise CoverageError(
            f"{path.name} is no coverage report that is understood: {error}.",
            hint="Write one with: coverage json, coverage xml, or an LCOV reporter.",
        ) from error
    return Coverage(path.name, {_relative(name, root): value for name, value in files.items()})


def _relative(name: str, root: Path) -> str:
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(root):
        path = path.relative_to(root)
    return path.as_posix().removeprefix("./")


def _json(data: Any) -> dict[str, FileCoverage]:
    found = {}
    for name, entry in data["files"].items():
        contexts = {test for tests in entry.get("contexts", {}).values() for test in tests if test}
        tests = frozenset(test.split("|", 1)[0] for test in contexts)
        found[name] = FileCoverage(frozenset(entry["executed_lines"]), frozenset(entry["missing_lines"]), tests)
    return found


def _cobertura(text: str) -> dict[str, FileCoverage]:
    if "<!ENTITY" in text:
        raise ValueError("it defines entities")
    root = ElementTree.fromstring(text)  # noqa: S314 - entities are refused above
    if root.tag != "coverage":
        raise ValueError(f"its root is <{root.tag}>")
    sources = [source.text or "" for source in root.iter("source")]
    hits: dict[str, dict[int, int]] = {}
    for item in root.iter("class"):
        name = item.get("filename", "")
        if len(sources) == 1 and not Path(name).is_absolute():
            name = str(Path(sources[0]) / name) if sources[0] else name
        lines = hits.setdefault(name, {})
        for line in item.iter("line"):
            number = int(line.get("number", "0"))
            lines[number] = max(lines.get(number, 0), int(line.get("hits", "0")))
    return {name: _split(lines) for name, lines in hits.items()}


def _lcov(text: str) -> dict[str, FileCoverage]:
    hits: dict[str, dict[int, int]] = {}
    lines: dict[int, int] | None = None
    for row in text.splitlines():
        if row.startswith("SF:"):
            lines = hits.setdefault(row[3:].strip(), {})
        elif (match := re.match(r"DA:(\d+),(\d+)", row)) and lines is not None:
            lines[int(match[1])] = max(lines.get(int(match[1]), 0), int(match[2]))
    if not hits:
        raise ValueError("no SF: line in it")
    return {name: _split(lines) for name, lines in hits.items()}


def _split(hits: Mapping[int, int]) -> FileCoverage:
    return FileCoverage(
        frozenset(line for line, count in hits.items() if count),
        frozenset(line for line, count in hits.items() if not count),
    )
