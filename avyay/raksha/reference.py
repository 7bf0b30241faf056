"""The rules as a page of documentation; `docs/rules.md` is its output."""

from __future__ import annotations

from collections.abc import Iterable

from avyay.raksha.types import Rule

__all__ = ["render_reference", "render_rule"]

_HEAD = """\
# Rules of `avyay scan`

Written from the rules themselves by `scripts/write_rules_reference.py`; `avyay raksha explain ID` prints one section.
Severities: `critical` and `high` are errors, `medium` is a warning, `low` and `info` are notes.
"""
_CATEGORIES = {
    "hallucination": "What code generators invent",
    "architecture": "What works and should not be built",
    "pattern": "Textbook faults",
    "supply-chain": "Supply chain and configuration",
}
_FENCES = {"python": "python", "javascript": "js", "typescript": "ts", "go": "go", "dockerfile": "dockerfile", "yaml": "yaml", "terraform": "hcl"}  # fmt: skip  # noqa: E501


def render_rule(rule: Rule) -> str:
    """One rule's section: facts, why, bad, good, fix."""
    facts = [f"severity **{rule.severity}** ({rule.score:g})", f"precision {rule.precision}", f"engine {rule.engine}"]
    facts += [*rule.cwe, *(f"OWASP {item}" for item in rule.owasp)]
    if rule.languages:
        facts.append(", ".join(rule.languages))
    if rule.repair != "none":
        facts.append("`--fix`" if rule.repair == "safe" else "`--fix=unsafe`")
    if rule.online:
        facts.append("only with `--online`")
    if not rule.tests:
        facts.append("not in test code")
    fence = _FENCES.get(rule.languages[0], "") if rule.languages else "python"
    parts = [f"### {rule.id}", f"{rule.title}. " + " · ".join(facts), rule.why]
    for label, code in (("Bad", rule.bad), ("Good", rule.good)):
        if code:
            parts.append(f"{label}:\n\n```{fence}\n{code.rstrip()}\n```")
    if rule.fix:
        parts.append(f"Fix: {rule.fix}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def render_reference(rules: Iterable[Rule]) -> str:
    """The whole page, by category, then by id."""
    ordered = sorted(rules, key=lambda rule: rule.id)
    sections = [_HEAD]
    for category, title in _CATEGORIES.items():
        chosen = [rule for rule in ordered if rule.category == category]
        if chosen:
            sections.append(f"## {title}\n")
            sections.extend(render_rule(rule) for rule in chosen)
    return "\n".join(sections)
