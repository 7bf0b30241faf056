"""Traps of failure: before the answer, in its middle, and for requests that are wrong in themselves."""

from __future__ import annotations

import json

from avyay.marga.conformance.registry import trap
from avyay.marga.conformance.samples import plain
from avyay.marga.conformance.scripted import Script, Tokens
from avyay.marga.conformance.trial import PATHS, Got, Trial
from avyay.marga.conformance.upstream import Answer

__all__: list[str] = []

_SCRIPT = Script(text="One two three four five six seven eight nine ten.", tokens=Tokens(11, output=9))


@trap(
    "error-400",
    "errors",
    sent="a request the provider finds invalid",
    arrives="the request",
    back="HTTP 400 in the caller's own envelope, with the provider's message; a stream does not start",
)
async def error_400(trial: Trial, stream: bool) -> None:
    got, _ = await trial.send(plain(), Answer(status=400, message="field x is wrong"), stream=stream)
    trial.refusal(got, status=lambda code: code == 400)
    trial.expect(b"field x is wrong" in got.raw, "the provider's message is lost")


@trap(
    "error-429",
    "errors",
    sent="a request the provider refuses for its rate limit, with retry-after",
    arrives="the request",
    back="HTTP 429 in the caller's own envelope, with the provider's retry-after",
    isolated=True,
)
async def error_429(trial: Trial, stream: bool) -> None:
    answer = Answer(status=429, message="too many requests", headers={"retry-after": "90"})
    got, _ = await trial.send(plain(), answer, stream=stream)
    trial.refusal(got, status=lambda code: code == 429)
    trial.equal(got.headers.get("retry-after"), "90", "retry-after")


@trap(
    "error-500",
    "errors",
    sent="a request on which the provider fails",
    arrives="the request",
    back="a 5xx error in the caller's own envelope",
    isolated=True,
)
async def error_500(trial: Trial, stream: bool) -> None:
    got, _ = await trial.send(plain(), Answer(status=500), stream=stream)
    trial.refusal(got, status=lambda code: code >= 500)


@trap(
    "error-mid-stream",
    "errors",
    sent="a stream",
    arrives="the request",
    back="what came, then the dialect's own error; no ending that looks complete",
    modes=(True,),
    isolated=True,
)
async def error_mid_stream(trial: Trial, stream: bool) -> None:
    got, _ = await trial.send(plain(), Answer(_SCRIPT, error_at=0.5), stream=True)
    _broken(trial, got)


@trap(
    "cut-mid-stream",
    "errors",
    sent="a stream",
    arrives="the request",
    back="what came, then the dialect's own error although the provider said nothing; no ending that looks complete",
    modes=(True,),
    isolated=True,
)
async def cut_mid_stream(trial: Trial, stream: bool) -> None:
    got, _ = await trial.send(plain(), Answer(_SCRIPT, cut_at=0.5), stream=True)
    _broken(trial, got)


def _broken(trial: Trial, got: Got) -> None:
    if got.status != 200:  # nothing had been shown yet
        trial.refusal(got, status=lambda code: code >= 500)
        return
    found = trial.read(got, stream=True)
    if found is None:
        return
    trial.expect(found.error is not None, "no error event" if got.complete else "the connection just breaks off")
    trial.expect(found.stop in (None, "failed"), f"it ends with stop {found.stop!r}, as if it were complete")
    trial.expect(_SCRIPT.text.startswith(found.text), f"text {found.text!r}")


@trap(
    "cut-whole-answer",
    "errors",
    sent="a request whose answer breaks off",
    arrives="the request",
    back="an error in the caller's own envelope, not half an answer",
    modes=(False,),
    isolated=True,
)
async def cut_whole_answer(trial: Trial, stream: bool) -> None:
    got, _ = await trial.send(plain(), Answer(_SCRIPT, cut_at=0.5), stream=False)
    trial.refusal(got, status=lambda code: code >= 500)


@trap(
    "broken-json",
    "errors",
    sent="a body that is no JSON",
    arrives="nothing",
    back="a 4xx error in the caller's own envelope",
    modes=(False,),
    upstreams=("chat",),
)
async def broken_json(trial: Trial, stream: bool) -> None:
    trial.refusal(await trial.post(PATHS[trial.caller], b'{"model": "'))


@trap(
    "wrong-types",
    "errors",
    sent="messages that are a number",
    arrives="nothing",
    back="a 4xx error in the caller's own envelope",
    modes=(False,),
    upstreams=("chat",),
)
async def wrong_types(trial: Trial, stream: bool) -> None:
    field = {"openai_responses": "input", "ollama_generate": "prompt"}.get(trial.caller, "messages")
    body = {"model": trial.bench.models[trial.upstream], field: 7, "max_tokens": 10, "stream": stream}
    trial.refusal(await trial.post(PATHS[trial.caller], json.dumps(body).encode()))


@trap(
    "unknown-model",
    "errors",
    sent="a model nobody has",
    arrives="nothing",
    back="a 4xx error in the caller's own envelope",
    upstreams=("chat",),
)
async def unknown_model(trial: Trial, stream: bool) -> None:
    _, body = trial.prepare(plain(), stream=stream)
    body["model"] = "no-such-model-anywhere"
    trial.refusal(await trial.post(PATHS[trial.caller], json.dumps(body).encode()))
