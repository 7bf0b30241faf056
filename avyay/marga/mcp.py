"""The router's records as tools for agents: what was spent, how fast it was, why it chose a model, what is unusual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio.to_thread
from mcp.server.fastmcp.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from avyay.errors import AvyayError
from avyay.money import Picodollars, usd_string

if TYPE_CHECKING:
    from mcp.server.fastmcp import FastMCP

    from avyay.marga.records import Records

__all__ = ["INSTRUCTIONS", "register"]

INSTRUCTIONS = (
    "Records of the LLM router, read only. marga_stats adds up calls, cost, error rates and latency percentiles by"
    " group and period; marga_decisions lists decisions; marga_explain shows the reasons of one; marga_anomalies says"
    " what its own past does not explain. Times are seconds, money USD."
)
READ_ONLY = ToolAnnotations(readOnlyHint=True, destructiveHint=False, idempotentHint=True, openWorldHint=False)
Hours = Annotated[float, Field(gt=0, le=24 * 366, description="How far back: 24 is a day, 168 a week.")]
Grouping = Literal[
    "model", "provider", "tier", "key", "service", "customer", "session", "class", "status", "cache", "day", "hour"
]


class GroupModel(BaseModel):
    """Totals of one group."""

    group: str
    calls: int
    errors: int
    error_rate: float
    input_tokens: int
    output_tokens: int
    cost_usd: str
    p50_seconds: float
    p95_seconds: float
    cache_hits: int = Field(description="Calls answered from the cache, at no cost.")
    saved_usd: str = Field(description="What those answers had cost.")


class StatsModel(BaseModel):
    """Totals over a period. `latency` is over all calls: of deciding, of the first byte, of whole calls."""

    by: str
    hours: float
    groups: list[GroupModel]
    latency: dict[str, dict[str, float | None]]


class DecisionsModel(BaseModel):
    """Decisions, newest first; no text of any request."""

    decisions: list[dict[str, Any]]


class DecisionModel(BaseModel):
    """One decision with everything that is on record."""

    decision: dict[str, Any]


class AnomalyModel(BaseModel):
    """Something unusual in the newest hour."""

    series: str
    signal: Literal["latency", "error_rate", "spend"]
    at: str
    value: float
    expected: float
    deviations: float
    sentence: str


class AnomaliesModel(BaseModel):
    """Everything unusual; empty when all is as ever, or when there is too little past to tell."""

    anomalies: list[AnomalyModel]


def register(server: FastMCP, records: Records) -> None:
    """Add the router's tools to an MCP server."""

    @server.tool(title="Router statistics", annotations=READ_ONLY, structured_output=True)
    async def marga_stats(by: Grouping = "provider", hours: Hours = 24.0) -> StatsModel:
        """Count calls, cost, error rates and latency by group, and latency percentiles of routing decisions."""

        def work() -> StatsModel:
            groups = [
                GroupModel(
                    group=row.group,
                    calls=row.calls,
                    errors=row.errors,
                    error_rate=row.errors / row.calls,
                    input_tokens=row.input,
                    output_tokens=row.output,
                    cost_usd=usd_string(Picodollars(row.cost)),
                    p50_seconds=row.p50,
                    p95_seconds=row.p95,
                    cache_hits=row.hits,
                    saved_usd=usd_string(Picodollars(row.saved)),
                )
                for row in records.stats(by, hours=hours)
            ]
            return StatsModel(by=by, hours=hours, groups=groups, latency=records.latency(hours=hours))

        with _tool_errors():
            return await anyio.to_thread.run_sync(work)

    @server.tool(title="Routing decisions", annotations=READ_ONLY, structured_output=True)
    async def marga_decisions(
        limit: Annotated[int, Field(ge=1, le=500)] = 20,
        status: Literal["ok", "error", "aborted", "truncated", "refused", "killed"] | None = None,
        hours: Hours = 24.0,
    ) -> DecisionsModel:
        """List recent decisions: who served, at what cost and how fast."""

        def work() -> DecisionsModel:
            rows = records.decisions(limit=limit, status=status, hours=hours)
            return DecisionsModel(decisions=[_shown(row) for row in rows])

        with _tool_errors():
            return await anyio.to_thread.run_sync(work)

    @server.tool(title="Explain a decision", annotations=READ_ONLY, structured_output=True)
    async def marga_explain(
        decision: Annotated[str, Field(description="Its id, or the beginning of it.", min_length=4, max_length=64)],
    ) -> DecisionModel:
        """Show why a request went where it went: reasons, candidates, conditions, attempts, cost."""
        with _tool_errors():
            return DecisionModel(decision=_shown(await anyio.to_thread.run_sync(records.explain, decision)))

    @server.tool(title="Anomalies", annotations=READ_ONLY, structured_output=True)
    async def marga_anomalies(
        days: Annotated[float, Field(gt=0, le=90, description="How much past to judge by.")] = 14.0,
    ) -> AnomaliesModel:
        """Say which provider or request class was unusually slow, faulty or dear in the last full hour."""

        def work() -> AnomaliesModel:
            found = records.anomalies(days=days)
            rows = [asdict(anomaly) | {"at": _time(anomaly.at), "sentence": anomaly.sentence()} for anomaly in found]
            return AnomaliesModel(anomalies=[AnomalyModel(**row) for row in rows])

        with _tool_errors():
            return await anyio.to_thread.run_sync(work)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in row.items() if name != "cost"}
    shown["at"] = _time(row["at"])
    shown["cost_usd"] = usd_string(Picodollars(row["cost"]))
    return shown


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


@contextmanager
def _tool_errors() -> Iterator[None]:
    """Our errors as the protocol's, with their hints."""
    try:
        yield
    except AvyayError as error:
        hint = f" {error.hint}" if error.hint else ""
        raise ToolError(f"{error.message}{hint}") from error
