"""Whether gateway and router agree on what was used: one comparison, for the command line and for HTTP.

Tokens and money are the router's, requests are the gateway's. Both know a decision by its id, so they are compared one
by one; by numbers alone only where there are too many to be fetched from another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias
from urllib.parse import urlencode

import orjson

from avyay.errors import AuthError, AvyayError, UnreachableError, UsageError
from avyay.money import Picodollars, usd_string
from avyay.serve.gateway.usage import UsageReader, UsageRow

if TYPE_CHECKING:
    from avyay.marga.store import SqliteStore

__all__ = [
    "Comparison",
    "Difference",
    "Ledger",
    "RemoteLedger",
    "StoreLedger",
    "compare",
    "day_text",
    "reconcile",
    "reconcile_counts",
    "start_of",
]

Decision: TypeAlias = tuple[str, str, float]
"""Its id, the caller's key, when it began."""

_DAY = 86_400.0
_MARGIN = 3_600.0  # seconds by which the router may begin after the gateway, for a body that takes its time
_SETTLE = 0.3  # seconds after which both have written what they know
_PAGE = 20_000
_ANONYMOUS = "The router does not know who calls: gateway.upstreams.marga.principal_key_env would tell it."
_MOST = 400_000  # decisions fetched from another process


class Ledger(Protocol):
    """What the router can be asked."""

    def usage(self, *, since: float, key: str | None) -> list[dict[str, Any]]:
        """Totals by day and key."""
        ...

    def decisions(self, *, since: float, until: float, key: str | None) -> Iterator[Decision]:
        """By id.

        Raises:
            UsageError: there are too many to be compared one by one.
        """
        ...


class StoreLedger:
    """The router's database on this machine, whose owner also sees what was called without a key."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def usage(self, *, since: float, key: str | None) -> list[dict[str, Any]]:
        """See `Ledger`."""
        return [asdict(row) for row in self._store.usage(since=since, key=key, keyless=True)]

    def decisions(self, *, since: float, until: float, key: str | None) -> Iterator[Decision]:
        """See `Ledger`."""
        return self._store.decisions(since=since, until=until, key=key)


class RemoteLedger:
    """A router that is asked over HTTP.

    Args:
        get: Asks for a path, and gives the status and the body.
    """

    def __init__(self, get: Callable[[str], tuple[int, bytes]], *, most: int = _MOST, page: int = _PAGE) -> None:
        self._get = get
        self._most = most
        self._page = page

    def usage(self, *, since: float, key: str | None) -> list[dict[str, Any]]:
        """See `Ledger`."""
        return list(self._ask("/marga/usage", ("usage",), since=f"{since:.0f}", key=key)["usage"])

    def decisions(self, *, since: float, until: float, key: str | None) -> Iterator[Decision]:
        """See `Ledger`."""
        after: str | None = ""
        fetched = 0
        while after is not None:
            span = {"since": repr(since), "until": repr(until)}
            found = self._ask(
                "/marga/usage/decisions", ("decisions", "next"), **span, key=key, after=after, limit=str(self._page)
            )
            fetched += len(found["decisions"])
            if fetched > self._most:
                raise UsageError(f"More than {self._most} decisions are not compared one by one.", code="too_many")
            yield from ((identity, owner, at) for identity, owner, at in found["decisions"])
            after = found["next"]

    def _ask(self, path: str, expected: tuple[str, ...], **query: str | None) -> dict[str, Any]:
        try:
            words = urlencode({name: value for name, value in query.items() if value is not None})
            status, body = self._get(f"{path}?{words}")
            if status in (401, 403):
                raise AuthError(
                    f"The router does not take our word (HTTP {status}).",
                    hint="gateway.upstreams.marga.api_key_env names the variable with its key.",
                )
            if status != 200:
                raise UnreachableError(f"The router answered HTTP {status}.")
            data = orjson.loads(body)
            return {name: data[name] for name in expected}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnreachableError(
                f"The router cannot be asked for tokens and cost ({error}).", hint="avyay serve marga"
            ) from error


@dataclass(frozen=True, slots=True)
class Difference:
    """Where gateway and router disagree about a key. All zero: they agree.

    Attributes:
        missing: Decisions the gateway saw an answer of and the ledger does not hold.
        unseen: Calls in the ledger under this key that the gateway has no answer of.
        gone: Requests without an answer (the caller went, or the router did not answer in time): each may be one of
            `unseen`, since the router had begun.
        examples: Some of their ids, where both could be compared one by one.
    """

    key: str
    gateway: int
    ledger: int
    missing: int
    unseen: int
    gone: int = 0
    examples: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return not self.missing and self.unseen <= self.gone


@dataclass(frozen=True, slots=True)
class Comparison:
    """What both say.

    Attributes:
        calls: The router's totals by day and key, `cost` in picodollars; None when it could not be asked.
        problem: Why not.
        failure: The same as an error, where something went wrong.
        by: How they were compared.
        from_: Since when: single requests are not kept for ever.
    """

    since: float
    rows: list[UsageRow]
    calls: list[dict[str, Any]] | None
    differences: list[Difference] | None
    problem: str | None = None
    by: Literal["decision", "count"] = "decision"
    from_: float = 0.0
    failure: AvyayError | None = None

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "since": day_text(self.since),
            "gateway": [asdict(row) for row in self.rows],
            "router": None if self.calls is None else [_priced(row) for row in self.calls],
            "router_problem": self.problem,
            "compared": None if self.differences is None else {"by": self.by, "since": day_text(self.from_)},
            "reconciled": None if self.differences is None else [_shown(one) for one in self.differences],
        }


def compare(
    reader: UsageReader,
    ledger: Ledger,
    *,
    days: int,
    until: float,
    key: str | None,
    kept: float,
    known: bool = True,
) -> Comparison:
    """Compare what the gateway has counted with the router's ledger. Blocks.

    Args:
        days: Today included.
        until: Now.
        key: Only this caller's.
        kept: Seconds the gateway keeps single requests.
        known: Whether the router knows callers by the gateway's word. Else its ledger has them all under one key: they
            are compared all the same, but nobody can be told what his own have cost.
    """
    since = start_of(days, until)
    rows = reader.days(since=day_text(since), key=key)
    try:
        calls = ledger.usage(since=since, key=key)
        begin = max(since, until - kept)
        asked = key if known else None
        differences, by = _differences(reader, ledger, begin, until, (key, asked), rows, calls, by_key=known)
        if not all(one.agrees for one in differences):
            # Both write in groups: what ended a moment ago may so far stand with one of them only.
            time.sleep(_SETTLE)
            differences, by = _differences(reader, ledger, begin, until, (key, asked), rows, calls, by_key=known)
    except AvyayError as error:
        return Comparison(since, rows, None, None, error.message, failure=error)
    from_ = begin if by == "decision" else since
    if not known and key is not None:
        return Comparison(since, rows, None, differences, _ANONYMOUS, by=by, from_=from_)
    return Comparison(since, rows, calls, differences, by=by, from_=from_)


def _differences(
    reader: UsageReader,
    ledger: Ledger,
    since: float,
    until: float,
    keys: tuple[str | None, str | None],
    rows: Sequence[UsageRow],
    calls: Iterable[Mapping[str, Any]],
    *,
    by_key: bool,
) -> tuple[list[Difference], Literal["decision", "count"]]:
    known = {row.key for row in rows}  # calls that never came through the gateway have keys that it does not know
    gone = reader.gone(since=since, until=until)
    early = since - _MARGIN
    seen = reader.decisions(since=early, until=until, key=keys[0])
    try:
        kept = ledger.decisions(since=early, until=until, key=keys[1])
        return reconcile(seen, kept, known=known, gone=gone, since=since), "decision"
    except UsageError as error:
        if error.code != "too_many" or not by_key:
            raise
    counted: dict[str, int] = {}
    for row in calls:
        if row["key"] in known:
            counted[row["key"]] = counted.get(row["key"], 0) + row["calls"]
    return reconcile_counts(decided_by_key(rows), counted, gone=gone), "count"


def reconcile(
    seen: Iterable[Decision],
    ledger: Iterable[Decision],
    *,
    known: Set[str] | None = None,
    gone: Mapping[str, int] | None = None,
    since: float = 0.0,
    examples: int = 5,
) -> list[Difference]:
    """Compare one by one: what the gateway saw with what the router wrote, both by id.

    Args:
        known: The gateway's keys: calls under other ones, which it has not seen, never came through it. None: all are.
        since: What began earlier is there to be found, not to be counted: the two may begin on different days.
    """
    both: dict[str, list[Any]] = {}  # key -> gateway, ledger, missing, unseen, examples

    def note(one: Decision, *places: int) -> None:
        if one[2] < since:
            return
        entry = both.setdefault(one[1], [0, 0, 0, 0, []])
        for place in places:
            entry[place] += 1
        if places != (0, 1) and len(entry[4]) < examples:
            entry[4].append(one[0])

    left, right = iter(seen), iter(ledger)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            note(one, 0, 2)
            one = next(left, None)
        elif one is None or other[0] < one[0]:
            if known is None or other[1] in known:
                note(other, 1, 3)
            other = next(right, None)
        else:
            note(one, 0, 1)
            one, other = next(left, None), next(right, None)
    return [
        Difference(key, entry[0], entry[1], entry[2], entry[3], (gone or {}).get(key, 0), tuple(entry[4]))
        for key, entry in sorted(both.items())
    ]


def reconcile_counts(
    decided: Mapping[str, int], calls: Mapping[str, int], *, gone: Mapping[str, int] | None = None
) -> list[Difference]:
    """Compare by numbers alone."""
    return [
        Difference(key, seen, found, max(0, seen - found), max(0, found - seen), (gone or {}).get(key, 0))
        for key in sorted(decided.keys() | calls.keys())
        for seen, found in [(decided.get(key, 0), calls.get(key, 0))]
    ]


def decided_by_key(rows: Sequence[UsageRow]) -> dict[str, int]:
    """Requests with a decision, by key."""
    found: dict[str, int] = {}
    for row in rows:
        found[row.key] = found.get(row.key, 0) + row.decided
    return found


def day_text(at: float) -> str:
    """A time's day, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def start_of(days: int, now: float) -> float:
    """The beginning of the first of so many days, today included."""
    return (now // _DAY - (days - 1)) * _DAY


def _priced(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: value for name, value in row.items() if name not in ("cost", "estimated_cost")},
        "cost_usd": usd_string(Picodollars(row["cost"])),
        "estimated_cost_usd": usd_string(Picodollars(row["estimated_cost"])),
    }


def _shown(one: Difference) -> dict[str, Any]:
    return {
        "key": one.key,
        "gateway": one.gateway,
        "ledger": one.ledger,
        "missing_in_ledger": one.missing,
        "unseen_by_gateway": one.unseen,
        "ended_without_answer": one.gone,
        "agrees": one.agrees,
        "examples": list(one.examples),
    }
