"""What-if: decisions on record taken again under another configuration, and what they would have cost.

Deterministic: the same configuration gives every recorded decision again, from its stored features and conditions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import orjson

from avyay.errors import UsageError
from avyay.marga.complexity import score
from avyay.marga.cost import cost_of
from avyay.marga.router import Router
from avyay.marga.types import Candidate, Condition, Hints
from avyay.marga.view import RequestView
from avyay.money import ZERO, Picodollars

__all__ = ["Past", "ReplayReport", "Source", "ledger_calls", "read_usage", "replay"]

Source: TypeAlias = Literal["ledger", "openai", "litellm"]


@dataclass(frozen=True, slots=True)
class Past:
    """A call that was made. `choice` and `tier` are None where another router took the decision.

    `hit`: it was answered from the cache, and would be again where there is one.
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
        report.calls += 1
        report.before[past.served or "nobody"] += 1
        try:
            selection = router.decide_again(past.features, past.hints, past.complexity, past.conditions)
        except UsageError:
            selection = None
        chosen = selection.ranked[0].candidate if selection is not None and selection.ranked else None
        name = chosen.name if chosen is not None else "nobody"
        report.after[name] += 1
        if selection is not None and chosen is not None:
            report.tiers[selection.tier] += 1
        if past.choice is not None:
            report.decided += 1
            if past.choice == name and (selection is None or past.tier == selection.tier):
                report.same += 1
            elif len(report.changed) < examples:
                report.changed.append((past.id, past.choice, name))
        if chosen is None:
            report.unroutable += 1
            continue
        new = ZERO if past.hit and router.settings.cache.enabled else _cost(chosen, past)
        dearest = min((c for p in premium if (c := _cost(p, past)) is not None), default=None)
        if new is None or past.cost is None:
            report.unpriced += 1
            continue
        report.recorded_cost += past.cost
        report.new_cost += new
        report.premium_cost += dearest if dearest is not None else new
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


def read_usage(path: Path, source: Literal["openai", "litellm"], router: Router) -> Iterator[Past]:
    """Calls another tool wrote down, one JSON object a line (LiteLLM's may be one array).

    `openai`: `{model, usage: {prompt_tokens, completion_tokens, ...}, request?: {messages}, created?}`, as an
    application logs its replies. `litellm`: rows of LiteLLM_SpendLogs or of its request log. A line with messages is
    scored by them; one without is judged by its size, and so roughly.

    Raises:
        UsageError: the file cannot be read, or a line is no such row.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.", hint="Name a file of JSON lines.") from error
    lines: Iterable[Any] = data.splitlines()
    try:
        if data.lstrip()[:1] == b"[":
            lines = orjson.loads(data)
        for number, line in enumerate(lines, 1):
            if line == b"":
                continue
            row = orjson.loads(line) if isinstance(line, bytes) else line
            yield _openai(row, number, router) if source == "openai" else _litellm(row, number, router)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path}: not {source} usage as JSON lines ({type(error).__name__}: {error}).",
            hint="Each line needs a model and its token counts.",
        ) from error


def _openai(row: Mapping[str, Any], number: int, router: Router) -> Past:
    reply = row.get("response", row)
    reply = reply.get("body", reply)  # rows of the batch API
    usage = reply["usage"]
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    request = row.get("request") or row
    return _past(
        str(reply.get("id") or number),
        float(reply.get("created") or reply.get("created_at") or 0),
        str(reply["model"]),
        int(usage.get("prompt_tokens", usage.get("input_tokens", 0))),
        int(usage.get("completion_tokens", usage.get("output_tokens", 0))),
        int(details.get("cached_tokens") or 0),
        None,
        request.get("messages") or request.get("input"),
        router,
    )


def _litellm(row: Mapping[str, Any], number: int, router: Router) -> Past:
    spend = row.get("spend", row.get("response_cost"))
    at = row.get("startTime") or row.get("start_time") or 0
    messages = row.get("messages")
    return _past(
        str(row.get("request_id") or row.get("id") or number),
        float(at) if isinstance(at, int | float) else _time(str(at)),
        str(row["model"]),
        int(row.get("prompt_tokens") or 0),
        int(row.get("completion_tokens") or 0),
        int((row.get("metadata") or {}).get("usage_object", {}).get("cache_read_input_tokens") or 0)
        if isinstance(row.get("metadata"), dict)
        else 0,
        None if spend is None else Picodollars(round(float(spend) * 1e12)),
        messages if isinstance(messages, list) else None,
        router,
    )


def _time(text: str) -> float:
    from datetime import UTC, datetime

    found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _past(
    name: str,
    at: float,
    model: str,
    tokens_in: int,
    tokens_out: int,
    cached: int,
    cost: Picodollars | None,
    messages: Any,
    router: Router,
) -> Past:
    from avyay.marga.scoring import view_json

    if isinstance(messages, list) and messages:
        view = view_json({"messages": messages})
    elif isinstance(messages, str):
        view = view_json({"input": messages})
    else:
        view = RequestView("x" * min(4 * tokens_in, 100_000), chars=4 * tokens_in)
    if cost is None:
        known = router.catalogue.find(model.rpartition("/")[2], vendor=None)
        if known is not None:
            cost = cost_of(known, input_tokens=tokens_in, output_tokens=tokens_out, cache_read=cached)
    features = {**view.features(), "input_tokens": tokens_in}
    complexity = score(view).score
    return Past(name, at, model, cost, tokens_in, tokens_out, cached, 0, features, Hints(), complexity)
