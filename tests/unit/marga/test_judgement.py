"""The pure part: complexity, selection, cost, tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.marga.catalogue import bundled_catalogue, tier_of
from avyay.marga.complexity import score
from avyay.marga.cost import cost_of, estimate
from avyay.marga.select import Selection, select
from avyay.marga.tokens import count_tokens, encoding, encoding_name, estimate_tokens
from avyay.marga.types import TIERS, Candidate, Condition, Hints, Model, Prices, Provider
from avyay.marga.view import RequestView
from avyay.money import Picodollars


def model(name: str, tier: str, dollars: float = 1.0, **more: object) -> Model:
    price = Picodollars(int(dollars * 1_000_000))
    return Model(name, tier, Prices(price, price), **more)  # type: ignore[arg-type]


CHEAP = Provider("cheap", "openai", "http://a", models=(model("small", "medium", 0.1), model("big", "premium", 20)))
DEAR = Provider("dear", "anthropic", "http://b", models=(model("mid", "medium", 3), model("top", "premium", 10)))
HOME = Provider("home", "ollama", "http://c", models=(model("tiny", "local", 0),))
POOL = [Candidate(provider, m) for provider in (CHEAP, DEAR, HOME) for m in provider.models]
NO_HINTS = Hints()
VIEW = RequestView("hello", chars=5)


def choose(complexity: float, hints: Hints = NO_HINTS, view: RequestView = VIEW, **more: object) -> Selection:
    found = replace(score(view), score=complexity)
    arguments: dict[str, object] = {"candidates": POOL, "conditions": {}, "input_tokens": 10} | more
    return select(view, hints, found, **arguments)  # type: ignore[arg-type]


def names(selection: Selection) -> list[str]:
    return [ranked.candidate.name for ranked in selection.ranked]


@pytest.mark.parametrize(
    ("complexity", "first"), [(0.0, "home/tiny"), (0.29, "home/tiny"), (0.3, "cheap/small"), (0.7, "dear/top")]
)
def test_complexity_chooses_the_tier_and_cost_the_model(complexity: float, first: str) -> None:
    assert names(choose(complexity))[0] == first


def test_failover_goes_up_before_it_goes_down() -> None:
    assert names(choose(0.5)) == ["cheap/small", "dear/mid", "dear/top", "cheap/big", "home/tiny"]


def test_hints_move_the_tier() -> None:
    assert choose(0.1, Hints(tier="premium")).tier == "premium"
    assert choose(0.1, Hints(quality_min=0.9)).tier == "medium"
    assert choose(0.1, Hints(quality_min=0.99)).tier == "premium"


def test_priority_goes_before_cost_and_a_late_one_after_it() -> None:
    preferred = replace(DEAR, priority=1)
    second = replace(CHEAP, priority=2)
    pool = [Candidate(provider, m) for provider in (second, preferred) for m in provider.models]
    assert names(choose(0.5, candidates=pool))[0] == "dear/mid"
    slow = {"dear/mid": Condition(first_byte=9.0)}
    late = choose(0.5, Hints(latency_budget_ms=500), candidates=pool, conditions=slow)
    assert names(late)[0] == "dear/mid"  # unmeasured ones are no promise either: both miss the budget
    fast = slow | {"cheap/small": Condition(first_byte=0.1)}
    assert names(choose(0.5, Hints(latency_budget_ms=500), candidates=pool, conditions=fast))[0] == "cheap/small"


def test_an_open_breaker_is_a_last_resort() -> None:
    down = {"home/tiny": Condition("open")}
    selection = choose(0.1, conditions=down)
    assert names(selection)[0] == "cheap/small"
    assert names(selection)[-1] == "home/tiny"
    assert "every provider of that tier is down" in selection.reasons[-1]


def test_what_cannot_do_it_is_left_out() -> None:
    pool = [
        Candidate(HOME, model("blind", "local", 0, capabilities=frozenset())),
        Candidate(CHEAP, model("small", "medium", 1, capabilities=frozenset({"tools"}), context=100)),
        Candidate(DEAR, model("large", "premium", 9, capabilities=frozenset({"tools"}), context=100_000)),
    ]
    tools = replace(VIEW, tools=3)
    assert names(choose(0.0, view=tools, candidates=pool)) == ["cheap/small", "dear/large"]
    selection = choose(0.0, view=tools, candidates=pool, input_tokens=5000)
    assert names(selection) == ["dear/large"]
    assert dict(selection.excluded)["home/blind"] == "cannot call tools"
    assert "no model of that tier can take it" in selection.reasons[-1]


def test_residency_is_a_wall() -> None:
    pool = [
        Candidate(replace(CHEAP, region="us-east"), CHEAP.models[0]),
        Candidate(replace(DEAR, region="eu-west"), DEAR.models[0]),
    ]
    assert names(choose(0.5, Hints(residency="eu"), candidates=pool)) == ["dear/mid"]


def test_a_pinned_model_fails_over_inside_its_class() -> None:
    twin = Candidate(replace(HOME, name="twin", kind="azure"), model("small", "medium", 0.2))
    pool = [*POOL, twin]
    selection = choose(0.9, Hints(model="small"), candidates=pool, pinned=[POOL[0]])
    assert names(selection) == ["cheap/small", "twin/small", "dear/mid"]
    assert selection.tier == "medium"


def test_an_unpriced_model_is_not_free() -> None:
    pool = [Candidate(CHEAP, Model("unknown", "medium")), Candidate(DEAR, model("mid", "medium", 3))]
    assert names(choose(0.5, candidates=pool)) == ["dear/mid", "cheap/unknown"]


@given(
    st.floats(0, 1),
    st.sampled_from([None, *TIERS]),
    st.lists(st.sampled_from(["closed", "half_open", "open"]), min_size=5, max_size=5),
)
def test_everyone_able_is_in_the_chain_once(complexity: float, tier: str | None, states: list[str]) -> None:
    conditions = {c.name: Condition(state) for c, state in zip(POOL, states, strict=True)}  # type: ignore[arg-type]
    chain = names(choose(complexity, Hints(tier=tier), conditions=conditions))  # type: ignore[arg-type]
    assert sorted(chain) == sorted(c.name for c in POOL)
    assert chain == names(choose(complexity, Hints(tier=tier), conditions=conditions))  # type: ignore[arg-type]
    opened = [conditions[name].state != "closed" for name in chain]
    assert opened == sorted(opened)


def test_signals_of_the_articles() -> None:
    def at(**changes: object) -> float:
        return score(replace(VIEW, **changes)).score  # type: ignore[arg-type]

    assert at(system_chars=2001) == pytest.approx(at() + 0.3)
    assert at(messages=4, system_chars=2001) == pytest.approx(at(system_chars=2001) + 0.15)
    assert at(temperature=0.9) == pytest.approx(at() + 0.2)
    assert at(system_chars=2001, structured=True) == pytest.approx(at(system_chars=2001) - 0.15)


@given(st.text(max_size=500), st.integers(1, 500), st.booleans())
def test_scores_stay_between_0_and_1(text: str, turns: int, structured: bool) -> None:
    found = score(RequestView(text, chars=len(text), messages=turns, structured=structured))
    assert 0 <= found.score <= 1


def test_cost_is_exact() -> None:
    sonnet = bundled_catalogue().find("claude-sonnet-4-5", vendor="anthropic")
    assert sonnet is not None
    cost = cost_of(sonnet, input_tokens=1000, output_tokens=10, cache_read=600, cache_write=300, cache_write_1h=100)
    # 100 plain at $3, 600 read at $0.30, 200 written at $3.75, 100 written for an hour at $6, 10 out at $15
    assert cost == 100 * 3_000_000 + 600 * 300_000 + 200 * 3_750_000 + 100 * 6_000_000 + 10 * 15_000_000


def test_long_prompts_have_their_own_price() -> None:
    long = bundled_catalogue().find("gpt-5.4", vendor="openai")
    assert long is not None
    assert long.long is not None
    assert long.long_above == 272_000
    assert cost_of(long, input_tokens=272_001, output_tokens=0) == 272_001 * long.long.input
    assert cost_of(long, input_tokens=272_000, output_tokens=0) == 272_000 * 2_500_000


def test_unknown_prices_stay_unknown() -> None:
    assert cost_of(Model("new", "medium"), input_tokens=1, output_tokens=1) is None
    assert estimate(Model("new", "medium"), input_tokens=1) is None
    assert tier_of(None) == "medium"


def test_dated_names_find_their_model() -> None:
    catalogue = bundled_catalogue()
    found = catalogue.find("gpt-4o-mini-2031-01-01", vendor="openai")
    assert found is not None
    assert (found.name, found.prices) == (
        "gpt-4o-mini-2031-01-01",
        catalogue.models["openai"]["gpt-4o-mini"].prices,
    )
    assert catalogue.find("gpt-unheard-of", vendor="openai") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-5.4-mini", "o200k_base"),
        ("o3", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-4.1", "o200k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("claude-sonnet-5", None),
        ("qwen3:4b", None),
    ],
)
def test_encodings_by_model(name: str, expected: str | None) -> None:
    assert encoding_name(name) == expected


# Token ids as OpenAI's published encodings give them: a bundled file that lost a rank would shift all of these.
@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("o200k_base", "hello world", [24912, 2375]),
        ("cl100k_base", "hello world", [15339, 1917]),
        ("cl100k_base", "tiktoken is great!", [83, 1609, 5963, 374, 2294, 0]),
    ],
)
def test_bundled_encodings(name: str, text: str, ids: list[int]) -> None:
    assert encoding(name).encode(text) == ids
    assert encoding(name).n_vocab == {"o200k_base": 200019, "cl100k_base": 100277}[name]


def test_counting_is_labelled_and_bounded() -> None:
    assert count_tokens("hello world", "gpt-4o").method == "tiktoken"
    assert count_tokens("hello world", "claude-opus-5").method == "estimate"
    assert count_tokens("<|endoftext|>", "gpt-4o").tokens > 1  # text, not a control token
    assert count_tokens("a" * 200_000, "gpt-4o").tokens > 10_000


@given(st.text(max_size=300))
def test_estimates_are_never_negative(text: str) -> None:
    assert estimate_tokens(text) >= 0


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog and runs into the forest. " * 20,
        "敏捷的棕色狐狸跳过了懒狗，然后跑进了森林里，再也没有回来过。" * 20,
        "Быстрая коричневая лиса перепрыгивает через ленивую собаку и убегает в лес. " * 20,
    ],
)
def test_estimates_are_near(text: str) -> None:
    truth = count_tokens(text, "gpt-4o").tokens
    assert 0.6 < estimate_tokens(text) / truth < 2.2
