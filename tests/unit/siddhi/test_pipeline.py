"""The loop as a whole: every hypothesis ends with a reason, and nothing is judged on data that do not agree."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from scripted_model import Model

from avyay.clock import FakeClock
from avyay.embed.hashing import Hashing
from avyay.errors import PolicyError, UnreachableError
from avyay.ledger import BudgetExceededError
from avyay.money import parse_usd
from avyay.ports import Completion, Message
from avyay.siddhi.ads.fake import FakePlatform
from avyay.siddhi.budget import Caps, Governor
from avyay.siddhi.decide import Buy, Decide, Rules
from avyay.siddhi.demo import LABEL, demo
from avyay.siddhi.learn import Counts, Finished, finished_tests, gap, judge, policy_from
from avyay.siddhi.machine import FINAL, Change, State, replay
from avyay.siddhi.pipeline import Siddhi, Terms, live
from avyay.siddhi.spending import GovernedCompleter
from avyay.siddhi.store import Store
from avyay.siddhi.types import Complaint, content_hash
from avyay.siddhi.visitors import Visitors, load_key

RULES = Rules(cap=30, bar=0.05, gain=300)


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    said: list[str] = []
    siddhi = demo(tmp_path, said.append)
    assert said[0] == said[-1] == LABEL
    found = siddhi.store.hypotheses()
    assert len(found) == 6
    verdicts = {next(iter(siddhi.store.complaints(one.id))).segment + str(one.state) for one in found}
    assert "teachingKILLED" in verdicts
    assert "hiringKILLED" in verdicts
    for one in found:
        assert one.state in FINAL | {State.PROMISING}
        history = [Change(e.before, e.after, e.reason, e.manual) for e in siddhi.store.history(one.id) if e.after]
        assert replay(history) is one.state
        counts = siddhi.counts(one.id)
        assert counts.billed <= 30
        assert gap(counts) is None
    assert siddhi.governor.ledger.problems() == []
    assert siddhi.governor.ledger.pending() == []
    siddhi.close()


@pytest.mark.parametrize(
    "clicks, visits, blocked",
    [(100, 100, False), (100, 80, False), (100, 79, True), (79, 100, True), (4, 0, False), (5, 0, True), (0, 0, False)],
)
def test_billed_clicks_and_seen_visits_must_agree(clicks: int, visits: int, blocked: bool) -> None:
    words = gap(Counts(clicks, visits, 0, 1.0))
    assert (words is not None) is blocked
    assert gap(Counts(clicks, visits, 0, 0.0, bought=False)) is None


def test_judging() -> None:
    policy = policy_from(RULES, "value", [])
    assert isinstance(judge(policy, "s", 0.6, Counts(0, 0, 0, 0.0), over=False), Buy)
    killed = judge(policy, "s", 0.6, Counts(40, 40, 0, 24.0), over=False)
    assert isinstance(killed, Decide)
    assert killed.verdict == "KILLED"
    won = judge(policy, "s", 0.6, Counts(20, 20, 5, 12.0), over=True)
    assert isinstance(won, Decide)
    assert won.verdict == "VALIDATED"


def test_earlier_tests_teach() -> None:
    before = policy_from(RULES, "value", []).prior.belief("s").mean
    after = policy_from(RULES, "value", [Finished("s", 60, 8)] * 3).prior.belief("s").mean
    assert after > before


class World:
    def __init__(self, home: Path, model: Model | None = None) -> None:
        self.clock = FakeClock(1_790_000_000.0)
        self.platform = FakePlatform(parse_usd("0.60"), overspend=Decimal(2))
        caps = Caps(parse_usd("30"), parse_usd("60"), parse_usd("90"), parse_usd("90"), {"model": parse_usd("1")})
        self.store = Store(home / "s.db", clock=self.clock)
        self.governor = Governor(home / "b.db", caps, {"fake": self.platform}, clock=self.clock, synchronous="NORMAL")
        self.visitors = Visitors(home / "v.db", load_key(home / "k"), clock=self.clock)
        self.siddhi = Siddhi(
            home=home,
            terms=Terms(platform="fake", contact="Ann", url="https://a.example/{id}"),
            store=self.store,
            governor=self.governor,
            visitors=self.visitors,
            embedder=lambda: Hashing(dimensions=512),
            completer=lambda: model,
            clock=self.clock,
        )

    def found(self) -> str:
        texts = (
            "I hate having to match supplier invoices to bank payments every week.",
            "Matching supplier invoices to bank payments by hand is a nightmare. I'd pay.",
        )
        rows = [
            Complaint(f"s{i}", str(i), f"https://a.example/{i}", "", text, content_hash(text), 1.0)
            for i, text in enumerate(texts)
        ]
        self.store.add_page("file", "q", rows, "c")
        (one,) = self.siddhi.discover()
        asyncio.run(self.siddhi.score(one.id))
        return one.id

    def step(self, identifier: str, spend: str = "live") -> list[str]:
        self.governor.sweep()
        return asyncio.run(self.siddhi.step(identifier, spend))  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.siddhi.close()


def test_dry_run_and_validate_make_nothing(world: World) -> None:
    name = world.found()
    assert "dry run: would order $15.00" in world.step(name, "dry-run")[0]
    assert "validated at fake" in world.step(name, "validate")[0]
    assert world.platform.campaigns("") == []
    assert world.governor.ledger.pending() == []
    assert world.store.hypothesis(name).state is State.SCORED


def test_half_the_cap_is_ordered_where_twice_may_be_billed(world: World) -> None:
    name = world.found()
    world.step(name)
    (row,) = world.siddhi.campaigns(name)
    assert (row.ordered, row.worst) == (parse_usd("15"), parse_usd("30"))
    assert world.store.hypothesis(name).state is State.TESTING
    assert any("goes on" in line for line in world.step(name))


def test_unseen_clicks_block_a_verdict(world: World) -> None:
    name = world.found()
    world.step(name)
    world.platform.deliver(40)  # billed, and nobody came
    lines = world.step(name)
    assert any("blocked: 40 clicks were billed but 0 visits seen" in line for line in lines)
    assert world.store.hypothesis(name).state is State.ANALYZING
    world.step(name)
    assert [event.kind for event in world.store.history(name)].count("blocked") == 1
    for number in range(36):
        world.visitors.visit((name, "a", 1), f"v{number}", "Firefox")
    world.step(name)
    assert world.store.hypothesis(name).state is State.KILLED


def test_a_verdict_closes_the_campaign_and_a_model_may_comment(tmp_path: Path) -> None:
    model = Model("Stop here.")
    world = World(tmp_path, model)
    name = world.found()
    world.step(name)
    world.platform.deliver(40)
    for number in range(40):
        world.visitors.visit((name, "a", 1), f"v{number}", "Firefox")
    world.step(name)
    assert world.store.hypothesis(name).state is State.KILLED
    assert [one.status for one in world.platform.campaigns("")] == ["removed"]
    opinion = world.store.history(name)[-1]
    assert (opinion.kind, opinion.reason) == ("opinion", "Stop here.")
    assert [request.tier for request in model.asked] == ["local", "medium", "medium", "premium"]
    assert "'trials': 40" in model.asked[-1].messages[0].content
    for _ in range(3):
        world.governor.sweep()
    assert world.governor.ledger.pending() == []
    world.siddhi.close()


def test_models_pass_the_governor(world: World) -> None:
    request = Completion((Message("user", "x"),), customer="h1")
    failing = GovernedCompleter(Model(UnreachableError("cut off")), world.governor)
    for _ in range(4):
        with pytest.raises(UnreachableError):
            asyncio.run(failing.complete(request))
    assert world.governor.ledger.balance("source:model").spent == parse_usd("1")  # what nobody knows counts in full
    with pytest.raises(BudgetExceededError):
        asyncio.run(failing.complete(request))


def test_live_needs_a_switch_and_the_total(tmp_path: Path) -> None:
    switch = tmp_path / "siddhi-live"
    with pytest.raises(PolicyError, match="switched off"):
        live(switch, "90", parse_usd("90"))
    switch.touch()
    for typed in (None, "9", "900"):
        with pytest.raises(PolicyError, match="total typed"):
            live(switch, typed, parse_usd("90"))
    live(switch, "90.00", parse_usd("90"))


def test_only_the_last_verdict_of_a_hypothesis_teaches(world: World) -> None:
    name = world.found()
    for state, trials in (
        *((State.GENERATING, None), (State.TESTING, None), (State.ANALYZING, None), (State.PROMISING, 10)),
        *((State.GENERATING, None), (State.TESTING, None), (State.ANALYZING, None), (State.KILLED, 25)),
    ):
        data = {"trials": trials, "conversions": 1} if trials else {}
        world.store.change(name, state, "x", data=data)
    assert finished_tests([("s", world.store.history(name))]) == [Finished("s", 25, 1)]
