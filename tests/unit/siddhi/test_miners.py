"""Sources on the wire: paging, resuming, the four ways they state limits, and what nobody else notices of it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources import Sources

from avyay.clock import FakeClock
from avyay.errors import UsageError
from avyay.http import async_client
from avyay.money import parse_usd
from avyay.resilience.rate_headers import RateLimit
from avyay.siddhi.budget import Caps, Governor
from avyay.siddhi.mine import Mined, Pacer, mine
from avyay.siddhi.miners.base import Miner, Page, Rate
from avyay.siddhi.miners.file import Files
from avyay.siddhi.miners.hn import HackerNews
from avyay.siddhi.miners.newest import Walk
from avyay.siddhi.miners.producthunt import ProductHunt
from avyay.siddhi.miners.reddit import Reddit
from avyay.siddhi.miners.rss import Feeds
from avyay.siddhi.miners.x import XSearch
from avyay.siddhi.store import Store

MAKE: dict[str, Callable[[str, FakeClock], Miner]] = {
    "hn": lambda url, clock: HackerNews(async_client(), clock, endpoint=f"{url}/hn", items=url),
    "reddit": lambda url, clock: Reddit(
        async_client(), clock, "id", "secret", endpoint=f"{url}/reddit", tokens=f"{url}/reddit/token"
    ),
    "producthunt": lambda url, clock: ProductHunt(async_client(), clock, "t", endpoint=f"{url}/producthunt"),
    "x": lambda url, clock: XSearch(async_client(), clock, "t", endpoint=f"{url}/x"),
}
QUERIES = {"hn": "invoice", "reddit": "smallbusiness: invoice", "producthunt": "fintech", "x": "invoice lang:en"}
DOLLARS = parse_usd("100")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_800_000_000.0)


@pytest.fixture
def sources(clock: FakeClock) -> Iterator[Sources]:
    with Sources(clock.now) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = Store(tmp_path / "s.db", clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def governor(tmp_path: Path, clock: FakeClock) -> Iterator[Governor]:
    caps = Caps(DOLLARS, DOLLARS, DOLLARS, DOLLARS, {"x": parse_usd("2.60")})
    made = Governor(tmp_path / "b.db", caps, {}, clock=clock, synchronous="NORMAL")
    yield made
    made.close()


def run(
    store: Store, clock: FakeClock, miner: Miner, query: str, governor: Governor | None = None, pages: int = 50
) -> Mined:
    async def go() -> list[Mined]:
        try:
            return await mine(store, [(miner, query)], pages=pages, governor=governor, clock=clock, chance=lambda: 0.5)
        finally:
            await miner.close()

    return asyncio.run(go())[0]


@pytest.mark.parametrize("name", MAKE)
def test_read_to_the_end_then_only_what_is_new(
    name: str, sources: Sources, store: Store, clock: FakeClock, governor: Governor
) -> None:
    first = run(store, clock, MAKE[name](sources.url, clock), QUERIES[name], governor)
    assert (first.new, first.stopped) == (250, "")
    assert len(store.complaints()) == 250
    one = store.complaints()[0]
    assert one.permalink.startswith("https://")
    assert "nvoice" in one.title + one.text
    assert one.created_at == sources.time_of(1)
    before = len(sources.requests)
    sources.posts += 3
    second = run(store, clock, MAKE[name](sources.url, clock), QUERIES[name], governor)
    assert second.new == 3
    assert len(sources.requests) - before <= 2  # and a token


@pytest.mark.parametrize("name", MAKE)
def test_an_interrupted_walk_goes_on(
    name: str, sources: Sources, store: Store, clock: FakeClock, governor: Governor
) -> None:
    run(store, clock, MAKE[name](sources.url, clock), QUERIES[name], governor, pages=1)
    sources.posts += 2  # what is new meanwhile is found by the next walk
    run(store, clock, MAKE[name](sources.url, clock), QUERIES[name], governor)
    run(store, clock, MAKE[name](sources.url, clock), QUERIES[name], governor)
    assert len(store.complaints()) == 252


@pytest.mark.parametrize(
    "headers, waited",
    [
        ({"x-ratelimit-remaining": "0.0", "x-ratelimit-used": "100", "x-ratelimit-reset": "213.5"}, 213.5),
        ({"x-rate-limit-limit": "450", "x-rate-limit-remaining": "0", "x-rate-limit-reset": "850"}, 850.0),
        ({"x-rate-limit-limit": "450", "x-rate-limit-remaining": "0", "x-rate-limit-reset": "1800000300"}, 300.0),
        ({"retry-after": "7"}, 7.0),
    ],
    ids=["reddit: float seconds", "producthunt: seconds", "x: epoch", "retry-after"],
)
def test_a_429_is_waited_out_as_its_headers_say(
    headers: dict[str, str], waited: float, sources: Sources, store: Store, clock: FakeClock
) -> None:
    sources.script = [(429, headers, b"{}")]
    done = run(store, clock, MAKE["hn"](sources.url, clock), "invoice")
    assert done.new == 250
    gap = sources.requests[1][0] - sources.requests[0][0]
    assert waited <= gap <= waited + 2


def test_a_429_without_a_reset_backs_off(sources: Sources, store: Store, clock: FakeClock) -> None:
    sources.script = [(429, {}, b"{}")] * 3
    assert run(store, clock, MAKE["hn"](sources.url, clock), "invoice").new == 250
    times = [moment for moment, *_ in sources.requests]
    gaps = [b - a for a, b in itertools.pairwise(times[:4])]
    assert gaps == sorted(gaps)
    assert gaps[0] > 0


def test_headers_slow_down_before_the_429(sources: Sources, store: Store, clock: FakeClock) -> None:
    sources.limit_headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "60"}
    run(store, clock, MAKE["hn"](sources.url, clock), "invoice")
    times = [moment for moment, *_ in sources.requests]
    assert all(b - a >= 60 for a, b in itertools.pairwise(times))


@pytest.mark.parametrize(
    "script, words",
    [([(401, {}, b"{}")], "credentials"), ([(400, {}, b"bad query")], "400"), ([(500, {}, b"")] * 9, "500")],
)
def test_a_source_that_fails_ends_its_own_run(
    script: list, words: str, sources: Sources, store: Store, clock: FakeClock
) -> None:
    sources.script = script
    assert words in run(store, clock, MAKE["hn"](sources.url, clock), "invoice").stopped
    sources.script = []
    assert run(store, clock, MAKE["hn"](sources.url, clock), "invoice").new == 250


class PatientClock(FakeClock):
    """Sleeps of a minute or more end only when `release` is set."""

    def __init__(self) -> None:
        super().__init__(1_800_000_000.0)
        self.release = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if seconds >= 60:
            await self.release.wait()
        await super().sleep(seconds)


def test_one_sources_limit_never_stalls_another(sources: Sources, store: Store, tmp_path: Path) -> None:
    async def go() -> None:
        clock = PatientClock()
        limited, free = MAKE["hn"](sources.url, clock), Files()
        lines = tmp_path / "c.jsonl"
        lines.write_text("".join(json.dumps({"text": f"I hate {i}"}) + "\n" for i in range(2500)))
        sources.script = [(429, {"retry-after": "600"}, b"{}")]
        work = asyncio.create_task(mine(store, [(limited, "invoice"), (free, str(lines))], clock=clock))
        for _ in range(2000):
            await asyncio.sleep(0.005)
            if store.complaint_count().get("file") == 2500:
                break
        assert store.complaint_count() == {"file": 2500}
        clock.release.set()
        assert [mined.new for mined in await work] == [250, 2500]
        await limited.close()

    asyncio.run(go())


class Endless(Miner):
    """A source that always has another page, and counts."""

    name = "endless"

    def __init__(self, rate: Rate, clock: FakeClock) -> None:
        self.rate = rate
        self.clock = clock
        self.times: list[float] = []

    async def page(self, query: str, cursor: str | None) -> Page:
        self.times.append(self.clock.monotonic())
        self.clock.advance(0.03)
        return Page((), "c", done=False)


@pytest.mark.parametrize(
    "rate", [HackerNews.rate, Reddit.rate, ProductHunt.rate, XSearch.rate, Feeds.rate, Rate(7, 3.0)], ids=str
)
def test_ten_minutes_never_exceed_the_stated_rate(rate: Rate, store: Store, clock: FakeClock) -> None:
    miner = Endless(rate, clock)

    async def go() -> None:
        pacer = Pacer(rate, clock)
        while clock.monotonic() < 600:
            await pacer.turn()
            await miner.page("", None)

    asyncio.run(go())
    times = miner.times
    for first, later in zip(times, times[rate.requests :], strict=False):
        assert later - first >= rate.seconds - 1e-6


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), max_size=30))
def test_a_pacer_heeds_every_header(heard: list[tuple[float, float]]) -> None:
    clock = FakeClock()
    pacer = Pacer(Rate(100, 1.0), clock)

    async def go() -> None:
        for reset, remaining in heard:
            pacer.heard([RateLimit("requests", 100, remaining, reset)])
            due = clock.monotonic() + reset
            await pacer.turn()
            if remaining < 1:
                assert clock.monotonic() >= due - 1e-6

    asyncio.run(go())


def test_x_passes_the_governor(sources: Sources, store: Store, clock: FakeClock, governor: Governor) -> None:
    run(store, clock, MAKE["x"](sources.url, clock), "invoice", governor)
    assert governor.ledger.balance("source:x").spent == parse_usd("1.25")  # 250 posts
    sources.posts += 1000
    asked = len(sources.requests)
    stopped = run(store, clock, MAKE["x"](sources.url, clock), "invoice", governor).stopped
    assert "source:x does not allow" in stopped
    assert len(sources.requests) - asked == 2
    assert governor.ledger.balance("source:x").spent <= parse_usd("2.60")
    assert "no budget" in run(store, clock, MAKE["x"](sources.url, clock), "invoice").stopped


@pytest.mark.parametrize("name", ["hn", "reddit"])
def test_deletions_are_learned(name: str, sources: Sources, store: Store, clock: FakeClock) -> None:
    miner = MAKE[name](sources.url, clock)
    run(store, clock, miner, QUERIES[name])
    ids = [one.id for one in store.complaints()][:20]
    sources.deleted = {2, 5}
    again = MAKE[name](sources.url, clock)

    async def go() -> list[str]:
        try:
            return await again.gone(ids)
        finally:
            await again.close()

    assert sorted(asyncio.run(go())) == sorted([ids[1], ids[4]])


@pytest.mark.parametrize("path", ["/rss", "/atom"])
def test_feeds(path: str, sources: Sources, store: Store, clock: FakeClock) -> None:
    address = sources.url + path
    assert run(store, clock, Feeds(async_client(), clock), address).new == 10
    one = store.complaints()[0]
    assert one.permalink.startswith("https://b.example/")
    assert one.text.startswith("I hate")
    assert run(store, clock, Feeds(async_client(), clock), address).seen == 0
    assert sources.requests[-1][3]["if-none-match"]
    sources.posts += 1
    assert run(store, clock, Feeds(async_client(), clock), address).new == 1


@pytest.mark.parametrize("body", [b"<html>", b"<!DOCTYPE x [<!ENTITY a 'b'>]><rss/>", b"hello"])
def test_what_is_no_feed(body: bytes, sources: Sources, store: Store, clock: FakeClock) -> None:
    sources.script = [(200, {}, body)] * 9
    assert "feed" in run(store, clock, Feeds(async_client(), clock), sources.url).stopped


def test_files_grow(tmp_path: Path, store: Store, clock: FakeClock) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a", "url": "https://a.example/1", "created_at": "2026-11-01T00:00:00+00:00"}\n\n')
    assert run(store, clock, Files(), str(path)).new == 1
    with path.open("a") as file:
        file.write('{"text": "b"}\n')
    assert run(store, clock, Files(), str(path)).new == 1
    with path.open("a") as file:
        file.write("{}\n")
    assert "c.jsonl:4: not a complaint" in run(store, clock, Files(), str(path)).stopped
    with pytest.raises(UsageError, match="Cannot read"):
        asyncio.run(Files().page(str(tmp_path / "none"), None))


def test_a_walk_survives_its_cursor() -> None:
    walk = Walk.read(None).seen("9").onward("p2")
    assert Walk.read(walk.write()) == walk
    assert walk.seen("12") == walk
    assert Walk.read(walk.over().write()) == Walk(floor="9")
    assert Walk(floor="3").over() == Walk(floor="3")
