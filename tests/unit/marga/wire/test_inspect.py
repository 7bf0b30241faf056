"""What routing reads out of a request without translating it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.marga.wire import DIALECTS, MalformedError, inspect

IMAGE = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}


def test_chat_features():
    found = inspect(
        "openai_chat",
        {
            "model": "auto",
            "stream": True,
            "messages": [
                {"role": "developer", "content": "12345"},
                {"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE]},
                {"role": "assistant", "content": "ok"},
                {"role": "user", "content": "again"},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": "required",
            "response_format": {"type": "json_schema", "json_schema": {}},
            "reasoning_effort": "low",
            "temperature": 0,
            "max_completion_tokens": 7,
            "n": 3,
            "logprobs": True,
            "user": "u",
            "prompt_cache_key": "s",
        },
    )
    assert (found.model, found.stream, found.messages, found.turns, found.images) == ("auto", True, 4, 2, 1)
    assert (found.system_chars, found.last_user_text, found.tools, found.forced_tool) == (5, "again", 1, True)
    assert (found.json_mode, found.reasoning, found.effort, found.temperature) == ("schema", True, "low", 0.0)
    assert (found.max_tokens, found.choices, found.logprobs, found.user, found.session) == (7, 3, True, "u", "s")
    assert found.vision
    assert not found.tool_loop
    assert found.prompt_chars > 5 + 4 + 2 + 5


@pytest.mark.parametrize(
    "dialect, body",
    [
        (
            "openai_chat",
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
                    {"role": "tool", "tool_call_id": "c", "content": "r"},
                ]
            },
        ),
        (
            "anthropic_messages",
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
                    {"role": "system", "content": "a reminder after the results"},
                ]
            },
        ),
        (
            "openai_responses",
            {
                "input": [
                    {"role": "user", "content": "x"},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "r"},
                ]
            },
        ),
        (
            "ollama_chat",
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
                    {"role": "tool", "content": "r"},
                ]
            },
        ),
    ],
)
def test_open_tool_loops_are_seen(dialect, body):
    found = inspect(dialect, {"model": "m", **body})
    assert found.tool_loop
    assert (found.turns, found.tool_calls, found.tool_results, found.last_user_text) == (1, 1, 1, "x")
    key = "input" if dialect == "openai_responses" else "messages"
    later = {**body, key: [*body[key], {"role": "assistant", "content": "done"}, {"role": "user", "content": "y"}]}
    found = inspect(dialect, {"model": "m", **later})
    assert not found.tool_loop
    assert (found.turns, found.last_user_text) == (2, "y")


def test_messages_features():
    found = inspect(
        "anthropic_messages",
        {
            "model": "m",
            "max_tokens": 10,
            "system": [{"type": "text", "text": "abc", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [{"type": "document", "source": {}}, {"type": "text", "text": "q"}]},
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "S"}]},
            ],
            "tools": [{"name": "f", "input_schema": {}}, {"type": "web_search_20250305", "name": "web_search"}],
            "thinking": {"type": "enabled", "budget_tokens": 2048},
            "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {}}},
            "metadata": {"user_id": "u"},
        },
    )
    assert (found.system_chars, found.documents, found.tools, found.provider_tools) == (3, 1, 1, ("web_search",))
    assert (found.signed_thinking, found.foreign_thinking, found.cache_marks) == (True, False, True)
    assert (found.reasoning, found.thinking_budget, found.effort, found.json_mode) == (True, 2048, "high", "schema")
    assert (found.max_tokens, found.user, found.stream) == (10, "u", False)


@pytest.mark.parametrize("signature", ["", "avyay1.abc", None])
def test_thinking_nobody_here_signed_is_foreign(signature):
    block = {"type": "thinking", "thinking": "t", "signature": signature}
    found = inspect("anthropic_messages", {"model": "m", "messages": [{"role": "assistant", "content": [block]}]})
    assert found.foreign_thinking


def test_responses_features():
    found = inspect(
        "openai_responses",
        {
            "model": "m",
            "instructions": "abcd",
            "input": [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "ef"}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "q"}]},
                {"type": "reasoning", "encrypted_content": "gAA"},
            ],
            "previous_response_id": "resp_1",
            "text": {"format": {"type": "json_object"}},
            "tools": [{"type": "namespace", "name": "n", "tools": [{}, {}]}, {"type": "web_search"}],
        },
    )
    assert (found.system_chars, found.last_user_text, found.json_mode, found.tools) == (6, "q", "json", 2)
    assert (found.previous_response_id, found.stores, found.signed_thinking) == ("resp_1", True, True)
    assert found.provider_tools == ("web_search",)
    assert inspect("openai_responses", {"model": "m", "input": "hi", "store": False}).stores is False


def test_ollama_features():
    found = inspect(
        "ollama_generate",
        {"model": "m", "prompt": "p", "system": "s", "images": ["x"], "format": "json", "think": "high"},
    )
    assert (found.stream, found.images, found.json_mode, found.effort, found.last_user_text) == (
        True,
        1,
        "json",
        "high",
        "p",
    )


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": 7}])
def test_a_request_without_a_model_is_malformed(body):
    with pytest.raises(MalformedError):
        inspect("openai_chat", body)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "type", "content", "text", "tool_calls", "function"]), inner)
    ),
    max_leaves=12,
)
KEYS = [
    "messages", "input", "system", "tools", "tool_choice", "options", "thinking", "text", "reasoning", "stream",
    "response_format", "output_config", "metadata", "images", "prompt", "instructions", "functions", "format", "think",
]  # fmt: skip


@given(st.sampled_from(DIALECTS), st.dictionaries(st.sampled_from(KEYS), anything))
def test_no_body_breaks_it(dialect, body):
    inspect(dialect, {**body, "model": "m"})
