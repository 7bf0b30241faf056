"""Traps beside the conversation: what clients ask before and between their requests."""

from __future__ import annotations

import json

from avyay.marga.conformance.registry import trap
from avyay.marga.conformance.samples import plain
from avyay.marga.conformance.trial import Trial
from avyay.marga.conformance.upstream import Answer

__all__: list[str] = []


@trap(
    "model-list",
    "endpoints",
    sent="GET /v1/models as an OpenAI and as an Anthropic client, GET /api/tags as an Ollama client",
    arrives="nothing",
    back="a list in that client's form, with the model under test",
    callers=("chat", "messages", "ollama"),
    modes=(False,),
)
async def model_list(trial: Trial, stream: bool) -> None:
    path = "/api/tags" if trial.caller == "ollama_chat" else "/v1/models"
    got = await trial.get(path)
    if not trial.equal(got.status, 200, "HTTP status"):
        return
    try:
        if trial.caller == "ollama_chat":
            names = [model["name"] for model in got.body["models"]]
        else:
            names = [model["id"] for model in got.body["data"]]
            if trial.caller == "anthropic_messages":
                trial.expect(all(m["type"] == "model" for m in got.body["data"]), "entries without type model")
                trial.expect("has_more" in got.body, "no has_more")
            else:
                trial.equal(got.body.get("object"), "list", "object")
    except (ValueError, KeyError, TypeError) as error:
        trial.expect(False, f"no list of models: {type(error).__name__}: {error}")
        return
    wanted = trial.bench.models[trial.upstream]
    trial.expect(any(wanted in name for name in names), f"{wanted} is not listed")


@trap(
    "count-tokens",
    "endpoints",
    sent="POST /v1/messages/count_tokens",
    arrives="the same where the provider can count, else nothing",
    back="a positive input_tokens",
    callers=("messages",),
    modes=(False,),
)
async def count_tokens(trial: Trial, stream: bool) -> None:
    body = {
        "model": trial.bench.models[trial.upstream],
        "messages": [{"role": "user", "content": "How many tokens are these?"}],
    }
    got = await trial.post("/v1/messages/count_tokens", json.dumps(body).encode())
    if trial.equal(got.status, 200, "HTTP status"):
        count = got.body.get("input_tokens")
        trial.expect(isinstance(count, int) and count > 0, f"input_tokens is {count!r}")


@trap(
    "embeddings",
    "endpoints",
    sent="POST /v1/embeddings with two texts",
    arrives="both texts",
    back="two vectors in order, and usage",
    callers=("chat",),
    upstreams=("chat", "ollama"),
    modes=(False,),
)
async def embeddings(trial: Trial, stream: bool) -> None:
    body = {"model": trial.bench.models[trial.upstream], "input": ["one", "two"], "encoding_format": "float"}
    got = await trial.post("/v1/embeddings", json.dumps(body).encode())
    if trial.equal(got.status, 200, f"HTTP status ({got.raw[:120]!r})"):
        data = got.body["data"]
        trial.equal([entry["index"] for entry in data], [0, 1], "indices")
        trial.equal([entry["embedding"] for entry in data], [[0.25, -0.5]] * 2, "vectors")
        trial.expect("usage" in got.body, "no usage")


@trap(
    "alive",
    "endpoints",
    sent="HEAD /, which coding agents send to see whether anybody is there",
    arrives="nothing",
    back="a 2xx status",
    callers=("messages",),
    upstreams=("messages",),
    modes=(False,),
)
async def alive(trial: Trial, stream: bool) -> None:
    got = await trial.get("/", method="HEAD")
    trial.expect(200 <= got.status < 300, f"HTTP {got.status}")


@trap(
    "rate-limit-headers",
    "endpoints",
    sent="a question to a provider that reports its limits in headers",
    arrives="the question",
    back="the same headers",
    callers=("chat", "responses", "messages"),
    upstreams=("chat", "responses", "messages"),
    same=True,
)
async def rate_limit_headers(trial: Trial, stream: bool) -> None:
    name = (
        "anthropic-ratelimit-requests-remaining"
        if trial.upstream == "anthropic_messages"
        else "x-ratelimit-remaining-requests"
    )
    got, _ = await trial.send(plain(), Answer(headers={name: "41"}), stream=stream)
    trial.equal(got.headers.get(name), "41", name)
