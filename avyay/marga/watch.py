"""Watching the providers in the background: health checks that cost nothing, and probes of those that are down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import orjson

from avyay.errors import AuthError, AvyayError
from avyay.log import get_logger
from avyay.marga.backends.base import Outgoing
from avyay.marga.router import Router
from avyay.marga.transport import Deadline, TransportError
from avyay.marga.types import Model, Provider
from avyay.marga.wire import begin, default_target
from avyay.resilience.breaker import BreakerState, Outcome, Transition, classify_status
from avyay.resilience.rate_headers import read_retry_after

__all__ = ["Watch"]

_TICK = 0.25  # seconds between two looks at the breakers
_PROBE_TIMEOUT = 10.0
_PROBE = {"messages": [{"role": "user", "content": "Say hi"}], "max_completion_tokens": 16}


class Watch:
    """Runs beside a gateway until it is stopped.

    Args:
        jitter: Random numbers in [0, 1): checks of many routers shall not meet.
    """

    def __init__(self, router: Router, *, jitter: Callable[[], float] = random.random) -> None:
        self._router = router
        self._jitter = jitter
        self._log = get_logger("marga")
        self._tasks: set[asyncio.Task[None]] = set()
        router.health.on_transition = self._changed

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._spawn(self._probe_loop())
        for name in self._router.backends:
            self._spawn(self._check_loop(name))

    async def stop(self) -> None:
        """End, and give back what was begun."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
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
        """Send one known-good minimal request to a provider that was down."""
        router = self._router
        provider = router.providers[name]
        model = _cheapest(provider)
        if model is None:  # nothing to ask for: the free check must do
            await self._probe_by_check(name, ticket)
            return
        backend = router.backends[name]
        dialect = backend.dialects[0]
        raw = orjson.dumps({"model": model.name, **_PROBE})
        target = default_target(dialect, model.name, compatible=provider.kind == "openai-compatible")
        exchange = begin("openai_chat", raw, orjson.loads(raw), target, exchange_id="probe", created=0)
        deadline = Deadline()
        timer = asyncio.get_running_loop().call_later(
            _PROBE_TIMEOUT, deadline.fail, TransportError("timeout", "no answer in time")
        )
        outcome, retry_after = Outcome.FAILURE, None
        try:
            incoming = await backend.open(Outgoing(dialect, model.name, exchange.body), deadline)
            try:
                await incoming.read()
                outcome = classify_status(incoming.status)
                retry_after = read_retry_after(incoming.headers, router.clock.now())
            finally:
                incoming.close()
        except TransportError as error:
            self._log.info("probe_failed", provider=name, error=str(error))
        except asyncio.CancelledError:
            router.health.providers[name].breaker.abandon_probe(ticket)
            raise
        finally:
            timer.cancel()
        router.health.probed(name, ticket, outcome, retry_after)

    async def _probe_by_check(self, name: str, ticket: int) -> None:
        outcome = Outcome.FAILURE
        try:
            async with asyncio.timeout(self._router.settings.health_check.timeout):
                await self._router.backends[name].check()
            outcome = Outcome.SUCCESS
        except AuthError:
            outcome = Outcome.NEUTRAL
        except (AvyayError, TimeoutError):
            pass
        if self._router.health.state(name) is not BreakerState.CLOSED:
            self._router.health.probed(name, ticket, outcome)


def _cheapest(provider: Provider) -> Model | None:
    models = [model for model in provider.models if model.mode == "chat"]
    return min(models, key=lambda model: model.prices.output if model.prices else 1 << 62, default=None)
