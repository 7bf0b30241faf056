"""What the gateway counts, and how it is compared with the ledger."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from avyay.serve.gateway.reconcile import decided_by_key, reconcile, reconcile_counts
from avyay.serve.gateway.usage import UsageJournal, UsageReader, day_of

NOON = 1_700_000_000.0


def test_rows_and_totals_agree(tmp_path: Path) -> None:
    journal = UsageJournal(tmp_path / "usage.db")
    for number in range(1_000):
        status = 200 if number % 10 else 429
        decision = f"dec_{number}" if status == 200 else None
        journal.add(NOON + number, f"key_{number % 3}", "marga:chat", status, decision, 0.1)
    journal.close()
    reader = UsageReader(tmp_path / "usage.db")
    rows = reader.days(since="2023-11-14")
    assert sum(row.requests for row in rows) == 1_000
    assert sum(row.errors for row in rows) == 100
    assert sum(decided_by_key(rows).values()) == 900
    assert len(list(reader.decisions(since=NOON, until=NOON + 2_000))) == 900
    assert {row.key for row in reader.days(since="2023-11-14", key="key_1")} == {"key_1"}
    assert reader.prune(NOON + 500) == 500  # single requests go, totals stay
    assert sum(row.requests for row in reader.days(since="2023-11-14")) == 1_000
    assert reader.days(since="2023-11-15") == []
    reader.close()


def test_days_are_utc() -> None:
    assert day_of(0) == "1970-01-01"
    assert day_of(86_399.999) == "1970-01-01"
    assert day_of(86_400) == "1970-01-02"


CALLS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.sampled_from(["key_1", "key_2"]), max_size=30)


def timed(calls: dict[str, str]) -> list[tuple[str, str, float]]:
    return [(decision, key, NOON) for decision, key in sorted(calls.items())]


@given(CALLS, CALLS)
def test_every_difference_is_named(seen: dict[str, str], ledger: dict[str, str]) -> None:
    found = {one.key: one for one in reconcile(timed(seen), timed(ledger), examples=100)}
    missing, unseen = Counter[str](), Counter[str]()
    for decision, key in seen.items():
        missing[key] += decision not in ledger
    for decision, key in ledger.items():
        unseen[key] += decision not in seen
    # Whose a decision is says the gateway, where it has seen it: a router that shares no secret does not know.
    assert set(found) == {*seen.values(), *(key for decision, key in ledger.items() if decision not in seen)}
    for key in found:
        assert found[key].missing == missing[key]
        assert found[key].unseen == unseen[key]
        assert len(found[key].examples) == missing[key] + unseen[key]
        assert found[key].agrees == (not missing[key] and not unseen[key])


def test_what_ended_without_an_answer_explains_what_is_unseen() -> None:
    (one,) = reconcile([], [("dec_1", "key_1", NOON)], gone={"key_1": 1})
    assert one.agrees
    (one,) = reconcile_counts({"key_1": 3}, {"key_1": 5}, gone={"key_1": 1})
    assert (one.missing, one.unseen, one.agrees) == (0, 2, False)
    (one,) = reconcile_counts({"key_1": 3}, {})
    assert (one.missing, one.agrees) == (3, False)
