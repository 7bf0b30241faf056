"""What makes two requests one, what may be kept, where it is kept, and which questions are alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.clock import FakeClock
from avyay.config.marga import CacheSettings, MargaSettings, PiiRuleSettings, PiiSettings
from avyay.errors import AvyayError, UnreachableError
from avyay.marga.backends.fake import FakeAnswer
from avyay.marga.cache import Directives, Entry, asked_of, good_enough, pieces, read_directives, tenant_of, why_not
from avyay.marga.cache_semantic import SemanticIndex, marks_of
from avyay.marga.cache_store import CacheStore, DiskCache, MemoryCache, Neighbour
from avyay.marga.caching import AnswerCache
from avyay.marga.envelope import Inbound, Outbound
from avyay.marga.gateway import Gateway
from avyay.marga.replay import ledger_calls, replay
from avyay.marga.router import Router
from avyay.marga.store import CALL_COLUMNS, MemoryStore, SqliteStore, call_row
from avyay.marga.types import Hints, Model, Prices, Provider
from avyay.marga.wire import inspect
from avyay.money import Picodollars

ME = tenant_of("key-1", None)


def entry(name: str, *, tenant: bytes = ME, size: int = 100, expires: float = 100.0, tier: str = "medium") -> Entry:
    key = name.encode().ljust(20, b"-")
    return Entry(key, tenant, 0.0, expires, False, "application/json", b"x" * size, "p", "m", tier, 5, 7, 11, "dec_1")  # type: ignore[arg-type]


# ---------------------------------------------------------------- requests


def asked(body: dict[str, Any], *, hints: Hints | None = None, semantic: bool = False, extra: Any = None) -> Any:
    body = {"model": "auto", **body}
    features = inspect("openai_chat", body)
    return asked_of(ME, "openai_chat", body, features, hints or Hints(), extra, Directives(), semantic=semantic)


USER = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "hi "}]},
        {**USER, "temperature": 0},
        {**USER, "stream": True},
        {**USER, "stream": True, "stream_options": {"include_usage": True}},
        {**USER, "user": "somebody"},
        {"messages": [{"role": "system", "content": "s"}, *USER["messages"]]},
    ],
    ids=["text", "temperature", "stream", "usage", "user", "system"],
)
def test_whatever_can_change_the_answer_is_part_of_the_key(other: dict[str, Any]) -> None:
    assert asked(USER).key != asked(other).key


def test_the_order_of_fields_is_not_part_of_the_key_and_hints_are() -> None:
    one = asked({"temperature": 0, **USER})
    assert one.key == asked({**USER, "temperature": 0}).key
    for hints in (Hints(tier="premium"), Hints(quality_min=0.9), Hints(residency="eu"), Hints(model="gpt-x")):
        assert asked(USER, hints=hints).key != asked(USER).key
    assert asked(USER, extra="anthropic-beta: x").key != asked(USER).key
    assert tenant_of("a", "b") != tenant_of("ab", None) != tenant_of(None, "ab")


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        (USER, True),
        ({**USER, "temperature": 0}, True),
        ({**USER, "temperature": 0.2}, False),
        ({**USER, "n": 3}, False),
        ({**USER, "tools": [{"type": "web_search_preview"}]}, False),
        ({"messages": [{"role": "tool", "tool_call_id": "c", "content": "4"}]}, False),
        ({**USER, "background": True}, False),
        ({**USER, "conversation": "conv_1"}, False),
    ],
    ids=["plain", "zero", "warm", "several", "search", "loop", "background", "conversation"],
)
def test_what_is_left_alone(body: dict[str, Any], fits: bool) -> None:
    features = inspect("openai_chat", {"model": "auto", **body})
    assert (why_not(features, body, sampled=False) is None) is fits


def test_what_the_caller_says_of_it() -> None:
    assert read_directives(None) == Directives()
    assert read_directives("No-Store") == Directives(read=False, keep=False)
    assert read_directives("no-cache") == Directives(read=False)
    assert read_directives("public, max-age=60") == Directives(max_age=60)
    assert not read_directives("max-age=0").read


def test_what_is_too_old_or_from_too_low_is_not_given() -> None:
    known = entry("a", expires=100)
    assert good_enough(known, "medium", Directives(), 99, pinned=False)
    assert not good_enough(known, "medium", Directives(), 100, pinned=False)
    assert not good_enough(known, "medium", Directives(max_age=50), 51, pinned=False)
    assert not good_enough(known, "premium", Directives(), 1, pinned=False)
    assert good_enough(known, "premium", Directives(), 1, pinned=True)
    assert good_enough(known, "local", Directives(), 1, pinned=False)


@given(st.lists(st.binary(max_size=6000), max_size=12), st.booleans())
def test_a_replayed_stream_is_the_same_bytes(events: list[bytes], lines: bool) -> None:
    end = b"\n" if lines else b"\n\n"
    body = b"".join(event.replace(b"\n", b" ") + end for event in events)
    kind = "application/x-ndjson" if lines else "text/event-stream"
    found = list(pieces(replace(entry("a"), body=body, content_type=kind)))
    assert b"".join(found) == body
    assert all(piece.endswith(end) for piece in found)


# ---------------------------------------------------------------- stores


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made: CacheStore = MemoryCache(10_000) if request.param == "memory" else DiskCache(tmp_path / "c.db", 10_000)
    yield made
    made.close()


def test_stores_keep_bounds_expiry_and_tenants(store: CacheStore) -> None:
    store.put(entry("a"), 1)
    assert store.get(entry("a").key, 2) == entry("a")
    assert store.get(entry("a").key, 100) is None
    for count in range(30):
        store.put(entry(f"b{count}", size=1000, expires=1e9), 200.0 + 100 * count)
        store.get(entry("b0").key, 201.0 + 100 * count)  # used all the time, so it stays
    assert store.size().size <= 10_000
    assert store.get(entry("b0").key, 4000) is not None
    assert store.get(entry("b1").key, 4000) is None
    assert store.get(entry("b29").key, 4000) is not None
    store.put(entry("huge", size=20_000, expires=1e9), 4000)
    assert store.get(entry("huge").key, 4000) is None
    other = tenant_of("key-2", None)
    store.put(entry("o", tenant=other, expires=1e9), 4000)
    assert store.clear(other) == 1
    assert store.size().entries > 0
    store.clear()
    assert store.size().entries == 0


def test_stores_find_neighbours_of_one_context_only(store: CacheStore) -> None:
    for name in ("a", "b"):
        near = Neighbour(entry(name).key, np.ones(3, np.float32).tobytes(), b"m")
        store.put(entry(name), 1, name.encode(), near)
    assert [n.key for n in store.neighbours(b"a", 2, most=9)] == [entry("a").key]
    assert not store.neighbours(b"a", 100, most=9)
    assert not store.neighbours(b"c", 2, most=9)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4000), st.booleans()), max_size=40))
def test_memory_counts_its_bytes(steps: list[tuple[int, int, bool]]) -> None:
    store = MemoryCache(10_000)
    for at, (name, size, reads) in enumerate(steps):
        if reads:
            store.get(entry(str(name)).key, at)
        else:
            store.put(entry(str(name), size=size, expires=at + 10), at)
        kept = [found for found, _, _ in store._entries.values()]
        assert store.size().size == sum(len(found.body) + 500 for found in kept) <= 10_000


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    one, two = DiskCache(tmp_path / "c.db", 10_000), DiskCache(tmp_path / "c.db", 10_000)
    one.put(entry("a"), 1)
    assert two.get(entry("a").key, 2) == entry("a")
    one.close()
    two.close()


# ---------------------------------------------------------------- meaning

SAME = [
    ("How do I reset my password?", "How can I reset my password?"),
    ("Write a haiku about autumn", "Please write a haiku about autumn."),
    ("Explain what a mutex is", "What is a mutex?"),
]
OTHER = [
    ("How do I enable two-factor authentication?", "How do I disable two-factor authentication?"),
    ("What is 2 + 2?", "What is 2 + 3?"),
    ("What is the capital of France?", "What is the capital of Spain?"),
    ("Is aspirin safe for dogs?", "Is aspirin safe for cats?"),
    ("Sort the list ascending", "Sort the list descending"),
    ("List the advantages of solar power", "List the disadvantages of solar power"),
    ("Who won the 2018 world cup?", "Who won the 2022 world cup?"),
    ("Translate 'good morning' into Japanese", "Translate 'good evening' into Japanese"),
    ("Should I take it?", "Shouldn't I take it?"),
    ("Rename get_user to fetch_user", "Rename get_user to load_user"),
    ("My dog is sick", "My cat is sick"),
]


@pytest.fixture(scope="module")
def index() -> SemanticIndex:
    from avyay.embed.registry import open_embedder

    embedder = open_embedder()
    return SemanticIndex(lambda: embedder, 0.95)


def alike(index: SemanticIndex, a: str, b: str) -> bool:
    first, second = index.describe(b"1", a), index.describe(b"2", b)
    assert first is not None
    assert second is not None
    return index.nearest(second, [first]) == b"1"


def test_the_same_question_in_other_words(index: SemanticIndex) -> None:
    assert [alike(index, a, b) for a, b in SAME] == [True] * len(SAME)


def test_what_only_looks_alike(index: SemanticIndex) -> None:
    assert [pair for pair in OTHER if alike(index, *pair)] == []


def test_marks_see_what_an_embedder_does_not() -> None:
    assert marks_of("Use port 80") != marks_of("Use port 81")
    assert marks_of("It is safe") != marks_of("It is not safe")
    assert marks_of("Tell me about it.") == marks_of("Please tell me about it")


def test_a_text_the_embedder_would_cut_is_not_compared(index: SemanticIndex) -> None:
    assert index.describe(b"1", "word " * 390) is None
    assert index.describe(b"1", "x" * 3000) is None


# ---------------------------------------------------------------- at work

PRICE = Prices(Picodollars(1_000_000), Picodollars(1_000_000))
PROVIDERS = (
    Provider("home", "fake", "http://home", models=(Model("tiny", "local", PRICE),)),
    Provider("best", "fake", "http://best", models=(Model("top", "premium", PRICE),)),
)


def gateway(
    settings: MargaSettings | None = None, *, store: CacheStore | None = None, semantic: SemanticIndex | None = None
) -> tuple[Gateway, FakeClock]:
    clock = FakeClock()
    settings = settings or MargaSettings()
    router = Router(PROVIDERS, settings, store=MemoryStore, clock=clock)
    kept = MemoryCache(1_000_000) if store is None else store
    return Gateway(router, cache=AnswerCache(CacheSettings(enabled=True), kept, clock, semantic=semantic)), clock


def chat(text: str, system: str = "", **more: Any) -> Inbound:
    turns = [{"role": "system", "content": system}] if system else []
    names = {"key", "customer", "tier", "cache_control", "request_class"}
    body = {"model": "auto", "messages": [*turns, {"role": "user", "content": text}]}
    body |= {name: value for name, value in more.items() if name not in names}
    return Inbound("openai_chat", orjson.dumps(body), **{n: v for n, v in more.items() if n in names})


async def said(served: Gateway, inbound: Inbound) -> tuple[str, Outbound]:
    outbound = await served.open(inbound)
    if outbound.body is None:
        [_ async for _ in outbound.chunks()]
    assert served.cache is not None
    await served.cache.settle()
    return dict(outbound.headers).get("x-avyay-cache", ""), outbound


def run(served: Gateway, *requests: Inbound) -> list[str]:
    async def each() -> list[str]:
        return [(await said(served, request))[0] for request in requests]

    return asyncio.run(each())


def test_time_and_a_promoted_class_end_an_answer() -> None:
    served, clock = gateway()
    assert run(served, chat("hi"), chat("hi")) == ["miss", "hit"]
    clock.advance(3601)
    assert run(served, chat("hi")) == ["miss"]
    served.router.floors["default"] = "premium"
    assert run(served, chat("hi"), chat("hi")) == ["miss", "hit"]
    assert run(served, chat("hi", tier="local")) == ["miss"]


def test_a_hit_is_a_row_without_cost_that_replays() -> None:
    served, _ = gateway(MargaSettings(cache=CacheSettings(enabled=True)))
    run(served, chat("hi"), chat("hi"), chat("hi", stream=True), chat("hi", stream=True))
    rows = served.router.store.calls  # type: ignore[attr-defined]
    assert [row.cache for row in rows] == [None, "exact", None, "exact"]
    assert (rows[1].cost, rows[1].provider, rows[1].model) == (0, "cache", "tiny")
    assert rows[1].saved == rows[0].cost > 0
    assert (rows[1].input, rows[1].output) == (rows[0].input, rows[0].output)
    stored = [dict(zip(CALL_COLUMNS, call_row(row), strict=True)) for row in rows]
    again = replay(served.router, ledger_calls([{**r, "detail": orjson.loads(r["detail"])} for r in stored]))
    assert (again.same, again.decided) == (4, 4)
    assert again.recorded_cost == again.new_cost  # a hit is a hit in the other configuration too


def test_hits_in_the_statistics(tmp_path: Path) -> None:
    served, _ = gateway()
    run(served, chat("hi"), chat("hi"))
    ledger = SqliteStore(tmp_path / "marga.db")
    for call in served.router.store.calls:  # type: ignore[attr-defined]
        ledger.record(call)
    rows = {row.group: row for row in ledger.stats("cache")}
    assert (rows["exact"].hits, rows["none"].hits) == (1, 0)
    assert rows["exact"].saved == rows["none"].cost
    assert {row.group for row in ledger.stats("provider")} == {"home", "cache"}
    ledger.close()


def test_an_outage_is_survived_by_what_is_kept() -> None:
    served, _ = gateway()
    run(served, chat("hi"))
    for name in ("home", "best"):
        served.router.backends[name].script.extend([FakeAnswer(fault="connect")] * 50)  # type: ignore[attr-defined]
    assert run(served, chat("hi")) == ["hit"]


def test_similar_questions_of_one_tenant_in_one_context(index: SemanticIndex) -> None:
    served, _ = gateway(semantic=index)
    first, again = SAME[0]
    assert run(served, chat(first, key="a"), chat(again, key="a")) == ["miss", "semantic"]
    assert run(served, chat(again, key="b")) == ["miss"]  # another tenant
    assert run(served, chat(again, "Be brief.", key="a")) == ["miss"]  # another system prompt
    assert run(served, chat(again, key="a", max_tokens=5)) == ["miss"]
    assert run(served, chat(OTHER[0][0], key="a"), chat(OTHER[0][1], key="a")) == ["miss", "miss"]
    row = next(r for r in served.router.store.calls if r.cache)  # type: ignore[attr-defined]
    assert (row.cache, row.cost) == ("semantic", 0)


def test_similar_questions_on_disk(index: SemanticIndex, tmp_path: Path) -> None:
    for expected in ("miss", "semantic"):
        kept = DiskCache(tmp_path / "c.db", 1_000_000)
        served, _ = gateway(store=kept, semantic=index)
        assert run(served, chat(SAME[0][expected == "semantic"])) == [expected]
        kept.close()


class Broken(MemoryCache):
    """A store whose every call fails."""

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise UnreachableError("The disk is gone.", hint="")

    get = put = neighbours = _fail  # type: ignore[assignment]


def test_a_broken_store_costs_hits_and_no_answer() -> None:
    served, _ = gateway(store=Broken(1000))
    assert run(served, chat("hi"), chat("hi")) == ["miss", "miss"]
    assert served.cache is not None
    assert served.cache.counts["failed"] == 4


def test_an_embedder_that_fails_costs_hits_and_no_answer() -> None:
    def missing() -> Any:
        raise AvyayError("No embedder.", hint="")

    served, _ = gateway(semantic=SemanticIndex(missing, 0.95))
    assert run(served, chat("hi"), chat("hi")) == ["miss", "hit"]


def test_masked_data_is_never_kept() -> None:
    served, _ = gateway(MargaSettings(pii=PiiSettings(default=PiiRuleSettings(action="mask"))))
    assert run(served, chat("Write to ada@example.com"), chat("Write to ada@example.com"), chat("hi"), chat("hi")) == [
        *("miss", "miss", "miss", "hit"),
    ]


def test_a_cut_stream_is_not_kept() -> None:
    served, _ = gateway()
    served.router.backends["home"].script.append(FakeAnswer("one two three four", cut=2))  # type: ignore[attr-defined]
    assert run(served, chat("hi", stream=True), chat("hi", stream=True), chat("hi", stream=True)) == [
        *("miss", "miss", "hit"),
    ]


def test_a_reader_who_leaves_keeps_nothing() -> None:
    served, _ = gateway()

    async def leave(then: Callable[[Outbound], Any]) -> None:
        outbound = await served.open(chat("hi", stream=True))
        await then(outbound)

    async def first_only(outbound: Outbound) -> None:
        chunks = outbound.chunks()
        await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave(first_only))
    assert run(served, chat("hi", stream=True)) == ["miss"]
