"""What it costs a call that a `kill -9` loses nothing of it: CPU of the event loop, with a journal and without.

    python benchmarks/journal.py [--calls 1000] [--rounds 25]

Whole calls go through a gateway in this process, a provider that answers at once behind it, a ledger on this disk. Both
ways take turns in one run; the smallest of each is least disturbed by what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))

from avyay.config.marga import MargaSettings
from avyay.db_writer import GroupCommitWriter
from avyay.marga.call_journal import JournalStore
from avyay.marga.envelope import Inbound
from avyay.marga.gateway import Gateway
from avyay.marga.router import Router
from avyay.marga.store import INSERT_CALL, MARGA_SCHEMA, CallStore, call_row
from avyay.marga.types import BegunCall, CallRecord, Model, Prices, Provider
from avyay.money import Picodollars
from avyay.spool import Spool

PRICE = Prices(Picodollars(1), Picodollars(1))
PROVIDER = Provider("local", "fake", "https://local.example", models=(Model("m", "local", PRICE),))


class GroupsOnly:
    """The ledger without a journal: rows are in memory for some tens of milliseconds."""

    def __init__(self, path: Path) -> None:
        self._writer = GroupCommitWriter(path, MARGA_SCHEMA)
        self._recent: OrderedDict[str, CallRecord] = OrderedDict()

    def begin(self, call: BegunCall) -> None:
        pass

    def record(self, call: CallRecord) -> None:
        self._recent[call.decision.id] = call
        if len(self._recent) > 1000:
            self._recent.popitem(last=False)
        self._writer.append(INSERT_CALL, call_row(call))

    def close(self) -> None:
        self._writer.close()


async def measure(calls: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stores: dict[str, GroupsOnly | JournalStore] = {
            "groups only": GroupsOnly(Path(folder) / "groups.db"),
            "journal": JournalStore(Path(folder) / "journal.db"),
        }
        taken: dict[str, list[float]] = {name: [] for name in stores}
        gateways = {
            name: Gateway(Router((PROVIDER,), MargaSettings(), store=_same(one))) for name, one in stores.items()
        }
        bodies = [
            orjson.dumps({"model": "m", "messages": [{"role": "user", "content": f"What is {n} plus one?"}]})
            for n in range(calls)
        ]
        for _ in range(rounds):
            for name, gateway in gateways.items():
                start = time.thread_time()
                for body in bodies:
                    assert (await gateway.open(Inbound("openai_chat", body))).status == 200
                taken[name].append((time.thread_time() - start) / calls * 1e6)
                await asyncio.sleep(0.2)  # the writer's thread has its turn
        for store in stores.values():
            store.close()
    for name, found in taken.items():
        print(f"{name:12} {min(found):6.1f} µs CPU a call at best, {statistics.median(found):6.1f} µs as median")
    lines(calls)
    print(f"{'difference':12} {min(taken['journal']) - min(taken['groups only']):6.1f} µs")


def lines(calls: int) -> None:
    """The two lines of a call alone, no database beside them."""
    begun = BegunCall("0193f0", 1.7e9, "openai_chat", False, "openai", "gpt-4o-mini", "medium", "medium", 0.35, "auto",
                      None, "key-1", None, None, None, "12 13", 10**10)  # fmt: skip
    row = (*begun[:15], 24, 8, 0, 0, 0, 0, 1, 525_300_000, 0.1, 0.2, "closed", 1, b'{"features":"%b"}' % (b"x" * 600))
    best = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "x.db", "token", ("a",), lambda: 1)
        for _ in range(9):
            start = time.thread_time()
            for _ in range(calls):
                spool.end(spool.begin(begun), 1, row)
            best = min(best, (time.thread_time() - start) / calls * 1e6)
        spool.close()
    print(f"{'two lines':12} {best:6.1f} µs CPU alone")


def _same(store: CallStore) -> Callable[[], CallStore]:
    return lambda: store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.calls, arguments.rounds))


if __name__ == "__main__":
    main()
