"""Markdown: a rule's page, and a scan's summary for pull requests."""

from __future__ import annotations

from avyay.raksha.types import Rule

__all__ = ["explain_rule"]


def explain_rule(rule: Rule) -> str:
    """The page of a rule: `avyay raksha explain ID` prints it, the reference documentation is made of it."""
    facts = [f"severity {rule.severity}", f"precision {rule.precision}", *rule.cwe, *rule.owasp]
    facts.append(", ".join(rule.languages) if rule.languages else "any text file")
    parts = [f"## {rule.id}", f"**{rule.title}** ({'; '.join(facts)})", rule.why.strip()]
    if rule.bad:
        parts += ["Found:", _code(rule.bad)]
    if rule.good:
        parts += ["Not found:", _code(rule.good)]
    if rule.fix:
        parts.append(f"Fix: {rule.fix}")
    if rule.online:
        parts.append("Asks the network; runs only with `--online`.")
    return "\n\n".join(parts) + "\n"


def _code(text: str) -> str:
    return "\n".join(("```", text.rstrip(), "```"))
