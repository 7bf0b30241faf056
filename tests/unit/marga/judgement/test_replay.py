"""What-if: recorded decisions come out the same under the same configuration; conversations keep their model."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from avyay.clock import FakeClock
from avyay.config.marga import MargaSettings, RoutingSettings
from avyay.errors import UsageError
from avyay.marga.replay import ledger_calls, replay
from avyay.marga.router import Router
from avyay.marga.sticky import Answered, Conversations, conversation_of, stay
from avyay.marga.store import CALL_COLUMNS, MemoryStore, call_row
from avyay.marga.types import TIERS, CallRecord, Candidate, Condition, Hints, Model, Prices, Provider, Ranked
from avyay.marga.usage_logs import read_usage
from avyay.marga.view import RequestView
from avyay.marga.wire import inspect
from avyay.money import Picodollars


def model(name: str, tier: str, dollars: float, **more: object) -> Model:
    price = Picodollars(int(dollars * 1_000_000))
    return Model(name, tier, Prices(price, price, cached=Picodollars(price // 10)), **more)  # type: ignore[arg-type]


MID_MODEL = model("mid", "medium", 3, context=4000)
ADDRESS = "http://127.0.0.1:9"
PROVIDERS = (
    Provider("cheap", "openai", ADDRESS, models=(model("small", "medium", 0.1), model("big", "premium", 20))),
    Provider(
        "dear", "anthropic", ADDRESS, models=(model("mid", "medium", 3, context=4000), model("top", "premium", 10))
    ),
    Provider("home", "ollama", ADDRESS, models=(model("tiny", "local", 0, capabilities=frozenset()),)),
)


def router(**routing: float) -> Router:
    settings = MargaSettings(routing=RoutingSettings(**routing))
    return Router(PROVIDERS, settings, store=MemoryStore, clock=FakeClock())


def record(decision: object) -> dict[str, object]:
    chosen = decision.chosen  # type: ignore[attr-defined]
    call = CallRecord(
        decision,  # type: ignore[arg-type]
        "openai_chat",
        "ok",
        chosen.provider.name if chosen else "",
        chosen.model.name if chosen else "",
        input=1000,
        output=100,
        cost=Picodollars(5_000_000),
    )
    row = dict(zip(CALL_COLUMNS, call_row(call), strict=True))
    return {**row, "detail": orjson.loads(row["detail"])}


def random_decisions(count: int) -> list[dict[str, object]]:
    rng = random.Random(11)
    served = router()
    served.floors = {"hard": "medium", "hardest": "premium"}
    names = [c.name for c in served.candidates()]
    rows = []
    for _ in range(count):
        view = RequestView(
            rng.choice(["hi", "design a distributed system", "x" * 500, "def f(): pass", "2 + 2 = ?"]),
            chars=rng.choice([2, 500, 5000, 100_000]),
            messages=rng.randint(1, 6),
            tools=rng.choice([0, 0, 3]),
            images=rng.choice([0, 0, 1]),
            max_tokens=rng.choice([None, 10, 100, 130, 250, 4000]),
            tool_loop=rng.random() < 0.2,
            structured=rng.random() < 0.2,
        )
        hints = Hints(
            rng.choice(["auto", "auto", "auto", "small", "dear/top"]),
            rng.choice([None, None, *TIERS]),
            rng.choice([None, "hard", "hardest", "easy"]),
            rng.choice([None, 0.95]),
            rng.choice([None, 500]),
        )
        conditions = None
        if rng.random() < 0.5:
            states = ("closed", "closed", "half_open", "open")
            conditions = {
                name: Condition(rng.choice(states), rng.choice([None, 0.2, 2.0]), rng.choice([0, 0.3]))  # type: ignore[arg-type]
                for name in names
            }
        conversation = f"c{rng.randint(0, 5)}"
        decision = served.decide(view, hints, conditions=conditions, conversation=conversation)
        if decision.chosen is not None:
            served.conversations.remember(
                conversation, Answered(decision.chosen.name, served.clock.monotonic(), rng.choice([0, 3000]))
            )
        rows.append(record(decision))
    return rows


def test_the_same_configuration_takes_every_decision_again() -> None:
    rows = random_decisions(1500)
    report = replay(router(), ledger_calls(rows))
    assert report.decided == 1500
    assert report.changed == []
    assert report.same == 1500


def test_another_configuration_goes_elsewhere_and_says_what_it_costs() -> None:
    rows = [row for row in random_decisions(300) if row["requested_model"] == "auto"]
    everything = replay(router(local_below=0.0, premium_from=0.0), ledger_calls(rows))
    nothing = replay(router(local_below=1.0, premium_from=1.0), ledger_calls(rows))
    assert everything.same < everything.decided
    assert everything.new_cost > nothing.new_cost
    assert everything.tiers["premium"] > nothing.tiers["premium"]
    assert everything.changed[0][1] != everything.changed[0][2]
    assert nothing.recorded_cost == 5_000_000 * (len(rows) - nothing.unroutable - nothing.unpriced)


def test_usage_of_others_is_read(tmp_path: Path) -> None:
    openai = tmp_path / "usage.jsonl"
    rows = [
        {"model": "gpt-4o", "created": 1, "usage": {"prompt_tokens": 1000, "completion_tokens": 10}},
        {
            "model": "gpt-4o",
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
            "request": {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
        },
        {"custom_id": "b", "response": {"body": {"model": "gpt-4o", "usage": {"input_tokens": 5, "output_tokens": 6}}}},
    ]
    openai.write_text("\n".join(json.dumps(row) for row in rows))
    report = replay(router(), read_usage(openai, "openai", router()))
    assert (report.calls, report.decided, report.unroutable) == (3, 0, 0)
    assert report.recorded_cost > report.new_cost
    page = {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": 1730419200,
                "results": [
                    {
                        "object": "organization.usage.completions.result",
                        "input_tokens": 50_000,
                        "output_tokens": 500,
                        "input_cached_tokens": 800,
                        "num_model_requests": 50,
                        "model": "gpt-4o",
                    },
                    {"num_model_requests": 0, "input_tokens": 0, "output_tokens": 0, "model": "gpt-4o"},
                ],
            }
        ],
    }
    openai.write_text(json.dumps(page))
    (totals,) = read_usage(openai, "openai", router())
    assert (totals.count, totals.input, totals.output, totals.cached) == (50, 1000, 10, 16)
    summed = replay(router(), [totals])
    assert (summed.calls, sum(summed.after.values())) == (50, 50)
    assert summed.recorded_cost == 50 * (totals.cost or 0)
    del page["data"][0]["results"][0]["model"]  # type: ignore[attr-defined]
    openai.write_text(json.dumps(page))
    with pytest.raises(UsageError, match="group_by"):
        list(read_usage(openai, "openai", router()))
    litellm = tmp_path / "spend.json"
    spend = {
        "request_id": "r",
        "model": "openai/gpt-4o",
        "spend": 0.01,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "startTime": "2026-01-02T03:04:05Z",
        "metadata": {"usage_object": {"cache_read_input_tokens": 50}},
    }
    litellm.write_text(json.dumps([spend, spend]))
    found = list(read_usage(litellm, "litellm", router()))
    assert found[0].cost == 10_000_000_000
    assert found[0].cached == 50
    assert found[0].at == 1767323045
    # As the database exports them: JSON columns as text, failures and other kinds of calls in between.
    odd = [
        {**spend, "metadata": json.dumps({"usage_object": None}), "messages": "{}", "cache_hit": "None"},
        {**spend, "metadata": {}, "spend": 0.0, "cache_hit": "True"},
        {**spend, "call_type": "aembedding"},
        {**spend, "status": "failure", "spend": 0.0},
        {**spend, "model": ""},
        {**spend, "messages": json.dumps([{"role": "user", "content": "What is the capital of France?"}])},
        {
            **spend,
            "startTime": "2026-01-02 03:04:05.678",
            "metadata": {"usage_object": {"prompt_tokens_details": None}},
        },
    ]
    litellm.write_text("\n".join(json.dumps(row) for row in odd))
    found = list(read_usage(litellm, "litellm", router()))
    assert [past.hit for past in found] == [False, True, False, False]
    assert found[2].complexity < 0.3


@pytest.mark.parametrize("text", ["{", "[1]", '{"model": "x"}', '{"usage": {}}', '{"model": "m", "usage": 3}'])
def test_what_is_no_usage_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "f"
    file.write_text(text)
    with pytest.raises(UsageError):
        list(read_usage(file, "openai", router()))
    with pytest.raises(UsageError):
        list(read_usage(tmp_path / "absent", "openai", router()))


# ---------------------------------------------------------------- conversations

POOL = [Candidate(provider, m) for provider in PROVIDERS for m in provider.models]
SMALL, BIG, MID, TOP, TINY = POOL
RANKED = tuple(Ranked(c, None) for c in (MID, TOP, SMALL, TINY))
VIEW = RequestView("go on", messages=5)


def first(
    view: RequestView, last: Answered | None, conditions: dict[str, Condition] | None = None
) -> tuple[str, str | None]:
    ranked, reason = stay(view, RANKED, last, "medium", conditions or {}, input_tokens=4000)
    assert {r.candidate.name for r in ranked} == {r.candidate.name for r in RANKED}
    return ranked[0].candidate.name, reason


def test_a_tool_loop_keeps_its_model_unless_it_is_down() -> None:
    loop = replace(VIEW, tool_loop=True)
    assert first(loop, Answered(TINY.name, 0))[0] == TINY.name
    assert first(replace(VIEW, signed_thinking=True), Answered(TOP.name, 0))[0] == TOP.name
    assert first(loop, Answered(TINY.name, 0), {TINY.name: Condition("open")})[0] == MID.name
    assert first(loop, Answered("gone/model", 0))[0] == MID.name
    assert first(loop, None)[0] == MID.name


def test_a_warm_cache_counts_in_the_cost() -> None:
    assert first(VIEW, Answered(TOP.name, 0, cached=4000))[0] == TOP.name  # a tenth of 10 is less than 3
    assert first(VIEW, Answered(TOP.name, 0, cached=100))[0] == MID.name
    assert first(VIEW, Answered(TINY.name, 0, cached=4000))[0] == MID.name  # not good enough for this one


def test_conversations_expire_and_are_bounded() -> None:
    known = Conversations(ttl=300, loop_ttl=3600, most=2)
    known.remember("a", Answered("x", 0.0))
    assert known.last("a", 299, bound=False) is not None
    assert known.last("a", 301, bound=False) is None
    assert known.last("a", 301, bound=True) is not None
    known.remember("b", Answered("x", 0.0))
    known.remember("c", Answered("x", 0.0))
    assert len(known) == 2
    assert known.last("a", 1, bound=True) is None


def test_what_names_a_conversation() -> None:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    tool = {"type": "function", "function": {"name": "f"}}

    def named(key: str, session: str | None, messages: list[dict[str, str]], **more: object) -> str | None:
        body = {"model": "auto", "messages": messages, **more}
        return conversation_of(key, session, inspect("openai_chat", body), body)

    assert named("k", None, turns[:1], tools=[tool]) == named("k", None, turns, tools=[tool]) is not None
    assert named("k", None, turns, tools=[tool]) != named("other", None, turns, tools=[tool])
    assert named("k", None, turns) is None  # nothing binds it
    assert named("k", "s", turns) == named("k", "s", []) != named("other", "s", turns)
