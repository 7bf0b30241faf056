"""The router's ledger as daemons write it: nothing is lost of what a caller has the end of, not even to a `kill -9`.

What was under way when the process was killed is there too, at a cost that nobody knows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db_insert import Value
from avyay.db_journal import Journal, JournalTable, take_over, try_take_over
from avyay.db_writer import WriterState
from avyay.errors import DependencyError
from avyay.marga.store import CALL_COLUMNS, INSERT_CALL, MARGA_SCHEMA, SqliteStore, call_row
from avyay.marga.types import BegunCall, CallRecord
from avyay.spool import still_kept

__all__ = ["JournalStore", "blocks_in_use", "open_calls", "recover_calls"]

_BLOCKS = CALL_COLUMNS.index("blocks")


class JournalStore:
    """Calls as a daemon keeps them: committed in groups by a thread, and none lost meanwhile. The newest can be read at
    once.
    """

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK, *, recent: int = 1000) -> None:
        self._journal = Journal(path, _TABLE, clock)
        self._under_way: dict[str, int] = {}
        self._recent: OrderedDict[str, CallRecord] = OrderedDict()
        self._most = recent

    def begin(self, call: BegunCall) -> None:
        number = self._under_way.get(call.id)
        if number is None:
            self._under_way[call.id] = self._journal.begin(call)
        else:
            self._journal.note(number, call)

    def record(self, call: CallRecord) -> None:
        identity = call.decision.id
        recent = self._recent
        recent[identity] = call
        if len(recent) > self._most:
            recent.popitem(last=False)
        self._journal.add(call_row(call), self._under_way.pop(identity, 0))

    def recent(self, decision_id: str) -> CallRecord | None:
        """A call that was recorded a moment ago."""
        return self._recent.get(decision_id)

    @property
    def unspooled(self) -> int:
        """What did not get into the file: a `kill -9` could have lost it."""
        return self._journal.unspooled

    def state(self) -> WriterState:
        """How the ledger's disk does."""
        return self._journal.state()

    def close(self) -> None:
        """Commit what is in memory, and what killed processes have left.

        Raises:
            UnreachableError: it could not be; the next start finds it.
        """
        self._journal.close()


def open_calls(path: Path, clock: Clock = SYSTEM_CLOCK) -> SqliteStore:
    """The ledger, with what killed processes have left. What cannot be read of that is said, and tried next time."""
    try_take_over(path, _TABLE, clock.now())
    return SqliteStore(path)


def recover_calls(path: Path, now: float) -> int:
    """Write into the ledger what killed processes have left; how many calls that were. Blocks.

    Raises:
        AvyayError: it cannot be read or written.
    """
    return take_over(path, _TABLE, now)


def blocks_in_use(path: Path) -> set[int]:
    """The budgets' blocks that pay for calls which so far stand beside the ledger only.

    Raises:
        DependencyError: a file cannot be read.
    """
    try:
        return {int(number) for words in _blocks(path) for number in words.split()}
    except OSError as error:
        raise DependencyError(f"what stands beside {path} cannot be read: {error.strerror}") from error


def _blocks(path: Path) -> Iterator[str]:
    for kept in still_kept(path):
        yield from (row[_BLOCKS] or "" for row in kept.rows.values())
        yield from (_begun(noted or begun).get("blocks") or "" for begun, noted in kept.under_way)


def _begun(words: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(BegunCall._fields, words, strict=False))


def _unfinished(begun: Sequence[Any], noted: Sequence[Any] | None, now: float) -> list[Value]:
    """The row of a call whose end a killed process did not see."""
    call = _begun(noted or begun)
    detail = {
        "reasons": [],
        "candidates": [(call["provider"], call["model"], None)],
        "features": {},
        "conditions": {},
        "hints": {},
        "attempts": [],
        "notes": ["the router was killed while the call was under way: what it cost is not known"],
        "held": call.get("held", 0),
    }
    known = {
        **call,
        "status": "killed",
        "input": 0,
        "output": 0,
        "cached": 0,
        "cache_written": 0,
        "reasoning": 0,
        "estimated": 1,
        "priced": 0,
        "cost": 0,
        "decide_seconds": 0.0,
        "seconds": 0.0,
        "state": "closed",
        "attempts": 1,
        "error": "The router was killed while the call was under way.",
        "saved": 0,
        "detail": orjson.dumps(detail),
    }
    return [known.get(name) for name in CALL_COLUMNS]


_TABLE = JournalTable(MARGA_SCHEMA, INSERT_CALL, _unfinished, lacking=True)
