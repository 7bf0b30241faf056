"""The official SDKs read every reply we write, whole and streamed, from every upstream."""

import json

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest
from pydantic import TypeAdapter

from avyay.marga.conformance.scripted import Call, Script, Tokens, stream, whole
from avyay.marga.wire import DIALECTS, Failure, begin, default_target, load_body, render_error, stream_content_type

SCRIPT = Script(
    text="It is 22 °C — warm.",
    thinking="Let me see.",
    signature="EqQBCgYIAQ==",
    calls=(Call("call_a", "get_weather", {"city": "Zürich", "days": [1, 2]}), Call("call_b", "now", {})),
    tokens=Tokens(plain=120, cache_read=30, cache_write=10, output=45, reasoning=5),
)
PLAIN = Script(text="Hello.", tokens=Tokens(plain=9, output=3))
MODELS = {"anthropic_messages": "claude-opus-4-8", "ollama_chat": "qwen3", "ollama_generate": "qwen3"}


class Gateway:
    """Answers an SDK's request with our translation of a scripted upstream's answer; no network."""

    def __init__(self, caller, upstream, script, failure=None):
        self.caller, self.upstream, self.script, self.failure = caller, upstream, script, failure

    def answer(self, raw):
        target = default_target(self.upstream, MODELS.get(self.upstream, "gpt-5.1"))
        if self.failure is not None:
            return self.failure.status, "application/json", render_error(self.caller, self.failure)
        exchange = begin(self.caller, raw, load_body(raw), target, exchange_id="ex_1", created=1_790_000_000)
        if not exchange.streaming:
            return 200, "application/json", exchange.reply(whole(self.upstream, self.script)).body
        pipe = exchange.stream()
        source = stream(self.upstream, self.script)
        body = b"".join(pipe.feed(source[i : i + 37]) for i in range(0, len(source), 37)) + pipe.close()
        return 200, stream_content_type(self.caller), body

    def new(self, request):
        status, kind, body = self.answer(request.content)
        return httpx2.Response(status, headers={"content-type": kind}, content=body)

    def old(self, request):
        status, kind, body = self.answer(request.read())
        return httpx.Response(status, headers={"content-type": kind}, content=body)

    def openai(self):
        client = httpx2.Client(transport=httpx2.MockTransport(self.new))
        return openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=client, max_retries=0)

    def anthropic(self):
        client = httpx2.Client(transport=httpx2.MockTransport(self.new))
        return anthropic.Anthropic(api_key="k", base_url="http://gateway", http_client=client, max_retries=0)

    def ollama(self):
        return ollama.Client(host="http://gateway", transport=httpx.MockTransport(self.old))


TALKERS = [d for d in DIALECTS if d != "ollama_generate"]
ARGUMENTS = [call.arguments for call in SCRIPT.calls]


@pytest.mark.parametrize("upstream", TALKERS)
def test_openai_sdk_reads_chat(upstream):
    with Gateway("openai_chat", upstream, SCRIPT).openai() as client:
        ask = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
        reply = client.chat.completions.create(**ask)
        TypeAdapter(openai.types.chat.ChatCompletion).validate_python(reply.model_dump(), strict=False)
        with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as events:
            for _ in events:
                pass
            streamed = events.get_final_completion()
    for seen in (reply, streamed):
        message = seen.choices[0].message
        assert message.content == SCRIPT.text
        assert [json.loads(c.function.arguments) for c in message.tool_calls] == ARGUMENTS
        assert seen.choices[0].finish_reason == "tool_calls"
        assert seen.usage.prompt_tokens == 160
        assert seen.usage.completion_tokens == 45
        assert seen.id == "chatcmpl-ex_1" or upstream == "openai_chat"


@pytest.mark.parametrize("upstream", TALKERS)
def test_openai_sdk_reads_responses(upstream):
    with Gateway("openai_responses", upstream, SCRIPT).openai() as client:
        reply = client.responses.create(model="auto", input="hi", store=False)
        TypeAdapter(openai.types.responses.Response).validate_json(reply.model_dump_json())
        with client.responses.stream(model="auto", input="hi", store=False) as events:
            seen_events = list(events)
            streamed = events.get_final_response()
    adapter = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    for event in seen_events:
        if event.type in ("response.function_call_arguments.delta", "response.output_text.delta"):
            continue  # the SDK adds a snapshot of its own to these
        adapter.validate_python(
            event.model_dump(by_alias=True, warnings=False, exclude={"parsed", "response"}) | _rest(event)
        )
    for seen in (reply, streamed):
        assert seen.output_text == SCRIPT.text
        calls = [item for item in seen.output if item.type == "function_call"]
        assert [json.loads(c.arguments) for c in calls] == ARGUMENTS
        assert seen.status == "completed"
        assert (seen.usage.input_tokens, seen.usage.output_tokens) == (160, 45)


def _rest(event):
    response = getattr(event, "response", None)
    return {} if response is None else {"response": json.loads(response.model_dump_json(warnings=False))}


@pytest.mark.parametrize("upstream", TALKERS)
def test_anthropic_sdk_reads_messages(upstream):
    ask = {"model": "auto", "max_tokens": 500, "messages": [{"role": "user", "content": "hi"}]}
    with Gateway("anthropic_messages", upstream, SCRIPT).anthropic() as client:
        reply = client.messages.create(**ask)
        with client.messages.stream(**ask) as events:
            raw = list(events)
            streamed = events.get_final_message()
    TypeAdapter(anthropic.types.Message).validate_python(json.loads(reply.to_json()), strict=False)
    assert sum(e.type == "content_block_stop" for e in raw) == 4
    for seen in (reply, streamed):
        assert [b.type for b in seen.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert seen.content[0].thinking == SCRIPT.thinking
        assert seen.content[1].text == SCRIPT.text
        assert [b.input for b in seen.content[2:]] == ARGUMENTS
        assert seen.stop_reason == "tool_use"
        usage = seen.usage
        total = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
        assert (total, usage.output_tokens) == (160, 45)


@pytest.mark.parametrize("upstream", TALKERS)
def test_ollama_sdk_reads_chat(upstream):
    client = Gateway("ollama_chat", upstream, SCRIPT).ollama()
    reply = client.chat(model="auto", messages=[{"role": "user", "content": "hi"}])
    parts = list(client.chat(model="auto", messages=[{"role": "user", "content": "hi"}], stream=True))
    assert reply.message.content == "".join(p.message.content or "" for p in parts) == SCRIPT.text
    assert reply.message.thinking == "".join(p.message.thinking or "" for p in parts) == SCRIPT.thinking
    calls = [c for p in parts for c in p.message.tool_calls or ()]
    assert [dict(c.function.arguments) for c in calls] == ARGUMENTS
    assert [dict(c.function.arguments) for c in reply.message.tool_calls] == ARGUMENTS
    assert parts[-1].done
    assert (
        (reply.prompt_eval_count, reply.eval_count) == (parts[-1].prompt_eval_count, parts[-1].eval_count) == (160, 45)
    )


@pytest.mark.parametrize("upstream", DIALECTS)
def test_ollama_sdk_reads_generate(upstream):
    client = Gateway("ollama_generate", upstream, PLAIN).ollama()
    reply = client.generate(model="auto", prompt="hi")
    parts = list(client.generate(model="auto", prompt="hi", stream=True))
    assert reply.response == "".join(p.response for p in parts) == "Hello."
    assert parts[-1].done_reason == reply.done_reason == "stop"


FAILURES = [
    (Failure("rate_limit", "Slow down."), openai.RateLimitError, anthropic.RateLimitError),
    (Failure("authentication", "Bad key."), openai.AuthenticationError, anthropic.AuthenticationError),
    (Failure("not_found", "No such model."), openai.NotFoundError, anthropic.NotFoundError),
    (Failure("invalid_request", "Wrong."), openai.BadRequestError, anthropic.BadRequestError),
    (Failure("overloaded", "Busy."), openai.InternalServerError, anthropic.InternalServerError),
]


@pytest.mark.parametrize("failure, for_openai, for_anthropic", FAILURES)
def test_sdks_raise_their_own_errors(failure, for_openai, for_anthropic):
    with Gateway("openai_chat", "openai_chat", PLAIN, failure).openai() as client, pytest.raises(for_openai) as caught:
        client.chat.completions.create(model="m", messages=[])
    assert caught.value.code == failure.code
    gateway = Gateway("anthropic_messages", "openai_chat", PLAIN, failure)
    with gateway.anthropic() as client, pytest.raises(for_anthropic) as caught:
        client.messages.create(model="m", max_tokens=1, messages=[])
    assert caught.value.body["error"]["message"] == failure.message
    with pytest.raises(ollama.ResponseError) as caught:
        Gateway("ollama_chat", "openai_chat", PLAIN, failure).ollama().chat(model="m")
    assert caught.value.status_code == failure.status
    assert caught.value.error == failure.message


class Cut(Gateway):
    """An upstream that breaks off in the middle."""

    def answer(self, raw):
        target = default_target(self.upstream, MODELS.get(self.upstream, "gpt-5.1"))
        pipe = begin(self.caller, raw, load_body(raw), target, exchange_id="ex_1", created=1).stream()
        source = stream(self.upstream, self.script)
        body = pipe.feed(source[: len(source) // 2]) + pipe.close()
        return 200, stream_content_type(self.caller), body


@pytest.mark.parametrize("upstream", TALKERS)
def test_sdks_see_a_cut_stream_as_an_error(upstream):
    with Cut("openai_chat", upstream, SCRIPT).openai() as client, pytest.raises(openai.APIError) as caught:
        for _ in client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True):
            pass
    assert caught.value.code == "stream_truncated"
    with Cut("anthropic_messages", upstream, SCRIPT).anthropic() as client, pytest.raises(anthropic.APIError):
        for _ in client.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}], stream=True
        ):
            pass
    client = Cut("ollama_chat", upstream, SCRIPT).ollama()
    with pytest.raises(ollama.ResponseError):
        list(client.chat(model="m", messages=[{"role": "user", "content": "x"}], stream=True))
    with Cut("openai_responses", upstream, SCRIPT).openai() as client:
        last = list(client.responses.create(model="m", input="x", store=False, stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error.type == "stream_truncated"
