"""What is remembered by names that callers choose has a bound: no caller makes the router grow."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from avyay.clock import FakeClock
from avyay.config.marga import BudgetSettings, MargaSettings
from avyay.errors import UsageError
from avyay.ledger import BlockLedger, BudgetExceededError, Ledger, Scope
from avyay.marga.budgets import Budgets
from avyay.marga.health import Health
from avyay.marga.router import Router
from avyay.marga.sticky import Answered, Conversations, Homes
from avyay.marga.store import MemoryStore
from avyay.marga.tokens import LearnedRatios
from avyay.marga.types import Candidate, Hints, Model, Provider
from avyay.marga.view import RequestView
from avyay.money import DOLLAR, Picodollars
from avyay.resilience.breaker import Outcome

MODELS = 2000  # how many are remembered
UP = Provider("up", "openai-compatible", "http://127.0.0.1:9/v1", "k", (Model("known", "medium"),))


def largest(*roots: object) -> int:
    """The size of the largest container within our own objects."""
    seen: dict[int, object] = {}
    found, waiting = 0, list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type) or not gc.is_tracked(each):
            continue
        seen[id(each)] = each
        if isinstance(each, dict | list | set):
            found = max(found, len(each))
        elif not type(each).__module__.startswith(("avyay", "collections")):
            continue
        waiting += gc.get_referents(each)
    return found


def test_models_that_callers_name_and_a_provider_serves() -> None:
    clock = FakeClock()
    health, ratios = Health({"up": "chat"}, clock), LearnedRatios()
    at = health.at("up", "chat")
    for number in range(2 * MODELS):
        candidate = Candidate(UP, Model(f"named-{number}", "medium"))
        health.succeeded(at, candidate, (False, 2), 0.1, generation=at.breaker.generation)
        health.failed(at, candidate, Outcome.FAILURE, generation=at.breaker.generation)
        ratios.observe(candidate.model.name, 100, 150)
    newest = f"named-{2 * MODELS - 1}"
    assert f"up/{newest}" in health.conditions([], lambda _: "chat")
    assert ratios.apply(newest, 100) == 150
    assert ratios.apply("named-0", 100) == 100  # the oldest is forgotten
    assert largest(health, ratios) <= MODELS


def test_requests_that_differ_in_all_a_caller_may_say() -> None:
    router = Router([UP], MargaSettings(), store=MemoryStore)
    for number in range(3000):
        hints = Hints("auto", request_class=f"class-{number}", residency="eu" if number % 2 else None)
        router.decide(RequestView("hello", chars=5), hints, conversation=f"conversation-{number}")
        router.decide(RequestView("hello", chars=5), Hints(f"up/named-{number}"))
        with pytest.raises(UsageError):
            router.pinned(f"nobody-has-{number}")
    assert len(router._selected) <= 1001
    assert len(router.models._pinned) == 3000 < 10_000  # what nobody has is not remembered


def test_names_are_looked_up_again_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avyay.marga.model_pool._MOST_NAMES", 5)
    router = Router([UP], MargaSettings(), store=MemoryStore)
    for number in range(20):
        assert router.pinned(f"up/named-{number}")[0].model.name == f"named-{number}"
    assert len(router.models._pinned) == 5


def test_conversations_and_stored_responses() -> None:
    conversations, homes = Conversations(most=10), Homes(most=10)
    for number in range(100):
        conversations.remember(f"c{number}", Answered("up/known", 0.0))
        homes.remember(f"resp_{number}", "up")
    assert len(conversations) == largest(homes) == 10
    assert conversations.last("c99", 0.0, bound=False) is not None
    assert homes.of("resp_99") == "up"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "budget.db", synchronous="OFF", clock=FakeClock())
    yield opened
    opened.close()


def test_refusals_of_callers_that_name_themselves(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avyay.ledger.blocks._MOST_REFUSALS", 10)
    with BlockLedger(ledger, block=DOLLAR) as blocks:
        for number in range(35):
            scope = Scope(f"customer:{number}/day", Picodollars(5))
            with pytest.raises(BudgetExceededError):
                blocks.draw_blocking([scope], Picodollars(6))
        assert len(blocks._refusals) == 5
        with pytest.raises(BudgetExceededError):  # a moment later it is believed without asking
            blocks.try_draw([scope], Picodollars(6))


def test_caps_of_callers_that_name_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    rule = BudgetSettings(per="customer", daily="1")
    budgets = Budgets([rule], tmp_path / "budget.db", clock, block=DOLLAR)
    for number in range(10_050):
        assert budgets.scopes(None, None, f"c{number}")
    assert len(budgets._known) <= 10_001
    budgets.close()
