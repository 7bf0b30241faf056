"""Answers given again: real HTTP on both sides, the official SDKs as clients, a scripted provider behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from daemon import Daemon, Got
from upstream import Reply, Upstream

MODEL = {"input_price": 1, "output_price": 2, "capabilities": ["tools"]}
KINDS = ("openai", "anthropic", "ollama")


def provider(kind: str, url: str) -> dict[str, Any]:
    endpoint = url if kind != "openai" else f"{url}/v1"
    models = [{"name": f"{kind}-model", **MODEL}]
    return {"name": f"my-{kind}", "kind": kind, "endpoint": endpoint, "api_key_env": "SOME_KEY", "models": models}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Upstream]]:
    with Upstream() as upstream:
        marga = {"providers": [provider(kind, upstream.url) for kind in KINDS], "cache": {"enabled": True}}
        with Daemon(tmp_path_factory.mktemp("cache"), marga, SOME_KEY="sk-upstream") as daemon:
            yield daemon, upstream


@pytest.fixture
def daemon(served: tuple[Daemon, Upstream]) -> Daemon:
    return served[0]


@pytest.fixture
def upstream(served: tuple[Daemon, Upstream]) -> Upstream:
    server = served[1]
    server.script.clear()
    server.requests.clear()
    server.default = Reply()
    return server


def ask(daemon: Daemon, text: str, body: dict[str, Any] | None = None, **headers: str) -> Got:
    sent = {"model": "openai-model", "messages": [{"role": "user", "content": text}], **(body or {})}
    return daemon.post("/v1/chat/completions", sent, **headers)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sdks_read_what_is_given_again(daemon: Daemon, upstream: Upstream, kind: str) -> None:
    model, said = f"{kind}-model", f"said of {kind}"
    messages: Any = [{"role": "user", "content": f"again {kind}"}]

    closing = ExitStack()

    def chat() -> list[str]:
        with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="sk-sdk", max_retries=0) as client:
            whole = client.chat.completions.create(model=model, messages=messages)
            stream = client.chat.completions.create(
                model=model, messages=messages, stream=True, stream_options={"include_usage": True}
            )
            chunks = list(stream)
            assert chunks[-1].usage is not None
            response = client.responses.create(model=model, input=f"again {kind}")
            events = list(client.responses.create(model=model, input=f"again {kind}", stream=True))
            assert events[-1].type == "response.completed"
            return [
                whole.choices[0].message.content or "",
                "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
                response.output_text,
                events[-1].response.output_text,
            ]

    def claude() -> list[str]:
        with anthropic.Anthropic(base_url=daemon.url, api_key="sk-sdk", max_retries=0) as client:
            whole = client.messages.create(model=model, max_tokens=100, messages=messages)
            with client.messages.stream(model=model, max_tokens=100, messages=messages) as stream:
                streamed = stream.get_final_text()
            return [whole.content[0].text, streamed]  # type: ignore[union-attr]

    def llama() -> list[str]:
        client = ollama.Client(host=daemon.url)
        closing.callback(client._client.close)
        whole = client.chat(model=model, messages=messages)
        streamed = "".join(
            part.message.content or "" for part in client.chat(model=model, messages=messages, stream=True)
        )
        generated = client.generate(model=model, prompt=f"again {kind}").response
        parts = "".join(part.response for part in client.generate(model=model, prompt=f"again {kind}", stream=True))
        return [whole.message.content or "", streamed, generated, parts]

    with closing:
        upstream.default = Reply(text=said)
        first = [chat(), claude(), llama()]
        assert len(upstream.calls) == 10
        upstream.default = Reply(text="something else", status=500)
        assert [chat(), claude(), llama()] == first
    assert all(text == said for texts in first for text in texts)
    assert len(upstream.calls) == 10  # nobody was asked a second time


def test_a_hit_costs_nothing_and_says_so(daemon: Daemon, upstream: Upstream) -> None:
    first = ask(daemon, "costly")
    again = ask(daemon, "costly")
    assert (first.headers["x-avyay-cache"], again.headers["x-avyay-cache"]) == ("miss", "hit")
    assert again.raw == first.raw
    assert float(first.headers["x-avyay-cost"]) > 0
    assert again.headers["x-avyay-cost"] == "0"
    assert again.headers["x-avyay-cost-saved"] == first.headers["x-avyay-cost"]
    assert int(again.headers["age"]) >= 0
    row = daemon.get(f"/marga/decisions/{again.headers['x-avyay-decision-id']}").body
    assert (row["provider"], row["model"], row["status"], row["cost_usd"]) == ("cache", "openai-model", "ok", "0")
    assert daemon.get("/marga/cache").body["requests"]["hit"] >= 1
    metrics = daemon.get("/metrics").raw.decode()
    assert 'marga_cache_requests_total{result="hit"}' in metrics


def test_a_stream_is_given_again_byte_for_byte(daemon: Daemon, upstream: Upstream) -> None:
    upstream.default = Reply(text="one two three four " * 400)
    first = ask(daemon, "stream", {"stream": True})
    again = ask(daemon, "stream", {"stream": True})
    assert again.headers["x-avyay-cache"] == "hit"
    assert again.headers["content-type"].startswith("text/event-stream")
    assert again.raw == first.raw
    assert ask(daemon, "stream").headers["x-avyay-cache"] == "miss"  # whole and streamed answers are not mixed up


def test_tenants_never_share(daemon: Daemon, upstream: Upstream) -> None:
    one = {"authorization": "Bearer one"}
    assert ask(daemon, "mine", **one).headers["x-avyay-cache"] == "miss"
    assert ask(daemon, "mine", **one).headers["x-avyay-cache"] == "hit"
    assert ask(daemon, "mine", authorization="Bearer two").headers["x-avyay-cache"] == "miss"
    assert ask(daemon, "mine").headers["x-avyay-cache"] == "miss"
    assert ask(daemon, "mine", x_avyay_customer="acme", **one).headers["x-avyay-cache"] == "miss"
    assert ask(daemon, "mine", x_avyay_customer="acme", **one).headers["x-avyay-cache"] == "hit"
    assert ask(daemon, "mine", x_avyay_customer="acme", authorization="Bearer two").headers["x-avyay-cache"] == "miss"


def test_what_the_caller_asks_of_the_cache(daemon: Daemon, upstream: Upstream) -> None:
    def result(**headers: str) -> str:
        return ask(daemon, "control", **headers).headers["x-avyay-cache"]

    assert result(cache_control="no-store") == "bypass"
    assert result() == "miss"  # it was not kept
    upstream.default = Reply(text="newer")
    assert result(cache_control="no-cache") == "miss"
    again = ask(daemon, "control")
    assert again.headers["x-avyay-cache"] == "hit"
    assert b"newer" in again.raw  # asked anew, and kept
    assert result(cache_control="max-age=3600") == "hit"
    assert result(cache_control="max-age=0") == "miss"


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
LOOP = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "warm"},
]


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ({"temperature": 0.7}, "bypass"),
        ({"temperature": 0}, "hit"),
        ({"n": 2}, "bypass"),
        ({"messages": LOOP, "tools": [TOOL]}, "bypass"),
        ({"tools": [TOOL]}, "hit"),
    ],
    ids=["temperature", "temperature-0", "several", "tool-loop", "tools-unused"],
)
def test_what_may_be_kept(daemon: Daemon, upstream: Upstream, body: dict[str, Any], how: str) -> None:
    text = f"may {json.dumps(body)}"
    ask(daemon, text, body)
    assert ask(daemon, text, body).headers["x-avyay-cache"] == how


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_of_a_tool_is_not_given_again(daemon: Daemon, upstream: Upstream, stream: bool) -> None:
    upstream.default = Reply(tool=("weather", "{}"))
    body = {"tools": [TOOL], "stream": stream}
    ask(daemon, f"tool {stream}", body)
    assert ask(daemon, f"tool {stream}", body).headers["x-avyay-cache"] == "miss"


@pytest.mark.parametrize("fault", ["status", "cut"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_failed_answer_is_not_kept(daemon: Daemon, upstream: Upstream, fault: str, stream: bool) -> None:
    text = f"fail {fault} {stream}"
    bad = Reply(status=400) if fault == "status" else Reply(fault="cut", text="a b c d e f")
    upstream.script.extend([bad] * 6)
    daemon_says = ask(daemon, text, {"stream": stream})
    upstream.script.clear()
    assert daemon_says.headers.get("x-avyay-cache") != "hit"
    good = ask(daemon, text, {"stream": stream})
    assert (good.status, good.headers["x-avyay-cache"]) == (200, "miss")


def test_on_disk_answers_outlive_the_daemon_and_can_be_forgotten(tmp_path: Path) -> None:
    with Upstream() as upstream:
        marga = {"providers": [provider("openai", upstream.url)], "cache": {"enabled": True, "storage": "disk"}}
        for expected in ("miss", "hit"):
            with Daemon(tmp_path, marga, SOME_KEY="sk-upstream") as daemon:
                assert ask(daemon, "lasting").headers["x-avyay-cache"] == expected
        assert len(upstream.calls) == 1


def test_a_broken_disk_costs_hits_and_no_call(tmp_path: Path) -> None:
    with Upstream() as upstream:
        marga = {"providers": [provider("openai", upstream.url)], "cache": {"enabled": True, "storage": "disk"}}
        with Daemon(tmp_path, marga, SOME_KEY="sk-upstream") as daemon:
            cache = daemon.services.paths.data / "marga" / "cache.db"
            ask(daemon, "before")
            for name in (cache, cache.with_name("cache.db-wal")):
                if name.exists():
                    name.write_bytes(b"\xff" * 20_000)
            for count in range(3):
                assert ask(daemon, f"after {count}").status == 200
            assert daemon.get("/marga/cache").status in (200, 500, 503)
            assert daemon.chat("openai-model").status == 200
