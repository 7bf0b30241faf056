"""The gateway from outside: real HTTP on both sides, the official SDKs as clients, a scripted provider behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from daemon import Daemon, wait_for
from upstream import Reply, Upstream

KINDS = ("openai", "anthropic", "ollama")


def provider(name: str, kind: str, url: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "endpoint": url if kind != "openai" else f"{url}/v1", **more}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Upstream]]:
    with Upstream() as upstream:
        providers = [
            provider(
                f"my-{kind}",
                kind,
                upstream.url,
                api_key_env="SOME_KEY",
                models=[{"name": f"{kind}-model", "input_price": 1, "output_price": 2, "capabilities": ["tools"]}],
            )
            for kind in KINDS
        ]
        with Daemon(tmp_path_factory.mktemp("shared"), {"providers": providers}, SOME_KEY="sk-upstream") as daemon:
            yield daemon, upstream


@pytest.fixture
def daemon(shared: tuple[Daemon, Upstream]) -> Daemon:
    return shared[0]


@pytest.fixture
def upstream(shared: tuple[Daemon, Upstream]) -> Upstream:
    server = shared[1]
    server.script.clear()
    server.requests.clear()
    server.default = Reply()
    return server


# ---------------------------------------------------------------- official SDKs, every pair of dialects


@pytest.mark.parametrize("kind", KINDS)
def test_openai_sdk(daemon: Daemon, upstream: Upstream, kind: str) -> None:
    model = f"{kind}-model"
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="sk-caller", max_retries=0) as client:
        whole = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
        assert whole.choices[0].message.content == "Hello from upstream."
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (12, 5)
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello from upstream."
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 5
        upstream.default = Reply(tool=("weather", '{"city": "Paris"}'))
        tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        called = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "weather?"}], tools=[tool]
        )
        assert called.choices[0].finish_reason == "tool_calls"
        (call,) = called.choices[0].message.tool_calls or ()
        assert json.loads(call.function.arguments) == {"city": "Paris"}  # type: ignore[union-attr]
        upstream.default = Reply()
        response = client.responses.create(model=model, input="hi")
        assert response.output_text == "Hello from upstream."
        events = list(client.responses.create(model=model, input="hi", stream=True))
        assert events[-1].type == "response.completed"
    assert all(request.headers.get("authorization") != "Bearer sk-caller" for request in upstream.requests)


@pytest.mark.parametrize("kind", KINDS)
def test_anthropic_sdk(daemon: Daemon, upstream: Upstream, kind: str) -> None:
    model = f"{kind}-model"
    with anthropic.Anthropic(base_url=daemon.url, api_key="sk-caller", max_retries=0) as client:
        turn: Any = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
        whole = client.messages.create(**turn)
        assert whole.content[0].text == "Hello from upstream."  # type: ignore[union-attr]
        assert (whole.usage.input_tokens, whole.usage.output_tokens) == (12, 5)
        assert whole.stop_reason == "end_turn"
        with client.messages.stream(**turn) as stream:
            assert "".join(stream.text_stream) == "Hello from upstream."
            assert stream.get_final_message().usage.output_tokens == 5
        upstream.default = Reply(tool=("weather", '{"city": "Paris"}'))
        tool = {"name": "weather", "input_schema": {"type": "object"}}
        with client.messages.stream(**turn, tools=[tool]) as stream:
            message = stream.get_final_message()
        assert message.stop_reason == "tool_use"
        assert message.content[-1].input == {"city": "Paris"}  # type: ignore[union-attr]
        assert client.messages.count_tokens(model=model, messages=turn["messages"]).input_tokens > 0
        assert client.beta.messages.create(**turn, betas=["some-beta"]).content
    if kind == "anthropic":
        assert upstream.requests[-1].headers["anthropic-beta"] == "some-beta"
        daemon.post("/v1/messages?beta=true", turn, anthropic_beta="some-beta")
        beta = upstream.requests[-1]
        assert (beta.path, beta.headers["anthropic-beta"]) == ("/v1/messages?beta=true", "some-beta")


@pytest.mark.parametrize("kind", KINDS)
def test_ollama_sdk(daemon: Daemon, upstream: Upstream, kind: str) -> None:
    model = f"{kind}-model"
    client = ollama.Client(host=daemon.url)
    try:
        messages = [{"role": "user", "content": "hi"}]
        assert client.chat(model=model, messages=messages).message.content == "Hello from upstream."
        parts = list(client.chat(model=model, messages=messages, stream=True))
        assert "".join(part.message.content or "" for part in parts) == "Hello from upstream."
        assert parts[-1].eval_count == 5
        assert client.generate(model=model, prompt="hi").response == "Hello from upstream."
        assert "auto" in [m.model for m in client.list().models]
    finally:
        client._client.close()


def test_models_and_embeddings(daemon: Daemon) -> None:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="x", max_retries=0) as client:
        assert {"auto", "openai-model"} <= {model.id for model in client.models.list()}
        assert client.models.retrieve("openai-model").owned_by == "my-openai"
        reply = client.embeddings.create(model="openai-model", input="hi", encoding_format="float")
        assert reply.data[0].embedding == [0.1, 0.2]
    with anthropic.Anthropic(base_url=daemon.url, api_key="x", max_retries=0) as claude:
        assert "auto" in {model.id for model in claude.models.list()}


# ---------------------------------------------------------------- bytes, headers, ledger


def test_bytes_pass_untouched(daemon: Daemon, upstream: Upstream) -> None:
    raw = b'{ "model":"openai-model", "messages":[{"role":"user","content":"h\\u0069"}],"future_field" : {"x":1.50} }'
    got = daemon.post("/v1/chat/completions", raw)
    assert upstream.calls[0].raw == raw
    assert got.status == 200
    assert got.body["id"] == "chatcmpl-1"


def test_the_bill_of_a_whole_answer_stands_in_its_headers(daemon: Daemon, upstream: Upstream) -> None:
    upstream.default = Reply(input=1000, output=500)
    got = daemon.chat("openai-model", x_avyay_customer="acme", x_request_class="greeting", x_api_key="sk-caller")
    headers = {name: got.headers[f"x-avyay-{name}"] for name in ("provider", "model", "tier", "cost")}
    assert headers == {"provider": "my-openai", "model": "openai-model", "tier": "medium", "cost": "0.002"}
    decision = got.headers["x-avyay-decision-id"]
    found = daemon.get(f"/marga/decisions/{decision}").body
    assert (found["cost_usd"], found["input"], found["output"]) == ("0.002", 1000, 500)
    wait_for(lambda: any(row["id"] == decision for row in daemon.services.calls.calls()))
    row = daemon.services.calls.call(decision)
    assert (row["customer"], row["request_class"], row["status"]) == ("acme", "greeting", "ok")
    assert row["key"].startswith("key-")
    assert "sk-caller" not in str(row)


def test_a_streams_final_cost_is_read_by_decision(daemon: Daemon, upstream: Upstream) -> None:
    upstream.default = Reply(input=1000, output=500, cached=200)
    got = daemon.chat("openai-model", stream=True)
    assert "x-avyay-cost-estimated" in got.headers
    assert b'"usage": {' not in got.raw  # asked of the provider, not shown to a caller who did not ask
    found = daemon.get(f"/marga/decisions/{got.headers['x-avyay-decision-id']}").body
    assert (found["cost_usd"], found["cached"], found["estimated"]) == ("0.002", 200, False)


def test_rate_limit_headers_of_the_serving_provider(daemon: Daemon, upstream: Upstream) -> None:
    upstream.default = Reply(headers={"x-ratelimit-remaining-requests": "41", "set-cookie": "a=b"})
    got = daemon.chat("openai-model")
    assert got.headers["x-ratelimit-remaining-requests"] == "41"
    assert "set-cookie" not in got.headers


# ---------------------------------------------------------------- bad input


ENVELOPES = [
    ("/v1/chat/completions", lambda body: body["error"]["code"]),
    ("/v1/responses", lambda body: body["error"]["code"]),
    ("/v1/messages", lambda body: (body["type"] == "error" and body["error"]["code"]) or None),
    ("/api/chat", lambda body: (isinstance(body["error"], str) and body["code"]) or None),
]


@pytest.mark.parametrize(("path", "code"), ENVELOPES)
def test_errors_speak_the_callers_dialect(daemon: Daemon, path: str, code: Any) -> None:
    for raw in (b"{not json", b"[]", b'"text"', b"", b'{"model": 7}', b'{"messages": []}'):
        got = daemon.post(path, raw)
        assert got.status == 400, raw
        assert code(got.body), raw
    got = daemon.post(path, {"model": "nobody-has-it", "messages": [], "input": "x"})
    assert (got.status, code(got.body)) == (404, "model_not_found")
    assert daemon.get(path).status == 405


def test_a_capability_nobody_has(daemon: Daemon, upstream: Upstream) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    got = daemon.post("/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": [image]}]})
    assert (got.status, got.body["error"]["code"]) == (400, "no_capable_provider")
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x_quality_min", "2"),
        ("x_quality_min", "x"),
        ("x_latency_budget", "soon"),
        ("x_request_class", "Not OK!"),
        ("x_cost_tier", "cheap"),
    ],
)
def test_hints_that_cannot_be_read(daemon: Daemon, header: str, value: str) -> None:
    got = daemon.chat("auto", **{header: value})
    assert (got.status, got.body["error"]["code"]) == (400, "invalid_hint")


def test_wrong_types_inside_do_not_hurt(daemon: Daemon) -> None:
    for messages in (7, "x", [7], [{"role": 7, "content": {}}], [None]):
        got = daemon.post("/v1/messages", {"model": "openai-model", "max_tokens": 5, "messages": messages})
        assert got.status == 400
        assert got.body["type"] == "error"


def test_large_bodies_are_refused_and_the_daemon_lives(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        Daemon(
            tmp_path,
            {"providers": [provider("p", "openai", upstream.url, models=["m"], api_key_env="K")], "max_body": 100_000},
            K="k",
        ) as daemon,
    ):
        got = daemon.post("/v1/messages", b'{"model":"m","x":"' + b"a" * 3_000_000 + b'"}')
        assert (got.status, got.body["error"]["type"]) == (413, "request_too_large")
        assert daemon.chat("m").status == 200


def test_the_daemons_own_key(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        Daemon(
            tmp_path,
            {"providers": [provider("p", "openai", upstream.url, models=["m"], api_key_env="K")]},
            key="secret",
            K="k",
        ) as daemon,
    ):
        assert daemon.chat("m").status == 401
        assert daemon.chat("m", authorization="Bearer wrong").status == 401
        assert daemon.chat("m", authorization="Bearer secret").status == 200
        assert daemon.chat("m", x_api_key="secret").status == 200
        assert daemon.get("/marga/stats").status == 401
        assert daemon.get("/health").status == 200
        assert upstream.calls[0].headers["authorization"] == "Bearer k"


def test_context_by_the_targets_own_count(tmp_path: Path) -> None:
    with Upstream() as upstream:
        models = [
            {"name": "gpt-4o-small", "base": "gpt-4o", "context": 1000, "input_price": 1, "output_price": 1},
            {"name": "large", "context": 100_000, "input_price": 2, "output_price": 2},
        ]
        config = {"providers": [provider("p", "openai", upstream.url, models=models, api_key_env="K")]}
        with Daemon(tmp_path, config, K="k") as daemon:

            def served(words: int) -> str:
                messages = [{"role": "user", "content": "hello " * words}]
                got = daemon.post("/v1/chat/completions", {"model": "auto", "messages": messages})
                return got.headers.get("x-avyay-model") or got.body["error"]["code"]

            # A token a word: by letters the estimate is half as much again.
            assert served(900) == "gpt-4o-small"
            assert served(1000) == "large"
            assert served(200_000) == "context_length_exceeded" or served(200_000) == "no_capable_provider"


def test_a_stored_response_is_continued_where_it_is(tmp_path: Path) -> None:
    with Upstream() as first, Upstream() as second:
        providers = [
            provider(f"p{n}", "openai", up.url, models=["m"], api_key_env="K", priority=n)
            for n, up in enumerate((first, second), 1)
        ]
        with Daemon(tmp_path, {"providers": providers}, K="k") as daemon:
            first.default = Reply(status=500)
            assert daemon.post("/v1/responses", {"model": "m", "input": "hi"}).headers["x-avyay-provider"] == "p2"
            first.default = Reply()
            more = {"model": "m", "input": "and?", "previous_response_id": "resp_1"}
            assert daemon.post("/v1/responses", more).headers["x-avyay-provider"] == "p2"
        # A router that was restarted knows no homes: whoever has the response answers.
        missing = "Previous response with id 'resp_1' not found."
        first.default = Reply(status=400, message=missing, code="previous_response_not_found")
        with Daemon(tmp_path / "again", {"providers": providers}, K="k") as daemon:
            assert daemon.post("/v1/responses", more).headers["x-avyay-provider"] == "p2"
            second.default = first.default
            got = daemon.post("/v1/responses", more)
            assert (got.status, got.body["error"]["code"]) == (400, "previous_response_not_found")
            # Where responses are not kept, it is refused, clearly.
    with Upstream() as other:
        config = {"providers": [provider("a", "anthropic", other.url, models=["m"], api_key_env="K")]}
        with Daemon(tmp_path / "other", config, K="k") as daemon:
            got = daemon.post("/v1/responses", more)
            assert got.status == 400
            assert "previous_response_id" in got.body["error"]["message"]
            assert other.calls == []


def test_the_model_does_not_change_inside_a_tool_loop(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    hard = "Design and prove a distributed algorithm, compare the trade-offs step by step. " * 5
    with Upstream() as cheap, Upstream() as dear:
        providers = [
            provider("cheap", "openai", cheap.url, models=[{"name": "small", "tier": "local"}], api_key_env="K"),
            provider("dear", "openai", dear.url, models=[{"name": "big", "tier": "premium"}], api_key_env="K"),
        ]
        with Daemon(tmp_path, {"providers": providers}, K="k") as daemon:
            messages: list[dict[str, Any]] = [{"role": "user", "content": "Weather in Paris?"}]
            dear.default = cheap.default = Reply(tool=("weather", "{}"))

            def ask(**headers: str) -> str:
                body = {"model": "auto", "messages": messages, "tools": [tool]}
                return daemon.post("/v1/chat/completions", body, **headers).headers["x-avyay-provider"]

            first = ask()
            call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": hard},
            ]
            other = {"cheap": "premium", "dear": "local"}[first]
            assert ask(x_cost_tier=other) == first  # a hint moves no conversation in the middle of a tool loop
            messages += [{"role": "assistant", "content": "Sunny."}, {"role": "user", "content": "Thanks."}]
            assert ask(x_cost_tier=other) != first


def test_without_a_provider(tmp_path: Path) -> None:
    with Daemon(tmp_path, {}) as daemon:
        got = daemon.chat()
        assert (got.status, got.body["error"]["code"]) == (503, "no_provider")
        assert "OPENAI_API_KEY" in got.body["error"]["message"]
        got = daemon.post("/v1/embeddings", {"model": "auto", "input": "hi"})
        assert (got.status, got.body["error"]["code"]) == (503, "no_provider")
        assert daemon.get("/ready").status == 503


def test_embeddings_of_no_model_in_particular(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        Daemon(tmp_path, {"providers": [provider("only", "openai-compatible", f"{upstream.url}/v1")]}) as daemon,
    ):
        got = daemon.post("/v1/embeddings", {"model": "auto", "input": "hi"})
        assert (got.status, got.body["error"]["code"]) == (400, "missing_model")
        assert "avyay marga providers" in got.body["error"]["message"]


def test_what_is_not_served_is_said_as_the_sdks_show_it(daemon: Daemon) -> None:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="does not serve /v1/images/generations") as raised:
            client.images.generate(model="any", prompt="a fox")
        assert raised.value.code == "not_served"
    with (
        anthropic.Anthropic(base_url=f"{daemon.url}/v1", api_key="x", max_retries=0) as doubled,
        pytest.raises(anthropic.NotFoundError, match="leave /v1 out"),
    ):
        doubled.messages.create(model="auto", max_tokens=5, messages=[{"role": "user", "content": "hi"}])
    assert b"base_url" in daemon.get("/").raw


def test_pages(daemon: Daemon) -> None:
    assert daemon.request("HEAD", "/").status == 200
    assert daemon.get("/ready").body == {"ready": True}
    assert daemon.get("/health").body["providers"]["my-openai"] == "closed"
    assert b'marga_breaker_state{provider="my-openai",endpoint="chat"} 0' in daemon.get("/metrics").raw
    assert daemon.get("/marga/stats?by=provider").status == 200
    assert daemon.get("/marga/stats?by=colour").status == 404
    assert daemon.get("/marga/decisions/dec_nothing").status == 404
    assert daemon.get("/nothing").status == 404
