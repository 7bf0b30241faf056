"""Workers of one router: what one learns, the others know."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from avyay.config.marga import MargaSettings
from avyay.marga.router import Router
from avyay.marga.shared_state import StateMember, StateOwner
from avyay.marga.sticky import Answered
from avyay.marga.store import MemoryStore
from avyay.marga.types import Model, Provider
from avyay.resilience.breaker import BreakerState, Outcome


def router() -> Router:
    provider = Provider("p", "fake", "fake:", models=(Model("m", "medium"),))
    return Router([provider], MargaSettings(), store=MemoryStore)


def with_workers(path: Path, check: Callable[[Router, list[Router], list[StateMember]], Awaitable[None]]) -> None:
    async def main() -> None:
        owned = router()
        owner = StateOwner(owned)
        await owner.serve(path / "s")
        routers = [router(), router()]
        lost: list[int] = []
        members = [StateMember(each, lost=lambda n=n: lost.append(n)) for n, each in enumerate(routers)]  # type: ignore[misc]
        for member in members:
            await member.start(path / "s")
        await check(owned, routers, members)
        assert lost == []
        for member in members:
            await member.stop()
        await owner.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_failures_of_all_count_together(tmp_path: Path) -> None:
    async def check(owned: Router, routers: list[Router], members: list[StateMember]) -> None:
        for number in range(5):
            worker = routers[number % 2].health
            candidate = routers[number % 2].candidates()[0]
            worker.failed(worker.at("p", "responses"), candidate, Outcome.FAILURE, generation=0)
        await until(lambda: all(each.health.state("p", "responses") is BreakerState.OPEN for each in routers))
        assert all(each.health.state("p", "chat") is BreakerState.CLOSED for each in (owned, *routers))
        owned.health.revived(owned.health.at("p", "responses"))
        await until(lambda: not any(each.health.disturbed for each in routers))

    with_workers(tmp_path, check)


def test_latencies_limits_and_conversations_are_passed_on(tmp_path: Path) -> None:
    async def check(owned: Router, routers: list[Router], members: list[StateMember]) -> None:
        first, second = routers
        kind, health = (True, 1), first.health.at("p", "chat")
        initial = second.health.at("p", "chat").timeout(kind).seconds(0.0)
        for _ in range(3):  # 20 observations a batch, and 20 are needed
            for _ in range(30):
                first.health.succeeded(health, first.candidates()[0], kind, 0.4, generation=0)
            await asyncio.sleep(0.06)
        now = first.clock.monotonic()
        known = health.timeout(kind).seconds(now)
        assert known < initial
        await until(lambda: second.health.at("p", "chat").timeout(kind).seconds(now) == known)
        await until(lambda: owned.health.at("p", "chat").timeout(kind).seconds(now) == known)

        first.health.throttled(health, 20.0)
        await until(lambda: second.health.at("p", "chat").ramp.share(second.clock.monotonic()) == 0.0)

        first.conversations.remember("c", Answered("p/m", now, 500))
        first.homes.remember("resp_1", "p")
        await until(lambda: second.homes.of("resp_1") == "p")
        await until(lambda: second.last_model("c") == "p/m")
        found = second.conversations.last("c", second.clock.monotonic(), bound=False)
        assert found is not None
        assert found.cached == 500

    with_workers(tmp_path, check)


def test_a_late_worker_learns_what_is_open(tmp_path: Path) -> None:
    async def check(owned: Router, routers: list[Router], members: list[StateMember]) -> None:
        owned.health.mirror("p", "chat", is_open=True, reason="by hand")
        late = router()
        member = StateMember(late, lost=lambda: None)
        await member.start(tmp_path / "s")
        await until(lambda: late.health.state("p", "chat") is BreakerState.OPEN)
        await member.stop()

    with_workers(tmp_path, check)
