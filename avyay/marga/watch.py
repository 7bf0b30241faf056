"""Watching the providers in the background: health checks that cost nothing, and probes of those that are down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

import orjson

from avyay.errors import AuthError, AvyayError, UnreachableError
from avyay.log import get_logger
from avyay.marga.backends.base import Outgoing
from avyay.marga.budgets import Budgets
from avyay.marga.router import Router
from avyay.marga.transport import Deadline, TransportError
from avyay.marga.types import Model, Provider
from avyay.marga.wire import begin, default_target
from avyay.money import ZERO, usd_string
from avyay.ports import Event, Events
from avyay.resilience.breaker import BreakerState, Outcome, Transition, classify_status
from avyay.resilience.rate_headers import read_retry_after

__all__ = ["Watch"]

_TICK = 0.25  # seconds between two looks at the breakers
_SYNC = 5.0  # seconds between two times that budgets are written down
_PROBE_TIMEOUT = 10.0
_REVIVE_EVERY = 1.0
_TOLD = {
    (BreakerState.CLOSED, BreakerState.OPEN): "marga.provider.tripped",
    (BreakerState.OPEN, BreakerState.CLOSED): "marga.provider.recovered",
    (BreakerState.HALF_OPEN, BreakerState.CLOSED): "marga.provider.recovered",
}
_NEAR = ((0.8, "marga.budget.neared"), (1.0, "marga.budget.exhausted"))
_PROBE = {"messages": [{"role": "user", "content": "Say hi"}], "max_completion_tokens": 16}


class Watch:
    """Runs beside a gateway until it is stopped.

    Args:
        events: Told when a provider is given up or taken back, and when a budget nears its cap.
        jitter: Random numbers in [0, 1): checks of many routers shall not meet.
    """

    def __init__(
        self, router: Router, *, events: Events | None = None, jitter: Callable[[], float] = random.random
    ) -> None:
        self._router = router
        self._events = events
        self._jitter = jitter
        self._log = get_logger("marga")
        self._tasks: set[asyncio.Task[None]] = set()
        self._revivals: dict[str, asyncio.Task[bool]] = {}
        self._asked_at: dict[str, float] = {}
        self._told: set[tuple[str, str]] = set()
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

    async def stop(self) -> None:
        """End, and give back what was begun."""
        tasks = [*self._tasks, *self._revivals.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _changed(self, name: str, change: Transition) -> None:
        self._log.warning(
            "breaker_changed",
            provider=name,
            before=change.before.value,
            after=change.after.value,
            reason=change.reason,
        )
        if self._events is not None and (name_ := _TOLD.get((change.before, change.after))) is not None:
            provider = self._router.providers.get(name)
            data = {"provider": name, "endpoint": provider.endpoint if provider else None, "reason": change.reason}
            self._events.publish(Event(name_, data))

    async def _sync_loop(self, budgets: Budgets) -> None:
        """Writes down what was spent, so that a crash leaves little to reconcile."""
        while True:
            await self._router.clock.sleep(_SYNC)
            try:
                await asyncio.to_thread(budgets.sync)
                if self._events is not None:
                    await asyncio.to_thread(self._tell_budgets, budgets, self._events)
            except AvyayError as error:
                self._log.error("budgets_not_written", error=error.message)

    def _tell_budgets(self, budgets: Budgets, events: Events) -> None:
        """One event for each cap and period when it is nearly used up, and one when it is."""
        for balance in budgets.ledger.balances():
            used = balance.spent / balance.cap if balance.cap else 0.0
            for share, name in _NEAR:
                if used >= share:
                    data = {
                        "budget": balance.key,
                        "spent_usd": usd_string(balance.spent),
                        "cap_usd": usd_string(balance.cap or ZERO),
                        "used": round(used, 4),
                        "resets_at": balance.resets_at,
                    }
                    if (balance.key, name) not in self._told:
                        self._told.add((balance.key, name))
                        events.publish(Event(name, data, once=balance.key))

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
            for name in self._router.health.disturbed:
                breaker = self._router.health.providers[name].breaker
                if (ticket := breaker.take_probe(self._router.clock.monotonic())) is not None:
                    self._spawn(self.probe(name, ticket))

    async def probe(self, name: str, ticket: int) -> None:
        """Send the one known-good minimal request that a provider gets when it may be back."""
        try:
            outcome, retry_after = await self._say_hi(name)
        except asyncio.CancelledError:
            self._router.health.providers[name].breaker.abandon_probe(ticket)
            raise
        self._router.health.probed(name, ticket, outcome, retry_after)

    async def revive(self, names: Iterable[str], patience: float) -> bool:
        """Probe providers before their time, because nobody else is left; each at most once a second.

        Returns:
            As soon as one of them answers, True; False when none does within `patience` seconds.
        """
        now = self._router.clock.monotonic()
        for name in names:
            if name not in self._revivals:
                at = max(now, self._asked_at.get(name, float("-inf")) + _REVIVE_EVERY)
                self._asked_at[name] = at
                task = self._revivals[name] = asyncio.ensure_future(self._revive(name, at - now))
                task.add_done_callback(lambda _, name=name: self._revivals.pop(name, None))  # type: ignore[misc]
        pending = {self._revivals[name] for name in names if name in self._revivals}
        end = asyncio.get_running_loop().time() + patience
        while pending:
            left = end - asyncio.get_running_loop().time()
            done, pending = await asyncio.wait(pending, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if any(not task.cancelled() and task.result() for task in done):
                return True
            if not done:
                break
        return False

    async def _revive(self, name: str, delay: float) -> bool:
        if delay > 0:
            await self._router.clock.sleep(delay)
        outcome, _ = await self._say_hi(name)
        if outcome is Outcome.FAILURE:
            return False
        self._router.health.revived(name)
        return True

    async def _say_hi(self, name: str) -> tuple[Outcome, float | None]:
        """A minimal request to the cheapest model; where none is known, the free check must do."""
        router = self._router
        provider = router.providers[name]
        backend = router.backends[name]
        model = _cheapest(provider)
        if model is None:
            return await self._check_outcome(name), None
        dialect = backend.dialects[0]
        raw = orjson.dumps({"model": model.name, **_PROBE})
        target = default_target(dialect, model.name, compatible=provider.kind == "openai-compatible")
        exchange = begin("openai_chat", raw, orjson.loads(raw), target, exchange_id="probe", created=0)
        deadline = Deadline()
        # As patient as with a caller's small request: a probe that hangs must not keep a provider out that is back.
        usual = router.health.providers[name].timeout(stream=False, chars=len("Say hi"))
        timer = asyncio.get_running_loop().call_later(
            min(_PROBE_TIMEOUT, usual.seconds(router.clock.monotonic())),
            deadline.fail,
            TransportError("timeout", "no answer in time"),
        )
        try:
            incoming = await backend.open(Outgoing(dialect, model.name, exchange.body), deadline)
            try:
                body = await incoming.read()
                retry_after = read_retry_after(incoming.headers, router.clock.now())
                outcome = classify_status(incoming.status)
                if outcome is Outcome.SUCCESS:
                    exchange.reply(body)
                return outcome, retry_after
            finally:
                incoming.close()
        except (TransportError, UnreachableError) as error:  # silence, or something that is no answer
            self._log.info("probe_failed", provider=name, error=str(error))
            return Outcome.FAILURE, None
        finally:
            timer.cancel()

    async def _check_outcome(self, name: str) -> Outcome:
        try:
            async with asyncio.timeout(self._router.settings.health_check.timeout):
                await self._router.backends[name].check()
        except AuthError:
            return Outcome.NEUTRAL
        except (AvyayError, TimeoutError):
            return Outcome.FAILURE
        return Outcome.SUCCESS


def _cheapest(provider: Provider) -> Model | None:
    models = [model for model in provider.models if model.mode == "chat"]
    return min(models, key=lambda model: model.prices.output if model.prices else 1 << 62, default=None)
