"""How hard a request is: request -> (score 0..1, reasons). Pure, and well under a millisecond.

A formula over the request's shape and wording. It is the first word, not the last: on public data no formula over a
prompt is far better than its length, so what is learned from the user's own traffic comes on top of it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from avyay.marga.view import RequestView

__all__ = ["Complexity", "score"]

_READ = 20_000  # characters of the last user turn that are looked at: the rest changes nothing but its length
_REASONING = re.compile(
    r"\b(prove|derive|design|architect\w*|trade-?offs?|analy[sz]e|compare|evaluate|diagnos\w+|debug|optimi[sz]e|refactor"
    r"|implement|algorithm|concurren\w+|distributed|race condition|root cause|step[ -]by[ -]step|strategy|migrat\w+"
    r"|theorem|explain why|threat model|formal\w*)\b",
    re.IGNORECASE,
)
_SIMPLE = re.compile(
    r"\b(classify|extract|translate|rephrase|summari[sz]e in one|yes or no|true or false|format (?:this|it|as)"
    r"|convert|fix the (?:typo|spelling)|spell|define|capital of|what is the (?:name|date)|one word|list the)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"```|\bdef \w+\(|\bclass \w+[:({]|\bfunction\b|=>|#include|\bSELECT\b.+\bFROM\b", re.DOTALL)
_MATH = re.compile(r"\\frac|\\int|\\sum|[∑∫√≤≥]|\b\d+\s*[-+*/^=]\s*\d+|\bequation\b|\bintegral\b|\bprobabilit")
_CONSTRAINT = re.compile(
    r"\b(must|should|ensure|at least|at most|without|exactly|only|never|no more than)\b|^\s*(?:[-*]|\d+[.)])\s",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Complexity:
    """The score, 0 (trivial) to 1 (as hard as they come), and what made it, strongest first."""

    score: float
    reasons: tuple[str, ...]


def score(view: RequestView) -> Complexity:
    """How complex a request is."""
    parts: list[tuple[float, str]] = []

    def add(amount: float, reason: str) -> None:
        if abs(amount) >= 0.005:
            parts.append((amount, f"{reason} {amount:+.2f}"))

    text = view.last_user[:_READ]
    length = len(view.last_user)
    if view.system_chars > 2000:
        add(0.3, f"system prompt of {view.system_chars} characters")
    add(min(0.05 * view.messages, 0.3), f"{view.messages} message{'s' * (view.messages != 1)}")
    if view.temperature is not None and view.temperature > 0.7:
        add(0.2, f"temperature {view.temperature:g}")
    if view.structured:
        add(-0.15, "structured output")
    add(max(0.0, min(0.4, 0.1 * math.log2(max(length, 1) / 60))), f"prompt of {length} characters")
    if words := {match.lower() for match in _REASONING.findall(text)}:
        add(min(0.42, 0.12 * len(words)), f"asks for reasoning ({', '.join(sorted(words)[:3])})")
    if _CODE.search(text):
        add(0.15, "contains code")
    if _MATH.search(text):
        add(0.1, "contains mathematics")
    if (constraints := len(_CONSTRAINT.findall(text))) > 2:
        add(min(0.15, 0.03 * constraints), f"{constraints} constraints")
    if view.tools:
        add(0.15, f"{view.tools} tools offered")
    if view.images:
        add(0.1, f"{view.images} images")
    if view.reasoning:
        add(0.3, "reasoning asked for")
    if (simple := _SIMPLE.search(text)) and length < 2000:
        add(-0.1, f"simple task ({simple[0].lower()})")
    total = max(0.0, min(1.0, sum(amount for amount, _ in parts)))
    parts.sort(key=lambda part: -abs(part[0]))
    return Complexity(round(total, 3), tuple(reason for _, reason in parts))
