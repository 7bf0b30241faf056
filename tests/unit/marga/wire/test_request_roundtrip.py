"""Through another dialect and back, a request keeps its order and its content."""

import itertools
import json
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.errors import UsageError
from avyay.marga.wire import Notes, ToolNames, default_target, parse_request, render_request

MODELS = {"anthropic_messages": "claude-opus-4-8", "ollama_chat": "qwen3"}
VIA = ["anthropic_messages", "openai_responses", "ollama_chat"]

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)
name = st.from_regex(re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,12}", re.ASCII), fullmatch=True)
value = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text | st.lists(text, max_size=2)
arguments = st.dictionaries(text, value, max_size=3)
picture = st.just({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}})


@st.composite
def conversations(draw):
    """Well-formed Chat messages: every call is answered, in order, before anything else is said."""
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    number = 0
    messages.append({"role": "user", "content": draw(text)})
    for _ in range(draw(st.integers(0, 4))):
        calls = []
        for tool, args in draw(st.lists(st.tuples(name, arguments), max_size=3)):
            function = {"name": tool, "arguments": json.dumps(args)}
            calls.append({"id": f"call_{number}", "type": "function", "function": function})
            number += 1
        said = draw(text) if not calls else draw(st.none() | text)
        messages.append({"role": "assistant", "content": said, **({"tool_calls": calls} if calls else {})})
        messages += [{"role": "tool", "tool_call_id": c["id"], "content": draw(text)} for c in calls]
        if not calls or draw(st.booleans()):
            messages.append({"role": "user", "content": draw(text)})
        elif messages[-1]["role"] == "assistant":
            break
    return messages


@st.composite
def bodies(draw):
    names = draw(st.lists(name, max_size=4, unique=True))
    tools = [
        {"type": "function", "function": {"name": n, "description": draw(text), "parameters": draw(schemas)}}
        for n in names
    ]
    body = {"model": "m", "messages": draw(conversations()), "stream": draw(st.booleans())}
    if tools:
        body["tools"] = tools
        if draw(st.booleans()):
            body["parallel_tool_calls"] = draw(st.booleans())
    if draw(st.booleans()):
        body["max_completion_tokens"] = draw(st.integers(16, 9000))
    return body


schemas = st.dictionaries(name, st.sampled_from([{"type": "string"}, {"type": "integer"}]), min_size=1, max_size=4).map(
    lambda props: {"type": "object", "properties": props, "required": list(props)}
)


def cross(dialect, body, target_dialect):
    target = default_target(target_dialect, MODELS.get(target_dialect, "gpt-5.1"))
    notes = Notes()
    request = parse_request(dialect, body, notes)
    return render_request(request, target, ToolNames(request, target_dialect), notes), notes


def plain(messages):
    """Arguments as objects, since JSON text may be spaced differently."""
    out = json.loads(json.dumps(messages))
    for message in out:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return out


def merged(messages):
    """Assistant messages in a row are one turn elsewhere."""
    out = []
    for message in messages:
        last = out[-1] if out else None
        if last is not None and last["role"] == message["role"] == "assistant" and "tool_calls" not in last:
            last["content"] = (last["content"] or "") + (message["content"] or "") or None
            last |= {k: v for k, v in message.items() if k == "tool_calls"}
        else:
            out.append(dict(message))
    return out


@pytest.mark.parametrize("via", VIA)
@given(body=bodies())
@settings(max_examples=120, deadline=None)
def test_there_and_back(via, body):
    there, _ = cross("openai_chat", body, via)
    back, _ = cross(via, json.loads(json.dumps(there)), "openai_chat")
    assert merged(plain(back["messages"])) == merged(plain(body["messages"]))
    assert [t["function"]["name"] for t in back.get("tools", [])] == [
        t["function"]["name"] for t in body.get("tools", [])
    ]
    for mine, theirs in zip(body.get("tools", []), back.get("tools", []), strict=True):
        assert json.dumps(mine["function"]["parameters"]) == json.dumps(theirs["function"]["parameters"])
        assert mine["function"]["description"] == theirs["function"]["description"]
    assert bool(back.get("stream")) == body["stream"]
    if "max_completion_tokens" in body:
        assert back["max_completion_tokens"] == body["max_completion_tokens"]
    if via != "ollama_chat":
        assert back.get("parallel_tool_calls") == body.get("parallel_tool_calls")


@given(body=bodies())
@settings(max_examples=120, deadline=None)
def test_messages_turns_alternate_and_answer_their_calls(body):
    there, _ = cross("openai_chat", body, "anthropic_messages")
    turns = [m for m in there["messages"] if m["role"] != "system"]
    assert turns[0]["role"] == "user"
    assert all(a["role"] != b["role"] for a, b in itertools.pairwise(turns))
    for before, turn in itertools.pairwise(turns):
        uses = [b["id"] for b in before["content"] if b["type"] == "tool_use"]
        results = [b["tool_use_id"] for b in turn["content"] if b["type"] == "tool_result"]
        assert uses == results
        kinds = [b["type"] == "tool_result" for b in turn["content"]]
        assert kinds == sorted(kinds, reverse=True)


KEYS = ["role", "type", "content", "text", "tool_calls", "function", "name", "id", "input", "arguments", "source"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "type",
                    "content",
                    "text",
                    "tool_calls",
                    "function",
                    "name",
                    "id",
                    "input",
                    "arguments",
                    "source",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)
FIELDS = [
    "messages", "input", "system", "tools", "tool_choice", "options", "thinking", "text", "reasoning", "stream", "stop",
    "response_format", "output_config", "metadata", "images", "prompt", "instructions", "functions", "format", "think",
    "max_tokens", "temperature", "store", "include", "stream_options", "reasoning_effort", "stop_sequences", "user",
]  # fmt: skip


@given(
    st.sampled_from(["openai_chat", "openai_responses", "anthropic_messages", "ollama_chat", "ollama_generate"]),
    st.sampled_from(["openai_chat", "openai_responses", "anthropic_messages", "ollama_chat", "ollama_generate"]),
    st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6),
)
@settings(max_examples=int(os.environ.get("WIRE_EXAMPLES", "300")), deadline=None)
def test_any_body_is_translated_or_refused_clearly(dialect, target, body):
    try:
        cross(dialect, {"model": "m", **body}, target)
    except UsageError as error:
        assert error.message
