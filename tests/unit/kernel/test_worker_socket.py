"""What workers of one daemon share over a socket: questions, news, counters, and the end of either side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avyay.worker_socket import MemberEnd, OwnerEnd, Peer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_questions_news_and_counters(tmp_path: Path) -> None:
    async def play() -> None:
        owner = OwnerEnd()
        came, went = [], []
        owner.joined.append(lambda peer: came.append(peer.number))
        owner.left.append(lambda peer: went.append(peer.number))

        async def double(peer: Peer, message: list[Any]) -> None:
            await asyncio.sleep(0)
            peer.answer(message, 2 * message[2])

        owner.handlers["d"] = double
        owner.handlers["n"] = lambda peer, message: owner.tell(message, but=peer)
        await owner.serve(tmp_path / "s")
        heard: list[list[Any]] = []
        one, other = MemberEnd(lambda: None, lambda: {"x": 1.0}), MemberEnd(lambda: None, lambda: {"x": 2.0, "y": 1.0})
        for number, end in enumerate((one, other)):
            end.handlers["n"] = lambda message, number=number: heard.append([number, *message])  # type: ignore[misc]
            await end.start(tmp_path / "s")
        assert await asyncio.gather(*(end.ask("d", n, patience=5) for n in range(3) for end in (one, other))) == [
            0, 0, 2, 2, 4, 4
        ]  # fmt: skip
        one.send(["n", "news"])
        await until(lambda: heard == [[1, "n", "news"]])
        await until(lambda: one.others == {"x": 2.0, "y": 1.0} and other.others == {"x": 1.0})
        await one.stop()
        await until(lambda: went == [1] and came == [1, 2])
        third = MemberEnd(lambda: None, dict)
        await third.start(tmp_path / "s")
        await until(lambda: third.others == {"x": 3.0, "y": 1.0})  # what has ended still counts
        for end in (other, third):
            await end.stop()
        await owner.close()

    asyncio.run(play())


def test_an_owner_that_is_gone_and_one_that_is_slow(tmp_path: Path) -> None:
    async def play() -> None:
        owner = OwnerEnd()
        owner.handlers["never"] = lambda peer, message: None
        await owner.serve(tmp_path / "s")
        lost: list[str] = []
        end = MemberEnd(lambda: lost.append("lost"), dict)
        with pytest.raises(ConnectionError):
            await end.ask("never", patience=1)
        await end.start(tmp_path / "s")
        with pytest.raises(TimeoutError):
            await end.ask("never", patience=0.02)
        waiting = asyncio.ensure_future(end.ask("never", patience=60))
        await asyncio.sleep(0.02)
        await owner.close()
        with pytest.raises(ConnectionError):  # at once, not in a minute
            await waiting
        await until(lambda: lost == ["lost"])
        assert not end.joined
        end.send(["never", 0])  # goes nowhere
        await end.stop()
        with pytest.raises(OSError):
            await MemberEnd(lambda: None, dict).start(tmp_path / "nobody")

    asyncio.run(play())


def test_a_member_that_sends_nonsense_is_hung_up_on(tmp_path: Path) -> None:
    async def play() -> None:
        owner = OwnerEnd()
        await owner.serve(tmp_path / "s")
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"no json\n")
        assert await reader.read() == b""
        writer.close()
        await owner.close()

    asyncio.run(play())
