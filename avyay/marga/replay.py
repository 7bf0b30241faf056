"""What-if: decisions on record taken again under another configuration, and what they would have cost.

Deterministic: the same configuration gives every recorded decision again, from its stored features and conditions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from avyay.errors import UsageError
from avyay.marga.cost import cost_of
from avyay.marga.router import Router
from avyay.marga.types import Candidate, Condition, Hints
from avyay.money import ZERO, Picodollars

__all__ = ["Past", "ReplayReport", "ledger_calls", "replay"]


@dataclass(frozen=True, slots=True)
class Past:
    """A call that was made. `choice` and `tier` are None where another router took the decision.

    `hit`: it was answered from the cache, and would be again where there is one. `count`: so many calls of this size,
    where a record adds them up.
    """

    id: str
    at: float
    served: str
    cost: Picodollars | None
    input: int
    output: int
    cached: int
    cache_written: int
    features: Mapping[str, Any]
    hints: Hints
    complexity: float
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    choice: str | None = None
    tier: str | None = None
    hit: bool = False
    count: int = 1


@dataclass(slots=True)
class ReplayReport:
    """What a configuration would have done. Costs in picodollars over the calls both could be priced for.

    Attributes:
        same: Decisions that come out as recorded, of those that have one on record (`decided`).
        changed: Examples of those that do not: (id, recorded, now).
        unroutable: Calls nobody in the new configuration could have taken.
        unpriced: Calls left out of the costs, because one side's price is not known.
    """

    calls: int = 0
    decided: int = 0
    same: int = 0
    unroutable: int = 0
    unpriced: int = 0
    recorded_cost: int = 0
    new_cost: int = 0
    premium_cost: int = 0
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    changed: list[tuple[str, str, str]] = field(default_factory=list)


def replay(router: Router, calls: Iterable[Past], *, examples: int = 20) -> ReplayReport:
    """Take every decision again with `router`'s configuration. Asks nobody."""
    report = ReplayReport()
    premium = [c for c in router.candidates() if c.model.tier == "premium"]
    for past in calls:
        report.calls += past.count
        report.before[past.served or "nobody"] += past.count
        try:
            selection = router.decide_again(past.features, past.hints, past.complexity, past.conditions)
        except UsageError:
            selection = None
        chosen = selection.ranked[0].candidate if selection is not None and selection.ranked else None
        name = chosen.name if chosen is not None else "nobody"
        report.after[name] += past.count
        if selection is not None and chosen is not None:
            report.tiers[selection.tier] += past.count
        if past.choice is not None:
            report.decided += 1
            if past.choice == name and (selection is None or past.tier == selection.tier):
                report.same += 1
            elif len(report.changed) < examples:
                report.changed.append((past.id, past.choice, name))
        if chosen is None:
            report.unroutable += past.count
            continue
        new = ZERO if past.hit and router.settings.cache.enabled else _cost(chosen, past)
        dearest = min((c for p in premium if (c := _cost(p, past)) is not None), default=None)
        if new is None or past.cost is None:
            report.unpriced += past.count
            continue
        report.recorded_cost += past.cost * past.count
        report.new_cost += new * past.count
        report.premium_cost += (dearest if dearest is not None else new) * past.count
    return report


def _cost(candidate: Candidate, past: Past) -> Picodollars | None:
    """What the call's tokens cost at a candidate; what was cached counts only where it was."""
    there = candidate.name == past.served or candidate.model.name == past.served
    return cost_of(
        candidate.model,
        input_tokens=past.input,
        output_tokens=past.output,
        cache_read=past.cached if there else 0,
        cache_write=past.cache_written if there else 0,
    )


def ledger_calls(rows: Iterable[Mapping[str, Any]]) -> Iterator[Past]:
    """The calls of our own ledger, rows with their parsed `detail`."""
    for row in rows:
        detail = row["detail"]
        if "input_tokens" not in detail["features"]:
            continue  # no completion: an embedding, a count
        first = detail["candidates"][0] if detail["candidates"] else None
        yield Past(
            id=row["id"],
            at=row["at"],
            served=f"{row['provider']}/{row['model']}" if row["model"] else "",
            cost=Picodollars(row["cost"]) if row["priced"] else None,
            input=row["input"],
            output=row["output"],
            cached=row["cached"],
            cache_written=row["cache_written"],
            features=detail["features"],
            hints=Hints(**detail["hints"]),
            complexity=row["complexity"],
            conditions={name: Condition(**condition) for name, condition in detail["conditions"].items()},
            choice=f"{first[0]}/{first[1]}" if first else "nobody",
            tier=row["decided_tier"],
            hit=row.get("cache") is not None,
        )
