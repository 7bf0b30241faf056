"""One test for each way a translated answer is known to go wrong."""

import json

import pytest

from avyay.errors import UnreachableError
from avyay.marga.conformance.observed import read_stream, read_whole
from avyay.marga.conformance.scripted import Call, Script, Tokens, stream, whole
from avyay.marga.wire import Usage, begin, default_target, load_body
from avyay.marga.wire.ids import seal_carry
from avyay.marga.wire.model import Carry

MODELS = {"anthropic_messages": "claude-opus-4-8", "ollama_chat": "qwen3", "ollama_generate": "qwen3"}
PROMPTS = {
    "openai_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "openai_responses": {"input": "hi", "store": False},
    "anthropic_messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "ollama_chat": {"messages": [{"role": "user", "content": "hi"}]},
    "ollama_generate": {"prompt": "hi"},
}


def exchange(caller, upstream, exchange_id="ex_1", **more):
    raw = json.dumps({"model": "auto", **PROMPTS[caller], **more}).encode()
    target = default_target(upstream, MODELS.get(upstream, "gpt-5.1"))
    return begin(caller, raw, load_body(raw), target, exchange_id=exchange_id, created=1_790_000_000)


def streamed(caller, upstream, source, step=11, **more):
    """What the caller of a streamed request sees, and the pipe."""
    pipe = exchange(caller, upstream, stream=True, **more).stream()
    sent = b"".join(pipe.feed(source[i : i + step]) for i in range(0, len(source), step)) + pipe.close()
    return read_stream(caller, sent), pipe


def sse(*events, done=False):
    out = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events)
    return out + (b"data: [DONE]\n\n" if done else b"")


def chunk(delta, finish=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def call(index, call_id=None, name=None, arguments=None):
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    out = {"index": index, "function": function}
    return {**out, "id": call_id, "type": "function"} if call_id else out


# --- tool calls in streams ---------------------------------------------------------------------------------------


def test_tool_call_indices_count_tools_not_blocks():
    script = Script(text="t", thinking="h", calls=(Call("a", "f", {"x": 1}), Call("b", "g", {})))
    seen, _ = streamed("openai_chat", "anthropic_messages", stream("anthropic_messages", script))
    assert seen.violations == []
    assert seen.tools == [("a", "f", {"x": 1}), ("b", "g", {})]


def test_interleaved_parallel_calls_come_out_one_after_the_other():
    source = sse(
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [call(0, "a", "f", ""), call(1, "b", "g", "")]}),
        chunk({"tool_calls": [call(0, arguments='{"x"')]}),
        chunk({"tool_calls": [call(1, arguments='{"y":')]}),
        chunk({"tool_calls": [call(0, arguments=":1}"), call(1, arguments="2}")]}),
        chunk({}, "tool_calls"),
        done=True,
    )
    for caller in ("anthropic_messages", "openai_responses", "ollama_chat"):
        seen, pipe = streamed(caller, "openai_chat", source)
        assert seen.violations == []
        assert seen.tools == [("a", "f", {"x": 1}), ("b", "g", {"y": 2})]
        assert pipe.stop == "tool_use"


def test_several_whole_calls_under_one_index_are_several_calls():
    source = sse(
        chunk({"role": "assistant", "tool_calls": [call(0, "a", "f", '{"x":1}')]}),
        chunk({"tool_calls": [call(0, "b", "g", '{"y":2}')]}),
        chunk({}, "stop"),
        done=True,
    )
    seen, pipe = streamed("anthropic_messages", "openai_chat", source)
    assert [t[1:] for t in seen.tools] == [("f", {"x": 1}), ("g", {"y": 2})]
    assert pipe.stop == "tool_use"


def test_calls_without_index_or_id_are_kept_apart_and_get_stable_ids():
    piece = {"function": {"name": "f", "arguments": "{}"}}
    source = sse(chunk({"tool_calls": [{"index": 0, **piece}, {"index": 1, **piece}]}), chunk({}, "stop"), done=True)
    first, _ = streamed("anthropic_messages", "openai_chat", source)
    again, _ = streamed("anthropic_messages", "openai_chat", source, step=3)
    assert first.tools == again.tools
    assert len({t[0] for t in first.tools}) == 2
    other = exchange("anthropic_messages", "openai_chat", "ex_2", stream=True).stream()
    assert read_stream("anthropic_messages", other.feed(source) + other.close()).tools != first.tools


def test_an_id_given_twice_is_given_once():
    source = sse(
        chunk({"tool_calls": [call(0, "a", "f", "{}"), call(1, "a", "f", "{}")]}), chunk({}, "stop"), done=True
    )
    seen, _ = streamed("anthropic_messages", "openai_chat", source)
    assert len({t[0] for t in seen.tools}) == 2


def test_name_may_follow_the_id():
    source = sse(
        chunk({"tool_calls": [call(0, "a")]}),
        chunk({"tool_calls": [call(0, name="f", arguments='{"x":')]}),
        chunk({"tool_calls": [call(0, arguments="1}")]}),
        chunk({}, "tool_calls"),
        done=True,
    )
    assert streamed("anthropic_messages", "openai_chat", source)[0].tools == [("a", "f", {"x": 1})]


@pytest.mark.parametrize("upstream", ["openai_chat", "anthropic_messages", "openai_responses", "ollama_chat"])
@pytest.mark.parametrize("caller", ["openai_chat", "anthropic_messages", "openai_responses", "ollama_chat"])
def test_a_call_without_arguments_has_an_empty_object(caller, upstream):
    script = Script(calls=(Call("a", "f", {}),))
    assert streamed(caller, upstream, stream(upstream, script))[0].tools[0][1:] == ("f", {})
    assert read_whole(caller, exchange(caller, upstream).reply(whole(upstream, script)).body).tools[0][1:] == ("f", {})


def test_a_call_without_any_argument_text_has_an_empty_object():
    source = sse(chunk({"tool_calls": [call(0, "a", "f", "")]}), chunk({}, "tool_calls"), done=True)
    for caller in ("anthropic_messages", "openai_responses", "ollama_chat"):
        seen, _ = streamed(caller, "openai_chat", source)
        assert (seen.tools, seen.violations) == ([("a", "f", {})], [])


def test_arguments_given_as_an_object_are_taken():
    source = sse(chunk({"tool_calls": [call(0, "a", "f", {"x": 1})]}), chunk({}, "stop"), done=True)
    assert streamed("anthropic_messages", "openai_chat", source)[0].tools == [("a", "f", {"x": 1})]


def test_text_after_a_call_is_a_block_of_its_own():
    source = sse(
        chunk({"content": "before"}),
        chunk({"tool_calls": [call(0, "a", "f", '{"x":1}')]}),
        chunk({"content": "after"}),
        chunk({}, "tool_calls"),
        done=True,
    )
    seen, _ = streamed("anthropic_messages", "openai_chat", source)
    assert seen.violations == []
    assert (seen.text, seen.tools) == ("beforeafter", [("a", "f", {"x": 1})])


def responses_events(*events):
    opening = {"type": "response.created", "response": {"id": "r", "model": "m", "status": "in_progress", "output": []}}
    out = b""
    for number, event in enumerate((opening, *events)):
        body = json.dumps({**event, "sequence_number": number})
        out += f"event: {event['type']}\ndata: {body}\n\n".encode()
    return out


CALL_ITEM = {"type": "function_call", "id": "fc", "call_id": "a", "name": "f", "arguments": '{"x":1}'}
TEXT_ITEM = {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}


def completed(*items, **more):
    response = {"id": "r", "model": "m", "status": "completed", "output": list(items), **more}
    return {"type": "response.completed", "response": response}


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(
            [
                {"type": "response.output_item.added", "output_index": 0, "item": {**CALL_ITEM, "arguments": ""}},
                {"type": "response.function_call_arguments.done", "output_index": 0, "arguments": '{"x":1}'},
                {"type": "response.output_item.done", "output_index": 0, "item": CALL_ITEM},
            ],
            id="in the arguments' done event",
        ),
        pytest.param(
            [
                {"type": "response.output_item.added", "output_index": 0, "item": {**CALL_ITEM, "arguments": ""}},
                {"type": "response.output_item.done", "output_index": 0, "item": CALL_ITEM},
            ],
            id="in the item's done event",
        ),
        pytest.param([{"type": "response.output_item.done", "output_index": 0, "item": CALL_ITEM}], id="only there"),
        pytest.param([], id="in the final response"),
        pytest.param(
            [
                {"type": "response.output_item.added", "output_index": 0, "item": {**CALL_ITEM, "arguments": ""}},
                {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": '{"x"'},
                {"type": "response.function_call_arguments.done", "output_index": 0, "arguments": '{"x":1}'},
            ],
            id="half in deltas",
        ),
    ],
)
def test_arguments_only_in_done_events(events):
    source = responses_events(*events, completed(CALL_ITEM))
    for caller in ("openai_chat", "anthropic_messages", "ollama_chat"):
        seen, pipe = streamed(caller, "openai_responses", source)
        assert seen.violations == []
        assert seen.tools == [("a", "f", {"x": 1})]
        assert pipe.stop == "tool_use"


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"type": "response.output_item.done", "output_index": 0, "item": TEXT_ITEM}],
        [{"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": "hello"}],
        [{"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "hel"}],
    ],
)
def test_text_only_in_done_events_comes_once(events):
    seen, _ = streamed("anthropic_messages", "openai_responses", responses_events(*events, completed(TEXT_ITEM)))
    assert (seen.text, seen.violations) == ("hello", [])


# --- custom, namespaced and renamed tools ------------------------------------------------------------------------

CUSTOM = {
    "tools": [
        {"type": "custom", "name": "apply_patch", "description": "d"},
        {
            "type": "namespace",
            "name": "agents",
            "description": "",
            "tools": [{"type": "function", "name": "spawn", "parameters": {"type": "object", "properties": {}}}],
        },
        {"type": "function", "name": "x" * 100, "parameters": {"type": "object", "properties": {}}},
    ]
}


@pytest.mark.parametrize("upstream", ["anthropic_messages", "ollama_chat"])
def test_free_text_tool_calls_come_back_as_free_text(upstream):
    script = Script(calls=(Call("a", "apply_patch", {"input": "*** Begin\n+é\n"}),))
    seen, _ = streamed("openai_responses", upstream, stream(upstream, script), **CUSTOM)
    assert (seen.tools, seen.violations) == ([("a", "apply_patch", "*** Begin\n+é\n")], [])
    out = exchange("openai_responses", upstream, **CUSTOM).reply(whole(upstream, script))
    item = json.loads(out.body)["output"][0]
    assert (item["type"], item["input"]) == ("custom_tool_call", "*** Begin\n+é\n")


def test_namespaced_and_shortened_names_come_back_whole():
    sent = json.loads(exchange("openai_responses", "openai_chat", **CUSTOM).body)["tools"]
    flat, short = (t["function"]["name"] for t in sent[1:])
    script = Script(calls=(Call("a", flat, {}), Call("b", short, {})))
    out = json.loads(exchange("openai_responses", "openai_chat", **CUSTOM).reply(whole("openai_chat", script)).body)
    assert [(i["name"], i.get("namespace")) for i in out["output"]] == [("spawn", "agents"), ("x" * 100, None)]
    seen, _ = streamed("openai_responses", "openai_chat", stream("openai_chat", script), **CUSTOM)
    assert [t[1] for t in seen.tools] == ["spawn", "x" * 100]


def test_legacy_functions_are_answered_in_kind():
    more = {"functions": [{"name": "f", "parameters": {"type": "object", "properties": {}}}]}
    script = Script(calls=(Call("a", "f", {"x": 1}),))
    out = json.loads(
        exchange("openai_chat", "anthropic_messages", **more).reply(whole("anthropic_messages", script)).body
    )
    assert out["choices"][0]["message"]["function_call"] == {"name": "f", "arguments": '{"x":1}'}
    assert out["choices"][0]["finish_reason"] == "function_call"


# --- stop reasons ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "upstream, word, caller, wanted",
    [
        ("anthropic_messages", "end_turn", "openai_chat", "stop"),
        ("anthropic_messages", "stop_sequence", "openai_chat", "stop"),
        ("anthropic_messages", "max_tokens", "openai_chat", "length"),
        ("anthropic_messages", "refusal", "openai_chat", "content_filter"),
        ("anthropic_messages", "pause_turn", "openai_chat", "stop"),
        ("anthropic_messages", "model_context_window_exceeded", "openai_chat", "length"),
        ("anthropic_messages", "something_new", "openai_chat", "stop"),
        ("anthropic_messages", "max_tokens", "openai_responses", "incomplete:max_output_tokens"),
        ("anthropic_messages", "refusal", "openai_responses", "incomplete:content_filter"),
        ("anthropic_messages", "max_tokens", "ollama_chat", "length"),
        ("openai_chat", "stop", "anthropic_messages", "end_turn"),
        ("openai_chat", "length", "anthropic_messages", "max_tokens"),
        ("openai_chat", "content_filter", "anthropic_messages", "refusal"),
        ("openai_chat", "tool_calls", "anthropic_messages", "end_turn"),  # without any call
        ("openai_chat", None, "anthropic_messages", "end_turn"),
        ("ollama_chat", "stop", "anthropic_messages", "end_turn"),
        ("ollama_chat", "length", "anthropic_messages", "max_tokens"),
    ],
)
def test_stop_reason_table(upstream, word, caller, wanted):
    body = json.loads(whole(upstream, Script(text="x")))
    if upstream == "anthropic_messages":
        body["stop_reason"] = word
    elif upstream == "openai_chat":
        body["choices"][0]["finish_reason"] = word
    else:
        body["done_reason"] = word
    out = exchange(caller, upstream).reply(json.dumps(body).encode())
    assert read_whole(caller, out.body).stop == wanted


@pytest.mark.parametrize("upstream", ["openai_chat", "ollama_chat"])
def test_stop_with_tool_calls_becomes_tool_use(upstream):
    script = Script(calls=(Call("a", "f", {}),))
    raw = whole(upstream, script).replace(b'"finish_reason":"tool_calls"', b'"finish_reason":"stop"')
    assert read_whole("anthropic_messages", exchange("anthropic_messages", upstream).reply(raw).body).stop == "tool_use"
    source = stream(upstream, script).replace(b'"finish_reason":"tool_calls"', b'"finish_reason":"stop"')
    seen, pipe = streamed("anthropic_messages", upstream, source)
    assert seen.stop == pipe.stop == "tool_use"


def test_a_call_cut_by_the_limit_is_not_a_finished_call():
    source = sse(chunk({"tool_calls": [call(0, "a", "f", '{"x": "long')]}), chunk({}, "length"), done=True)
    seen, pipe = streamed("anthropic_messages", "openai_chat", source)
    assert seen.stop == pipe.stop == "max_tokens"
    assert seen.tools == [("a", "f", '{"x": "long')]


def test_stop_sequence_is_named_where_the_dialect_names_it():
    body = {**json.loads(whole("anthropic_messages", Script(text="x"))), "stop_reason": "stop_sequence"}
    out = exchange("openai_chat", "anthropic_messages").reply(json.dumps({**body, "stop_sequence": "END"}).encode())
    assert out.stop == "stop_sequence"


def test_refusal_text_reaches_the_caller():
    body = json.loads(whole("openai_chat", Script()))
    body["choices"][0]["message"] |= {"content": None, "refusal": "I will not."}
    seen = json.loads(exchange("anthropic_messages", "openai_chat").reply(json.dumps(body).encode()).body)
    assert (seen["content"][0]["text"], seen["stop_reason"]) == ("I will not.", "refusal")
    source = sse(chunk({"refusal": "I will"}), chunk({"refusal": " not."}), chunk({}, "stop"), done=True)
    streamed_, _ = streamed("anthropic_messages", "openai_chat", source)
    assert (streamed_.text, streamed_.stop) == ("I will not.", "refusal")
    streamed_, _ = streamed("openai_responses", "openai_chat", source)
    assert (streamed_.text, streamed_.violations) == ("I will not.", [])


# --- usage -------------------------------------------------------------------------------------------------------


def test_messages_usage_is_cumulative_and_counts_the_cache_apart():
    source = stream("anthropic_messages", Script(text="hello", tokens=Tokens(100, 40, 20, 30, 0)))
    _, pipe = streamed("openai_chat", "anthropic_messages", source)
    assert pipe.usage == Usage(input=160, output=30, cache_read=40, cache_write=20)
    assert pipe.usage.uncached_input == 100


def test_one_hour_cache_writes_are_known():
    body = json.loads(whole("anthropic_messages", Script(text="x", tokens=Tokens(1, 0, 50, 2))))
    body["usage"]["cache_creation"] = {"ephemeral_1h_input_tokens": 30, "ephemeral_5m_input_tokens": 20}
    out = exchange("openai_chat", "anthropic_messages").reply(json.dumps(body).encode())
    assert (out.usage.cache_write, out.usage.cache_write_1h) == (50, 30)


def test_usage_in_the_finish_chunk_or_after_it_counts_once():
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    together = sse(chunk({"content": "a"}), chunk({}, "stop", usage=usage), done=True)
    twice = sse(chunk({"content": "a"}), chunk({}, "stop", usage=usage), {"choices": [], "usage": usage}, done=True)
    for source in (together, twice):
        _, pipe = streamed("anthropic_messages", "openai_chat", source)
        assert pipe.usage == Usage(5, 7)
        _, pipe = streamed("openai_chat", "openai_chat", source)
        assert pipe.usage == Usage(5, 7)


def test_chat_usage_chunk_only_if_asked():
    source = stream("anthropic_messages", Script(text="x", tokens=Tokens(plain=3, output=4)))
    seen, _ = streamed("openai_chat", "anthropic_messages", source)
    assert seen.tokens is None
    seen, _ = streamed("openai_chat", "anthropic_messages", source, stream_options={"include_usage": True})
    assert seen.tokens == Tokens(plain=3, output=4)


def test_no_usage_is_none_and_not_zero():
    source = sse(chunk({"content": "a"}), chunk({}, "stop"), done=True)
    _, pipe = streamed("anthropic_messages", "openai_chat", source)
    assert pipe.usage is None
    assert pipe.frames == 1


# --- reasoning ---------------------------------------------------------------------------------------------------


def test_signed_thinking_returns_unchanged_through_a_responses_caller():
    script = Script(text="a", thinking="because", signature="SIG==", calls=(Call("c", "f", {}),))
    out = json.loads(exchange("openai_responses", "anthropic_messages").reply(whole("anthropic_messages", script)).body)
    body = {
        "input": [
            {"type": "message", "role": "user", "content": "hi"},
            *out["output"],
            {"type": "function_call_output", "call_id": "c", "output": "r"},
        ]
    }
    sent = json.loads(exchange("openai_responses", "anthropic_messages", **body).body)
    assert sent["messages"][1]["content"][0] == {"type": "thinking", "thinking": "because", "signature": "SIG=="}


def test_encrypted_reasoning_returns_unchanged_through_a_messages_caller():
    script = Script(text="a", thinking="because", signature="gAAAA==", calls=(Call("c", "f", {}),))
    out = json.loads(exchange("anthropic_messages", "openai_responses").reply(whole("openai_responses", script)).body)
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": out["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
    ]
    sent = json.loads(exchange("anthropic_messages", "openai_responses", messages=turns).body)
    item = next(i for i in sent["input"] if i["type"] == "reasoning")
    assert (item["encrypted_content"], item["id"]) == ("gAAAA==", "rs_scripted")
    # The same history for a Messages provider: it signed none of this, so the turn goes without.
    sent = exchange("anthropic_messages", "openai_chat", messages=turns)
    assert "gAAAA" not in sent.body.decode()


def responses_history(*tokens):
    """Two turns of reasoning, call and result, as a Responses caller keeps them."""
    items = []
    for number, token in enumerate(tokens):
        if not number % 2:
            items.append({"type": "message", "role": "user", "content": "go"})
        items += [
            {"type": "reasoning", "id": f"rs_avyay_{number}", "summary": [], "encrypted_content": token},
            {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{number}", "output": "r"},
        ]
    return items


def signatures(exchange):
    turns = json.loads(exchange.body)["messages"]
    return [b["signature"] for m in turns for b in m["content"] if b["type"] == "thinking"]


def test_half_a_turns_thinking_is_never_sent():
    ours = seal_carry("openai_responses", Carry("anthropic_messages", "SIG"))
    theirs = "gAAAA"
    whole_turns = exchange("openai_responses", "anthropic_messages", input=responses_history(ours, ours, ours, ours))
    assert signatures(whole_turns) == ["SIG"] * 4
    mixed = exchange("openai_responses", "anthropic_messages", input=responses_history(ours, ours, ours, theirs))
    assert signatures(mixed) == ["SIG"] * 2
    assert [n.field for n in mixed.notes if n.action == "stripped"] == ["messages.thinking"]


def test_a_model_switch_strips_all_signed_thinking_across_dialects_too():
    ours = seal_carry("openai_responses", Carry("anthropic_messages", "SIG"))
    raw = json.dumps({"model": "auto", "store": False, "input": responses_history(ours, ours)}).encode()
    target = default_target("anthropic_messages", "claude-opus-4-8")
    switched = begin("openai_responses", raw, load_body(raw), target, exchange_id="e", created=1, model_switched=True)
    assert signatures(switched) == []
    assert "stripped" in [n.action for n in switched.notes]


def test_redacted_thinking_streams_and_returns():
    body = {"type": "redacted_thinking", "data": "ENC"}
    source = stream("anthropic_messages", Script(text="a"))
    start = {"type": "content_block_start", "index": 0, "content_block": body}
    stop = {"type": "content_block_stop", "index": 0}
    frames = source.split(b"\n\n")
    extra = [f"event: {e['type']}\ndata: {json.dumps(e)}".encode() for e in (start, stop)]
    source = b"\n\n".join([frames[0], *extra, *frames[1:]])
    seen, _ = streamed("openai_responses", "anthropic_messages", source)
    assert seen.violations == []
    assert seen.signature.startswith("avyay1.")


# --- the rest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", ["openai_chat", "openai_responses", "anthropic_messages"])
def test_ids_are_derived_from_the_exchange_and_the_same_streamed_or_not(caller):
    upstream = "ollama_chat"
    script = Script(text="x", calls=(Call("", "f", {}),))
    seen = read_whole(caller, exchange(caller, upstream).reply(whole(upstream, script)).body)
    seen_stream, _ = streamed(caller, upstream, stream(upstream, script))
    assert seen.id == seen_stream.id
    assert seen.id.endswith("ex_1")
    assert seen.tools == seen_stream.tools


def test_reply_names_the_model_that_served():
    out = exchange("openai_chat", "anthropic_messages").reply(whole("anthropic_messages", Script(text="x", model="m9")))
    assert json.loads(out.body)["model"] == out.model == "m9"


def test_same_dialect_reply_is_the_upstreams_bytes():
    message = b'{"content":"a","new_field":1.0}'
    raw = b'{ "id":"x", "model":"m", "choices":[{"index":0,"message":%b,"finish_reason":"stop"}] }' % message
    out = exchange("openai_chat", "openai_chat").reply(raw)
    assert out.body is raw
    assert (out.stop, out.usage, out.output_chars) == ("end", None, 1)


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b""])
def test_an_answer_that_is_none_is_an_unreachable_provider(raw):
    with pytest.raises(UnreachableError):
        exchange("openai_chat", "openai_chat").reply(raw)


def test_failed_response_inside_a_success_is_a_failure():
    body = {**json.loads(whole("openai_responses", Script())), "status": "failed"}
    body["error"] = {"code": "server_error", "message": "The model broke."}
    out = exchange("openai_chat", "openai_responses").reply(json.dumps(body).encode())
    assert out.failure is not None
    assert json.loads(out.body)["error"]["message"] == "The model broke."


def test_chat_server_that_never_says_done_is_believed_by_its_finish_reason():
    seen, pipe = streamed("anthropic_messages", "openai_chat", sse(chunk({"content": "a"}), chunk({}, "stop")))
    assert pipe.finished
    assert (seen.text, seen.violations) == ("a", [])


def test_only_the_first_choice_is_read():
    other = {"index": 1, "delta": {"content": "no"}, "finish_reason": None}
    source = sse({**chunk({"content": "yes"}), "choices": [chunk({"content": "yes"})["choices"][0], other]})
    source += sse({**chunk({}), "choices": [other]}, chunk({}, "stop"), done=True)
    assert streamed("anthropic_messages", "openai_chat", source)[0].text == "yes"


def test_azure_first_chunk_without_choices_is_skipped():
    source = sse(
        {"choices": [], "id": "", "model": "", "object": "", "prompt_filter_results": []},
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "a"}),
        chunk({}, "stop"),
        done=True,
    )
    seen, _ = streamed("anthropic_messages", "openai_chat", source)
    assert (seen.text, seen.model, seen.violations) == ("a", "m", [])
