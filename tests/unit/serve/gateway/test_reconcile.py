"""One comparison of the gateway's rows with the router's ledger, wherever that is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from avyay.errors import UnreachableError
from avyay.serve.gateway.reconcile import Comparison, Decision, RemoteLedger, compare
from avyay.serve.gateway.usage import UsageJournal, UsageReader

DAY = 86_400.0
MIDNIGHT = 20_000 * DAY
NOW = MIDNIGHT + 3_600.0
KEPT = 35 * DAY


class Book:
    """A ledger in memory, by id."""

    def __init__(self, *decisions: Decision) -> None:
        self.kept = sorted(decisions)

    def usage(self, *, since: float, key: str | None) -> list[dict[str, Any]]:
        found: dict[str, int] = {}
        for _, owner, at in self.kept:
            if at >= since and key in (None, owner):
                found[owner] = found.get(owner, 0) + 1
        return [{"key": one, "calls": count, "cost": 0, "estimated_cost": 0} for one, count in found.items()]

    def decisions(self, *, since: float, until: float, key: str | None) -> Iterator[Decision]:
        return (one for one in self.kept if since <= one[2] < until and key in (None, one[1]))

    def get(self, target: str) -> tuple[int, bytes]:
        """As the router answers."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        since, key = float(query["since"]), query.get("key")
        if parts.path == "/marga/usage":
            return 200, json.dumps({"usage": self.usage(since=since, key=key)}).encode()
        found = list(self.decisions(since=since, until=float(query["until"]), key=key))
        limit = int(query["limit"])
        page = [one for one in found if one[0] > query.get("after", "")][:limit]
        return 200, json.dumps({"decisions": page, "next": page[-1][0] if len(page) == limit else None}).encode()


def counted(path: Path, ledger: Any, rows: list[Decision], *, days: int = 1, kept: float = KEPT) -> Comparison:
    journal = UsageJournal(path / "usage.db")
    for decision, key, at in rows:
        journal.add(at, key, "marga:chat", 200, decision, 0.1)
    journal.close()
    reader = UsageReader(path / "usage.db")
    try:
        return compare(reader, ledger, days=days, until=NOW, key=None, kept=kept)
    finally:
        reader.close()


@pytest.mark.parametrize("page", [1, 2, 3, 100])
def test_pages_of_another_process_are_one_ledger(tmp_path: Path, page: int) -> None:
    rows = [(f"dec_{n}", f"key_{n % 2}", NOW - n) for n in range(1, 7)]
    book = Book(*rows, ("dec_9", "key_1", NOW - 1), ("dec_x", "direct", NOW - 1))
    found = counted(tmp_path, RemoteLedger(book.get, page=page), rows)
    assert found.by == "decision"
    assert [(one.key, one.missing, one.unseen) for one in found.differences or ()] == [("key_0", 0, 0), ("key_1", 0, 1)]


def test_too_many_are_compared_by_number_and_it_says_so(tmp_path: Path) -> None:
    rows = [(f"dec_{n}", "key", NOW - n) for n in range(1, 7)]
    found = counted(tmp_path, RemoteLedger(Book(*rows).get, page=2, most=5), rows).data()
    assert found["compared"]["by"] == "count"
    assert [one["agrees"] for one in found["reconciled"]] == [True]


def test_a_request_over_midnight_is_in_both(tmp_path: Path) -> None:
    rows = [("dec_1", "key", MIDNIGHT - 0.1), ("dec_2", "key", NOW - 1)]
    book = Book(("dec_1", "key", MIDNIGHT + 0.1), ("dec_2", "key", NOW - 1), ("dec_0", "key", MIDNIGHT - DAY))
    (one,) = counted(tmp_path, book, rows).differences or ()
    assert (one.missing, one.unseen) == (0, 0)


def test_requests_that_are_no_longer_kept_are_not_missed(tmp_path: Path) -> None:
    rows = [("dec_2", "key", NOW - 1)]
    book = Book(("dec_1", "key", NOW - 5 * DAY), *rows)
    found = counted(tmp_path, book, rows, days=30, kept=2 * DAY)
    assert [one.agrees for one in found.differences or ()] == [True]
    assert found.data()["compared"]["since"] == "2024-10-02"


@pytest.mark.parametrize("answer", [(500, b""), (200, b"no json"), (200, b"{}")], ids=["500", "no JSON", "other JSON"])
def test_a_router_that_makes_no_sense(tmp_path: Path, answer: tuple[int, bytes]) -> None:
    found = counted(tmp_path, RemoteLedger(lambda target: answer), [("dec_1", "key", NOW - 1)])
    assert (found.calls, found.differences) == (None, None)
    assert "router" in (found.problem or "").lower()


def test_a_router_that_is_not_there(tmp_path: Path) -> None:
    def get(target: str) -> tuple[int, bytes]:
        raise ConnectionRefusedError("nobody")

    with pytest.raises(UnreachableError, match="nobody"):
        RemoteLedger(get).usage(since=0, key=None)
    assert counted(tmp_path, RemoteLedger(get), []).problem
