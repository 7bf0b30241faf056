"""Blocks: drawn in memory, never past the cap, held after kill -9 until reconciled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from avyay.clock import FakeClock
from avyay.db import open_database
from avyay.errors import AvyayError, InternalError, UsageError
from avyay.ledger import BlockLedger, BudgetExceededError, Draw, Ledger, ReservationState, Scope
from avyay.money import ZERO, Picodollars

DAY = Scope("key:abc/day:2026-11-21", Picodollars(1000))
TOTAL = Scope("total", Picodollars(1500))


def pico(amount: int) -> Picodollars:
    return Picodollars(amount)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "budget.db", synchronous="OFF", clock=FakeClock(), busy_timeout=0.05)
    yield ledger
    assert ledger.problems() == []
    ledger.close()


def blocks(ledger: Ledger, size: int = 80) -> BlockLedger:
    return BlockLedger(ledger, block=pico(size))


def standing(ledger: Ledger, scope: Scope = DAY) -> tuple[int, int]:
    balance = ledger.balance(scope.key)
    return balance.spent, balance.reserved


def test_a_block_serves_many_draws(ledger: Ledger) -> None:
    with blocks(ledger) as budget:
        assert budget.try_draw([DAY, TOTAL], pico(10)) is None  # nothing in memory yet
        draw = budget.draw_blocking([DAY, TOTAL], pico(10))
        assert standing(ledger) == standing(ledger, TOTAL) == (0, 80)
        assert [one.id for one in ledger.pending()] == list(draw.blocks)
        more = [budget.try_draw([DAY, TOTAL], pico(10)) for _ in range(7)]
        assert None not in more
        assert budget.try_draw([DAY, TOTAL], pico(10)) is None
        budget.settle(draw, pico(4))
        assert budget.try_draw([DAY, TOTAL], pico(6)) is not None
        for one in more:
            assert one is not None
            budget.settle(one, pico(10))
        budget.sync()
        assert standing(ledger) == (74, 6)
    assert standing(ledger) == standing(ledger, TOTAL) == (74, 6)
    assert [one.state for one in ledger.pending()] == [ReservationState.UNKNOWN] * 2  # a draw never settled


def test_closing_gives_back_what_was_not_drawn(ledger: Ledger) -> None:
    budget = blocks(ledger)
    budget.settle(budget.draw_blocking([DAY], pico(10)), pico(7))
    budget.close()
    assert standing(ledger) == (7, 0)
    assert ledger.pending() == []
    assert list(ledger.path.parent.glob("*.lock")) == []
    with pytest.raises(InternalError):
        budget.draw_blocking([DAY], pico(1))


def test_the_cap_is_reached_and_not_passed(ledger: Ledger) -> None:
    with blocks(ledger) as budget:
        for _ in range(1000 // 7):
            budget.settle(budget.draw_blocking([DAY, TOTAL], pico(7)), pico(7))
        with pytest.raises(BudgetExceededError) as caught:
            budget.draw_blocking([DAY, TOTAL], pico(7))
        assert caught.value.balance.key == DAY.key
        with pytest.raises(BudgetExceededError):
            budget.try_draw([DAY], pico(7))  # remembered: no transaction
        assert budget.draw_blocking([DAY], pico(6)).amount == 6
        assert isinstance(ledger.clock, FakeClock)
        ledger.clock.advance(2)
        assert budget.try_draw([DAY], pico(7)) is None  # asked anew after a second
    assert sum(standing(ledger)) == 1000


def test_scopes_without_a_cap_are_passed_over(ledger: Ledger) -> None:
    with blocks(ledger) as budget:
        draw = budget.try_draw([Scope("service:x", None)], pico(10**9))
        assert draw is not None
        assert draw.blocks == ()
        budget.settle(draw, pico(1))


def test_an_overrun_is_recorded_and_stops_further_draws(ledger: Ledger) -> None:
    scope = Scope("small", pico(100))
    with blocks(ledger, 100) as budget:
        budget.settle(budget.draw_blocking([scope], pico(90)), pico(150))
        with pytest.raises(BudgetExceededError):
            budget.draw_blocking([scope], pico(1))
    assert standing(ledger, scope) == (150, 0)


def test_an_unknown_outcome_stays_held(ledger: Ledger) -> None:
    budget = blocks(ledger)
    draw = budget.draw_blocking([DAY], pico(30))
    budget.keep(draw)
    budget.sync()
    budget.sync()  # idle: what is free goes back, what is kept stays
    assert standing(ledger) == (0, 30)
    budget.close()
    assert standing(ledger) == (0, 30)
    (block,) = ledger.pending()
    assert block.id in draw.blocks
    ledger.reconcile(block, pico(12))
    assert standing(ledger) == (12, 0)


def test_giving_back_twice_is_a_bug(ledger: Ledger) -> None:
    with blocks(ledger) as budget:
        draw = budget.draw_blocking([DAY], pico(5))
        budget.release(draw)
        for again in (lambda: budget.settle(draw, pico(1)), lambda: budget.release(draw), lambda: budget.keep(draw)):
            with pytest.raises(UsageError, match="already"):
                again()
        with pytest.raises(UsageError):
            budget.draw_blocking([DAY], pico(-1))
        with pytest.raises(UsageError):
            budget.settle(budget.draw_blocking([DAY], pico(5)), pico(-1))


def test_idle_blocks_go_back(ledger: Ledger) -> None:
    with blocks(ledger) as budget:
        budget.settle(budget.draw_blocking([DAY], pico(5)), pico(5))
        budget.sync()
        assert standing(ledger) == (5, 75)
        budget.sync()
        assert standing(ledger) == (5, 0)
        budget.settle(budget.draw_blocking([DAY], pico(5)), pico(5))
    assert standing(ledger) == (10, 0)


def test_a_new_cap_applies_at_once(ledger: Ledger) -> None:
    with blocks(ledger) as budget:
        budget.settle(budget.draw_blocking([DAY], pico(50)), pico(50))
        lower = Scope(DAY.key, pico(60))
        with pytest.raises(BudgetExceededError):
            budget.draw_blocking([lower], pico(20))
        assert budget.draw_blocking([lower], pico(10)).amount == 10
        assert standing(ledger) == (50, 10)
        assert budget.draw_blocking([DAY], pico(500)).amount == 500


def test_an_unreachable_ledger_serves_from_memory_and_forgets_nothing(ledger: Ledger) -> None:
    with blocks(ledger) as budget:
        budget.settle(budget.draw_blocking([DAY], pico(10)), pico(10))
        other = open_database(ledger.path)
        with other.transaction():
            draw = budget.draw_blocking([DAY], pico(70))
            for refuse in (lambda: budget.draw_blocking([DAY], pico(70)), budget.sync, budget.close):
                with pytest.raises(AvyayError) as caught:
                    refuse()
                assert caught.value.code == "database_busy"
        other.close()
        budget.settle(draw, pico(60))
    assert standing(ledger) == (70, 0)


def test_a_block_reconciled_under_its_owner_is_replaced(ledger: Ledger) -> None:
    with blocks(ledger) as budget:
        draw = budget.draw_blocking([DAY], pico(10))
        (block,) = ledger.pending()
        ledger.reconcile(block, pico(3))
        budget.settle(draw, pico(3))
        budget.sync()
        assert budget.draw_blocking([DAY], pico(75)).amount == 75
        assert standing(ledger) == (3, 80)


def test_200_concurrent_calls_never_pass_the_cap(ledger: Ledger) -> None:
    rng = random.Random(1)
    admitted = refused = 0

    async def call(budget: BlockLedger) -> None:
        nonlocal admitted, refused
        for _ in range(5):
            try:
                draw = await budget.draw([DAY, TOTAL], pico(9))
            except BudgetExceededError:
                refused += 1
                return
            await asyncio.sleep(0)
            assert sum(standing(ledger)) <= 1000
            budget.settle(draw, pico(rng.randint(1, 9)))
            admitted += 1

    async def everyone() -> None:
        with blocks(ledger) as budget:
            await asyncio.gather(*(call(budget) for _ in range(200)))

    asyncio.run(everyone())
    spent, reserved = standing(ledger)
    assert reserved == 0
    assert 900 < spent <= 1000
    assert admitted + refused > 200
    assert refused > 0


def test_background_filling_keeps_the_disk_off_the_path(ledger: Ledger) -> None:
    big = Scope("big", pico(10**9))

    async def run() -> int:
        with blocks(ledger, 1000) as budget:
            misses = 0
            for _ in range(2000):
                await asyncio.sleep(0)
                assert isinstance(ledger.clock, FakeClock)
                ledger.clock.advance(0.01)
                misses += budget.try_draw([big], ZERO) is None
                budget.settle(await budget.draw([big], pico(10)), pico(10))
            return misses

    assert asyncio.run(run()) == 1  # the first
    assert standing(ledger, big) == (20_000, 0)


def test_threads(ledger: Ledger) -> None:
    with blocks(ledger) as budget:

        def work(_: int) -> int:
            spent = 0
            for number in range(20):
                try:
                    draw = budget.draw_blocking([DAY], pico(5))
                except BudgetExceededError:
                    return spent
                budget.settle(draw, pico(number % 5))
                spent += number % 5
            return spent

        with ThreadPoolExecutor(8) as pool:
            spent = sum(pool.map(work, range(30)))
    assert standing(ledger) == (spent, 0)


WORKER = """
import sys
from pathlib import Path
from avyay.ledger import BudgetExceededError, Ledger, Scope
from avyay.ledger import BlockLedger
from avyay.money import Picodollars
path, cap = sys.argv[1:]
ledger = Ledger(Path(path), synchronous="NORMAL")
budget = BlockLedger(ledger, block=Picodollars(200))
scope = Scope("day", Picodollars(int(cap)))
spent = 0
while True:
    try:
        budget.settle(budget.draw_blocking([scope], Picodollars(5)), Picodollars(3))
    except BudgetExceededError:
        break
    spent += 3
    if spent % 99 == 0:
        budget.sync()
    print(spent, flush=True)
budget.close()
"""


def worker(path: Path, cap: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), str(cap)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.environ["PATH"]},
    )


def test_two_processes_share_one_cap(tmp_path: Path) -> None:
    path = tmp_path / "budget.db"
    processes = [worker(path, 5000) for _ in range(2)]
    spent = sum(int((process.communicate(timeout=60)[0].split() or ["0"])[-1]) for process in processes)
    ledger = Ledger(path, synchronous="OFF")
    assert (ledger.balance("day").spent, ledger.balance("day").reserved) == (spent, 0)
    assert 4500 < spent <= 5000
    assert ledger.problems() == []
    ledger.close()


def test_after_kill_9_the_block_counts_as_spent_until_reconciled(tmp_path: Path) -> None:
    path = tmp_path / "budget.db"
    process = worker(path, 10**9)
    assert process.stdout is not None
    for _ in range(300):
        process.stdout.readline()
    ledger = Ledger(path, synchronous="OFF")
    assert ledger.orphaned_blocks() == []  # its owner lives
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    process.wait(60)
    process.stdout.close()
    acknowledged = int(rest[-2]) if len(rest) > 1 else 900
    before = ledger.balance("day")
    assert before.spent + before.reserved >= acknowledged
    (orphan,) = ledger.orphaned_blocks()
    with BlockLedger(ledger) as budget, pytest.raises(BudgetExceededError):
        budget.draw_blocking([Scope("day", Picodollars(before.spent + before.reserved))], Picodollars(1))
    ledger.reconcile(orphan, Picodollars(acknowledged), note="from the call records")
    assert (ledger.balance("day").spent, ledger.balance("day").reserved) == (acknowledged, 0)
    assert ledger.orphaned_blocks() == []
    assert ledger.problems() == []
    ledger.close()


class BlockModel(RuleBasedStateMachine):
    """Two block ledgers and plain reservations on one file against the truth: what was really drawn and spent."""

    CAPS: ClassVar[dict[str, int]] = {"a": 200, "b": 300}

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "budget.db"
        self.ledger = Ledger(path, synchronous="OFF", clock=FakeClock())
        self.budgets = [BlockLedger(self.ledger, block=pico(size)) for size in (40, 15)]
        self.draws: list[tuple[int, list[str], Draw]] = []
        self.spent = dict.fromkeys(self.CAPS, 0)
        self.out = dict.fromkeys(self.CAPS, 0)
        self.overrun = dict.fromkeys(self.CAPS, 0)

    def teardown(self) -> None:
        for budget in self.budgets:
            budget.close()
        for name in self.CAPS:
            balance = self.ledger.balance(name)
            assert (balance.spent, balance.reserved) == (self.spent[name], self.out[name])
        assert self.ledger.problems() == []
        self.ledger.close()
        self.folder.cleanup()

    @rule(
        which=st.integers(0, 1),
        names=st.lists(st.sampled_from("ab"), min_size=1, max_size=2, unique=True),
        amount=st.integers(0, 60),
    )
    def draw(self, which: int, names: list[str], amount: int) -> None:
        scopes = [Scope(name, pico(self.CAPS[name])) for name in names]
        try:
            draw = self.budgets[which].draw_blocking(scopes, pico(amount))
        except BudgetExceededError as error:
            assert error.balance.key in names
            return
        self.draws.append((which, names, draw))
        for name in names:
            self.out[name] += amount
            assert self.spent[name] + self.out[name] <= self.CAPS[name] + self.overrun[name]

    @precondition(lambda self: self.draws)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.3, 0.9, 1.0, 1.0, 1.5]))
    def settle(self, data: st.DataObject, share: float) -> None:
        index = data.draw(st.integers(0, len(self.draws) - 1))
        which, names, draw = self.draws.pop(index)
        actual = int(draw.amount * share)
        self.budgets[which].settle(draw, pico(actual))
        for name in names:
            self.out[name] -= draw.amount
            self.spent[name] += actual
            self.overrun[name] += max(0, actual - draw.amount)

    @rule(which=st.integers(0, 1))
    def sync(self, which: int) -> None:
        self.budgets[which].sync()

    @rule()
    def pass_time(self) -> None:
        assert isinstance(self.ledger.clock, FakeClock)
        self.ledger.clock.advance(2)

    @invariant()
    def never_past_the_cap(self) -> None:
        for name, cap in self.CAPS.items():
            balance = self.ledger.balance(name)
            assert balance.spent + balance.reserved <= cap + self.overrun[name]
            # What the file says covers what is really out, up to overruns not written down yet.
            assert balance.spent + balance.reserved + self.overrun[name] >= self.spent[name] + self.out[name]


TestBlockModel = BlockModel.TestCase
TestBlockModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
