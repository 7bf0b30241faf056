"""Watching the providers in the background: health checks that cost nothing, and probes of those that are down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from avyay.errors import AuthError, AvyayError
from avyay.ledger import BudgetAlerts
from avyay.log import get_logger
from avyay.marga.budgets import Budgets
from avyay.marga.health import EndpointHealth, Place
from avyay.marga.probe import say_hi
from avyay.marga.router import Router
from avyay.ports import Event, Events
from avyay.resilience.breaker import BreakerState, Outcome, Transition

__all__ = ["Watch"]

_TICK = 0.25  # seconds between two looks at the breakers
_SYNC = 5.0  # seconds between two times that budgets are written down
_REVIVE_EVERY = 1.0
_TOLD = {
    (BreakerState.CLOSED, BreakerState.OPEN): "marga.provider.tripped",
    (BreakerState.OPEN, BreakerState.CLOSED): "marga.provider.recovered",
    (BreakerState.HALF_OPEN, BreakerState.CLOSED): "marga.provider.recovered",
}


class Watch:
    """Runs beside a gateway until it is stopped.

    Args:
        events: Told when a provider is given up or taken back.
        near: Share of a budget, 0..1, from which it is told to be near its cap.
        jitter: Random numbers in [0, 1): checks of many routers shall not meet.
    """

    def __init__(
        self,
        router: Router,
        *,
        events: Events | None = None,
        near: float = 0.8,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._router = router
        self._events = events
        self._near = near
        self._jitter = jitter
        self._log = get_logger("marga")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._revivals: dict[Place, tuple[float, asyncio.Task[bool]]] = {}  # the newest, and when it is sent
        router.health.on_transition = self._changed
        router.health.on_revive = self.revive

    def start_member(self) -> None:
        """Begin what every worker does for itself, while an owner watches the providers for all."""
        self._router.health.on_transition = None  # the owner tells of it
        self._spawn(self._models_loop())
        if self._router.budgets is not None:
            self._spawn(self._sync_loop(self._router.budgets))

    async def _models_loop(self) -> None:
        while True:
            await self._router.learn_models(again=True)
            await self._router.clock.sleep(self._router.settings.health_check.interval)

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._spawn(self._probe_loop())
        for name in self._router.backends:
            self._spawn(self._check_loop(name))
        if self._router.budgets is not None:
            self._spawn(self._sync_loop(self._router.budgets))

    def run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something else as long as this runs."""
        self._spawn(work)

    async def stop(self) -> None:
        """End, and give back what was begun."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    def _spawn(self, work: object) -> None:
        self._spawned(asyncio.ensure_future(work))  # type: ignore[call-overload]

    def _spawned(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _changed(self, health: EndpointHealth, change: Transition) -> None:
        self._log.warning(
            "breaker_changed",
            provider=health.provider,
            endpoint=health.endpoint,
            before=change.before.value,
            after=change.after.value,
            reason=change.reason,
        )
        if self._events is not None and (name_ := _TOLD.get((change.before, change.after))) is not None:
            provider = self._router.providers[health.provider]
            data = {
                "provider": provider.name,
                "endpoint": provider.endpoint,
                "serves": health.endpoint,
                "reason": change.reason,
            }
            self._events.publish(Event(name_, data))
            self._spawn(asyncio.to_thread(self._write_events, self._events))

    def _write_events(self, events: Events) -> None:
        """Have them on disk at once: a provider that goes down is news, also where this process is killed next."""
        try:
            events.flush()
        except AvyayError as error:
            self._log.error("event_not_written", error=error.message)

    async def _sync_loop(self, budgets: Budgets) -> None:
        """Writes down what was spent, so that a crash leaves little to reconcile, and tells of what nears its cap."""
        ledger = budgets.ledger
        alerts = await asyncio.to_thread(BudgetAlerts, ledger.path, "marga", near=self._near, clock=ledger.clock)
        try:
            await self._keep_synced(budgets, alerts)
        finally:
            alerts.close()

    async def _keep_synced(self, budgets: Budgets, alerts: BudgetAlerts) -> None:
        while True:
            try:
                if settled := await asyncio.to_thread(budgets.settle_orphans):
                    self._log.warning("budgets_of_killed_process_settled", blocks=settled)
                await asyncio.to_thread(alerts.look)
            except AvyayError as error:
                self._log.error("budgets_not_written", error=error.message)
            await self._router.clock.sleep(_SYNC)
            try:
                await asyncio.to_thread(budgets.sync)
            except AvyayError as error:
                self._log.error("budgets_not_written", error=error.message)

    # ------------------------------------------------------------ checks

    async def _check_loop(self, name: str) -> None:
        interval = self._router.settings.health_check.interval
        while True:
            await self.check(name)
            await self._router.clock.sleep(interval * (0.9 + 0.2 * self._jitter()))

    async def check(self, name: str) -> None:
        """Check one provider now."""
        router = self._router
        problem: str | None = None
        try:
            async with asyncio.timeout(router.settings.health_check.timeout):
                if router.providers[name].lists_models:
                    await router.learn(name)
                else:
                    await router.backends[name].check()
        except AuthError as error:
            # It lives; whether its key is good is for its calls to find out.
            self._log.warning("health_check_unauthorised", provider=name, error=error.message)
        except AvyayError as error:
            problem = error.message
        except TimeoutError:
            problem = "no answer in time"
        if problem is not None:
            self._log.warning("health_check_failed", provider=name, problem=problem)
        router.health.checked(name, problem)

    # ------------------------------------------------------------ probes

    async def _probe_loop(self) -> None:
        while True:
            await self._router.clock.sleep(_TICK)
            for place in self._router.health.disturbed:
                health = self._router.health.at(*place)
                if (ticket := health.breaker.take_probe(self._router.clock.monotonic())) is not None:
                    self._spawn(self.probe(health, ticket))

    async def probe(self, health: EndpointHealth, ticket: int) -> None:
        """Send the one known-good minimal request that an endpoint gets when it may be back."""
        try:
            outcome, retry_after = await say_hi(self._router, health)
        except asyncio.CancelledError:
            health.breaker.abandon_probe(ticket)
            raise
        self._router.health.probed(health, ticket, outcome, retry_after)

    async def revive(self, places: Iterable[Place], patience: float) -> bool:
        """Probe endpoints before their time, because nobody else is left; each at most once a second.

        Returns:
            As soon as one of them answers, True; False when none does within `patience` seconds.
        """
        pending: set[asyncio.Task[bool]] = set()
        for place in places:
            if (known := self._revivals.get(place)) is not None and not known[1].done():
                pending.add(known[1])
            # One that was sent before may hang, or have failed for a reason that is gone: it does not speak for now.
            pending.add(self._probe_from_now(place))
        end = asyncio.get_running_loop().time() + patience
        while pending:
            left = end - asyncio.get_running_loop().time()
            done, pending = await asyncio.wait(pending, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if any(not task.cancelled() and task.result() for task in done):
                return True
            if not done:
                break
        return False

    def _probe_from_now(self, place: Place) -> asyncio.Task[bool]:
        """A probe that is sent now or within a second; those who ask meanwhile get the same one."""
        now = self._router.clock.monotonic()
        known = self._revivals.get(place)
        if known is not None and known[0] > now:
            return known[1]
        start = now if known is None else max(now, known[0] + _REVIVE_EVERY)
        task = asyncio.ensure_future(self._revive(place, start - now))
        self._spawned(task)
        self._revivals[place] = start, task
        return task

    async def _revive(self, place: Place, delay: float) -> bool:
        if delay > 0:
            await self._router.clock.sleep(delay)
        health = self._router.health.at(*place)
        outcome, _ = await say_hi(self._router, health)
        if outcome is Outcome.FAILURE:
            return False
        self._router.health.revived(health)
        return True
