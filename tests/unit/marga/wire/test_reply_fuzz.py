"""Whatever a provider sends, a caller gets an answer or a typed error, and a stream always ends properly."""

import json
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.errors import UnreachableError
from avyay.marga.conformance.scripted import Call, Script, Tokens, stream, whole
from avyay.marga.wire import DIALECTS, begin, default_target, load_body

PROMPTS = {
    "openai_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "openai_responses": {"input": "hi", "store": False},
    "anthropic_messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "ollama_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "ollama_generate": {"prompt": "hi"},
}
SCRIPT = Script(
    "some text", "thought", "sig", (Call("a", "f", {"x": 1}), Call("b", "g", {})), tokens=Tokens(1, 2, 3, 4)
)
EXAMPLES = int(os.environ.get("WIRE_EXAMPLES", "200"))
dialects = st.sampled_from(DIALECTS)
junk = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.just([]) | st.just({}) | st.just([7])


def exchange(caller, upstream, streaming):
    raw = json.dumps({"model": "m", "stream": streaming, **PROMPTS[caller]}).encode()
    return begin(caller, raw, load_body(raw), default_target(upstream, "gpt-5.1"), exchange_id="e", created=1)


def paths(value, at=()):
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*at, key))
    elif isinstance(value, list):
        for key, inner in enumerate(value):
            yield from paths(inner, (*at, key))


def spoiled(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = spoiled(value[path[0]], path[1:], new)
    return copy


@given(dialects, dialects, st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_wrong_value_in_an_answer(caller, upstream, data):
    body = json.loads(whole(upstream, SCRIPT))
    path = data.draw(st.sampled_from(list(paths(body))))
    raw = json.dumps(spoiled(body, path, data.draw(junk))).encode()
    try:
        out = exchange(caller, upstream, streaming=False).reply(raw)
    except UnreachableError as error:
        assert error.code == "bad_reply"
    else:
        json.loads(out.body)


@given(dialects, dialects, st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_wrong_value_in_a_stream(caller, upstream, data):
    end = b"\n" if upstream.startswith("ollama") else b"\n\n"
    frames = stream(upstream, SCRIPT).split(end)[:-1]
    number = data.draw(st.integers(0, len(frames) - 1))
    head, brace, payload = frames[number].partition(b"{")
    if brace:
        body = json.loads(brace + payload)
        path = data.draw(st.sampled_from(list(paths(body))))
        frames[number] = head + json.dumps(spoiled(body, path, data.draw(junk))).encode()
    check(caller, upstream, [f + end for f in frames])


@given(dialects, dialects, st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_events_lost_doubled_or_swapped(caller, upstream, data):
    end = b"\n" if upstream.startswith("ollama") else b"\n\n"
    frames = [f + end for f in stream(upstream, SCRIPT).split(end)[:-1]]
    order = data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=len(frames)))
    check(caller, upstream, [frames[i] for i in order])


def check(caller, upstream, packets):
    pipe = exchange(caller, upstream, streaming=True).stream()
    sent = b"".join(map(pipe.feed, packets)) + pipe.close()
    assert pipe.finished or pipe.failure is not None
    assert sent
    if caller != upstream and not caller.startswith("ollama"):
        for frame in sent.split(b"\n\n")[:-1]:
            data = frame.partition(b"data: ")[2]
            assert data == b"[DONE]" or json.loads(data)
