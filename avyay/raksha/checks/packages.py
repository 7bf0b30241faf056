# ruff: noqa: E501 - long patterns read better whole
"""Dependencies that the registry does not know, or knows only since yesterday. Asks the network, with `--online` only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.project import Ecosystem

RULE = Rule(
    id="unknown-package",
    title="Dependency that the registry does not know",
    severity="high",
    security_severity=8.0,
    cwe=("CWE-1357",),
    owasp=("A06:2021", "A08:2021"),
    precision="high",
    category="hallucination",
    online=True,
    why=(
        "Code generators name packages that do not exist. The install fails, until somebody registers the name with code of"
        " his own."
    ),
    bad='dependencies = ["fastapi-security-headers-pro"]',
    good='dependencies = ["secure"]',
    fix="Look the package up, use the one that was meant, and pin it in a lock file.",
)
NEW_RULE = Rule(
    id="new-package",
    title="Dependency first released days ago",
    severity="medium",
    security_severity=5.5,
    cwe=("CWE-1357",),
    owasp=("A08:2021",),
    precision="low",
    category="hallucination",
    online=True,
    why="Names that generators invent are registered by attackers soon after. A package without history deserves a look.",
    bad='dependencies = ["a-package-registered-last-week"]',
    good='dependencies = ["requests"]',
    fix="Read the package and who publishes it before installing; prefer one with a history.",
)
RULES = (RULE, NEW_RULE)
LANGUAGES: frozenset[str] = frozenset()
USES_PROJECT = True

NEW_DAYS = 30
REQUIREMENT = re.compile(
    r"^[ \t]*([A-Za-z0-9][A-Za-z0-9._-]*)[ \t]*(?:\[[^\]\n]*\])?[ \t]*(?:[=<>~!;#]|$)(?![^\n]*(?:://|@ ))", re.M
)
QUOTED = re.compile(r"[\"']([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]\"']*\])?[ \t]*(?:(?:[=<>~!;][^\"']*)?)[\"']")
NPM = re.compile(
    r"\"((?:@[\w.-]+/)?[a-z0-9][\w.-]*)\"\s*:\s*\"(?!workspace:|file:|link:|git|https?:|github:|portal:|npm:|[./])[~^]?[\dx*<>=v]"
)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    resolver = project.resolver
    if resolver is None:
        return
    for ecosystem, name, start, end in _dependencies(file):
        if name.lower() in project.allowed.packages:
            continue
        facts = resolver.package(ecosystem, name)
        if facts is None:
            continue  # not known: no network, or a registry that did not answer
        if not facts.exists:
            yield file.finding(RULE, start, end, message=f"The registry knows no package `{name}`.")
        elif facts.first_released is not None and (_today() - facts.first_released).days < NEW_DAYS:
            yield file.finding(NEW_RULE, start, end, message=f"`{name}` was first released on {facts.first_released}.")


def _today() -> date:
    return datetime.now(UTC).date()


def _dependencies(file: SourceFile) -> Iterator[tuple[Ecosystem, str, int, int]]:
    base = file.name.rsplit("/", 1)[-1]
    text = file.text
    if base == "package.json":
        for section in re.finditer(r"\"(?:dev|peer|optional)?[dD]ependencies\"\s*:\s*\{([^}]*)\}", text):
            for match in NPM.finditer(section.group(1)):
                yield "npm", match.group(1), section.start(1) + match.start(1), section.start(1) + match.end(1)
    elif base == "pyproject.toml":
        for section in re.finditer(r"(?m)^(?:dependencies|requires|[\w-]+)\s*=\s*\[((?:[^\]\[]|\[[^\]]*\])*)\]", text):
            before = text[: section.start()]
            table = re.findall(r"(?m)^\[([^\]\n]+)\]", before)
            key = section.group(0).split("=")[0].strip()
            if not (
                (table and table[-1] in ("project.optional-dependencies", "dependency-groups"))
                or (key in ("dependencies", "requires") and table and table[-1] in ("project", "build-system"))
            ):
                continue
            for match in QUOTED.finditer(section.group(1)):
                if "://" not in match.group() and " @ " not in match.group():
                    yield "pypi", match.group(1), section.start(1) + match.start(1), section.start(1) + match.end(1)
    elif re.search(r"requirements?[\w.-]*\.(?:txt|in)$", base):
        for match in REQUIREMENT.finditer(text):
            yield "pypi", match.group(1), match.start(1), match.end(1)
