"""The metamorphic check: whole or streamed, however the bytes are cut, an answer is the same answer.

`WIRE_EXAMPLES=10000 pytest` runs 10,000 examples.
"""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.marga.conformance.observed import read_stream, read_whole
from avyay.marga.conformance.scripted import Call, Script, Tokens, stream, whole
from avyay.marga.wire import DIALECTS, Usage, begin, default_target, load_body

MODELS = {
    "openai_chat": "gpt-5.1",
    "openai_responses": "gpt-5.1",
    "anthropic_messages": "claude-opus-4-8",
    "ollama_chat": "qwen3",
    "ollama_generate": "qwen3",
}
EXAMPLES = int(os.environ.get("WIRE_EXAMPLES", "300"))

PROMPTS = {
    "openai_chat": {"messages": [{"role": "user", "content": "hi"}], "stream_options": {"include_usage": True}},
    "openai_responses": {"input": "hi", "store": False},
    "anthropic_messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "ollama_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "ollama_generate": {"prompt": "hi"},
}


def exchange_for(caller, upstream, *, streaming):
    body = {"model": "auto", **PROMPTS[caller], "stream": streaming}
    if not streaming:
        body.pop("stream_options", None)
    raw = json.dumps(body).encode()
    target = default_target(upstream, MODELS[upstream])
    return begin(caller, raw, load_body(raw), target, exchange_id="ex_1", created=1_790_000_000)


def cut(data, sizes):
    at, turn = 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        yield data[at : at + size]
        at, turn = at + size, turn + 1


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
calls = st.lists(
    st.tuples(st.sampled_from(["read", "write_file", "f"]), st.dictionaries(words, json_values, max_size=3)), max_size=3
).map(lambda found: tuple(Call(f"call_{i}", name, args) for i, (name, args) in enumerate(found)))


@st.composite
def scripts(draw, upstream):
    tools = () if upstream == "ollama_generate" else draw(calls)
    text = draw(words)
    stop = draw(st.sampled_from(["end", "max_tokens"] if "ollama" in upstream else ["end", "max_tokens", "refusal"]))
    cached = 0 if "ollama" in upstream else draw(st.integers(0, 900))
    written = 0 if "ollama" in upstream else draw(st.integers(0, 900))
    output = draw(st.integers(0, 5000))
    reasoning = 0 if "ollama" in upstream else draw(st.integers(0, output))
    return Script(
        text=text,
        thinking=draw(words),
        signature=draw(st.sampled_from(["", "EqQBCgYIA=="])) if "ollama" not in upstream else "",
        calls=tools,
        stop=stop,
        tokens=Tokens(draw(st.integers(0, 9000)), cached, written, output, reasoning),
        piece=draw(st.integers(1, 9)),
    )


@st.composite
def cases(draw):
    caller = draw(st.sampled_from(DIALECTS))
    upstream = draw(st.sampled_from(DIALECTS))
    return caller, upstream, draw(scripts(upstream)), draw(st.lists(st.integers(1, 60), min_size=1, max_size=12))


@given(cases())
@settings(max_examples=EXAMPLES, deadline=None)
def test_streamed_and_whole_answers_agree(case):
    caller, upstream, script, sizes = case
    out = exchange_for(caller, upstream, streaming=False).reply(whole(upstream, script))
    seen_whole = read_whole(caller, out.body)

    pipe = exchange_for(caller, upstream, streaming=True).stream()
    sent = b"".join(pipe.feed(piece) for piece in cut(stream(upstream, script), sizes)) + pipe.close()
    seen = read_stream(caller, sent)

    assert pipe.failure is None
    assert pipe.finished
    assert seen.violations == []
    assert seen_whole.violations == []
    assert (seen.text, seen.thinking, seen.signature) == (seen_whole.text, seen_whole.thinking, seen_whole.signature)
    assert seen.tools == seen_whole.tools
    assert seen.stop == seen_whole.stop
    assert seen.tokens == seen_whole.tokens
    assert seen.model == seen_whole.model == pipe.model == out.model == script.model
    # What is billed is what the provider said, streamed or not.
    tokens = script.tokens
    truth = Usage(tokens.input, tokens.output, tokens.cache_read, tokens.cache_write, 0, tokens.reasoning)
    assert pipe.usage == out.usage == truth
    assert pipe.stop == out.stop == script.reason
    # And nothing the script said is lost.
    assert seen.text == script.text
    if caller != "ollama_generate":
        assert [(name, args) for _, name, args in seen.tools] == [(c.name, c.arguments) for c in script.calls]


@given(scripts("openai_chat"), st.lists(st.integers(1, 60), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_usage_chunk_is_withheld_from_a_caller_who_did_not_ask(script, sizes):
    raw = b'{"model":"auto","messages":[{"role":"user","content":"hi"}],"stream":true}'
    target = default_target("openai_chat", "gpt-5.1")
    exchange = begin("openai_chat", raw, load_body(raw), target, exchange_id="ex_1", created=1)
    assert json.loads(exchange.body)["stream_options"] == {"include_usage": True}
    pipe = exchange.stream()
    source = stream("openai_chat", script)
    sent = b"".join(pipe.feed(piece) for piece in cut(source, sizes)) + pipe.close()
    assert b'"choices":[],' not in sent
    assert read_stream("openai_chat", sent).violations == []
    assert pipe.usage is not None
    assert pipe.usage.total == script.tokens.input + script.tokens.output
    # Every other byte is as it came.
    usage_frame = next(f for f in source.split(b"\n\n") if b'"choices":[],' in f) + b"\n\n"
    assert sent == source.replace(usage_frame, b"")


@pytest.mark.parametrize("dialect", DIALECTS)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_same_dialect_streams_pass_byte_for_byte(dialect, data):
    script = data.draw(scripts(dialect))
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
    pipe = exchange_for(dialect, dialect, streaming=True).stream()
    source = stream(dialect, script)
    assert b"".join(map(pipe.feed, cut(source, sizes))) + pipe.close() == source
    assert pipe.finished
