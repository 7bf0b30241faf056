"""Questions an agent asks the ledger, over MCP: a real ledger, a real session."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_connected_server_and_client_session

from avyay.clock import FakeClock
from avyay.marga.mcp import register
from avyay.marga.records import Records
from avyay.marga.store import SqliteStore
from avyay.marga.types import CallRecord, Decision, Hints
from avyay.money import Picodollars

HOUR = 3600.0


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Two weeks of calls; in the last full hour one provider fails."""
    clock = FakeClock(1_700_000_000.0 // HOUR * HOUR + 60)
    store = SqliteStore(tmp_path / "marga.db")
    for hour in range(40, 0, -1):
        for call in range(12):
            for provider in ("openai", "anthropic"):
                at = clock.now() - hour * HOUR + call
                fails = provider == "openai" and hour == 1
                decision = Decision(f"dec_{hour:03}{call:03}{provider}", at, "medium", 0.5, ("why",), (), Hints())
                record = CallRecord(
                    replace(decision, seconds=0.001 * (call + 1)),
                    "openai_chat",
                    "error" if fails else "ok",
                    provider,
                    "m",
                    "medium",
                    cost=Picodollars(1_000_000_000),
                    seconds=1.0 + 0.01 * call,
                )
                store.record(record)
    yield Records(lambda: store, clock)
    store.close()


def ask(records: Records, tool: str, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Field .* has an |.*model_rebuild")  # the SDK's own settings class
        server = FastMCP("test")
    register(server, records)

    async def run() -> Any:
        async with create_connected_server_and_client_session(server._mcp_server) as session:
            return await session.call_tool(tool, arguments)

    return anyio.run(run)


def test_which_provider_had_the_highest_error_rate(records: Records) -> None:
    found = ask(records, "marga_stats", by="provider", hours=10).structuredContent
    worst = max(found["groups"], key=lambda group: group["error_rate"])
    assert worst["group"] == "openai"
    assert worst["errors"] == 12
    assert found["latency"]["decision"]["p95"] == pytest.approx(0.012)


def test_groups_by_period(records: Records) -> None:
    hours = ask(records, "marga_stats", by="hour", hours=10).structuredContent["groups"]
    assert len(hours) == 10
    assert all(group["calls"] == 24 and group["group"].endswith(":00") for group in hours)
    days = ask(records, "marga_stats", by="day", hours=48).structuredContent["groups"]
    assert sum(group["calls"] for group in days) == 40 * 24


def test_decisions_and_why(records: Records) -> None:
    rows = ask(records, "marga_decisions", status="error", limit=3).structuredContent["decisions"]
    assert [row["provider"] for row in rows] == ["openai"] * 3
    one = ask(records, "marga_explain", decision=rows[0]["id"]).structuredContent["decision"]
    assert one["detail"]["reasons"] == ["why"]
    assert one["cost_usd"] == "0.001"
    missing = ask(records, "marga_explain", decision="dec_nope")
    assert missing.isError
    assert "marga decisions" in missing.content[0].text


def test_what_is_unusual(records: Records) -> None:
    found = ask(records, "marga_anomalies").structuredContent["anomalies"]
    assert [(a["series"], a["signal"]) for a in found] == [("provider openai", "error_rate")]
    assert "100.0%" in found[0]["sentence"]
