"""Which candidates may see a request by the rules on personal data, and what is masked for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avyay.marga.compliance import PiiPolicy, judge_candidate
from avyay.marga.masking import Masker, scan_body
from avyay.marga.pii import PiiKind
from avyay.marga.types import Ranked

__all__ = ["Clearance", "clear"]


@dataclass(frozen=True, slots=True)
class Clearance:
    """The candidates that may see a request, what to mask by provider, and why the others may not see it."""

    ranked: tuple[Ranked, ...]
    maskers: Mapping[str, Masker]
    reasons: tuple[str, ...]


def clear(policy: PiiPolicy, body: dict[str, Any], ranked: Sequence[Ranked], key: str | None) -> Clearance:
    """Ask the rules about every candidate."""
    try:
        found: frozenset[PiiKind] | None = scan_body(body)
    except RecursionError:
        found = None  # fails closed
    if found is not None and not found:
        return Clearance(tuple(ranked), {}, ())  # nothing to ask about
    permitted: list[Ranked] = []
    maskers: dict[str, Masker] = {}
    reasons: set[str] = set()
    for entry in ranked:
        provider = entry.candidate.provider
        verdict = judge_candidate(policy, found, provider, key)
        if not verdict.allowed:
            reasons.add(verdict.reason)
            continue
        permitted.append(entry)
        if verdict.masked:
            maskers[provider.name] = Masker(verdict.masked, body)
    return Clearance(tuple(permitted), maskers, tuple(sorted(reasons)))
