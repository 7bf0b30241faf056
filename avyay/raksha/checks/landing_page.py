"""Landing pages for products that do not exist yet: nothing on them may be invented, and nobody else may look on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from avyay.claims import PAGE_GENERATOR, unproved_claims
from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile

CLAIM = Rule(
    id="landing-page-claim",
    title="Invented claim on a landing page",
    severity="medium",
    security_severity=4.0,
    cwe=("CWE-451",),
    owasp=("A04:2021",),
    precision="high",
    category="architecture",
    languages=("html",),
    why=(
        "A page that tests demand for something that does not exist has no users, prices or praise to show. Models"
        " write them anyway; shown to people who leave their address, they are deception, and unlawful in most places."
    ),
    bad="<p>Trusted by 2,000 teams.</p>",
    good="<p>We are thinking of a tool that would do this for you.</p>",
    fix="Say what it would do. Leave out users, prices, testimonials, numbers and superlatives.",
)
SILENT = Rule(
    id="landing-page-not-honest",
    title="Landing page does not say that the product does not exist",
    severity="medium",
    security_severity=4.0,
    cwe=("CWE-451",),
    owasp=("A04:2021",),
    precision="high",
    category="architecture",
    languages=("html",),
    why="Who leaves an address must know that there is nothing behind it yet.",
    bad="<form><button>Order</button></form>",
    good="<form><button>Tell me</button><small>This product does not exist yet.</small></form>",
    fix='Write "does not exist yet" beside the form.',
)
THIRD_PARTY = Rule(
    id="landing-page-script",
    title="Script on a landing page",
    severity="low",
    security_severity=3.1,
    cwe=("CWE-829",),
    owasp=("A08:2021",),
    precision="high",
    category="architecture",
    languages=("html",),
    why="These pages promise that nobody follows their visitors. A script, own or foreign, can break that promise.",
    bad='<script src="https://stats.example.com/t.js"></script>',
    good='<img src="https://collector.example.com/view.gif?token=..." alt="">',
    fix="Count visits with the collector's picture.",
)
RULES = (CLAIM, SILENT, THIRD_PARTY)
LANGUAGES = frozenset({"html"})
USES_PROJECT = False

_OURS = re.compile(rf'<meta\s+name="generator"\s+content="{PAGE_GENERATOR}"', re.IGNORECASE)
_UNSEEN = re.compile(r"<(style|script)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_SCRIPT = re.compile(r"<script\b|\son\w+\s*=|javascript:", re.IGNORECASE)
_FORM = re.compile(r"<form\b", re.IGNORECASE)


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    if not _OURS.search(file.text):
        return
    # What people read, at the places where it stands.
    words = _UNSEEN.sub(lambda match: " " * len(match[0]), file.text)
    for what, start, end in unproved_claims(words):
        yield file.finding(CLAIM, start, end, message=f"The page has {what}.")
    if (form := _FORM.search(file.text)) is not None and "does not exist yet" not in words:
        yield file.finding(SILENT, form.start(), form.end())
    for match in _SCRIPT.finditer(file.text):
        yield file.finding(THIRD_PARTY, match.start(), match.end())
