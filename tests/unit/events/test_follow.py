"""Following another home: nothing twice, nothing left out, whatever the other side does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outbox import told

from avyay.events.follow import Follower, Remote
from avyay.events.followed import FollowedStore, read_event
from avyay.resilience.backoff import Backoff

HOME = "a" * 24
QUICK = Backoff(base=0.005, cap=0.02, attempts=10**9, patience=float("inf"))


def event(number: int, name: str = "rag.documents.indexed", **data: Any) -> bytes:
    at = "2026-11-21T16:00:00.000Z"
    body = {"id": f"evt_{number:024x}", "type": name, "timestamp": at, "data": {"n": number} | data}
    return f"id: rag-{number}\nevent: {name}\ndata: {json.dumps(body)}\n\n".encode()


class Home:
    """A home elsewhere, for as long as its script says: each answer to a stream is one of these."""

    def __init__(self, *answers: Sequence[bytes] | bytes, home: str = HOME) -> None:
        self.answers, self.home = list(answers), home
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.gone = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                path = lines[0].split(" ")[1]
                if "limit=1" in path:
                    body = b"{}"
                    named = f"avyay-home: {self.home}\r\n" if self.home else ""
                    writer.write(f"HTTP/1.1 200 OK\r\n{named}content-length: 2\r\n\r\n".encode() + body)
                    await writer.drain()
                    continue
                self.asked.append(path.partition("after=")[2])
                self.headers.append(dict(line.lower().split(": ", 1) for line in lines[1:] if line))
                answer = self.answers.pop(0) if self.answers else ()
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
                        + f"avyay-home: {self.home}\r\n\r\n".encode()
                    )
                    for piece in answer:
                        writer.write(piece)
                        await writer.drain()
                    if not self.answers:  # the last one stays open
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self.gone.wait(), 30)
                await writer.drain()
                break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*homes: Home) -> AsyncIterator[None]:
    servers = []
    for home in homes:
        server = await asyncio.start_server(home, "127.0.0.1", 0)
        home.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        servers.append(server)
    try:
        yield
    finally:
        for home, server in zip(homes, servers, strict=True):
            home.gone.set()
            server.close()
            await server.wait_closed()


def make_follower(
    folder: Path, *homes: Home, own: str = "b" * 24, quiet: float = 5.0, told: Sequence[str] = ()
) -> Follower:
    return Follower(
        [Remote(f"c{n}", home.url, lambda: {"x-key": "k"}) for n, home in enumerate(homes)],
        own,
        lambda: FollowedStore(folder / "gateway" / "followed.db", keep=1000),
        lock=folder / "lock",
        quiet=quiet,
        again=0.02,
        backoff=QUICK,
        told=lambda: told,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def follow(folder: Path, condition: Callable[[], bool], *homes: Home, **options: Any) -> Follower:
    """Follow until the condition holds."""

    async def main() -> Follower:
        async with serving(*homes):
            follower = make_follower(folder, *homes, **options)
            task = asyncio.create_task(follower.run())
            await until(condition)
            follower.stop()
            await task
            return follower

    return asyncio.run(main())


def kept(folder: Path) -> list[int]:
    return [data["n"] for _, data in told(folder / "gateway" / "followed.db")]


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    home = Home([b"retry: 2000\nid: \n\n", event(1), event(2)], [event(3)])
    follow(tmp_path, lambda: kept(tmp_path) == [1, 2, 3], home)
    assert home.asked == ["start", "rag-2"]
    assert home.headers[0]["x-key"] == "k"
    again = Home([event(4)])  # the gateway was down meanwhile
    follow(tmp_path, lambda: kept(tmp_path) == [1, 2, 3, 4], again)
    assert again.asked == ["rag-3"]


def test_cut_anywhere_it_is_asked_for_again_and_kept_once(tmp_path: Path) -> None:
    whole = event(1) + event(2)
    home = Home([whole[: len(event(1)) + 20]], [whole[len(event(1)) + 5 :]], [whole], [event(3)])
    follow(tmp_path, lambda: 3 in kept(tmp_path), home)
    assert kept(tmp_path) == [1, 2, 3]


FAULTS = {
    "refused": b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
    "broken": b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
    "elsewhere": b"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    "garbage": b"\x00\xff\xfe nothing at all\r\n\r\n",
    "no stream": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi",
    "another home": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\navyay-home: cccccccc\r\n\r\n" + event(9),
    "hung up": b"",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_home_that_fails_is_tried_again(fault: str, tmp_path: Path) -> None:
    home = Home(FAULTS[fault], FAULTS[fault], [event(1)])
    follow(tmp_path, lambda: bool(kept(tmp_path)), home)
    assert kept(tmp_path) == [1]


def test_what_is_no_event_is_left_out(tmp_path: Path) -> None:
    bad = [
        b"id: rag-7\nevent: x\ndata: {\n\n",
        b"data: 1\n\n",
        event(2, "../../etc"),
        event(3, big="x" * 70_000),
        b'data: {"id": "evt_1", "type": "a.b", "timestamp": "2026-11-21T16:00:00Z", "data": {}}\n\n',
        b": still here\n\n",
    ]
    home = Home([*bad, event(1)])
    assert follow(tmp_path, lambda: bool(kept(tmp_path)), home).garbled == 5
    assert kept(tmp_path) == [1]


def test_what_was_pruned_there_before_it_was_followed_is_told(tmp_path: Path) -> None:
    missed = b'event: avyay.events.missed\ndata: {"rag": 3, "x": "?"}\n\n'
    follow(tmp_path, lambda: len(told(tmp_path / "gateway" / "followed.db")) == 2, Home([missed, event(9)]))
    name, data = told(tmp_path / "gateway" / "followed.db")[0]
    assert (name, data) == ("gateway.events.missed", {"component": "c0", "outboxes": {"rag": 3}})


def test_a_queue_that_both_homes_work_on_is_told_by_each_itself(tmp_path: Path) -> None:
    shared, other = event(1, "engine.task.added", queue="ours"), event(2, "engine.task.added", queue="theirs")
    follow(tmp_path, lambda: 3 in kept(tmp_path), Home([shared, other, event(3)]), told=["ours"])
    assert kept(tmp_path) == [2, 3]


def test_a_frame_without_end_is_cut_off(tmp_path: Path) -> None:
    home = Home([b"data: " + b"x" * 300_000], [event(1)])
    follow(tmp_path, lambda: bool(kept(tmp_path)), home)
    assert kept(tmp_path) == [1]


def test_silence_ends_a_stream(tmp_path: Path) -> None:
    """A connection that a middlebox forgot says nothing any more: it is given up, and made anew."""
    home = Home([event(1)])
    follow(tmp_path, lambda: len(home.asked) > 1, home, quiet=0.1)
    assert home.asked[:2] == ["start", "rag-1"]


def test_a_place_that_is_not_known_there_is_forgotten(tmp_path: Path) -> None:
    store = FollowedStore(tmp_path / "gateway" / "followed.db", keep=1000)
    store.add(HOME, [], "of-another-time")
    store.close()
    home = Home(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", [event(1)])
    follow(tmp_path, lambda: bool(kept(tmp_path)), home)
    assert kept(tmp_path) == [1]
    assert home.asked == ["of-another-time", "start"]


def test_this_very_home_is_not_followed_and_another_only_once(tmp_path: Path) -> None:
    own, first, second = Home([event(1)], home="b" * 24), Home([event(2)]), Home([event(3)])
    follow(tmp_path, lambda: bool(kept(tmp_path)), own, first, second)
    assert kept(tmp_path) in ([2], [3])
    assert own.asked == []


def test_another_component_of_the_home_takes_over(tmp_path: Path) -> None:
    first, second = Home([event(1)]), Home([event(2)])

    async def main() -> None:
        async with serving(second):
            async with serving(first):
                follower = make_follower(tmp_path, first, second)
                task = asyncio.create_task(follower.run())
                await until(lambda: bool(kept(tmp_path)))
                one, other = (first, second) if first.asked else (second, first)
                assert other.asked == []
                one.gone.set()
            await until(lambda: bool(other.asked))
            follower.stop()
            await task

    asyncio.run(main())
    assert {*first.asked, *second.asked} <= {"start", "rag-1", "rag-2"}
    assert len({*first.asked, *second.asked}) == 2


def test_one_process_follows_and_the_next_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avyay.events import follow as module

    monkeypatch.setattr(module, "_ELECTION", 0.01)
    home = Home([event(1)])

    async def main() -> None:
        async with serving(home):
            first, second = make_follower(tmp_path, home), make_follower(tmp_path, home)
            task = asyncio.create_task(first.run())
            await until(lambda: kept(tmp_path) == [1])
            other = asyncio.create_task(second.run())
            await asyncio.sleep(0.05)
            assert [bool(one.following) for one in (first, second)] == [True, False]
            home.answers = [[event(2)]]
            first.stop()
            await task
            await until(lambda: kept(tmp_path) == [1, 2])
            second.stop()
            await other

    asyncio.run(main())


FIELDS = st.sampled_from(["id", "type", "timestamp", "data", "x"])
VALUES = st.recursive(
    st.none() | st.text() | st.integers(), lambda x: st.dictionaries(FIELDS, x, max_size=4), max_leaves=8
)


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_an_event_or_none(data: bytes) -> None:
    found = read_event(data)
    assert found is None or (found[0].startswith("evt_") and isinstance(json.loads(found[3]), dict))
