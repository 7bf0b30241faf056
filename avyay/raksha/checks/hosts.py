# ruff: noqa: E501 - long patterns read better whole
"""Addresses whose host does not exist. Asks the network, with `--online` only."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile

RULE = Rule(
    id="unresolvable-host",
    title="URL whose host does not exist",
    severity="medium",
    security_severity=5.0,
    cwe=("CWE-1188",),
    owasp=("A08:2021",),
    precision="medium",
    category="hallucination",
    languages=("python", "javascript", "typescript", "go", "yaml", "json"),
    online=True,
    why="Code generators invent addresses. Whoever registers the domain receives the requests, with what they carry.",
    bad='WEBHOOK = "https://hooks.acme-platform-events.io/v1/notify"',
    good='WEBHOOK = os.environ["WEBHOOK_URL"]',
    fix="Use the service's documented address, from configuration; list hosts of a private network under `raksha.allow.hosts`.",
)
RULES = (RULE,)
LANGUAGES = frozenset(RULE.languages)
USES_PROJECT = True

URL = re.compile(
    r"\b(?:https?|wss?|ftp)://(?:[^\s/@\"'`<>]*@)?([A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)+)(?![\w.-]*[{$%<])"
)
PRIVATE = re.compile(
    r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|local|internal|lan|corp|home|arpa|svc|cluster|docker|intranet|onion|schemas?)$|^\d+(?:\.\d+){3}$"
)
MOST = 200  # hosts of one file


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    resolver = project.resolver
    if resolver is None or file.is_test:
        return
    asked: set[str] = set()
    for match in URL.finditer(file.text):
        host = match.group(1).lower()
        if host in asked or PRIVATE.search(host) or len(asked) >= MOST or _allowed(host, project):
            continue
        asked.add(host)
        if resolver.host_exists(host) is False:
            yield file.finding(RULE, match.start(), match.end(), message=f"The host `{host}` does not exist.")


def _allowed(host: str, project: Project) -> bool:
    return any(
        host == entry or (entry.startswith("*.") and host.endswith(entry[1:])) for entry in project.allowed.hosts
    )
