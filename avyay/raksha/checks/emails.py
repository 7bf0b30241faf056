# ruff: noqa: E501 - long patterns read better whole
"""E-mail addresses that nobody around this project uses."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

from avyay.raksha.checks.base import Finding, Project, Rule, SourceFile
from avyay.raksha.syntax.module import parse

RULE = Rule(
    id="fabricated-email",
    title="E-mail address nobody here uses",
    severity="medium",
    cwe=("CWE-1188",),
    owasp=("A04:2021",),
    precision="medium",
    category="hallucination",
    why=(
        "Code generators invent addresses that look right. Mail sent there is lost, bounces, or reaches whoever registers"
        " the mailbox or the domain: alerts, password resets and customers' data included."
    ),
    bad='ALERTS_TO = "oncall\x40acme-platform.io"',
    good='ALERTS_TO = os.environ["ALERTS_TO"]  # or "oncall@example.com" in a sample',
    fix=(
        "Take the address from configuration, use one that the project really owns, or a reserved domain (example.com,"
        " .test) in samples; list a real address under `raksha.allow.emails`."
    ),
)
RULES = (RULE,)
LANGUAGES: frozenset[str] = frozenset()
USES_PROJECT = True

ADDRESS = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._%+-]*[A-Za-z0-9_])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b"
)
RESERVED = re.compile(
    r"(?:^|\.)(?:example\.(?:com|net|org|edu)|example|test|invalid|localhost|local|internal|lan|corp|home|arpa)$"
)
NOT_A_DOMAIN = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "css",
        "scss",
        "less",
        "js",
        "mjs",
        "cjs",
        "jsx",
        "ts",
        "tsx",
        "vue",
        "json",
        "yaml",
        "yml",
        "toml",
        "xml",
        "html",
        "htm",
        "md",
        "txt",
        "tgz",
        "gz",
        "zip",
        "tar",
        "whl",
        "jar",
        "exe",
        "dll",
        "so",
        "log",
        "lock",
        "map",
        "min",
        "pdf",
        "csv",
        "sql",
        "sha",
        "sig",
        "asc",
        "py",
        "pyc",
        "go",
        "rb",
        "java",
        "php",
        "tmpl",
        "patch",
        "diff",
    ]
)
# Senders that stand for a service or an identity, not for a mailbox somebody reads.
SERVICES = re.compile(
    r"(?:@|\.)(?:users\.noreply\.github\.com|noreply\.github\.com|noreply\.gitlab\.com|gserviceaccount\.com"
    r"|apps\.googleusercontent\.com|ingest(?:\.\w+)?\.sentry\.io|s\.whatsapp\.net|[cg]\.us|group\.calendar\.google\.com|iam\.gserviceaccount\.com)$"
    r"|^(?:git|hg|svn|aur|gitolite3?)@|^noreply@(?:github|gitlab|anthropic|google|openai|cursor)\.com$|^(?:mailer-daemon|postmaster)@|^(?:github-)?actions?@github\.com$|^support@github\.com$"
)
CONTACT = re.compile(
    r"(?i)author|maintain|contact|\bmail|e-?mail|report|support|reach|\bsend|\bwrite|notif|question|\bask\b|owner|by\b"
)
LEGAL = re.compile(r"(?i)copyright|\(c\)\s|©|spdx|licen[cs]e")
PROGRAMS = frozenset({"python", "javascript", "typescript", "go"})
PROSE = re.compile(
    r"(?:^|/)(?:[^/]*\.(?:md|mdx|rst|txt|po|pot|adoc|svg|lock|min\.js|min\.css|ipynb|csv|tsv|mailmap|patch|diff|srt|bib|cff|map|ai|eps|ps|pdf)"
    r"|(?:AUTHORS|CHANGE\w*|HISTORY|LICEN[CS]E\w*|COPYING|NOTICE|THANKS|CONTRIBUTORS|MAINTAINERS|CODEOWNERS|README)[^/]*"
    r"|package-lock\.json|pnpm-lock\.yaml|go\.sum|composer\.lock)$",
    re.IGNORECASE,
)
SAMPLES = frozenset(
    {
        "docs",
        "doc",
        "docs_src",
        "examples",
        "example",
        "samples",
        "locale",
        "i18n",
        "locales",
        "vendor",
        "issue_template",
    }
)
PLACEHOLDER = re.compile(
    r"(?i)(?:placeholder|example|e\.g\.|pattern|help_?text|hint|format)[\"']?\s*(?:[=:({]|=>)*\s*[\"'`{]*[^\"'`\n]*$"
)
METADATA = frozenset(
    {
        "package.json", "pyproject.toml", "setup.py", "setup.cfg", "composer.json", "Cargo.toml", "cargo.toml",
        "pom.xml", "Chart.yaml",
    }
)  # fmt: skip
STAND_IN = re.compile(
    r"^(?:my|your)[-_.]|^(?:foo|example|username|firstname|first\.last)@|^yourdomain\.|(?:^|[-.])x{2,}(?:[-.]|$)"
)
LOGIN = re.compile(r"(?:^|[\s\"'`$(])(?:ssh|scp|sftp|rsync|mosh|sshfs|ssh-copy-id|ansible_host)\b[^\n|;&]*$")


def run(file: SourceFile, project: Project) -> Iterator[Finding]:
    text = file.text
    if "@" not in text or file.is_test or PROSE.search(file.name):
        return
    parts = file.name.split("/")
    if parts[-1] in METADATA or any(part.lower() in SAMPLES for part in parts[:-1]):
        return
    seen: set[str] = set()
    for match in _addresses(text):
        address = match.group().lower()
        if address in seen or not _is_address(text, match.start(), match.end(), address):
            continue
        line = text[text.rfind("\n", 0, match.start()) + 1 : text.find("\n", match.end()) % (len(text) + 1)]
        if _is_known(address, project) or LEGAL.search(line):
            continue
        if (
            file.language in PROGRAMS
            and not CONTACT.search(line.replace(match.group(), ""))
            and _is_remark(file, match.start())
        ):
            continue  # an illustration, not an address anybody writes to
        seen.add(address)
        yield file.finding(
            RULE,
            match.start(),
            match.end(),
            message=f"`{match.group()}` appears in no commit, owners' file, package metadata or allow-list of this project.",
        )


def _addresses(text: str) -> Iterator[re.Match[str]]:
    """What looks like an address; only lines with an @ are looked at."""
    at = text.find("@")
    while at >= 0:
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        yield from ADDRESS.finditer(text, text.rfind("\n", 0, at) + 1, end)
        at = text.find("@", end)


def _is_address(text: str, start: int, end: int, address: str) -> bool:
    local, _, domain = address.partition("@")
    if RESERVED.search(domain) or domain.rsplit(".", 1)[-1] in NOT_A_DOMAIN or SERVICES.search(address):
        return False
    if STAND_IN.search(local + "@") or STAND_IN.search(domain):
        return False
    before = text[max(0, start - 120) : start]
    line = before.rsplit("\n", 1)[-1]
    word = re.split(r"[\s\"'`<>(),;=]", line)[-1]
    if "://" in word or (word and not word.endswith(":")) or local.startswith("%"):
        return False  # part of a URL, a handle, a pattern or a template
    after = text[end : end + 2]
    if after[:1] in ("/", "@", "\\", "{", "[", "(") or (
        after[:1] == ":" and after[1:2] not in ("", " ", "\n", '"', "'")
    ):
        return False
    if after[:1] == "." and after[1:2].isalnum():
        return False
    return not PLACEHOLDER.search(line) and not LOGIN.search(line)


def _is_remark(file: SourceFile, offset: int) -> bool:
    """Whether a place lies in a comment or a docstring."""
    tokens = parse(file.text, file.language).tokens
    index = bisect.bisect_right(tokens, offset, key=lambda token: token.start) - 1
    if index < 0 or tokens[index].end <= offset:
        return True
    token = tokens[index]
    following = tokens[index + 1] if index + 1 < len(tokens) else None
    alone = token.first and (following is None or following.first)
    return (
        file.language == "python"
        and token.kind == "string"
        and alone
        and token.text.lstrip("rRuU")[:3] in ('"""', "'''")
    )


def _is_known(address: str, project: Project) -> bool:
    known = project.known_emails
    if address in known:
        return True
    local, _, domain = address.partition("@")
    if f"{local.split('+')[0]}@{domain}" in known:
        return True
    allowed = project.allowed.emails
    return f"*@{domain}" in allowed or any(entry.startswith("*.") and domain.endswith(entry[1:]) for entry in allowed)
