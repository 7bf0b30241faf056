"""Embeddings and model lists, read by the SDKs."""

import json

import httpx
import httpx2
import ollama
import openai
import pytest
from anthropic import Anthropic

from avyay.errors import UnreachableError
from avyay.marga.wire import (
    ListedModel,
    MalformedError,
    UntranslatableError,
    Usage,
    begin_embeddings,
    load_body,
    prompt_texts,
    render_model,
    render_models,
)

NATIVE = b'{"model":"minilm","embeddings":[[0.5,-1.0],[0.25,2.0]],"prompt_eval_count":7}'


def test_embeddings_pass_with_the_model_name_changed():
    raw = b'{"input":["a","b"], "model":"auto", "new":1}'
    exchange = begin_embeddings(raw, load_body(raw), "text-embedding-3-small")
    assert exchange.body == raw.replace(b"auto", b"text-embedding-3-small")
    assert (exchange.inputs, exchange.chars) == (2, 2)
    answer = b'{"object":"list","data":[],"usage":{"prompt_tokens":5,"total_tokens":5}}'
    assert exchange.reply(answer) == (answer, Usage(input=5))
    assert exchange.reply(b"{}")[1] is None


@pytest.mark.parametrize("form", ["float", "base64"])
def test_openai_sdk_reads_translated_embeddings(form):
    def handle(request):
        exchange = begin_embeddings(request.content, load_body(request.content), "minilm", native=True)
        assert json.loads(exchange.body) == {"model": "minilm", "input": ["x", "y"]}
        return httpx2.Response(200, content=exchange.reply(NATIVE)[0])

    client = httpx2.Client(transport=httpx2.MockTransport(handle))
    with openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=client) as sdk:
        reply = sdk.embeddings.create(model="auto", input=["x", "y"], encoding_format=form)
        default = sdk.embeddings.create(model="auto", input=["x", "y"])
    assert default.data[1].embedding == [0.25, 2.0]
    if form == "float":
        assert reply.data[0].embedding == [0.5, -1.0]
    assert reply.usage.prompt_tokens == 7


@pytest.mark.parametrize(
    "body", [{"model": "m"}, {"model": "m", "input": 7}, {"model": "m", "input": []}, {"input": "x"}]
)
def test_malformed_embedding_requests(body):
    with pytest.raises(MalformedError):
        begin_embeddings(b"", body, "m")


def test_token_ids_pass_but_are_not_translated():
    raw = b'{"model":"m","input":[1,2,3]}'
    assert begin_embeddings(raw, load_body(raw), "m").body is raw
    with pytest.raises(UntranslatableError):
        begin_embeddings(raw, load_body(raw), "m", native=True)


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b"{}"])
def test_an_answer_without_embeddings_is_an_unreachable_provider(raw):
    with pytest.raises(UnreachableError):
        begin_embeddings(b"", {"model": "m", "input": "x"}, "m", native=True).reply(raw)


MODELS = [ListedModel("auto", 1_790_000_000), ListedModel("claude-opus-4-8", 1_790_000_000, "anthropic", "Claude")]


def test_sdks_read_the_lists():
    def answer(dialect):
        return httpx2.Client(
            transport=httpx2.MockTransport(lambda _: httpx2.Response(200, content=render_models(dialect, MODELS)))
        )

    with openai.OpenAI(api_key="k", base_url="http://g/v1", http_client=answer("openai_chat")) as sdk:
        assert [m.id for m in sdk.models.list()] == ["auto", "claude-opus-4-8"]
    with Anthropic(api_key="k", base_url="http://g", http_client=answer("anthropic_messages")) as sdk:
        assert [m.display_name for m in sdk.models.list()] == ["auto", "Claude"]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=render_models("ollama_chat", MODELS)))
    assert [m.model for m in ollama.Client("http://g", transport=transport).list().models] == [m.id for m in MODELS]
    assert json.loads(render_models("anthropic_messages", []))["first_id"] is None
    assert json.loads(render_model("openai_chat", MODELS[0]))["object"] == "model"


def test_prompt_texts_hold_all_that_is_read_and_nothing_that_is_not():
    texts = prompt_texts(
        {
            "model": "m",
            "system": [{"type": "text", "text": "sys", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "question"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                        {"type": "document", "title": "T", "source": {"type": "text", "data": "document"}},
                    ],
                },
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "result"}]},
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        }
    )
    assert texts == [
        "sys",
        "question",
        "T",
        "document",
        "f",
        '{"a":1}',
        "result",
        '{"name":"f","input_schema":{"type":"object"}}',
    ]
