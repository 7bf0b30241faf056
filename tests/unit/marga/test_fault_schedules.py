"""Random outages against the whole router on virtual time: it always comes back, and answers while anybody lives."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtual_time import VirtualClock, run_virtual

from avyay.config.marga import MargaSettings
from avyay.marga.backends.fake import FakeAnswer, FakeBackend
from avyay.marga.envelope import Inbound
from avyay.marga.gateway import Gateway
from avyay.marga.router import Router
from avyay.marga.store import MemoryStore
from avyay.marga.transport import Deadline
from avyay.marga.types import Model, Provider
from avyay.marga.watch import Watch
from avyay.resilience.breaker import BreakerState

NAMES = ("a", "b", "c")
MODES = {
    "ok": FakeAnswer("fine"),
    "slow": FakeAnswer("fine", delay=0.8),
    "500": FakeAnswer("out of order", status=500),
    "429": FakeAnswer("slow down", status=429, headers={"retry-after": "7"}),
    "400": FakeAnswer("no", status=400),  # to probes; callers' requests are fine, see below
    "refuse": FakeAnswer(fault="connect"),
    "broken": FakeAnswer(fault="broken"),
    "hang": FakeAnswer(delay=10_000.0),
    "cut": FakeAnswer("one two three four", cut=2),
}
LIVES = frozenset({"ok", "slow", "400"})
RECOVERY = 30.0 + 10.0 + 30.0  # a probe hung when all was mended, and the next one is due after that


class Moody(FakeBackend):
    """Answers by its present mode."""

    mode = "ok"

    async def open(self, call: Any, deadline: Deadline | None = None) -> Any:
        probe = orjson.loads(call.body)["messages"][-1]["content"] == "Say hi"
        mode = "ok" if self.mode == "400" and not probe else self.mode
        self.script = deque([MODES[mode]])
        return await super().open(call, deadline)

    async def check(self) -> None:
        return None  # a listing that works says nothing of the rest


@dataclass(frozen=True)
class Step:
    """A stretch of time: how each provider does, and how callers behave."""

    modes: tuple[str, ...]
    seconds: float
    every: float
    stream: bool
    impatient: bool


STEPS = st.lists(
    st.builds(
        Step,
        st.tuples(*(st.sampled_from(sorted(MODES)) for _ in NAMES)),
        st.floats(0.5, 45.0),
        st.sampled_from([0.05, 0.3, 2.0]),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


class World:
    """A router over three providers in moods."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        providers = [
            Provider(name, "fake", "fake:", models=(Model("m", "medium"),), priority=number)
            for number, name in enumerate(NAMES)
        ]
        self.router = Router(providers, MargaSettings(), store=lambda: self.store, clock=VirtualClock())
        for provider in providers:
            self.router.backends[provider.name] = Moody(provider)
        self.gateway = Gateway(self.router)
        self.watch = Watch(self.router, jitter=lambda: 0.5)
        self.moods = dict.fromkeys(NAMES, "ok")
        self.changed: list[float] = [0.0]
        self.unanswered: list[str] = []
        self.asked = 0

    def set(self, modes: tuple[str, ...]) -> None:
        for name, mode in zip(NAMES, modes, strict=True):
            self.router.backends[name].mode = mode  # type: ignore[attr-defined]
            self.moods[name] = mode
        self.changed.append(asyncio.get_running_loop().time())

    async def ask(self, *, stream: bool) -> None:
        self.asked += 1
        began, living = asyncio.get_running_loop().time(), {n for n, mode in self.moods.items() if mode in LIVES}
        body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
        outbound = await self.gateway.open(Inbound("openai_chat", orjson.dumps(body)))
        if outbound.body is None:
            async for _ in outbound.chunks():
                pass
        elif outbound.status != 200 and living and self.changed[-1] <= began:
            self.unanswered.append(f"{outbound.status} {outbound.body[:200]!r} while {living} lived")

    async def live(self, steps: list[Step]) -> None:
        self.watch.start()
        callers: set[asyncio.Task[None]] = set()
        for step in steps:
            self.set(step.modes)
            for number in range(min(60, int(step.seconds / step.every))):
                caller = asyncio.ensure_future(self.ask(stream=step.stream))
                callers.add(caller)
                caller.add_done_callback(callers.discard)
                await asyncio.sleep(step.every)
                if step.impatient and number % 5 == 0:
                    caller.cancel()
        self.set(("ok",) * len(NAMES))
        await asyncio.gather(*callers, return_exceptions=True)
        await asyncio.sleep(RECOVERY + 1.0)
        await self.ask(stream=False)
        await self.watch.stop()


def hold(steps: list[Step]) -> None:
    async def main() -> None:
        world = World()
        await world.live(steps)
        health = world.router.health
        now = world.router.clock.monotonic()
        assert {name: health.state(name) for name in NAMES} == dict.fromkeys(NAMES, BreakerState.CLOSED)
        assert not health.disturbed
        for endpoint in health.endpoints():
            assert not endpoint.waiting
            assert endpoint.breaker.retry_in(now) == 0
        assert world.unanswered == []
        assert world.gateway.active == 0
        rows = [call for call in world.store.calls if call.service != "probe"]
        assert len(rows) == world.asked  # one row a call, whatever became of it
        assert rows[-1].status == "ok"
        assert rows[-1].provider == NAMES[0]  # back where it belongs

    run_virtual(main())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_no_outage_leaves_a_breaker_open(steps: list[Step]) -> None:
    hold(steps)


@pytest.mark.soak
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_no_outage_of_a_thousand_leaves_a_breaker_open(steps: list[Step]) -> None:
    hold(steps)


def test_a_hang_is_paid_once() -> None:
    """Every request that waits for a hanging provider leaves it when its breaker opens; later ones never go there."""

    async def main() -> None:
        world = World()
        for _ in range(50):  # it learns how fast the first provider is
            await world.ask(stream=True)
        world.set(("hang", "ok", "ok"))
        began = asyncio.get_running_loop().time()
        callers = []
        for _ in range(200):  # 50 a second
            callers.append(asyncio.ensure_future(world.ask(stream=True)))
            await asyncio.sleep(0.02)
        await asyncio.gather(*callers)
        longest = world.router.settings.timeouts.stream_min
        slow = [call for call in world.store.calls[50:] if call.seconds > 0.05]
        assert all(call.status == "ok" for call in world.store.calls)
        assert all(call.seconds <= longest + 0.2 for call in slow)
        assert all(call.decision.at - 1_790_000_000.0 <= began + longest + 0.2 for call in slow)

    run_virtual(main())
