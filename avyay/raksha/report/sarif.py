"""The report as SARIF 2.1.0, as GitHub code scanning and the SARIF validators want it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sarif_om as om

from avyay import __version__
from avyay.raksha.types import Finding, Report, Rule, Severity, Skipped, Suppressed

__all__ = ["sarif_document", "write_sarif"]

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
HELP = "https://github.com/avyay-ai/avyay/blob/main/docs/rules.md"
BASE = "%SRCROOT%"
LEVELS: dict[Severity, str] = {
    "critical": "error", "high": "error", "medium": "warning", "low": "note", "info": "note",
}  # fmt: skip
# GitHub takes 25,000 results a run, shows 5,000, and reads files up to 10 MB compressed.
MAXIMUM_RESULTS = 25_000
MAXIMUM_BYTES = 10_000_000


def sarif_document(
    report: Report, *, shown: Sequence[Finding] | None = None, top: Path | None = None
) -> dict[str, Any]:
    """The report as a SARIF log within GitHub's limits; what they leave no room for is told in a notification.

    Args:
        shown: What `--severity` lets through; by default everything.
        top: The folder that paths are relative to (the repository's top); by default the scan root.
    """
    findings = list(report.findings if shown is None else shown)
    room = MAXIMUM_RESULTS
    while True:
        document = _document(report, findings, room, top)
        if _compressed(document) <= MAXIMUM_BYTES or room <= 1:
            return document
        room //= 2


def _compressed(document: dict[str, Any]) -> int:
    """The size of the log as it is uploaded, in bytes; of a small one, its size as it is."""
    text = json.dumps(document, ensure_ascii=False, indent=2).encode("utf-8", "replace")
    return len(text) if len(text) <= MAXIMUM_BYTES else len(gzip.compress(text, 6))


def _document(report: Report, all_findings: Sequence[Finding], room: int, top: Path | None) -> dict[str, Any]:
    findings = all_findings[:room]  # the worst come first
    suppressed = report.suppressed[: room - len(findings)]
    skipped = list(report.skipped)
    left_out = len(all_findings) + len(report.suppressed) - len(findings) - len(suppressed)
    if left_out:
        skipped.append(Skipped(".", f"{left_out:,} results are left out here: GitHub takes no more of them", "sarif"))
    used = {finding.rule for finding in findings} | {item.finding.rule for item in suppressed}
    rules = [rule for rule in report.rules if rule.id in used]
    index = {rule.id: number for number, rule in enumerate(rules)}
    prefix = _prefix(report.root, top)
    results = [_result(finding, index, prefix) for finding in findings]
    results += [_suppressed(item, index, prefix) for item in suppressed]
    run = om.Run(
        tool=om.Tool(
            driver=om.ToolComponent(
                name="RAKSHA",
                full_name=f"Avyay RAKSHA {__version__}",
                version=__version__,
                semantic_version=__version__,
                information_uri="https://github.com/avyay-ai/avyay",
                rules=[_rule(rule) for rule in rules],
            ),
            extensions=[
                om.ToolComponent(name=name, version=version)
                for name, version in report.engines.items()
                if name != "checks"
            ]
            or None,
        ),
        invocations=[
            om.Invocation(
                execution_successful=all(item.path for item in report.skipped),  # no engine failed as a whole
                tool_execution_notifications=[_notification(item, prefix) for item in skipped] or None,
            )
        ],
        original_uri_base_ids={BASE: om.ArtifactLocation(description=om.Message(text="The top of the repository."))},
        results=results,
        column_kind="unicodeCodePoints",
        automation_details=om.RunAutomationDetails(id="raksha/"),
    )
    log: dict[str, Any] = _plain(om.SarifLog(runs=[run], version="2.1.0", schema_uri=SCHEMA))
    return log


def write_sarif(path: Path, report: Report, *, shown: Sequence[Finding] | None = None, top: Path | None = None) -> None:
    """Write the SARIF log whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(sarif_document(report, shown=shown, top=top), ensure_ascii=False, indent=2)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(f"{text}\n", encoding="utf-8", errors="replace")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _prefix(root: Path, top: Path | None) -> str:
    if top is None or not root.is_relative_to(top):
        return ""
    relative = root.relative_to(top).as_posix()
    return "" if relative == "." else f"{relative}/"


def _uri(prefix: str, name: str) -> str:
    return quote(os.fsencode(f"{prefix}{name}"), safe="/~!$&'()*+,;=@")


def _rule(rule: Rule) -> Any:
    text = "\n\n".join(part for part in (rule.why, f"Fix: {rule.fix}" if rule.fix else "") if part) or rule.title
    example = f"\n\n**Instead of**\n\n```\n{rule.bad}\n```\n\n**write**\n\n```\n{rule.good}\n```" if rule.bad else ""
    tags = ["security", *(f"external/cwe/{cwe.lower()}" for cwe in rule.cwe), *(f"owasp/{name}" for name in rule.owasp)]
    return om.ReportingDescriptor(
        id=rule.id,
        name=_name(rule.id),
        short_description=om.MultiformatMessageString(text=_sentence(rule.title)),
        full_description=om.MultiformatMessageString(text=_sentence(rule.why or rule.title)[:1000]),
        help=om.MultiformatMessageString(text=text, markdown=f"{text}{example}"),
        help_uri=f"{HELP}#{rule.id}",
        default_configuration=om.ReportingConfiguration(level=LEVELS[rule.severity]),
        properties={
            "tags": tags,
            "precision": rule.precision,
            "problem.severity": {"error": "error", "warning": "warning", "note": "recommendation"}[
                LEVELS[rule.severity]
            ],
            "security-severity": f"{rule.score:.1f}",
        },
    )


def _name(rule_id: str) -> str | None:
    name = "".join(word.capitalize() for word in rule_id.replace("_", "-").split("-"))
    return None if name.lower() == rule_id.lower() else name  # a name must say more than the id


def _sentence(text: str) -> str:
    stripped = " ".join(text.split())
    return stripped if stripped.endswith((".", "!", "?")) else f"{stripped}."


def _location(finding: Finding, prefix: str) -> Any:
    uri = _uri(prefix, finding.path)
    return om.Location(
        physical_location=om.PhysicalLocation(
            artifact_location=om.ArtifactLocation(uri=uri, uri_base_id=BASE),
            region=om.Region(
                start_line=finding.line,
                start_column=finding.column,
                end_line=finding.end_line,
                end_column=finding.end_column,
                snippet=om.ArtifactContent(text=finding.snippet) if finding.snippet else None,
            ),
        )
    )


def _result(finding: Finding, index: dict[str, int], prefix: str) -> Any:
    return om.Result(
        rule_id=finding.rule,
        rule_index=index.get(finding.rule, -1),
        level=LEVELS[finding.severity],
        message=om.Message(text=_sentence(finding.message)),
        locations=[_location(finding, prefix)],
        partial_fingerprints={"primaryLocationLineHash": finding.fingerprint, "raksha/v1": finding.fingerprint},
        properties={
            "origins": list(finding.origins),
            "severity": finding.severity,
            **({"triage": finding.triage.verdict, "reason": finding.triage.reason} if finding.triage else {}),
        },
    )


def _suppressed(item: Suppressed, index: dict[str, int], prefix: str) -> Any:
    result = _result(item.finding, index, prefix)
    kind = "inSource" if item.by == "inline" else "external"
    result.suppressions = [om.Suppression(kind=kind, justification=item.reason or item.by)]
    return result


def _notification(item: Skipped, prefix: str) -> Any:
    location = om.Location(
        physical_location=om.PhysicalLocation(
            artifact_location=om.ArtifactLocation(uri=_uri(prefix, item.path), uri_base_id=BASE)
        )
    )
    said = "" if item.engine == "sarif" else "Could not check: "
    engine = f" ({item.engine})" if item.engine and said else ""
    return om.Notification(
        message=om.Message(text=_sentence(f"{said}{item.reason.rstrip('.')}{engine}")),
        level="warning" if item.path else "error",
        locations=[location] if item.path and said else None,
    )


def _plain(value: Any) -> Any:
    """sarif_om objects as JSON data, without what is at its default."""
    if hasattr(value, "__attrs_attrs__"):
        data: dict[str, Any] = {}
        for attribute in value.__attrs_attrs__:
            inner = getattr(value, attribute.name)
            if inner is None or (inner == attribute.default and attribute.name not in _ALWAYS):
                continue
            data[attribute.metadata["schema_property_name"]] = _plain(inner)
        return data
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


_ALWAYS = frozenset({"version", "level", "kind", "execution_successful", "column_kind"})
