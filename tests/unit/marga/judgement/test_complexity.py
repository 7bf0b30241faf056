"""The scorer: order, bounds, honesty about what it was not taught, and the command that scores lines of JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.errors import UsageError
from avyay.marga.complexity import bundled_model, load_model, score
from avyay.marga.prompt import FEATURES, read
from avyay.marga.scoring import score_lines
from avyay.marga.view import RequestView


def of(text: str, **more: object) -> float:
    return score(replace(RequestView(text), **more)).score  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("Which is a metal?\nA. Iron\nB. Oxygen\nC. Neon\nD. Argon", "choice"),
        ("Tom has 3 boxes of 12 eggs and sells 7 eggs. How many eggs are left?", "quantity"),
        ("Tickets cost $5, and $3 for children. What is the total for 2 adults and 4 children?", "quantity"),
        (r"Find all $x$ such that $\frac{x}{2} + \sqrt{x} = 1$.", "formula"),
        ("Write a Python function that parses dates.", "code"),
        ("def f(nums):\n    return sorted(nums)\nassert f([2, 1]) == ??", "code"),
        ("```js\nfoo()\n```\nwhy does this fail?", "code"),
        ("Tell me a story about a fox.", "open"),
        ("", "open"),
    ],
)
def test_kinds_of_task(text: str, family: str) -> None:
    assert read(text).family == family


@pytest.mark.parametrize(
    "easy",
    [
        "What is the capital of France?",
        "Classify this ticket as bug or feature: the app crashes",
        "Extract the service name and error code from this log line: service=a code=500",
        "Is this a security finding or a false positive?",
        "Translate to French: good morning",
    ],
)
def test_simple_work_stays_on_the_cheap_tier(easy: str) -> None:
    assert of(easy) < 0.3


def test_work_that_asks_for_reasoning_ranks_higher() -> None:
    hard = "Design a distributed rate limiter, compare its trade-offs, and prove that no client can exceed its limit."
    assert of(hard) > 0.6 > of("Say hello.")


def test_code_was_not_learned_and_is_ordered_by_length_above_the_cheap_tier() -> None:
    lines = ["def f(x):", *(f"    x = x + {i}" for i in range(60))]
    scores = []
    for count in range(2, 60, 7):
        found = score(RequestView("\n".join(lines[:count])))
        assert found.unsure
        assert found.reasons[0].startswith("unsure")
        scores.append(found.score)
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)
    assert scores[0] >= 0.3


def test_a_language_it_was_not_taught_is_not_cheap() -> None:
    found = score(RequestView("भारत की राजधानी क्या है और क्यों"))
    assert found.unsure
    assert found.score >= 0.3


def test_a_short_follow_up_says_nothing_of_itself() -> None:
    assert not score(RequestView("and the second one?")).unsure
    assert score(RequestView("and the second one?", messages=5)).unsure


@pytest.mark.parametrize(
    ("signal", "rises"),
    [
        ({"system_chars": 3000}, True),
        ({"messages": 6}, True),
        ({"temperature": 0.9}, True),
        ({"structured": True}, False),
        ({"tools": 3}, True),
        ({"images": 1}, True),
        ({"reasoning": True}, True),
    ],
)
def test_signals_of_the_request(signal: dict[str, object], rises: bool) -> None:
    text = "Please summarise the text in two sentences for the team."
    assert (of(text, **signal) > of(text)) is rises
    assert of(text, **signal) != of(text)


@given(st.text(max_size=400), st.integers(1, 40), st.integers(0, 10_000), st.booleans())
def test_any_request_has_a_score_and_reasons(text: str, messages: int, system: int, structured: bool) -> None:
    view = RequestView(text, messages=messages, system_chars=system, structured=structured)
    found = score(view)
    assert 0 <= found.score <= 1
    assert found.reasons
    assert found == score(view)
    assert len(read(text).values) == len(FEATURES)


def test_a_model_of_other_features_is_refused() -> None:
    assert set(bundled_model().families) == {"choice", "quantity", "formula", "open"}
    with pytest.raises(ValueError, match="other features"):
        load_model(json.dumps({"features": ["length"], "families": {}, "trained": ""}))


@pytest.mark.parametrize("piece", ["A. ", "$", "1 ", "\n", "write ", "a'", "==\n", "( ", "def "])
def test_long_input_is_read_in_linear_time(piece: str) -> None:
    of(piece * 50_000)


def test_lines_of_requests() -> None:
    requests = [
        {"id": "a", "prompt": "What is the capital of France?"},
        {"id": "b", "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0.9},
        {"id": "c", "system": "x" * 3000, "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"id": "d", "input": "What is the capital of France?"},
    ]
    lines = [json.dumps(request) for request in requests]
    found = [json.loads(line) for line in score_lines([*lines, "\n"], local_below=0.3, premium_from=0.7)]
    assert [line["id"] for line in found] == ["a", "b", "c", "d"]
    assert found[0]["complexity"] == found[3]["complexity"] < found[1]["complexity"]
    assert found[0]["tier"] == "local"
    assert "system prompt of 3000 characters +0.30" in found[2]["reasons"]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"id": 1}', '{"messages": 3}'])
def test_a_line_that_is_no_request_is_named(line: str) -> None:
    with pytest.raises(UsageError, match="Line 2"):
        list(score_lines(['{"prompt": "x"}', line], local_below=0.3, premium_from=0.7))
