"""Several workers judge as one: one budget, one test a class, floors that all follow; and what is measured counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outbox import told

from avyay.clock import FakeClock
from avyay.config.marga import AnomalySettings, MargaSettings
from avyay.errors import UnreachableError
from avyay.marga.alarms import AlarmWatch
from avyay.marga.backends.base import Outgoing
from avyay.marga.backends.fake import FakeAnswer, FakeBackend
from avyay.marga.compare import Comparison
from avyay.marga.envelope import Inbound
from avyay.marga.gateway import Gateway
from avyay.marga.knowledge import ClassKnowledge, measured_quality
from avyay.marga.replay import ledger_calls, replay
from avyay.marga.router import Router
from avyay.marga.shadow import ShadowPlan
from avyay.marga.shadowing import Shadowing
from avyay.marga.store import CALL_COLUMNS, MemoryStore, SqliteStore, call_row
from avyay.marga.types import CallRecord, Decision, Hints, Model, Prices, Provider
from avyay.marga.verdicts import VerdictStore
from avyay.money import Picodollars

DOLLAR = 1_000_000_000_000


def model(name: str, tier: str, dollars: float) -> Model:
    price = Picodollars(int(dollars * 1_000_000))
    return Model(name, tier, Prices(price, price))  # type: ignore[arg-type]


PROVIDERS = (
    Provider("home", "fake", "http://home", models=(model("tiny", "local", 0),)),
    Provider("middle", "fake", "http://middle", models=(model("mid", "medium", 1),)),
    Provider("best", "fake", "http://best", models=(model("top", "premium", 10),)),
)


class Scripted(FakeBackend):
    def __init__(self, provider: Provider, answer: Callable[[], str]) -> None:
        super().__init__(provider)
        self._answer = answer

    async def open(self, call: Outgoing, deadline: Any = None) -> Any:
        self.script.append(FakeAnswer(self._answer()))
        return await super().open(call, deadline)


def worker(path: Path, plan: ShadowPlan, *, local: str = "right") -> tuple[Gateway, VerdictStore]:
    """A worker of its own: a gateway and a connection."""
    router = Router(PROVIDERS, MargaSettings(), store=MemoryStore, clock=FakeClock())
    for provider, answer in zip(PROVIDERS, (local, "right", "right"), strict=True):
        router.backends[provider.name] = Scripted(provider, lambda answer=answer: answer)  # type: ignore[misc]
    served = Gateway(router)
    store = VerdictStore(path)
    served.shadowing = Shadowing(served, store, plan)
    return served, store


def chat(text: str, **more: Any) -> Inbound:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    return Inbound("openai_chat", orjson.dumps(body), **more)


async def serve(workers: list[Gateway], requests: int, request_class: str) -> None:
    for count in range(requests):
        served = workers[count % len(workers)]
        await served.open(chat(f"question {count}", request_class=request_class))
        assert served.shadowing is not None
        await served.shadowing.settle()


def test_workers_add_their_comparisons_to_one_test(tmp_path: Path) -> None:
    made = [worker(tmp_path / "v.db", ShadowPlan(share=1.0), local="wrong") for _ in range(3)]
    alone, store = worker(tmp_path / "alone.db", ShadowPlan(share=1.0), local="wrong")
    asyncio.run(serve([alone], 40, "sum"))
    needed = store.changes()[0].comparisons
    asyncio.run(serve([served for served, _ in made], 40, "sum"))
    change = made[0][1].changes()[-1]
    assert change.comparisons == needed  # not one test a worker, each as long
    for served, kept in made:
        ClassKnowledge(kept, served.router).refresh()
        assert served.router.floors["sum"] == "medium"
        kept.close()
    store.close()


def test_a_worker_follows_what_another_has_learned(tmp_path: Path) -> None:
    (one, first), (two, second) = (
        worker(tmp_path / "v.db", ShadowPlan(share=1.0), local=local) for local in ("wrong", "right")
    )
    knowledge = ClassKnowledge(second, two.router)
    knowledge.look()
    asyncio.run(serve([one], 20, "sum"))
    assert two.router.floors.get("sum", "local") == "local"
    knowledge.look()
    assert two.router.floors["sum"] == "medium"
    assert two.router.qualities["sum"]["local"] < 0.7

    async def follow() -> None:
        task = asyncio.ensure_future(knowledge.follow())
        first.observe("other", "local", 0.0, ShadowPlan(), 0.0)
        while "other" not in two.router.floors:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(follow(), 20))
    first.close()
    second.close()


def test_one_budget_for_all_workers(tmp_path: Path) -> None:
    _, store = worker(tmp_path / "v.db", ShadowPlan())
    stores = [VerdictStore(tmp_path / "v.db") for _ in range(4)]
    granted: list[bool] = []

    def spend(mine: VerdictStore) -> None:
        for _ in range(50):
            if mine.reserve(1, 10, 500):
                granted.append(True)
                mine.settle(1, 10, 7)

    threads = [threading.Thread(target=spend, args=(mine,)) for mine in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.spent(1) == 7 * len(granted) <= 500
    assert 500 - store.spent(1) < 10
    for mine in (*stores, store):
        mine.close()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 500)), max_size=30))
def test_reservations_never_pass_the_cap(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    store = VerdictStore(tmp_path_factory.mktemp("v") / "v.db")
    held = []
    for amount, spent in steps:
        if store.reserve(3, amount, 1000):
            held.append((amount, min(spent, amount)))
        assert store.spent(3) <= 1000
        if len(held) > 2:
            store.settle(3, *held.pop(0))
    store.close()


def test_what_a_dead_worker_had_reserved_counts_for_its_day_only(tmp_path: Path) -> None:
    dead = VerdictStore(tmp_path / "v.db")
    assert dead.reserve(7, 900, 1000)
    dead.close()
    store = VerdictStore(tmp_path / "v.db")
    assert not store.reserve(7, 200, 1000)
    assert store.reserve(8, 200, 1000)
    store.close()


def test_a_store_that_fails_costs_comparisons_and_no_call(tmp_path: Path) -> None:
    served, store = worker(tmp_path / "v.db", ShadowPlan(share=1.0))

    def refuse(*_: Any) -> bool:
        raise UnreachableError("The disk is gone.", hint="")

    store.reserve = refuse  # type: ignore[method-assign]

    async def run() -> int:
        outbound = await served.open(chat("hi"))
        assert served.shadowing is not None
        await served.shadowing.settle()
        return outbound.status

    assert asyncio.run(run()) == 200
    assert not list(store.comparisons())
    store.close()


# ---------------------------------------------------------------- measured quality


def test_measured_quality_is_drawn_to_the_table_where_little_is_known() -> None:
    assert measured_quality({"local": (0, 0.0)})["local"] == pytest.approx(0.7)
    assert measured_quality({"local": (20, 1.0)})["local"] == pytest.approx(0.85)
    assert measured_quality({"local": (2000, 0.99)})["local"] == pytest.approx(0.987, abs=0.001)
    assert measured_quality({"medium": (500, 0.5)})["medium"] < 0.53


def test_quality_asked_for_is_met_by_what_was_measured_of_the_class(tmp_path: Path) -> None:
    served, store = worker(tmp_path / "v.db", ShadowPlan())
    for name, tier, degraded in (("lookup", "local", 0.0), ("sum", "medium", 0.5), ("sum", "local", 1.0)):
        for count in range(100):
            found = Comparison(degraded, "exact", "")
            store.keep(served.router.clock.now(), f"d{count}", name, tier, ("m", "r"), 0.1, {}, found, 0)  # type: ignore[arg-type]
    ClassKnowledge(store, served.router).refresh()

    async def tier(request_class: str | None, quality: float | None) -> tuple[str, tuple[str, ...]]:
        outbound = await served.open(chat("hi", request_class=request_class, quality_min=quality))
        assert outbound.call is not None
        return dict(outbound.headers)["x-avyay-tier"], outbound.call.decision.reasons

    async def run() -> None:
        assert (await tier(None, 0.85))[0] == "medium"  # by the table
        found, reasons = await tier("lookup", 0.85)
        assert found == "local"
        assert any("measured" in reason for reason in reasons)
        assert (await tier("sum", 0.85))[0] == "premium"  # medium was measured, and is worse than the table says
        assert (await tier("lookup", None))[0] == "local"

    asyncio.run(run())
    rows = []
    for call in served.router.store.calls:  # type: ignore[attr-defined]
        row = dict(zip(CALL_COLUMNS, call_row(call), strict=True))
        rows.append({**row, "detail": orjson.loads(row["detail"])})
    served.router.qualities = {}  # a replay knows what was known then, not what is known now
    again = replay(served.router, ledger_calls(rows))
    assert (again.same, again.decided) == (4, 4)
    store.close()


# ---------------------------------------------------------------- alarms


def fill(store: SqliteStore, begin: float, seconds: float, *, fails: bool = False, slow: bool = False) -> None:
    """A call every ten seconds."""
    for count in range(int(seconds // 10)):
        at = begin + 10 * count
        decision = Decision(f"dec_{at}", at, "medium", 0.5, (), (), Hints(request_class="sums"))
        store.record(
            CallRecord(
                decision,
                "openai_chat",
                "error" if fails else "ok",
                "openai",
                "m",
                "medium",
                cost=Picodollars(10**9),
                seconds=(20.0 if slow else 1.0) + 0.01 * (count % 7),
            )
        )


def test_alarms_are_told_once_by_whoever_looks(tmp_path: Path) -> None:
    clock = FakeClock(1_700_000_400.0 // 600 * 600)
    settings = AnomalySettings()
    ledger, store = SqliteStore(tmp_path / "marga.db"), VerdictStore(tmp_path / "v.db", clock=clock)
    watches = [AlarmWatch(settings, lambda: SqliteStore(tmp_path / "marga.db"), store, clock) for _ in range(2)]
    start = clock.now()
    fill(ledger, start - 30 * 600, 30 * 600)
    assert [watch.look() for watch in watches] == [[], []]
    fill(ledger, start, 600, fails=True)
    assert watches[0].look() == []  # the stretch is not over
    clock.advance(600)
    found = watches[0].look()
    assert {(a.series, a.signal) for a in found} == {("provider openai", "error_rate"), ("class sums", "error_rate")}
    assert watches[1].look() == []  # told already
    assert watches[0].look() == []
    events = told(tmp_path / "v.db")
    assert [name for name, _ in events] == ["marga.anomaly.found"] * 2
    assert {data.get("provider") for _, data in events} == {"openai", None}
    assert store.alarm_counts() == {("provider openai", "error_rate"): 1, ("class sums", "error_rate"): 1}
    fill(ledger, clock.now(), 600, slow=True)
    clock.advance(600)
    assert {a.signal for a in watches[1].look()} == {"latency"}
    assert len(store.alarms()) == 4
    assert store.alarms(limit=1)[0].signal == "latency"
    ledger.close()
    store.close()


def test_a_ledger_that_cannot_be_read_is_logged_and_tried_again(tmp_path: Path) -> None:
    clock = FakeClock(1_700_000_400.0)
    store = VerdictStore(tmp_path / "v.db")
    tries = []

    def missing() -> SqliteStore:
        tries.append(1)
        raise UnreachableError("The disk is gone.", hint="")

    async def run() -> None:
        task = asyncio.ensure_future(AlarmWatch(AnomalySettings(), missing, store, clock).run())
        while len(tries) < 3:
            await asyncio.sleep(0)
            clock.advance(700)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 20))
    store.close()
