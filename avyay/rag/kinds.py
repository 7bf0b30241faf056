"""What a section is for, told by its heading, and what a question asks for, told by its words."""

from __future__ import annotations

import re
from enum import IntEnum

__all__ = ["SectionKind", "asked_for", "is_rule", "section_kind"]


class SectionKind(IntEnum):
    """The parts that nearly all runbooks have."""

    OTHER = 0
    MEANING = 1
    IMPACT = 2
    DIAGNOSIS = 3
    MITIGATION = 4
    RULE = 5  # an alert rule: it says when to call somebody, not what to do then


HEADINGS = {
    SectionKind.MEANING: r"meaning|overview|descri|summary|about|introduction|background|what is|definition",
    SectionKind.IMPACT: r"impact|consequence|severity|effect|risk",
    SectionKind.DIAGNOSIS: r"diagnos|investigat|troubleshoot|debug|check|symptom|verif|identif|triage|inspect|analy|"
    r"cause",
    SectionKind.MITIGATION: r"mitigat|resol|fix|remed|recover|solution|action|repair|restor|workaround|procedure|steps|"
    r"escalat|rollback|clean|how to|response|treatment",
}
KIND_OF_HEADING = re.compile("|".join(rf"\b(?P<k{kind.value}>{words})" for kind, words in HEADINGS.items()))
QUESTIONS = {
    SectionKind.MEANING: r"what does .* mean|is (?:it|this|that) normal|what is (?:a|an|the)",
    SectionKind.IMPACT: r"what (?:happens|breaks|damage)|at risk|affected|consequences?|how bad|impact|dangerous",
    SectionKind.DIAGNOSIS: r"why|where (?:do|can) (?:i|we)|what (?:should|do) (?:i|we) (?:look|check)|which|look at|"
    r"check|find out|see why|what is wrong|root cause|debug|where to start",
    SectionKind.MITIGATION: r"how (?:do|can|could|should|would|to)|can (?:i|we)|what can|what now|fix|solve|get back|"
    r"get rid|bring back|recover|restore|workaround",
}
KIND_OF_QUESTION = {kind: re.compile(rf"\b(?:{words})\b") for kind, words in QUESTIONS.items()}


def is_rule(path: str) -> bool:
    """Whether a document is alert rules: of YAML, nothing else is indexed."""
    return path.lower().endswith((".yaml", ".yml"))


def section_kind(headings: str) -> SectionKind:
    """The kind that the last telling word in `headings` names; the innermost heading stands last."""
    found = SectionKind.OTHER
    for match in KIND_OF_HEADING.finditer(headings.lower()):
        found = SectionKind(int((match.lastgroup or "k0")[1:]))
    return found


def asked_for(question: str) -> frozenset[SectionKind]:
    """The kinds of section that a question asks for; none when it only describes."""
    return frozenset(kind for kind, words in KIND_OF_QUESTION.items() if words.search(question.lower()))
