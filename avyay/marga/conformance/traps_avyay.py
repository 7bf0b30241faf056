"""What this router promises beyond the dialects: who served, at what cost, and every deviation in a header."""

from __future__ import annotations

from decimal import Decimal

from avyay.marga.conformance.asking import Ask
from avyay.marga.conformance.registry import trap
from avyay.marga.conformance.samples import plain
from avyay.marga.conformance.scripted import Script, Tokens
from avyay.marga.conformance.trial import Got, NotExpressibleError, Trial
from avyay.marga.conformance.upstream import Answer

__all__ = ["PRICES", "cost_of_call"]

PRICES = {"input": "3", "output": "15", "cached": "0.3"}  # USD per million tokens, as `--self` configures them
_TOKENS = Tokens(plain=1000, cache_read=200, output=500)


async def cost_of_call(trial: Trial, got: Got) -> Decimal | None:
    """What the router says a call has cost, in USD; read by its decision."""
    decision = got.headers.get("x-avyay-decision-id", "")
    if not trial.expect(bool(decision), "no x-avyay-decision-id"):
        return None
    found = await trial.get(f"/marga/decisions/{decision}")
    if not trial.equal(found.status, 200, "HTTP status of the decision"):
        return None
    return Decimal(found.body["cost_usd"])


@trap(
    "served-by",
    "avyay",
    sent="a question",
    arrives="the question",
    back="decision id, provider, model and tier in headers",
)
async def served_by(trial: Trial, stream: bool) -> None:
    got, _ = await trial.send(plain(), stream=stream)
    for name in ("decision-id", "provider", "model", "tier"):
        trial.expect(bool(got.headers.get(f"x-avyay-{name}")), f"no x-avyay-{name}")
    trial.equal(got.headers.get("x-avyay-model"), trial.bench.models[trial.upstream], "x-avyay-model")


@trap(
    "cost",
    "avyay",
    sent="a question whose tokens and prices are known",
    arrives="the question",
    back="the exact cost: in a header of a whole answer, by decision id of a stream",
)
async def cost(trial: Trial, stream: bool) -> None:
    counted = not trial.upstream.startswith("ollama")
    tokens = _TOKENS if counted else Tokens(1200, output=500)
    got, _ = await trial.send(plain(), Answer(Script(text="Yes.", tokens=tokens)), stream=stream)
    found = await cost_of_call(trial, got)
    if found is None or not trial.bench.priced:
        return
    price = {name: Decimal(value) for name, value in PRICES.items()}
    truth = tokens.plain * price["input"] + tokens.cache_read * price["cached"] + tokens.output * price["output"]
    trial.equal(found, truth / 1_000_000, "cost in USD")
    if not stream:
        trial.equal(Decimal(got.headers.get("x-avyay-cost", "-1")), truth / 1_000_000, "x-avyay-cost")


@trap(
    "deviations-are-told",
    "avyay",
    sent="settings the provider's dialect cannot say: top_k, or a temperature above its range",
    arrives="the request without them, or with what is nearest",
    back="x-avyay-notes, which names them",
    callers=("messages", "chat"),
    same=False,
    modes=(False,),
)
async def deviations_are_told(trial: Trial, stream: bool) -> None:
    if trial.caller == "anthropic_messages":
        if trial.upstream == "ollama_chat":
            raise NotExpressibleError  # Ollama has top_k: there is no deviation
        ask, name = Ask(plain().turns, top_k=7), "top_k"
    elif trial.upstream == "anthropic_messages":
        ask, name = Ask(plain().turns, temperature=1.7), "temperature"
    else:
        raise NotExpressibleError
    got, _ = await trial.send(ask, stream=stream)
    trial.expect(name in got.headers.get("x-avyay-notes", ""), f"x-avyay-notes does not name {name}")
