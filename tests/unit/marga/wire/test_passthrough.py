"""Same dialect in and out: what is edited, and that nothing else is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avyay.marga.wire import begin, default_target, edit_body, load_body, map_text, open_tap, strip_thinking
from avyay.marga.wire.notes import Notes

TARGET = default_target("openai_chat", "gpt-5.1")


def send(raw, dialect="openai_chat", model="gpt-5.1", **more):
    target = default_target(dialect, model)
    return begin(dialect, raw, load_body(raw), target, exchange_id="e", created=1, **more)


def test_the_same_model_passes_the_very_same_bytes():
    raw = b'{"model":"gpt-5.1", "messages":[], "unknown_field": 1.10}'
    assert send(raw).body is raw


def test_only_the_model_name_changes():
    raw = (
        b' {"messages" : [{"role":"user","content":"the \\"model\\": \\"x\\""}],\n "model" :\t"auto", '
        b'"big": 123456789012345678901234567890, "f": 1.50}'
    )
    assert send(raw).body == raw.replace(b'"auto"', b'"gpt-5.1"')


def test_a_model_field_deeper_down_is_left_alone():
    raw = b'{"metadata":{"model":"auto"},"messages":[],"model":"auto","tools":[{"model":"auto"}]}'
    assert send(raw).body == b'{"metadata":{"model":"auto"},"messages":[],"model":"gpt-5.1","tools":[{"model":"auto"}]}'


def test_of_a_key_given_twice_the_one_that_counts_changes():
    raw = b'{"model":"a","messages":[],"model":"b"}'
    assert load_body(send(raw).body)["model"] == "gpt-5.1"


def test_an_escaped_key_is_found():
    raw = b'{"mod\\u0065l":"auto","messages":[]}'
    assert load_body(send(raw).body) == {"model": "gpt-5.1", "messages": []}


def test_stream_options_keep_what_the_caller_said():
    raw = b'{"model":"gpt-5.1","stream":true,"stream_options":{"include_obfuscation":false},"messages":[]}'
    body = json.loads(send(raw).body)
    assert body["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    raw = b'{"model":"gpt-5.1","stream":true,"stream_options":{"include_usage":true},"messages":[]}'
    assert send(raw).body is raw
    raw = b'{"model":"gpt-5.1","stream":true,"stream_options":null,"messages":[]}'
    assert json.loads(send(raw).body)["stream_options"] == {"include_usage": True}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8) | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "a", '"model"']), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["model", "messages", "x", "stream_options", "\\", "é"]), json_values, min_size=1),
    st.dictionaries(st.sampled_from(["model", "stream_options", "new"]), json_values, min_size=1),
    st.sampled_from([None, 2]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_edits_change_what_they_name_and_nothing_else(body, changes, indent, ascii_only):
    raw = json.dumps(body, indent=indent, ensure_ascii=ascii_only).encode()
    assert json.loads(edit_body(raw, load_body(raw), changes)) == {**body, **changes}


def test_beta_fields_and_headers_are_not_our_business():
    raw = b'{"model":"claude-opus-4-8","max_tokens":5,"messages":[],"context_management":{"edits":[]},"betas":["x"]}'
    assert send(raw, "anthropic_messages", "claude-opus-4-8").body is raw


def test_masked_text_is_sent_and_the_rest_kept():
    raw = json.dumps(
        {
            "model": "claude-opus-4-8",
            "max_tokens": 5,
            "system": [{"type": "text", "text": "mail a@b.c", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "mail a@b.c"},
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"to": "a@b.c"}}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a@b.c"}]}
                    ],
                },
            ],
        }
    ).encode()
    body = load_body(raw)
    masked = map_text("anthropic_messages", body, lambda text: text.replace("a@b.c", "[EMAIL]"))
    exchange = begin(
        "anthropic_messages",
        raw,
        masked,
        default_target("anthropic_messages", "claude-opus-4-8"),
        exchange_id="e",
        created=1,
        edited=True,
    )
    sent = json.loads(exchange.body)
    assert sent["system"][0] == {"type": "text", "text": "mail [EMAIL]", "cache_control": {"type": "ephemeral"}}
    assert sent["messages"][0]["content"] == "mail [EMAIL]"
    assert sent["messages"][1]["content"][0]["input"] == {"to": "a@b.c"}
    assert sent["messages"][2]["content"][0]["content"][0]["text"] == "[EMAIL]"
    assert body["messages"][0]["content"] == "mail a@b.c"
    assert map_text("anthropic_messages", body, lambda text: text) is body


@pytest.mark.parametrize(
    "dialect, body",
    [
        ("openai_chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
        ("openai_responses", {"instructions": "x", "input": [{"role": "user", "content": "x"}]}),
        ("openai_responses", {"input": "x"}),
        ("openai_responses", {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}),
        ("ollama_chat", {"messages": [{"role": "user", "content": "x"}]}),
        ("ollama_generate", {"prompt": "x", "system": "x"}),
    ],
)
def test_every_dialects_texts_can_be_masked(dialect, body):
    assert '"x"' not in json.dumps(map_text(dialect, body, str.upper))


# --- signed thinking ---------------------------------------------------------------------------------------------


def thinking(signature):
    return {"type": "thinking", "thinking": "t", "signature": signature}


TEXT = {"type": "text", "text": "a"}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "r"}


def turns(*signatures):
    """Two turns; each one thinks, calls, thinks again and answers."""
    return [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [thinking(signatures[0]), USE]},
        {"role": "user", "content": [RESULT]},
        {"role": "assistant", "content": [thinking(signatures[1]), TEXT]},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": [thinking(signatures[2]), USE]},
        {"role": "user", "content": [RESULT]},
    ]


def left(body):
    return [
        b["signature"]
        for m in body["messages"]
        if isinstance(m["content"], list)
        for b in m["content"]
        if b["type"] == "thinking"
    ]


def test_signed_thinking_passes_untouched():
    raw = json.dumps({"model": "claude-opus-4-8", "max_tokens": 9, "messages": turns("A", "B", "C")}).encode()
    assert send(raw, "anthropic_messages", "claude-opus-4-8").body is raw


def test_foreign_thinking_is_taken_out_by_whole_turns():
    notes = Notes()
    body = {"messages": turns("A", "", "C")}
    assert left(strip_thinking("anthropic_messages", body, notes, everything=False)) == ["C"]
    assert [n.action for n in notes] == ["stripped"]
    body = {"messages": turns("A", "B", "avyay1.xyz")}
    assert left(strip_thinking("anthropic_messages", body, Notes(), everything=False)) == ["A", "B"]
    body = {"messages": turns("A", "B", "C")}
    assert strip_thinking("anthropic_messages", body, Notes(), everything=False) is body


def test_a_model_switch_takes_all_of_it_and_ends_a_budgeted_loop_without_thinking():
    raw = json.dumps(
        {
            "model": "claude-haiku-4-5",
            "max_tokens": 9000,
            "messages": turns("A", "B", "C"),
            "thinking": {"type": "enabled", "budget_tokens": 2000},
        }
    ).encode()
    exchange = send(raw, "anthropic_messages", "claude-haiku-4-5", model_switched=True)
    sent = json.loads(exchange.body)
    assert left(sent) == []
    assert "thinking" not in sent
    assert {n.field for n in exchange.notes} == {"messages.thinking", "thinking"}


def test_foreign_reasoning_items_are_taken_out_of_responses():
    own = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    sealed = {"type": "reasoning", "id": "rs_avyay_1", "summary": [], "encrypted_content": "avyay1.x"}
    unsigned = {"type": "reasoning", "id": "rs_avyay_2", "summary": []}
    stored = {"type": "reasoning", "id": "rs_2", "summary": []}
    body = {"input": [own, sealed, unsigned, stored]}
    assert strip_thinking("openai_responses", body, Notes(), everything=False)["input"] == [own, stored]
    assert strip_thinking("openai_responses", body, Notes(), everything=True)["input"] == []


# --- taps --------------------------------------------------------------------------------------------------------


def test_text_that_looks_like_usage_does_not_fool_the_tap():
    trap = json.dumps('"usage":{"prompt_tokens":999},"finish_reason":"stop","error":{"x":1} data: [DONE]')
    choice = f'{{"index":0,"delta":{{"content":{trap}}},"finish_reason":null}}'
    source = f'data: {{"id":"c","model":"m","choices":[{choice}]}}\n\n'.encode()
    tap = open_tap("openai_chat")
    assert tap.feed(source) == source
    assert (tap.usage, tap.finished, tap.failure, tap.model) == (None, False, None, "m")


def test_tap_reads_crlf_streams():
    source = (
        b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\r\n\r\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\r\n\r\ndata: [DONE]\r\n\r\n'
    )
    for step in (1, 2, 3, 5, 1000):
        tap = open_tap("openai_chat", hide_usage=True)
        sent = b"".join(tap.feed(source[i : i + step]) for i in range(0, len(source), step)) + tap.close()
        assert tap.usage is not None
        assert tap.usage.total == 3
        assert tap.stop == "max_tokens"
        assert b"usage" not in sent
        assert sent.endswith(b"data: [DONE]\r\n\r\n")


def test_large_single_event_is_not_copied_again_and_again():
    big = b'event: response.completed\ndata: {"type":"response.completed","response":{"model":"m","status":"completed",'
    source = big + b'"output":[],"pad":"' + b"x" * 4_000_000 + b'","usage":{"input_tokens":1,"output_tokens":2}}}\n\n'
    tap = open_tap("openai_responses")
    sent = b"".join(tap.feed(source[i : i + 1000]) for i in range(0, len(source), 1000))
    assert sent == source
    assert tap.usage is not None
