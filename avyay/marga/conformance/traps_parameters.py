"""Traps on the way to the provider: parameters, thinking, caching and formats that a translation drops or distorts."""

from __future__ import annotations

import json

from avyay.marga.conformance.asking import Ask, Result, Turn
from avyay.marga.conformance.registry import trap
from avyay.marga.conformance.samples import CALLS, LOOP, TOOLS, plain, seen_or_refused, seen_upstream
from avyay.marga.conformance.trial import Trial

_SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string"}},
    "required": ["verdict"],
    "additionalProperties": False,
}


@trap(
    "stop-strings",
    "requests",
    sent="two stop strings",
    arrives="both; where the provider takes none, a clear refusal instead",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "messages", "ollama", "generate"),
    modes=(False,),
)
async def stop_strings(trial: Trial, stream: bool) -> None:
    seen = await seen_or_refused(trial, Ask(plain().turns, stop=("END", "###")), stream)
    if seen is not None:
        trial.equal(seen.stop, ["END", "###"], "stop strings")


@trap(
    "temperature-range",
    "requests",
    sent="temperature 1.7, which the Messages API refuses",
    arrives="a temperature in the provider's range; the same where it is allowed",
    back="an ordinary answer, or the dialect's 4xx error",
    callers=("chat", "responses", "ollama", "generate"),
    modes=(False,),
)
async def temperature_range(trial: Trial, stream: bool) -> None:
    seen = await seen_or_refused(trial, Ask(plain().turns, temperature=1.7), stream)
    if seen is not None:
        wanted = (1, 1.0) if trial.upstream == "anthropic_messages" else (1.7,)
        trial.expect(seen.temperature in wanted, f"temperature {seen.temperature} instead of {wanted[-1]}")


@trap(
    "temperature-zero",
    "requests",
    sent="temperature 0, which is easily taken for absent",
    arrives="0",
    back="an ordinary answer",
    modes=(False,),
)
async def temperature_zero(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask(plain().turns, temperature=0), stream)
    if seen is not None:
        trial.equal(seen.temperature, 0, "temperature")


@trap(
    "top-k",
    "requests",
    sent="top_k 7",
    arrives="top_k 7 where the provider has it",
    back="an ordinary answer",
    callers=("messages", "ollama", "generate"),
    upstreams=("messages", "ollama"),
    modes=(False,),
)
async def top_k(trial: Trial, stream: bool) -> None:
    ask = Ask(plain().turns, top_k=7)
    got, arrived = await trial.send(ask, stream=stream)
    seen = trial.seen(arrived)
    if seen is not None and arrived is not None:
        found = seen.top_k if seen.top_k is not None else (arrived.body.get("options") or {}).get("top_k")
        trial.equal(found, 7, "top_k")
        trial.observed(got, stream=stream)


@trap(
    "reasoning-effort",
    "requests",
    sent="reasoning effort high",
    arrives="the provider's own way of asking for it: effort, a thinking object, or `think`",
    back="an ordinary answer",
    callers=("chat", "responses", "ollama"),
    modes=(False,),
)
async def reasoning_effort(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask(plain().turns, effort="high", max_tokens=8000), stream)
    if seen is not None:
        trial.equal(seen.reasons, True, "asks for reasoning")


@trap(
    "thinking-budget",
    "requests",
    sent="a thinking budget of 2,000 tokens",
    arrives="thinking asked for, in a way the provider accepts",
    back="an ordinary answer",
    callers=("messages",),
    upstreams=("messages", "ollama"),
    modes=(False,),
)
async def thinking_budget(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask(plain().turns, budget=2000, max_tokens=8000), stream)
    if seen is not None:
        trial.equal(seen.reasons, True, "asks for reasoning")


@trap(
    "signed-thinking",
    "requests",
    sent="an earlier turn of signed thinking with a tool call, and its result",
    arrives="at its signer the block unchanged; elsewhere no trace of the signature",
    back="an ordinary answer",
    callers=("messages",),
)
async def signed_thinking(trial: Trial, stream: bool) -> None:
    call = CALLS[0]
    turns = (
        Turn("user", (f"Read it, then tell {trial.upstream}.",)),  # a conversation nobody else has answered
        Turn("assistant", ("On it.",), calls=(call,), thinking="Which file?", signature="EqQBCgYIAxgCIkD="),
        Turn("results", results=(Result(call, "file text"),)),
        LOOP[3],
    )
    got, arrived = await trial.send(Ask(turns, tools=TOOLS), stream=stream)
    seen = trial.seen(arrived)
    if seen is None or arrived is None:
        return
    trial.observed(got, stream=stream)
    trial.equal(len(seen.results), 1, "results")
    if arrived.dialect == "anthropic_messages":
        trial.equal(seen.signatures, ["EqQBCgYIAxgCIkD="], "signatures")
    else:
        trial.expect(b"EqQBCgYIAxgCIkD=" not in arrived.raw, "the signature went to a provider that did not sign")


@trap(
    "cache-control",
    "requests",
    sent="a long prefix marked with cache_control",
    arrives="the mark, at a provider that knows it; no mark at one that would refuse it",
    back="an ordinary answer",
    callers=("chat", "messages"),
    modes=(False,),
)
async def cache_control(trial: Trial, stream: bool) -> None:
    ask = Ask((Turn("system", ("A long text.",), blocks=True, cached=True), Turn("user", ("Go.",))))
    seen = await seen_upstream(trial, ask, stream)
    if seen is not None and trial.caller != trial.upstream:  # within a dialect the caller knows what it does
        trial.equal(seen.cache_marks, int(trial.upstream == "anthropic_messages"), "cache marks")


@trap(
    "structured-output",
    "requests",
    sent="a JSON schema the answer must match",
    arrives="the schema in the provider's own place",
    back="an ordinary answer",
    modes=(False,),
)
async def structured_output(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, Ask(plain().turns, schema=_SCHEMA), stream)
    if seen is not None:
        trial.equal(seen.schema, _SCHEMA, "schema")


@trap(
    "max-tokens",
    "requests",
    sent="a limit of 200 output tokens",
    arrives="the limit under the provider's own name",
    back="an ordinary answer",
    modes=(False,),
)
async def max_tokens(trial: Trial, stream: bool) -> None:
    seen = await seen_upstream(trial, plain(), stream)
    if seen is not None:
        trial.equal(seen.max_tokens, 200, "output limit")


@trap(
    "max-tokens-default",
    "requests",
    sent="no output limit",
    arrives="a limit all the same, since the Messages API demands one",
    back="an ordinary answer",
    callers=("chat", "responses", "ollama", "generate"),
    upstreams=("messages",),
    modes=(False,),
)
async def max_tokens_default(trial: Trial, stream: bool) -> None:
    await seen_upstream(trial, Ask(plain().turns, max_tokens=None), stream)


@trap(
    "unknown-fields",
    "requests",
    sent="a field nobody knows yet, to a provider of the same dialect",
    arrives="the field, unchanged",
    back="an ordinary answer",
    same=True,
)
async def unknown_fields(trial: Trial, stream: bool) -> None:
    ask = Ask(plain().turns, extra={"future_field": {"deep": [1, None]}})
    got, arrived = await trial.send(ask, stream=stream)
    trial.observed(got, stream=stream)
    if trial.expect(arrived is not None, "nothing reached the provider") and arrived is not None:
        trial.equal(arrived.body.get("future_field"), {"deep": [1, None]}, "the unknown field")


@trap(
    "beta-header",
    "requests",
    sent="/v1/messages?beta=true with an anthropic-beta header, to a Messages provider",
    arrives="the header",
    back="an ordinary answer",
    callers=("messages",),
    upstreams=("messages",),
)
async def beta_header(trial: Trial, stream: bool) -> None:
    headers = {"anthropic-beta": "some-feature-2026-01-01"}
    got, arrived = await trial.send(plain(), stream=stream, headers=headers, query="?beta=true")
    trial.observed(got, stream=stream)
    if trial.expect(arrived is not None, "nothing reached the provider") and arrived is not None:
        found = arrived.headers.get("anthropic-beta", "")
        trial.expect("some-feature-2026-01-01" in found, f"anthropic-beta is {found!r}")


@trap(
    "keys-stay",
    "requests",
    sent="the caller's key for the gateway",
    arrives="the provider's own key, not the caller's",
    back="an ordinary answer",
    modes=(False,),
    callers=("chat", "messages"),
)
async def keys_stay(trial: Trial, stream: bool) -> None:
    _, arrived = await trial.send(plain(), stream=stream)
    key = trial.bench.key or "sk-conformance"
    if trial.expect(arrived is not None, "nothing reached the provider") and arrived is not None:
        trial.expect(key not in json.dumps(arrived.headers), "the caller's key was passed on")
