"""The one known-good minimal request that an endpoint gets when it may be back: "Say hi", billed like any call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import orjson

from avyay.errors import AuthError, AvyayError, UnreachableError
from avyay.log import get_logger
from avyay.marga.backends.base import Backend, Outgoing
from avyay.marga.bill import bill_of
from avyay.marga.health import EndpointHealth, kind_of
from avyay.marga.router import Router
from avyay.marga.transport import Deadline, TransportError
from avyay.marga.types import (
    ENDPOINTS,
    Attempt,
    CallRecord,
    Candidate,
    Decision,
    Dialect,
    Endpoint,
    Hints,
    Model,
    Ranked,
)
from avyay.marga.view import RequestView
from avyay.marga.wire import Exchange, Usage, begin, default_target
from avyay.money import Picodollars
from avyay.resilience.breaker import Outcome, classify_status
from avyay.resilience.rate_headers import read_retry_after

__all__ = ["PROBE_SERVICE", "say_hi"]

PROBE_SERVICE = "probe"  # how probes are named in the ledger
_PROMPT = "Say hi"
_TIMEOUT = 10.0
_CONVERSATION = {"messages": [{"role": "user", "content": _PROMPT}], "max_completion_tokens": 16}


@dataclass(frozen=True, slots=True)
class _Probe:
    """The request, and how its answer is read; without an exchange the status alone counts."""

    model: Model
    outgoing: Outgoing
    exchange: Exchange | None


async def say_hi(router: Router, health: EndpointHealth) -> tuple[Outcome, float | None]:
    """Send a minimal request to an endpoint's cheapest model; where none is known, the free check must do.

    Returns:
        What the answer says of the endpoint, and the seconds it asks to be left alone.
    """
    backend = router.backends[health.provider]
    probe = _probe(router, health, backend)
    if probe is None:
        return await _check(router, backend), None
    deadline = Deadline()
    clock, started = router.clock, router.clock.monotonic()
    # As patient as with a caller's small request: a probe that hangs must not keep a provider out that is back.
    usual = health.timeout(kind_of(stream=False, chars=len(_PROMPT)))
    deadline.start(min(_TIMEOUT, usual.seconds(started)))
    try:
        incoming = await backend.open(probe.outgoing, deadline)
        try:
            first_byte = clock.monotonic() - started
            body = await incoming.read()
            outcome = classify_status(incoming.status)
            if outcome is Outcome.SUCCESS:
                _bill(router, health, probe, body, first_byte, clock.monotonic() - started)
            return outcome, read_retry_after(incoming.headers, clock.now())
        finally:
            incoming.close()
    except (TransportError, UnreachableError) as error:  # silence, or something that is no answer
        get_logger("marga").info("probe_failed", provider=health.provider, endpoint=health.endpoint, error=str(error))
        return Outcome.FAILURE, None
    finally:
        deadline.cancel()


def _probe(router: Router, health: EndpointHealth, backend: Backend) -> _Probe | None:
    endpoint = health.endpoint
    model = _cheapest(router, health)
    if model is None:
        return None
    if endpoint == "embeddings":
        raw = orjson.dumps({"model": model.name, "input": _PROMPT})
        return _Probe(model, Outgoing("openai_chat", model.name, raw, operation="embeddings"), None)
    if endpoint == "count_tokens":
        raw = orjson.dumps({"model": model.name, "messages": _CONVERSATION["messages"]})
        return _Probe(model, Outgoing("anthropic_messages", model.name, raw, operation="count_tokens"), None)
    dialect = _dialect(backend, endpoint)
    raw = orjson.dumps({"model": model.name, **_CONVERSATION})
    target = default_target(dialect, model.name, compatible=backend.provider.kind == "openai-compatible")
    exchange = begin("openai_chat", raw, orjson.loads(raw), target, exchange_id="probe", created=0)
    return _Probe(model, Outgoing(dialect, model.name, exchange.body), exchange)


def _dialect(backend: Backend, endpoint: Endpoint) -> Dialect:
    return next((dialect for dialect in backend.dialects if ENDPOINTS[dialect] == endpoint), backend.dialects[0])


def _cheapest(router: Router, health: EndpointHealth) -> Model | None:
    """The cheapest model that the endpoint serves; else the one that it served last."""
    provider = router.providers[health.provider]
    if health.endpoint == "embeddings":
        models = [model for model in provider.models if model.mode == "embedding"]
    else:
        models = [model for model in provider.models if model.mode != "embedding"]
        if health.endpoint in ("chat", "generate"):
            models = [model for model in models if model.mode == "chat"]
    price = {model.name: model.prices.output + model.prices.input for model in models if model.prices is not None}
    return min(models, key=lambda model: price.get(model.name, 1 << 62), default=health.served)


def _bill(
    router: Router, health: EndpointHealth, probe: _Probe, body: bytes, first_byte: float, seconds: float
) -> None:
    """A row in the ledger: an answered probe costs what any small request costs.

    Raises:
        UnreachableError: it is no answer.
    """
    if probe.exchange is not None:
        usage = probe.exchange.reply(body).usage
    elif health.endpoint == "embeddings":
        usage = _embedding_usage(body)
    else:
        return  # counting is free
    candidate = Candidate(router.providers[health.provider], probe.model)
    view = RequestView(_PROMPT, chars=len(_PROMPT))
    decision = Decision(
        router.new_id(),
        router.clock.now() - seconds,
        probe.model.tier,
        0.0,
        (f"a probe of {health.provider}'s {health.endpoint} endpoint, which was given up",),
        (Ranked(candidate, None),),
        Hints(probe.model.name),
        {**view.features(), "input_tokens": len(_PROMPT)},
    )
    bill = bill_of(router, decision, candidate, usage)
    record = CallRecord(
        decision,
        probe.outgoing.dialect if health.endpoint != "embeddings" else "openai_embeddings",
        "ok",
        health.provider,
        probe.model.name,
        probe.model.tier,
        input=bill.usage.input,
        output=bill.usage.output,
        cached=bill.usage.cache_read,
        cache_written=bill.usage.cache_write,
        reasoning=bill.usage.reasoning,
        estimated=bill.estimated,
        priced=bill.cost is not None,
        cost=bill.cost or Picodollars(0),
        service=PROBE_SERVICE,
        first_byte=first_byte,
        seconds=seconds,
        state="half_open",
        attempts=(Attempt(health.provider, probe.model.name, "ok", 200, first_byte, "half_open"),),
    )
    try:
        router.store.record(record)
    except AvyayError as error:
        get_logger("marga").error("probe_not_recorded", provider=health.provider, error=error.message)


def _embedding_usage(body: bytes) -> Usage | None:
    try:
        counted = orjson.loads(body)["usage"]["prompt_tokens"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return Usage(input=counted, output=0) if isinstance(counted, int) else None


async def _check(router: Router, backend: Backend) -> Outcome:
    try:
        async with asyncio.timeout(router.settings.health_check.timeout):
            await backend.check()
    except AuthError:
        return Outcome.NEUTRAL
    except (AvyayError, TimeoutError):
        return Outcome.FAILURE
    return Outcome.SUCCESS
