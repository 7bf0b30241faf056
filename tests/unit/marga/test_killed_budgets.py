"""What a killed router held of a budget: settled by the records of its calls, so that a crash costs no budget."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

from avyay.clock import SYSTEM_CLOCK
from avyay.config.marga import BudgetSettings
from avyay.marga.budgets import Budgets, Spending
from avyay.marga.store import SqliteStore
from avyay.marga.types import BegunCall, Decision
from avyay.money import DOLLAR, Picodollars, parse_usd

RULES = (BudgetSettings(per="all", daily="20"), BudgetSettings(per="key", daily="10"))

# Five calls of ten cents that are recorded and one under way; then, if asked, the ledger is written; then nothing more.
ROUTER = """
import asyncio, os, signal, sys
from pathlib import Path
from test_killed_budgets import RULES
from avyay.clock import SYSTEM_CLOCK
from avyay.marga.budgets import Budgets
from avyay.marga.store import SqliteStore
from avyay.marga.types import CallRecord, Decision, Hints
from avyay.money import DOLLAR, parse_usd

home, synced = Path(sys.argv[1]), sys.argv[2] == "synced"

async def work():
    budgets = Budgets(RULES, home / "budgets.db", SYSTEM_CLOCK, block=DOLLAR, calls=home / "marga.db")
    store, now = SqliteStore(home / "marga.db"), SYSTEM_CLOCK.now()
    scopes = budgets.scopes("k", None, None)
    for number in range(5):
        spending = budgets.spending(scopes)
        await spending.draw(parse_usd("0.3"), model="m")
        spending.settle(parse_usd("0.1"))
        decision = Decision(f"d{os.getpid()}-{number}", now, "medium", 0.5, (), (), Hints("m"), {})
        store.record(CallRecord(decision, "openai_chat", "ok", cost=parse_usd("0.1"), blocks=spending.paid_by))
    await budgets.spending(scopes).draw(parse_usd("0.25"), model="m")
    if synced:
        budgets.sync()

asyncio.run(work())
os.kill(os.getpid(), signal.SIGKILL)
"""


# The same with the records as a daemon keeps them: nothing of it is in the database yet.
DAEMON = """
import asyncio, os, signal, sys
from pathlib import Path
from test_killed_budgets import RULES, begun
from avyay.clock import SYSTEM_CLOCK
from avyay.marga.budgets import Budgets
from avyay.marga.call_journal import JournalStore
from avyay.marga.types import CallRecord, Decision, Hints
from avyay.money import DOLLAR, parse_usd

home = Path(sys.argv[1])

async def work():
    budgets = Budgets(RULES, home / "budgets.db", SYSTEM_CLOCK, block=DOLLAR, calls=home / "marga.db")
    store, now = JournalStore(home / "marga.db"), SYSTEM_CLOCK.now()
    scopes = budgets.scopes("k", None, None)
    for number in range(6):
        spending = budgets.spending(scopes)
        await spending.draw(parse_usd("0.25"), model="m")
        decision = Decision(f"d{os.getpid()}-{number}", now, "medium", 0.5, (), (), Hints("m"), {})
        store.begin(begun(decision, spending))
        if number < 5:
            spending.settle(parse_usd("0.1"))
            store._journal._writer._max_delay = 600.0
            store.record(CallRecord(decision, "openai_chat", "ok", cost=parse_usd("0.1"), blocks=spending.paid_by))

asyncio.run(work())
os.kill(os.getpid(), signal.SIGKILL)
"""


def begun(decision: Decision, spending: Spending) -> BegunCall:
    blocks = " ".join(map(str, spending.paid_by))
    who = ("p", "m", "medium", "medium", 0.5, "m", None, "k", None, None, None)
    return BegunCall(decision.id, decision.at, "openai_chat", False, *who, blocks, spending.held)


def killed(home: Path, how: str) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    program = DAEMON if how == "journal" else ROUTER
    ended = subprocess.run([sys.executable, "-c", program, str(home), how], env={**os.environ, "PYTHONPATH": path})
    assert ended.returncode == -9


def left(home: Path) -> tuple[dict[str, Picodollars], dict[str, Picodollars], int]:
    """What is spent and what is held of each cap, and how many blocks were settled, once the next router looked."""
    with_records = Budgets(RULES, home / "budgets.db", SYSTEM_CLOCK, block=DOLLAR, calls=home / "marga.db")
    settled = with_records.settle_orphans()
    assert with_records.settle_orphans() == 0
    balances = with_records.ledger.balances()
    assert with_records.ledger.problems() == []
    with_records.close()
    spent = {balance.key.partition(":")[0].partition("/")[0]: balance.spent for balance in balances}
    held = {balance.key.partition(":")[0].partition("/")[0]: balance.reserved for balance in balances}
    return spent, held, settled


def test_what_is_recorded_is_spent_and_the_rest_is_free_again(tmp_path: Path) -> None:
    killed(tmp_path, "at once")
    spent, held, settled = left(tmp_path)
    assert settled == 2
    assert set(held.values()) == {0}
    assert set(spent.values()) == {parse_usd("0.5")}


def test_what_was_under_way_when_it_last_wrote_counts_with_its_worst_case(tmp_path: Path) -> None:
    killed(tmp_path, "synced")
    spent, held, _ = left(tmp_path)
    assert set(held.values()) == {0}
    assert set(spent.values()) == {parse_usd("0.75")}


def test_records_that_a_daemon_left_in_its_file_are_taken_over_first(tmp_path: Path) -> None:
    """What it had under way counts with its worst case, although the budgets were never written down since."""
    killed(tmp_path, "journal")
    spent, held, settled = left(tmp_path)
    assert settled == 2
    assert set(held.values()) == {0}
    assert set(spent.values()) == {parse_usd("0.75")}
    with closing(SqliteStore(tmp_path / "marga.db")) as store:
        states = Counter((row[0], row[1]) for row in store.columns(("status", "cost")))
    assert states == {("ok", parse_usd("0.1")): 5, ("killed", 0): 1}


def test_nothing_is_settled_while_a_file_is_held_that_tells_of_its_calls(tmp_path: Path) -> None:
    """The kernel lets go of what a dead process locked one after the other."""
    killed(tmp_path, "journal")
    (file,) = tmp_path.glob("marga.db-spool-*")
    with file.open("rb+") as dying:
        fcntl.flock(dying, fcntl.LOCK_EX)
        budgets = Budgets(RULES, tmp_path / "budgets.db", SYSTEM_CLOCK, block=DOLLAR, calls=tmp_path / "marga.db")
        assert budgets.settle_orphans() == 0
        budgets.close()
    spent, _, settled = left(tmp_path)
    assert settled == 2
    assert set(spent.values()) == {parse_usd("0.75")}


def test_crash_after_crash_eats_no_budget(tmp_path: Path) -> None:
    for _ in range(4):
        killed(tmp_path, "at once")
        spent, _, _ = left(tmp_path)
    assert set(spent.values()) == {parse_usd("2.0")}


def test_without_records_of_calls_nothing_is_guessed(tmp_path: Path) -> None:
    killed(tmp_path, "at once")
    budgets = Budgets(RULES, tmp_path / "budgets.db", SYSTEM_CLOCK, block=DOLLAR)
    assert budgets.settle_orphans() == 0
    assert all(balance.reserved > 0 for balance in budgets.ledger.balances())
    budgets.close()
