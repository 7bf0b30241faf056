"""What the console shows of each component, asked from the component as its daemon answers it.

A component that cannot be asked leaves its panel with the reason; the others are shown all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import orjson

from avyay.errors import AvyayError, UnreachableError
from avyay.marga.transport import TransportError
from avyay.money import DOLLAR
from avyay.serve.board import stages
from avyay.serve.console.chart import Bar, bar_chart
from avyay.serve.gateway.relay import Upstream

__all__ = ["DAYS", "Panel", "gather"]

DAYS = 14
_PATIENCE = 3.0  # seconds a component has for its panel
_DAY = 86_400
_CLEAR = ("high", "critical")

Ask: TypeAlias = Callable[[str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Values for a part of the page, or why there are none."""

    problem: str | None = None
    hint: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


async def gather(upstreams: Mapping[str, Upstream], now: float) -> dict[str, Panel]:
    """All panels, asked for side by side."""
    makers = {"marga": _marga, "rag": _rag, "raksha": _raksha, "engine": _engine, "siddhi": _siddhi}
    found = await asyncio.gather(*(_panel(upstreams[name], make, now) for name, make in makers.items()))
    return dict(zip(makers, found, strict=True))


async def _panel(upstream: Upstream, make: Callable[[Ask, float], Awaitable[Mapping[str, Any]]], now: float) -> Panel:
    async def ask(target: str) -> Any:
        try:
            status, body = await upstream.get(target, patience=_PATIENCE)
            if status != 200:
                raise UnreachableError(f"It answered {target} with HTTP {status}.")
            return orjson.loads(body)
        except (TransportError, TimeoutError, ValueError) as error:
            raise UnreachableError(f"It cannot be reached ({error or type(error).__name__}).") from error

    try:
        return Panel(data=await make(ask, now))
    except AvyayError as error:
        return Panel(error.message, f"avyay serve {upstream.name}")
    except (KeyError, TypeError, ValueError) as error:
        return Panel(f"It answered with something unexpected ({type(error).__name__}): is it of the same version?")


async def _marga(ask: Ask, now: float) -> Mapping[str, Any]:
    first = (int(now) // _DAY - (DAYS - 1)) * _DAY
    providers, spend, decisions = await asyncio.gather(
        ask("/marga/providers"), ask(f"/marga/spend?since={first}"), ask("/marga/decisions?limit=15")
    )
    by_day = {row["day"]: row for row in spend["days"]}
    bars = []
    for number in range(DAYS):
        day = datetime.fromtimestamp(first + number * _DAY, UTC)
        row = by_day.get(day.strftime("%Y-%m-%d"), {"cost": 0, "baseline": None, "calls": 0})
        cost, baseline = row["cost"] / DOLLAR, (row["baseline"] or 0) / DOLLAR
        told = f"{day:%d %b}: ${cost:.4f} for {row['calls']} calls"
        if baseline:
            told += f", ${baseline:.4f} had all gone to {spend['baseline_model']}"
        bars.append(Bar(f"{day:%d %b}", cost, baseline, told))
    spent, alone = sum(bar.value for bar in bars), sum(bar.whole for bar in bars)
    return {
        "providers": providers["providers"],
        "decisions": decisions["decisions"],
        "chart": bar_chart(bars, unit="$", title=f"Spend a day over {DAYS} days"),
        "spent": f"${spent:,.2f}" if spent >= 1 else f"${spent:.4f}",
        "saved": f"{1 - spent / alone:.0%}" if alone > spent else None,
        "baseline_model": spend["baseline_model"],
        "calls": sum(row["calls"] for row in spend["days"]),
    }


async def _rag(ask: Ask, now: float) -> Mapping[str, Any]:
    return {"sources": (await ask("/v1/sources"))["sources"]}


async def _raksha(ask: Ask, now: float) -> Mapping[str, Any]:
    found = await ask(f"/raksha/findings?since={int(now) - 30 * _DAY}")
    return {"stages": stages(found["severities"]), "newest": found["newest"]}


async def _engine(ask: Ask, now: float) -> Mapping[str, Any]:
    found = await ask("/v1/engine/tasks?limit=500")
    busy = [row for row in found["tasks"] if row["state"] in ("leased", "running", "verifying", "merging")]
    return {"stages": stages(found["counts"]), "busy": busy[:10]}


async def _siddhi(ask: Ask, now: float) -> Mapping[str, Any]:
    status, budget = await asyncio.gather(ask("/v1/siddhi/status"), ask("/v1/siddhi/budget"))
    total = next((row for row in budget["scopes"] if row["scope"] == "total"), None)
    return {"stages": stages(status["states"]), "halted": status["halted"], "total": total, "alarms": budget["alarms"]}
