"""One test for each way a translated request is known to go wrong."""

import json
from dataclasses import replace

import pytest

from avyay.marga.wire import (
    MalformedError,
    UntranslatableError,
    begin,
    default_target,
    load_body,
    notes_header,
)

MODELS = {
    "openai_chat": "gpt-5.1",
    "openai_responses": "gpt-5.1",
    "anthropic_messages": "claude-opus-4-8",
    "ollama_chat": "qwen3",
    "ollama_generate": "qwen3",
}
PNG = "iVBORw0KGgo="
TOOL = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}, "required": ["b"]}


def send(caller, upstream, body, **overrides):
    """The upstream body and the notes, as a dictionary by field."""
    model = overrides.pop("model", MODELS[upstream])
    target = replace(default_target(upstream, model), **overrides)
    raw = json.dumps({"model": "auto", **body}).encode()
    exchange = begin(caller, raw, load_body(raw), target, exchange_id="ex_1", created=1)
    return json.loads(exchange.body), {note.field: note.action for note in exchange.notes}


def chat(*messages, **more):
    return {"messages": list(messages), **more}


def messages(*turns, **more):
    return {"max_tokens": 1000, "messages": list(turns), **more}


def user(content="hi"):
    return {"role": "user", "content": content}


# --- system and developer messages -------------------------------------------------------------------------------


def test_leading_system_and_developer_messages_become_system_blocks_in_order():
    body, _ = send(
        "openai_chat",
        "anthropic_messages",
        chat(
            {"role": "system", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "developer", "content": "three"},
            user(),
        ),
    )
    assert [b["text"] for b in body["system"]] == ["one", "two", "three"]
    assert [m["role"] for m in body["messages"]] == ["user"]


def test_system_message_in_the_middle_keeps_its_place_where_the_model_takes_it():
    body, notes = send(
        "openai_chat", "anthropic_messages", chat(user("a"), {"role": "system", "content": "from now on"})
    )
    assert [m["role"] for m in body["messages"]] == ["user", "system"]
    assert body["messages"][1]["content"] == [{"type": "text", "text": "from now on"}]
    assert "system" not in body
    assert notes.get("messages.system") is None


def test_system_message_after_an_assistant_waits_for_the_user_turn():
    body, notes = send(
        "openai_chat",
        "anthropic_messages",
        chat(user("a"), {"role": "assistant", "content": "b"}, {"role": "system", "content": "s"}, user("c")),
    )
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user", "system"]
    assert notes["messages.system"] == "moved"


@pytest.mark.parametrize("tail", [[user("c")], []])
def test_system_message_in_the_middle_is_told_in_a_user_turn_to_older_models(tail):
    body, notes = send(
        "openai_chat",
        "anthropic_messages",
        chat(user("a"), {"role": "assistant", "content": "b"}, {"role": "system", "content": "s"}, *tail),
        model="claude-haiku-4-5",
    )
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
    texts = [b["text"] for b in body["messages"][2]["content"]]
    assert texts == ["<system>\ns\n</system>", *(["c"] if tail else [])]
    assert notes["messages.system"] == "moved"


def test_system_message_inside_messages_of_a_messages_request_keeps_its_place():
    source = messages(user("a"), {"role": "system", "content": [{"type": "text", "text": "s"}]}, system="top")
    for upstream in ("openai_chat", "ollama_chat"):
        body, _ = send("anthropic_messages", upstream, source)
        assert [(m["role"], m["content"]) for m in body["messages"]] == [
            ("system", "top"),
            ("user", "a"),
            ("system", "s"),
        ]
    body, _ = send("anthropic_messages", "openai_responses", source)
    assert [i["role"] for i in body["input"]] == ["system", "user", "system"]


def test_developer_role_becomes_system_where_unknown():
    source = {"input": [{"type": "message", "role": "developer", "content": "d"}], "store": False}
    body, _ = send("openai_responses", "openai_chat", source)
    assert body["messages"][0]["role"] == "developer"
    body, _ = send("openai_responses", "openai_chat", source, developer_role=False)
    assert body["messages"][0]["role"] == "system"


def test_conversation_without_a_user_turn_is_refused_where_one_is_needed():
    with pytest.raises(UntranslatableError) as caught:
        send("openai_chat", "anthropic_messages", chat({"role": "system", "content": "only"}))
    assert caught.value.hint


# --- tool calls and results --------------------------------------------------------------------------------------

CHAT_TOOLS = chat(
    user("go"),
    {
        "role": "assistant",
        "content": "calling",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b":"x","a":1}'}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "one"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
    user("thanks"),
)


def test_parallel_tool_results_are_folded_into_one_turn():
    body, _ = send("openai_chat", "anthropic_messages", CHAT_TOOLS)
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "calling"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"b": "x", "a": 1}},
        {"type": "tool_use", "id": "c2", "name": "g", "input": {}},
    ]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
        {"type": "tool_result", "tool_use_id": "c2", "content": "two"},
        {"type": "text", "text": "thanks"},
    ]


def test_folded_tool_results_are_unfolded_behind_their_calls():
    source = messages(
        user("go"),
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": "x"}},
                {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "t2", "content": "bad", "is_error": True},
                {"type": "text", "text": "and now?"},
            ],
        },
    )
    body, notes = send("anthropic_messages", "openai_chat", source)
    assert body["messages"][2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "one"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error:\nbad"},
        {"role": "user", "content": "and now?"},
    ]
    assert notes["tool_result.is_error"] == "mapped"
    body, _ = send("anthropic_messages", "openai_responses", source)
    kinds = [i.get("role") or i["type"] for i in body["input"]]
    assert kinds == ["user", "function_call", "function_call", "function_call_output", "function_call_output", "user"]
    body, _ = send("anthropic_messages", "ollama_chat", source)
    assert [(m.get("tool_name"), m["content"]) for m in body["messages"][2:4]] == [("f", "one"), ("g", "Error:\nbad")]


def test_text_before_a_tool_result_does_not_come_between_call_and_result():
    source = messages(
        user("go"),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "note"}, {"type": "tool_result", "tool_use_id": "t1", "content": "r"}],
        },
    )
    body, _ = send("anthropic_messages", "openai_chat", source)
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "tool", "user"]
    body, _ = send("anthropic_messages", "openai_responses", source)
    assert [i.get("role") or i["type"] for i in body["input"]][1:] == ["function_call", "function_call_output", "user"]


def test_ollama_results_by_tool_name_find_the_right_call():
    body, _ = send(
        "ollama_chat",
        "anthropic_messages",
        chat(
            user("go"),
            {
                "role": "assistant",
                "tool_calls": [
                    {"function": {"name": "f", "arguments": {"a": 1}}},
                    {"function": {"name": "g", "arguments": {}}},
                    {"function": {"name": "f", "arguments": {"a": 2}}},
                ],
            },
            {"role": "tool", "tool_name": "g", "content": "of g"},
            {"role": "tool", "tool_name": "f", "content": "of f1"},
            {"role": "tool", "tool_name": "f", "content": "of f2"},
        ),
    )
    calls = {b["id"]: (b["name"], b["input"]) for b in body["messages"][1]["content"]}
    results = [(calls[b["tool_use_id"]], b["content"]) for b in body["messages"][2]["content"]]
    assert results == [(("g", {}), "of g"), (("f", {"a": 1}), "of f1"), (("f", {"a": 2}), "of f2")]


def test_broken_tool_arguments_in_the_history_are_not_lost():
    source = chat(
        user(),
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "invalid"},
    )
    body, notes = send("openai_chat", "anthropic_messages", source)
    assert body["messages"][1]["content"][0]["input"] == {"input": '{"a": 1'}
    assert notes["tool_calls.arguments"] == "mapped"


def test_tool_ids_a_target_refuses_are_replaced_alike_in_call_and_result():
    odd = "functions.read:0"
    long = "call_" + "x" * 80
    source = chat(
        user(),
        {
            "role": "assistant",
            "tool_calls": [
                {"id": odd, "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": long, "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": odd, "content": "1"},
        {"role": "tool", "tool_call_id": long, "content": "2"},
    )
    body, _ = send("openai_chat", "anthropic_messages", source)
    uses = [b["id"] for b in body["messages"][1]["content"]]
    assert uses == [b["tool_use_id"] for b in body["messages"][2]["content"]]
    assert odd not in uses
    assert len(set(uses)) == 2
    body, _ = send("openai_chat", "openai_responses", source)
    assert all(len(i["call_id"]) <= 64 for i in body["input"] if "call_id" in i)


def test_three_tool_shapes_keep_order_names_and_schema():
    nested = [
        {"type": "function", "function": {"name": n, "description": n.upper(), "parameters": TOOL}} for n in "zab"
    ]
    flat = [
        {"type": "function", "name": n, "description": n.upper(), "parameters": TOOL, "strict": False} for n in "zab"
    ]
    plain = [{"name": n, "description": n.upper(), "input_schema": TOOL} for n in "zab"]
    sources = {
        "openai_chat": chat(user(), tools=nested),
        "openai_responses": {"input": "hi", "store": False, "tools": flat},
        "anthropic_messages": messages(user(), tools=plain),
    }
    for caller, source in sources.items():
        for upstream, shape in (("openai_chat", nested), ("openai_responses", flat), ("anthropic_messages", plain)):
            if caller == upstream:
                continue
            tools = send(caller, upstream, source)[0]["tools"]
            for tool in tools:
                tool.get("function", {}).pop("strict", None)
            assert json.dumps(tools) == json.dumps(shape), (caller, upstream)


def test_free_text_tool_is_offered_as_a_function_and_its_history_wrapped():
    source = {
        "store": False,
        "input": [
            {"type": "message", "role": "user", "content": "go"},
            {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin Patch"},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
        ],
        "tools": [
            {
                "type": "custom",
                "name": "apply_patch",
                "description": "Edits files.",
                "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
            }
        ],
    }
    body, _ = send("openai_responses", "anthropic_messages", source)
    assert body["tools"][0]["input_schema"]["required"] == ["input"]
    assert "start: /.+/" in body["tools"][0]["description"]
    assert body["messages"][1]["content"][0]["input"] == {"input": "*** Begin Patch"}
    body, _ = send("openai_responses", "openai_chat", source)
    assert body["tools"][0]["custom"]["format"]["grammar"]["syntax"] == "lark"
    assert body["messages"][1]["tool_calls"][0] == {
        "id": "c1",
        "type": "custom",
        "custom": {"name": "apply_patch", "input": "*** Begin Patch"},
    }


def test_namespaced_tools_are_flattened_and_long_names_shortened_without_clashes():
    long = "mcp__" + "server_" * 10
    source = {
        "input": "hi",
        "store": False,
        "tools": [
            {
                "type": "namespace",
                "name": "agents",
                "description": "",
                "tools": [{"type": "function", "name": "spawn", "parameters": TOOL}],
            },
            {"type": "function", "name": "agents__spawn", "parameters": TOOL},
            {"type": "function", "name": long + "a", "parameters": TOOL},
            {"type": "function", "name": long + "b", "parameters": TOOL},
        ],
    }
    body, _ = send("openai_responses", "openai_chat", source)
    names = [t["function"]["name"] for t in body["tools"]]
    assert names[0] == "agents__spawn"
    assert len(set(names)) == 4
    assert all(len(n) <= 64 for n in names)


def test_provider_run_tools_are_dropped_with_a_note_or_refused_when_they_are_all_there_is():
    offered = [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": TOOL}]
    body, notes = send("openai_responses", "anthropic_messages", {"input": "hi", "store": False, "tools": offered})
    assert [t["name"] for t in body["tools"]] == ["f"]
    assert notes["tools.web_search"] == "dropped"
    with pytest.raises(UntranslatableError):
        send("openai_responses", "anthropic_messages", {"input": "hi", "store": False, "tools": offered[:1]})
    source = {"input": "hi", "store": False, "tools": offered, "tool_choice": {"type": "web_search"}}
    with pytest.raises(UntranslatableError):
        send("openai_responses", "anthropic_messages", source)


def test_legacy_functions_are_translated():
    source = chat(
        user(),
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"},
        functions=[{"name": "f", "parameters": TOOL}],
        function_call={"name": "f"},
    )
    body, _ = send("openai_chat", "anthropic_messages", source)
    assert body["tool_choice"] == {"type": "tool", "name": "f", "disable_parallel_tool_use": True}
    use, result = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
    assert use["id"] == result["tool_use_id"]


# --- tool choice -------------------------------------------------------------------------------------------------

CHOICES = [
    ("auto", {"type": "auto"}, "auto"),
    ("none", {"type": "none"}, "none"),
    ("required", {"type": "any"}, "required"),
    ({"type": "function", "function": {"name": "f"}}, {"type": "tool", "name": "f"}, {"type": "function", "name": "f"}),
]


@pytest.mark.parametrize("in_chat, in_messages, in_responses", CHOICES)
@pytest.mark.parametrize("parallel", [None, True, False])
def test_tool_choice_table(in_chat, in_messages, in_responses, parallel):
    flag = {} if parallel is None else {"parallel_tool_calls": parallel}
    disable = {} if parallel is None or in_chat == "none" else {"disable_parallel_tool_use": not parallel}
    nested = [{"type": "function", "function": {"name": "f", "parameters": TOOL}}]
    flat = [{"type": "function", "name": "f", "parameters": TOOL}]
    plain = [{"name": "f", "input_schema": TOOL}]
    sources = {
        "openai_chat": chat(user(), tools=nested, tool_choice=in_chat, **flag),
        "openai_responses": {"input": "hi", "store": False, "tools": flat, "tool_choice": in_responses, **flag},
        "anthropic_messages": messages(user(), tools=plain, tool_choice={**in_messages, **disable}),
    }
    for caller, source in sources.items():
        if caller != "anthropic_messages":
            body, _ = send(caller, "anthropic_messages", source)
            assert body["tool_choice"] == {**in_messages, **disable}
        if caller != "openai_chat":
            body, _ = send(caller, "openai_chat", source)
            assert body["tool_choice"] == in_chat
            if in_chat != "none":
                assert body.get("parallel_tool_calls") == parallel
        if caller != "openai_responses":
            body, _ = send(caller, "openai_responses", source)
            assert body["tool_choice"] == in_responses


def test_parallel_tool_calls_without_a_choice_still_reaches_messages():
    tools = [{"type": "function", "function": {"name": "f", "parameters": TOOL}}]
    body, _ = send("openai_chat", "anthropic_messages", chat(user(), tools=tools, parallel_tool_calls=False))
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    body, _ = send("openai_chat", "anthropic_messages", chat(user(), tools=tools))
    assert "tool_choice" not in body


def test_allowed_tools_narrow_the_offer_where_there_is_no_such_choice():
    tools = [{"type": "function", "function": {"name": n, "parameters": TOOL}} for n in "fgh"]
    allowed = [{"type": "function", "function": {"name": n}} for n in "fh"]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    body, notes = send("openai_chat", "anthropic_messages", chat(user(), tools=tools, tool_choice=choice))
    assert [t["name"] for t in body["tools"]] == ["f", "h"]
    assert body["tool_choice"] == {"type": "any"}
    assert notes["tool_choice.allowed_tools"] == "mapped"
    body, _ = send("openai_chat", "openai_responses", chat(user(), tools=tools, tool_choice=choice))
    assert len(body["tools"]) == 3
    assert body["tool_choice"]["tools"] == [{"type": "function", "name": n} for n in "fh"]


def test_ollama_offers_no_tools_for_none_and_refuses_to_force_one():
    tools = [{"type": "function", "function": {"name": "f", "parameters": TOOL}}]
    body, notes = send("openai_chat", "ollama_chat", chat(user(), tools=tools, tool_choice="none"))
    assert "tools" not in body
    assert notes["tool_choice"] == "mapped"
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(UntranslatableError) as caught:
            send("openai_chat", "ollama_chat", chat(user(), tools=tools, tool_choice=choice))
        assert caught.value.field == "tool_choice"


# --- images and documents ----------------------------------------------------------------------------------------


def test_images_as_data_and_by_url_in_user_messages():
    source = chat(
        user(
            [
                {"type": "text", "text": "what?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "high"}},
                {"type": "image_url", "image_url": {"url": "https://x.example/a.jpg"}},
            ]
        )
    )
    body, notes = send("openai_chat", "anthropic_messages", source)
    assert body["messages"][0]["content"][1:] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "image", "source": {"type": "url", "url": "https://x.example/a.jpg"}},
    ]
    assert notes["image_url.detail"] == "dropped"
    body, _ = send("openai_chat", "openai_responses", source)
    assert [(i.get("image_url"), i.get("detail")) for i in body["input"][0]["content"][1:]] == [
        (f"data:image/png;base64,{PNG}", "high"),
        ("https://x.example/a.jpg", "auto"),
    ]
    with pytest.raises(UntranslatableError, match="fetches no URLs"):
        send("openai_chat", "ollama_chat", source)


def test_images_in_tool_results():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    source = messages(
        user("look"),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "shot", "input": {}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "done"}, image]}
            ],
        },
    )
    body, notes = send("anthropic_messages", "openai_chat", source)
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "t1", "content": "done"}
    follow = body["messages"][3]
    assert follow["role"] == "user"
    assert follow["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert "t1" in follow["content"][0]["text"]
    assert notes["tool_result.image"] == "moved"
    body, _ = send("anthropic_messages", "openai_responses", source)
    output = body["input"][2]["output"]
    assert [p["type"] for p in output] == ["input_text", "input_image"]
    body, _ = send("anthropic_messages", "ollama_chat", source)
    assert body["messages"][2]["images"] == [PNG]


def test_image_in_a_responses_tool_output_reaches_messages():
    url = f"data:image/png;base64,{PNG}"
    source = {
        "store": False,
        "input": [
            {"type": "function_call", "call_id": "c", "name": "view", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": url}]},
        ],
    }
    body, _ = send("openai_responses", "anthropic_messages", source)
    assert body["messages"][-1]["content"][0]["content"][0]["source"]["data"] == PNG


def test_image_kinds_messages_does_not_take_are_refused():
    source = chat(user([{"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AA=="}}]))
    with pytest.raises(UntranslatableError, match="image/tiff"):
        send("openai_chat", "anthropic_messages", source)


def test_documents_cross_as_data_and_as_text():
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBE"}}
    body, _ = send("openai_chat", "anthropic_messages", chat(user([pdf])))
    block = body["messages"][0]["content"][0]
    assert (block["source"]["data"], block["title"]) == ("JVBE", "a.pdf")
    text = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "body"}}
    body, _ = send("anthropic_messages", "ollama_chat", messages(user([text])))
    assert body["messages"][0]["content"] == "T:\nbody"
    with pytest.raises(UntranslatableError):
        send("openai_chat", "ollama_chat", chat(user([pdf])))


# --- sampling ----------------------------------------------------------------------------------------------------


def test_temperature_above_one_is_clamped_for_messages_and_said():
    body, notes = send("openai_chat", "anthropic_messages", chat(user(), temperature=1.7), sampling=True)
    assert body["temperature"] == 1.0
    assert notes["temperature"] == "clamped"


def test_sampling_the_model_refuses_is_dropped_and_said():
    body, notes = send("openai_chat", "anthropic_messages", chat(user(), temperature=0.2, top_p=0.5))
    assert not {"temperature", "top_p"} & body.keys()
    assert notes == {**notes, "temperature": "dropped", "top_p": "dropped"}


def test_top_k_reaches_those_who_know_it():
    source = messages(user(), top_k=40)
    body, notes = send("anthropic_messages", "openai_chat", source)
    assert "top_k" not in body
    assert notes["top_k"] == "dropped"
    assert send("anthropic_messages", "openai_chat", source, top_k=True)[0]["top_k"] == 40
    assert send("anthropic_messages", "ollama_chat", source)[0]["options"]["top_k"] == 40


def test_stop_strings_are_mapped_limited_or_refused():
    body, _ = send("openai_chat", "anthropic_messages", chat(user(), stop="END"))
    assert body["stop_sequences"] == ["END"]
    body, notes = send("openai_chat", "anthropic_messages", chat(user(), stop=["END", "\n"]))
    assert body["stop_sequences"] == ["END"]
    assert notes["stop"] == "dropped"
    five = messages(user(), stop_sequences=list("abcde"))
    with pytest.raises(UntranslatableError, match="at most 4"):
        send("anthropic_messages", "openai_chat", five)
    assert send("anthropic_messages", "ollama_chat", five)[0]["options"]["stop"] == list("abcde")
    with pytest.raises(UntranslatableError, match="no stop strings"):
        send("anthropic_messages", "openai_responses", five)


def test_penalties_and_seed_are_never_dropped_silently():
    source = chat(user(), seed=7, frequency_penalty=0.5, presence_penalty=0.5)
    for upstream in ("anthropic_messages", "openai_responses"):
        _, notes = send("openai_chat", upstream, source)
        assert {f: notes[f] for f in ("seed", "frequency_penalty", "presence_penalty")} == {
            "seed": "dropped",
            "frequency_penalty": "dropped",
            "presence_penalty": "dropped",
        }
    options = send("openai_chat", "ollama_chat", source)[0]["options"]
    assert options == {"seed": 7, "frequency_penalty": 0.5, "presence_penalty": 0.5}


@pytest.mark.parametrize(
    "extra", [{"n": 2}, {"logprobs": True}, {"modalities": ["text", "audio"]}, {"web_search_options": {"a": 1}}]
)
def test_what_would_change_the_meaning_is_refused(extra):
    with pytest.raises(UntranslatableError) as caught:
        send("openai_chat", "anthropic_messages", chat(user(), **extra))
    assert caught.value.field in extra
    assert caught.value.code == "untranslatable"


def test_unknown_fields_are_noted_and_the_header_stays_ascii_and_short():
    _, notes = send("openai_chat", "anthropic_messages", chat(user(), wörld=1, seed=3))
    assert notes["wörld"] == "dropped"
    raw = json.dumps({"model": "a", **chat(user(), **{f"field_{i}": 1 for i in range(200)})}).encode()
    target = default_target("anthropic_messages", "claude-opus-4-8")
    exchange = begin("openai_chat", raw, load_body(raw), target, exchange_id="e", created=1)
    header = notes_header(exchange.notes)
    assert header.isascii()
    assert len(header) < 1000
    assert header.endswith("...")


# --- reasoning ---------------------------------------------------------------------------------------------------


def test_effort_becomes_adaptive_thinking_or_a_budget_by_model():
    body, _ = send("openai_chat", "anthropic_messages", chat(user(), reasoning_effort="high"))
    assert body["thinking"] == {"type": "adaptive"}
    assert body["output_config"] == {"effort": "high"}
    body, notes = send(
        "openai_chat",
        "anthropic_messages",
        chat(user(), reasoning_effort="high", max_tokens=64_000, temperature=0.3, top_p=0.5),
        model="claude-haiku-4-5",
    )
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 16384}
    assert "output_config" not in body
    assert not {"temperature", "top_p"} & body.keys()
    assert notes == {**notes, "reasoning": "mapped", "temperature": "dropped", "top_p": "dropped"}


def test_budget_stays_below_max_tokens():
    source = chat(user(), reasoning_effort="high", max_tokens=4000)
    body, notes = send("openai_chat", "anthropic_messages", source, model="claude-haiku-4-5")
    assert notes["reasoning"] in ("mapped", "clamped")
    assert body["thinking"]["budget_tokens"] == 2000
    assert body["max_tokens"] == 4000
    source = chat(user(), reasoning_effort="high", max_tokens=1000)
    body, _ = send("openai_chat", "anthropic_messages", source, model="claude-haiku-4-5")
    assert "thinking" not in body


@pytest.mark.parametrize(
    "thinking, config, effort",
    [
        ({"type": "enabled", "budget_tokens": 2000}, {}, "low"),
        ({"type": "enabled", "budget_tokens": 8000}, {}, "medium"),
        ({"type": "enabled", "budget_tokens": 16000}, {}, "high"),
        ({"type": "adaptive"}, {"effort": "high"}, "high"),
        ({"type": "adaptive"}, {}, None),
        ({"type": "disabled"}, {}, "none"),
    ],
)
def test_thinking_becomes_an_effort(thinking, config, effort):
    source = messages(user(), max_tokens=32_000, thinking=thinking, output_config=config)
    body, _ = send("anthropic_messages", "openai_chat", source)
    assert body.get("reasoning_effort") == effort
    body, _ = send("anthropic_messages", "openai_responses", source)
    assert body.get("reasoning", {}).get("effort") == effort


def test_effort_is_fitted_to_what_the_model_takes_or_dropped():
    source = messages(user(), thinking={"type": "adaptive"}, output_config={"effort": "max"})
    body, notes = send("anthropic_messages", "openai_chat", source, efforts=("low", "medium", "high"))
    assert body["reasoning_effort"] == "high"
    assert notes["reasoning"] == "mapped"
    body, notes = send("anthropic_messages", "openai_chat", source, model="gpt-4o")
    assert "reasoning_effort" not in body
    assert notes["reasoning"] == "dropped"


@pytest.mark.parametrize("effort, think", [("none", False), ("low", "low"), ("minimal", "low"), ("xhigh", "high")])
def test_effort_becomes_think_for_ollama(effort, think):
    body, _ = send("openai_chat", "ollama_chat", chat(user(), reasoning_effort=effort))
    assert body["think"] == think


def test_thinking_gives_way_to_a_forced_tool():
    tools = [{"type": "function", "function": {"name": "f", "parameters": TOOL}}]
    source = chat(user(), tools=tools, tool_choice="required", reasoning_effort="high")
    body, notes = send("openai_chat", "anthropic_messages", source)
    assert "thinking" not in body
    assert notes["reasoning"] == "dropped"


def test_tool_loop_begun_without_thinking_ends_without_it():
    source = {**CHAT_TOOLS, "messages": CHAT_TOOLS["messages"][:-1], "reasoning_effort": "high", "max_tokens": 50_000}
    body, notes = send("openai_chat", "anthropic_messages", source, model="claude-haiku-4-5")
    assert "thinking" not in body
    assert notes["reasoning"] == "dropped"
    body, _ = send("openai_chat", "anthropic_messages", source)
    assert body["thinking"] == {"type": "adaptive"}  # no such rule there


# --- signed thinking ---------------------------------------------------------------------------------------------


def test_signed_thinking_goes_to_no_other_provider_and_that_is_said():
    source = messages(
        user(),
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "SIG"},
                {"type": "redacted_thinking", "data": "ENC"},
                {"type": "text", "text": "a"},
            ],
        },
        user("b"),
    )
    for upstream in ("openai_chat", "openai_responses", "ollama_chat"):
        body, notes = send("anthropic_messages", upstream, source)
        assert "SIG" not in json.dumps(body)
        assert "ENC" not in json.dumps(body)
        assert notes["messages.thinking"] == "stripped"


# --- cache marks -------------------------------------------------------------------------------------------------


def test_cache_control_crosses_on_every_hop():
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    source = chat(
        {"role": "system", "content": [{"type": "text", "text": "s", **mark}]},
        user([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}, **mark}]),
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "r", **mark},
        {"role": "user", "content": "last", **mark},
        tools=[{"type": "function", "function": {"name": "f", "parameters": TOOL}, **mark}],
    )
    body, _ = send("openai_chat", "anthropic_messages", source)
    wanted = {"type": "ephemeral", "ttl": "1h"}
    assert body["system"][0]["cache_control"] == wanted
    assert body["tools"][0]["cache_control"] == wanted
    assert [b["cache_control"] for b in body["messages"][0]["content"]] == [wanted]
    assert [b["cache_control"] for b in body["messages"][2]["content"]] == [wanted, wanted]


def test_cache_control_of_messages_reaches_servers_that_take_it():
    mark = {"cache_control": {"type": "ephemeral"}}
    source = messages(
        user([{"type": "text", "text": "a"}, {"type": "text", "text": "b", **mark}]),
        system=[{"type": "text", "text": "s", **mark}],
        tools=[{"name": "f", "input_schema": TOOL, **mark}],
    )
    body, _ = send("anthropic_messages", "openai_chat", source, cache="cache_control")
    assert body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert body["messages"][1]["content"][1]["cache_control"] == {"type": "ephemeral"}
    assert body["tools"][0]["cache_control"] == {"type": "ephemeral"}
    for upstream in ("openai_chat", "openai_responses"):
        body, _ = send("anthropic_messages", upstream, source, cache="breakpoint")
        assert '"prompt_cache_breakpoint": {"mode": "explicit"}' in json.dumps(body)
    body, notes = send("anthropic_messages", "openai_chat", source)
    assert "cache" not in json.dumps(body)
    assert notes["cache_control"] == "dropped"


# --- structured output, limits, the rest -------------------------------------------------------------------------


def test_structured_output_in_every_dialect():
    schema = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    source = chat(user(), response_format=form)
    assert send("openai_chat", "anthropic_messages", source)[0]["output_config"]["format"] == {
        "type": "json_schema",
        "schema": schema,
    }
    assert send("openai_chat", "openai_responses", source)[0]["text"]["format"] == {
        "type": "json_schema",
        "name": "answer",
        "schema": schema,
        "strict": True,
    }
    assert send("openai_chat", "ollama_chat", source)[0]["format"] == schema
    back = messages(user(), output_config={"format": {"type": "json_schema", "schema": schema}})
    assert send("anthropic_messages", "openai_chat", back)[0]["response_format"]["json_schema"]["schema"] == schema
    ollama = {"messages": [user()], "format": schema}
    assert send("ollama_chat", "openai_responses", ollama)[0]["text"]["format"]["schema"] == schema


def test_json_mode_is_asked_for_in_words_where_there_is_none():
    body, notes = send("openai_chat", "anthropic_messages", chat(user(), response_format={"type": "json_object"}))
    assert "JSON" in body["system"][-1]["text"]
    assert notes["response_format"] == "mapped"
    body, _ = send("openai_chat", "ollama_chat", chat(user(), response_format={"type": "json_object"}))
    assert body["format"] == "json"


def test_max_tokens_defaults_to_the_models_limit_and_never_exceeds_it():
    body, notes = send("openai_chat", "anthropic_messages", chat(user()), max_output_tokens=32_000)
    assert body["max_tokens"] == 32_000
    assert notes["max_tokens"] == "defaulted"
    body, notes = send(
        "openai_chat", "anthropic_messages", chat(user(), max_completion_tokens=99_000), max_output_tokens=32_000
    )
    assert body["max_tokens"] == 32_000
    assert notes["max_tokens"] == "clamped"
    source = messages(user(), max_tokens=99_000)
    assert send("anthropic_messages", "openai_chat", source, max_output_tokens=100)[0]["max_completion_tokens"] == 100
    body, _ = send("anthropic_messages", "openai_chat", source, max_tokens_field="max_tokens")
    assert body["max_tokens"] == 99_000
    body, notes = send("anthropic_messages", "openai_responses", messages(user(), max_tokens=1))
    assert body["max_output_tokens"] == 16
    assert notes["max_tokens"] == "clamped"
    assert send("anthropic_messages", "ollama_chat", source)[0]["options"]["num_predict"] == 99_000


def test_usage_of_a_stream_is_always_asked_for():
    body, _ = send("anthropic_messages", "openai_chat", messages(user(), stream=True))
    assert body["stream_options"] == {"include_usage": True}
    body, _ = send("anthropic_messages", "openai_chat", messages(user(), stream=True), stream_usage=False)
    assert "stream_options" not in body
    assert "stream_options" not in send("anthropic_messages", "openai_chat", messages(user()))[0]


@pytest.mark.parametrize(
    "extra", [{"previous_response_id": "resp_1"}, {"store": True}, {"conversation": "conv_1"}, {"background": True}]
)
def test_stored_state_is_refused_where_nothing_keeps_it(extra):
    with pytest.raises(UntranslatableError) as caught:
        send("openai_responses", "anthropic_messages", {"input": "hi", **extra})
    assert caught.value.code == "unsupported_state"
    assert caught.value.field in extra
    assert caught.value.hint


def test_stored_state_passes_where_the_upstream_keeps_it():
    source = {"input": "hi", "previous_response_id": "resp_1", "store": True, "background": False}
    body, notes = send("openai_responses", "openai_responses", source)
    assert body == {**source, "model": "gpt-5.1"}
    assert notes == {}


def test_nothing_is_stored_for_callers_who_cannot_ask_for_it():
    assert send("openai_chat", "openai_responses", chat(user()))[0]["store"] is False


def test_stored_items_are_refused():
    with pytest.raises(UntranslatableError):
        send("openai_responses", "openai_chat", {"input": [{"type": "item_reference", "id": "x"}], "store": False})


def test_ollama_streams_by_default_and_others_do_not():
    assert send("ollama_chat", "openai_chat", chat(user()))[0]["stream"] is True
    assert "stream" not in send("ollama_chat", "openai_chat", chat(user(), stream=False))[0]
    assert send("openai_chat", "ollama_chat", chat(user()))[0]["stream"] is False


def test_generate_is_one_prompt():
    source = {"prompt": "hi", "system": "s", "images": [PNG], "stream": False, "options": {"temperature": 0.5}}
    body, _ = send("ollama_generate", "openai_chat", source)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["temperature"] == 0.5
    with pytest.raises(UntranslatableError):
        send("ollama_generate", "openai_chat", {**source, "suffix": "end"})
    body, _ = send("openai_chat", "ollama_generate", chat({"role": "system", "content": "s"}, user()))
    assert (body["prompt"], body["system"]) == ("hi", "s")


def test_runtime_options_reach_another_ollama_endpoint_and_nobody_else():
    source = {"messages": [user()], "keep_alive": "5m", "options": {"num_ctx": 8192}}
    body, notes = send("ollama_chat", "openai_chat", source)
    assert notes == {**notes, "keep_alive": "dropped", "options.num_ctx": "dropped"}
    body, _ = send("ollama_chat", "ollama_generate", source)
    assert (body["keep_alive"], body["options"]["num_ctx"]) == ("5m", 8192)


def test_user_ids_fit_the_target():
    long = json.dumps({"device_id": "d" * 64, "session_id": "s" * 36})
    body, _ = send("anthropic_messages", "openai_chat", messages(user(), metadata={"user_id": long}))
    assert len(body["safety_identifier"]) <= 64
    again, _ = send("anthropic_messages", "openai_chat", messages(user(), metadata={"user_id": long}))
    assert again["safety_identifier"] == body["safety_identifier"]
    assert send("openai_chat", "anthropic_messages", chat(user(), user="u1"))[0]["metadata"] == {"user_id": "u1"}


@pytest.mark.parametrize(
    "caller, body, field",
    [
        ("openai_chat", {}, "messages"),
        ("openai_chat", {"messages": "no"}, "messages"),
        ("openai_chat", {"messages": [7]}, "messages.0"),
        ("openai_chat", {"messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ("openai_chat", {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type"),
        ("openai_chat", {"messages": [], "temperature": "hot"}, "temperature"),
        ("openai_chat", {"messages": [], "tools": [{"type": "function"}]}, "tools.0.function"),
        ("anthropic_messages", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("anthropic_messages", {"messages": [], "max_tokens": "many"}, "max_tokens"),
        ("anthropic_messages", {"messages": [], "max_tokens": True}, "max_tokens"),
        ("openai_responses", {"store": False}, "input"),
        ("openai_responses", {"input": [{"type": "function_call"}], "store": False}, "input.0.call_id"),
        ("ollama_chat", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
    ],
)
def test_malformed_requests_name_the_field(caller, body, field):
    upstream = "openai_chat" if caller != "openai_chat" else "anthropic_messages"
    with pytest.raises(MalformedError) as caught:
        send(caller, upstream, body)
    assert caught.value.field == field


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"{'a': 1}"])
def test_broken_json_is_one_clear_error(raw):
    with pytest.raises(MalformedError) as caught:
        load_body(raw)
    assert caught.value.code == "invalid_json"
    assert caught.value.hint
