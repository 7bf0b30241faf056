"""What a router daemon says of itself: health, metrics, providers, decisions, totals, budgets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from avyay.errors import UsageError
from avyay.marga.call_journal import JournalStore
from avyay.marga.gateway import Gateway
from avyay.marga.health import EndpointHealth, ProviderHealth
from avyay.marga.knowledge import ClassKnowledge
from avyay.marga.router import Router
from avyay.marga.savings import cost_with, dearest
from avyay.marga.shared_state import StateMember
from avyay.marga.store import SqliteStore, row_of
from avyay.money import Picodollars, usd_string
from avyay.resilience.breaker import BreakerState
from avyay.serve.house import Metric
from avyay.wiring import Services

__all__ = ["RouterReport"]

_CACHE = "cache_"
_CACHE_REQUESTS = "marga_cache_requests_total"
_LATEST = 0.5  # seconds a row of another worker may need to be readable


def _counters(gateway: Gateway) -> dict[str, int]:
    """Requests by how they ended, and by what the cache had for them."""
    cache = gateway.cache
    counts = {} if cache is None else {f"{_CACHE}{name}": count for name, count in cache.counts.items()}
    return {**gateway.finished, **counts}


class RouterReport:
    """What a router says of itself."""

    def __init__(
        self,
        services: Services,
        gateway: Gateway,
        store: JournalStore,
        member: StateMember,
        knowledge: ClassKnowledge,
    ) -> None:
        self._member = member
        self._knowledge = knowledge
        self._services = services
        self._gateway = gateway
        self._store = store

    @property
    def _router(self) -> Router:
        return self._gateway.router

    def health(self) -> Mapping[str, Any]:
        """The state of the router, its providers and its ledger."""
        providers = {row["name"]: row["state"] for row in self.providers("", {})["providers"]}
        ledger = self._store.state()
        fine = ledger.healthy and not self._router.health.disturbed and bool(self._router.usable())
        return {
            "status": "ok" if fine else "degraded",
            "providers": providers,
            "ledger": {
                "healthy": ledger.healthy,
                "error": ledger.error.message if ledger.error else None,
                "backlog": ledger.backlog,
                "unspooled": self._store.unspooled,
            },
            "active": self._gateway.active,
        }

    def ready(self) -> bool:
        """Whether it can serve: some provider is not given up."""
        return any(provider.up for provider in self._router.health.providers.values())

    def metrics(self) -> Iterable[Metric]:
        """For Prometheus: what all workers see alike."""
        states = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 1.0, BreakerState.OPEN: 2.0}
        health = self._router.health
        yield (
            "marga_breaker_state",
            "gauge",
            "0 closed, 1 half open, 2 open.",
            [
                (
                    {"provider": each.provider, "endpoint": each.endpoint},
                    states[health.state(each.provider, each.endpoint)],
                )
                for each in health.endpoints()
            ],
        )
        found = [({"series": s, "signal": signal}, n) for (s, signal), n in sorted(self._knowledge.alarms.items())]
        yield "marga_anomalies_total", "counter", "Alarms on latency, error rate and spend.", found
        floors = [({"class": name, "tier": tier}, 1.0) for name, tier in sorted(self._router.floors.items())]
        yield "marga_class_floor", "gauge", "The lowest tier a request class is sent to.", floors

    def counts(self) -> Iterable[Metric]:
        """For Prometheus: what this process has counted."""
        totals = _counters(self._gateway)
        answered = {name.removeprefix(_CACHE): totals.pop(name) for name in list(totals) if name.startswith(_CACHE)}
        finished = [({"status": status}, count) for status, count in totals.items()]
        yield "marga_requests_total", "counter", "Requests by how they ended.", finished
        yield "marga_active", "gauge", "Requests under way.", [({}, self._gateway.active)]
        if self._gateway.cache is not None:
            asked = [({"result": name}, count) for name, count in answered.items()]
            yield _CACHE_REQUESTS, "counter", "Requests by what the cache had for them.", asked
        ledger = self._store.state()
        yield "marga_ledger_backlog", "gauge", "Rows not yet on disk.", [({}, ledger.backlog)]
        yield "marga_ledger_rows_total", "counter", "Rows on disk.", [({}, ledger.committed)]
        lines = self._store.unspooled
        yield "marga_ledger_unspooled_total", "counter", "Lines of calls that a kill could lose.", [({}, lines)]

    def providers(self, rest: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The live state of the providers."""
        router = self._router
        now = router.clock.monotonic()
        rows = []
        for provider in router.providers.values():
            row: dict[str, Any] = {
                "name": provider.name,
                "kind": provider.kind,
                "endpoint": provider.endpoint,
                "region": provider.region,
                "priority": provider.priority,
                "state": provider.problem or "closed",
                "models": [{"name": model.name, "tier": model.tier} for model in provider.models],
            }
            if (health := router.health.providers.get(provider.name)) is not None:
                row["state"] = router.health.state(provider.name).value
                row |= _health_row(health, now)
            rows.append(row)
        return {"providers": rows}

    def decisions(self, rest: str, query: Mapping[str, str]) -> Any:
        """One decision by id, or the newest ones."""
        if rest:
            return _priced(self._call(rest))
        limit = min(1000, int(query.get("limit", "20"))) if query.get("limit", "20").isdigit() else 20
        return {"decisions": [_priced(row) for row in self._read().calls(limit=limit)]}

    def _call(self, decision: str) -> dict[str, Any]:
        """A call's row; one that another worker has only just recorded is waited for.

        Raises:
            UsageError: there is none.
        """
        if (call := self._store.recent(decision)) is not None:
            return row_of(call)
        end = time.monotonic() + (_LATEST if self._member.joined else 0.0)
        while True:
            try:
                return self._read().call(decision)
            except UsageError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.02)  # a page is asked for on a thread

    def stats(self, rest: str, query: Mapping[str, str]) -> Any:
        """Totals by group."""
        return {"groups": self._read().stats(query.get("by", "model"))}

    def bill(self, rest: str, query: Mapping[str, str]) -> Any:
        """What one customer, service, session or key was charged since a time."""
        try:
            since = float(query.get("since", "0"))
        except ValueError:
            raise UsageError("`since` is no time.", hint="Write seconds since 1970.") from None
        found = self._read().bill(query.get("by", "customer"), query.get("name", ""), since=since)
        return {"picodollars": found.cost, "usd": usd_string(found.cost), "calls": found.calls}

    def budgets(self, rest: str, query: Mapping[str, str]) -> Any:
        """What is spent and reserved of every cap."""
        budgets = self._router.budgets
        return {"budgets": [] if budgets is None else budgets.rows(rest)}

    def usage(self, rest: str, query: Mapping[str, str]) -> Any:
        """Calls, tokens and cost by day and key since a time; `cost` is in picodollars."""
        rows = self._read().usage(since=float(query["since"]), key=rest or None)
        return {"usage": [asdict(row) for row in rows]}

    def usage_decisions(self, rest: str, query: Mapping[str, str]) -> Any:
        """A page of the decisions that usage is made of: (id, key, when it began), by id."""
        limit = int(query["limit"])
        found = self._read().decisions(
            since=float(query["since"]),
            until=float(query["until"]),
            key=rest or None,
            after=query["after"],
            limit=limit,
        )
        rows = list(found)
        return {"decisions": rows, "next": rows[-1][0] if len(rows) == limit else None}

    def spend(self, rest: str, query: Mapping[str, str]) -> Any:
        """Cost by day, in picodollars, beside what one model for everything would have cost."""
        alone = dearest(self._router.providers.values())
        days = []
        for row in self._read().spend(since=float(query["since"])):
            baseline = None if alone is None else cost_with(alone, input_tokens=row.input, output_tokens=row.output)
            days.append({**asdict(row), "baseline": baseline})
        return {"days": days, "baseline_model": None if alone is None else alone.name}

    def cache(self, counted: Iterable[Metric], rest: str, query: Mapping[str, str]) -> Any:
        """What is kept to be given again, here, and how often it was by what all workers counted."""
        cache = self._gateway.cache
        if cache is None:
            return {"enabled": False}
        size = cache.store.size()
        found = [rows for name, _, _, rows in counted if name == _CACHE_REQUESTS]
        requests = {labels["result"]: int(count) for rows in found for labels, count in rows}
        return {"enabled": True, "entries": size.entries, "bytes": size.size, "requests": requests}

    def _read(self) -> SqliteStore:
        return self._services.calls


def _priced(row: dict[str, Any]) -> dict[str, Any]:
    cost = usd_string(Picodollars(row["cost"])) if row["priced"] else None
    return {**row, "cost_usd": cost}


def _health_row(provider: ProviderHealth, now: float) -> dict[str, Any]:
    return {
        "checked_at": provider.checked_at,
        "check_problem": provider.check_problem,
        "endpoints": [_endpoint_row(health, now) for health in provider.endpoints.values()],
    }


def _endpoint_row(health: EndpointHealth, now: float) -> dict[str, Any]:
    failed, calls = health.breaker.error_rate(now)
    return {
        "endpoint": health.endpoint,
        "state": health.breaker.state(now).value,
        "reason": health.breaker.reason or None,
        "retry_in": round(health.breaker.retry_in(now), 1),
        "failed": failed,
        "calls": calls,
        "ramp": health.ramp.share(now) if health.ramp.active else None,
        "waiting": len(health.waiting),
    }
