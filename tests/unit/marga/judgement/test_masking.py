"""Masking: in every position, back again, and in streams cut anywhere."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.marga.compliance import PiiPolicy, PiiRule, on_own_network, resident
from avyay.marga.masking import Masker, StreamMasker, Unmasker, scan_body
from avyay.marga.pii import KINDS, detect

ALL = frozenset(KINDS)
EMAIL = "ada@example.com"
CARD = "4111 1111 1111 1111"
KEY = "-----BEGIN PRIVATE KEY-----\nMIIB\nabc def\n-----END PRIVATE KEY-----"

BODIES = {
    "system": {"messages": [{"role": "system", "content": f"user is {EMAIL}"}]},
    "anthropic system blocks": {"system": [{"type": "text", "text": f"user is {EMAIL}"}], "messages": []},
    "user": {"messages": [{"role": "user", "content": EMAIL}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": EMAIL}]}]},
    "an earlier turn": {"messages": [{"role": "assistant", "content": EMAIL}, {"role": "user", "content": "ok"}]},
    "tool arguments": {
        "messages": [
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": json.dumps({"to": [EMAIL]})}}],
            }
        ]
    },
    "escaped tool arguments": {
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"arguments": '{"to": "ada\\u0040example.com"}'}}]}
        ]
    },
    "a key of tool arguments": {"messages": [{"content": [{"type": "tool_use", "id": "t", "input": {EMAIL: 1}}]}]},
    "tool input": {"messages": [{"content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"id": EMAIL}}]}]},
    "tool result": {"messages": [{"content": [{"type": "tool_result", "tool_use_id": "t", "content": EMAIL}]}]},
    "tool role": {"messages": [{"role": "tool", "tool_call_id": "c", "content": f"found {EMAIL}"}]},
    "responses input": {"input": EMAIL},
    "responses items": {"input": [{"role": "user", "content": [{"type": "input_text", "text": EMAIL}]}]},
    "responses instructions": {"instructions": f"mail {EMAIL}", "input": "hi"},
    "responses output": {"input": [{"type": "function_call_output", "call_id": "c", "output": f'{{"m": "{EMAIL}"}}'}]},
    "responses arguments": {"input": [{"type": "function_call", "name": "f", "arguments": f'{{"m": "{EMAIL}"}}'}]},
    "generate": {"prompt": f"write to {EMAIL}", "system": "x"},
    "a tool's description": {"tools": [{"type": "function", "function": {"name": "f", "description": EMAIL}}]},
    "metadata": {"metadata": {"user_id": EMAIL}, "messages": []},
    "an unknown field": {"something_new": [{"deep": {"er": EMAIL}}]},
}


@pytest.mark.parametrize("position", BODIES)
def test_every_position_is_read_masked_and_restored(position: str) -> None:
    body = BODIES[position]
    assert scan_body(body) == {"email"}
    masker = Masker(ALL, body)
    masked = masker.mask_body(body)
    text = json.dumps(masked)
    assert "example.com" not in text
    assert "u0040" not in text
    assert "[EMAIL_1]" in text
    restored = masker.unmask_body(masked)
    if "escaped" in position:
        restored = json.loads(json.dumps(restored))
        arguments = restored["messages"][0]["tool_calls"][0]["function"]["arguments"]
        assert json.loads(arguments) == {"to": EMAIL}
    elif "arguments" in position and "key" not in position:
        assert json.dumps(restored).replace(" ", "") == json.dumps(body).replace(" ", "")
    else:
        assert restored == body


def test_numbers_in_tool_arguments() -> None:
    body = {"input": [{"type": "function_call", "arguments": json.dumps({"card": 4111111111111111, "ssn": 123456788})}]}
    assert scan_body(body) == {"card", "ssn"}
    assert "4111" not in json.dumps(Masker(ALL).mask_body(body))


def test_structure_stays() -> None:
    body = {
        "model": "gpt-x",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400}}],
            },
            {"content": [{"type": "thinking", "thinking": "hm", "signature": "EqQBCgIYAhIkMGE0-" + "x1" * 40}]},
        ],
        "max_tokens": 4111111111111111,
        "stream": True,
    }
    assert Masker(ALL, body).mask_body(body) is body


def test_the_same_value_has_the_same_placeholder_and_literal_ones_are_not_reused() -> None:
    body = {"prompt": f"[EMAIL_1] {EMAIL} bob@example.org {EMAIL}"}
    masker = Masker(ALL, body)
    masked = masker.mask_body(body)["prompt"]
    assert masked == "[EMAIL_1] [EMAIL_2] [EMAIL_3] [EMAIL_2]"
    assert masker.unmask(masked) == body["prompt"]
    assert len(masker) == 2


def test_only_the_kinds_asked_for() -> None:
    assert Masker(frozenset({"card"})).mask(f"{EMAIL} {CARD}") == f"{EMAIL} [CARD_1]"


PIECES = st.sampled_from(
    [EMAIL, CARD, KEY, "+49 30 12345678", "phone 5551234567", "hello there my friend", " ", "\n", ". ", "123", "-----",
     "password: abc123def456xyz", "1.2.3.4", "AB", "[EMAIL_1]", "the quick brown fox, ", "DE89 3704 0044 0532 0130 00"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12), st.randoms(use_true_random=False))
def test_a_stream_is_masked_as_if_it_had_come_whole(pieces: list[str], rng: random.Random) -> None:
    text = "".join(pieces)
    stream = StreamMasker(Masker(ALL))
    out, at = "", 0
    while at < len(text):
        size = rng.randint(1, 9)
        out += stream.feed(text[at : at + size])
        at += size
    assert out + stream.end() == Masker(ALL).mask(text)


def test_prose_is_held_back_for_a_few_words_only() -> None:
    stream = StreamMasker(Masker(ALL))
    text = "the quick brown fox jumps over the lazy dog and then it goes back home to sleep. " * 3
    held = 0
    shown = 0
    for at in range(0, len(text), 4):
        shown += len(stream.feed(text[at : at + 4]))
        held = max(held, at + 4 - shown)
    assert held < 40


@given(
    st.lists(st.sampled_from([EMAIL, CARD, KEY, "[", "[EMAIL_", "[NAME_1]", "x", " "]), max_size=10), st.integers(1, 9)
)
def test_an_answer_gets_its_values_back_however_it_is_cut(pieces: list[str], size: int) -> None:
    masker = Masker(ALL)
    text = "".join(pieces)
    masked = masker.mask(text)
    stream = Unmasker(masker)
    out = "".join(stream.feed(masked[at : at + size]) for at in range(0, len(masked), size)) + stream.end()
    assert out == masker.unmask(masked) == text


def test_values_in_streamed_arguments_are_escaped() -> None:
    masker = Masker(ALL)
    arguments = json.dumps({"key": masker.mask(KEY)})
    stream = Unmasker(masker, in_json=True)
    out = "".join(stream.feed(c) for c in arguments) + stream.end()
    assert json.loads(out) == {"key": KEY}


def test_rules_by_provider_and_key() -> None:
    policy = PiiPolicy(
        default=PiiRule("mask", {"card": "block", "aadhaar": "local_only"}),
        providers={"trusted": PiiRule("allow")},
        keys={"strict": PiiRule("block")},
    )
    found = frozenset(match.kind for match in detect(f"{EMAIL}"))
    assert policy.judge(found, "openai", None, local=False).masked == {"email"}
    assert policy.judge(found, "ollama", None, local=True).masked == frozenset()
    assert policy.judge(found, "trusted", None, local=False).masked == frozenset()
    assert not policy.judge(found, "trusted", "strict", local=False).allowed
    assert not policy.judge(frozenset({"card"}), "openai", None, local=False).allowed
    assert not policy.judge(frozenset({"aadhaar"}), "openai", None, local=False).allowed
    assert policy.judge(frozenset({"aadhaar"}), "ollama", None, local=True).allowed
    assert policy.judge(frozenset(), "openai", "strict", local=False).allowed
    assert not policy.idle
    assert PiiPolicy().idle


def test_what_cannot_be_read_is_not_sent_where_a_rule_holds() -> None:
    assert not PiiPolicy(default=PiiRule("mask")).judge(None, "openai", None, local=False).allowed
    assert PiiPolicy().judge(None, "openai", None, local=False).allowed


@pytest.mark.parametrize(
    ("wanted", "region", "inside"),
    [
        ("eu", "eu-west-1", True),
        ("eu", "europe-west4", True),
        ("eu", "germanywestcentral", True),
        ("eu", "eu", True),
        ("eu", "eu-west-2", False),
        ("eu", "us-east-1", False),
        ("eu", None, False),
        ("us", "eastus2", True),
        ("in", "ap-south-1", True),
        ("in", "india-nowhere", False),
        ("us-east-1", "us-east-1", True),
        ("us-east-1", "us-east-2", False),
    ],
)
def test_residency(wanted: str, region: str | None, inside: bool) -> None:
    assert resident(wanted, region) is inside


@pytest.mark.parametrize(
    ("endpoint", "own"),
    [
        ("http://127.0.0.1:11434", True),
        ("http://localhost:8000/v1", True),
        ("http://192.168.1.4", True),
        ("http://100.64.0.7:11434", True),
        ("http://[::1]:11434", True),
        ("https://mac.tail1234.ts.net", True),
        ("https://ollama.example.com", False),
        ("https://api.openai.com/v1", False),
        ("http://8.8.8.8:11434", False),
    ],
)
def test_what_counts_as_the_users_own_machine(endpoint: str, own: bool) -> None:
    assert on_own_network(endpoint) is own
