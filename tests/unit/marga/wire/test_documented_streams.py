"""Streams written from the providers' documentation, seen through every caller's dialect."""

import json
from pathlib import Path

import pytest

from avyay.marga.conformance.observed import read_stream
from avyay.marga.wire import DIALECTS, Usage, begin, default_target, load_body, stream_parser

FIXTURES = Path(__file__).parents[3] / "fixtures" / "wire"
PROMPTS = {
    "openai_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "openai_responses": {"input": "hi", "store": False},
    "anthropic_messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "ollama_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "ollama_generate": {"prompt": "hi"},
}
# file: dialect, text, thinking, calls, stop, usage
CASES = {
    "messages_tool_use.sse": (
        "anthropic_messages",
        "I will look that up.",
        "",
        [("get_weather", {"location": "San Francisco, CA"})],
        "tool_use",
        Usage(600, 89, cache_read=128),
    ),
    "messages_thinking.sse": (
        "anthropic_messages",
        "12,231",
        "27 times 453 is 12,231.",
        [],
        "end",
        Usage(43, 61, reasoning=44),
    ),
    "chat_parallel_tool_calls.sse": (
        "openai_chat",
        "",
        "",
        [("get_weather", {"location": "Paris"}), ("get_weather", {"location": "Bogotá"})],
        "tool_use",
        Usage(82, 51, cache_read=64, reasoning=12),
    ),
    "responses_function_call.sse": (
        "openai_responses",
        "",
        "",
        [("get_weather", {"location": "Paris, France"})],
        "tool_use",
        Usage(61, 83, reasoning=64),
    ),
    "ollama_tool_call.ndjson": (
        "ollama_chat",
        "",
        "",
        [("get_weather", {"city": "Tokyo"})],
        "tool_use",
        Usage(169, 15),
    ),
}


def through(caller, upstream, source):
    raw = json.dumps({"model": "auto", "stream": True, **PROMPTS[caller]}).encode()
    exchange = begin(caller, raw, load_body(raw), default_target(upstream, "m"), exchange_id="ex_1", created=1)
    pipe = exchange.stream()
    return b"".join(pipe.feed(source[i : i + 13]) for i in range(0, len(source), 13)) + pipe.close(), pipe


@pytest.mark.parametrize("caller", DIALECTS)
@pytest.mark.parametrize("name", CASES)
def test_documented_stream(name, caller):
    upstream, text, thinking, calls, stop, usage = CASES[name]
    sent, pipe = through(caller, upstream, (FIXTURES / name).read_bytes())
    assert (pipe.usage, pipe.stop, pipe.failure, pipe.finished) == (usage, stop, None, True)
    if caller == upstream:
        return
    seen = read_stream(caller, sent)
    assert seen.violations == []
    assert (seen.text, seen.thinking) == (text, thinking)
    if caller != "ollama_generate":
        assert [(n, a) for _, n, a in seen.tools] == calls


LAST = {
    "openai_chat": b"[DONE]",
    "openai_responses": b"event: response.completed",
    "anthropic_messages": b"event: message_stop",
    "ollama_chat": b'"done":true',
    "ollama_generate": b'"done":true',
}


@pytest.mark.parametrize("step", [13, 1_000_000])
@pytest.mark.parametrize("caller", DIALECTS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_over_before_the_caller_may_think_so(name, caller, step):
    """A call is recorded before the last event of its dialect goes out, with all that was used."""
    upstream, *_, usage = CASES[name]
    raw = json.dumps({"model": "auto", "stream": True, **PROMPTS[caller]}).encode()
    exchange = begin(caller, raw, load_body(raw), default_target(upstream, "m"), exchange_id="ex_1", created=1)
    pipe, source, sent = exchange.stream(), (FIXTURES / name).read_bytes(), b""
    for at in range(0, len(source), step):
        sent += pipe.feed(source[at : at + step])
        assert pipe.ended == (LAST[caller] in sent.replace(b'"done": true', b'"done":true'))
        assert not pipe.ended or pipe.usage == usage
    sent += pipe.close()
    assert LAST[caller] in sent.replace(b'"done": true', b'"done":true')


@pytest.mark.parametrize("caller", DIALECTS)
@pytest.mark.parametrize(
    "name, upstream, kind",
    [("messages_overloaded.sse", "anthropic_messages", "overloaded"), ("ollama_error.ndjson", "ollama_chat", "server")],
)
def test_documented_error(name, upstream, kind, caller):
    sent, pipe = through(caller, upstream, (FIXTURES / name).read_bytes())
    assert pipe.failure is not None
    assert pipe.failure.kind == kind
    assert read_stream(caller, sent).error is not None


def test_every_fixture_says_where_it_comes_from():
    table = (FIXTURES / "README.md").read_text()
    for path in FIXTURES.iterdir():
        if path.suffix == ".sse":
            first = path.read_text().split("\n", 1)[0]
            assert first.startswith(": written from the documentation")
            assert "read 2026-11-21" in first
        elif path.name != "README.md":
            assert f"`{path.name}`" in table


def test_one_start_and_stop_for_each_block():
    for name, (upstream, *_rest) in CASES.items():
        parser = stream_parser(upstream, "e")
        events = parser.feed((FIXTURES / name).read_bytes()) + parser.close()
        kinds = [type(e).__name__ for e in events]
        assert kinds[0] == "StreamStart"
        assert kinds[-2:] == ["Stop", "StreamEnd"]
        opened = [e.index for e in events if type(e).__name__ == "BlockStart"]
        closed = [e.index for e in events if type(e).__name__ == "BlockStop"]
        assert opened == closed == list(range(len(opened)))
