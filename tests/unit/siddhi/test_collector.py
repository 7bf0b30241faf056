"""The collector: counts people once, knows little of them, and forgets on request."""

from __future__ import annotations

import asyncio
import re
import socketserver
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from avyay.clock import FakeClock
from avyay.errors import DependencyError, UnreachableError, UsageError
from avyay.siddhi.collector import collector_app, is_bot
from avyay.siddhi.landing import page_token
from avyay.siddhi.mail import MemoryMailer, SmtpMailer
from avyay.siddhi.visitors import Visitors, load_key, valid_email

PEOPLE = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


class World:
    def __init__(self, path: Path) -> None:
        self.clock = FakeClock(1_800_000_000.0)
        self.path = path / "v.db"
        self.visitors = Visitors(self.path, load_key(path / "key"), clock=self.clock)
        self.mailer = MemoryMailer()
        self.app = collector_app(
            self.visitors,
            mailer=self.mailer,
            public_url="https://c.example",
            contact="Ann",
            own=["203.0.113.0/24"],
            proxies=["127.0.0.1/32"],
        )
        self.token = page_token(self.visitors.page_secret, "h1", "a", 1)

    def ask(self, method: str, path: str, *, ip: str = "198.51.100.1", agent: str = PEOPLE, **options: Any) -> Any:
        async def go() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.app, client=("127.0.0.1", 1))
            async with httpx2.AsyncClient(transport=transport, base_url="https://c.example") as client:
                headers = {"user-agent": agent, "x-forwarded-for": ip, **options.pop("headers", {})}
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(go())

    def view(self, **options: Any) -> Any:
        return self.ask("GET", f"/view.gif?token={options.pop('token', self.token)}", **options)

    def sign_up(self, email: str, **fields: str) -> Any:
        return self.ask("POST", "/signup", data={"token": self.token, "email": email, **fields})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.visitors.close()


def test_people_count_once_a_day(world: World) -> None:
    for ip in ("198.51.100.1", "198.51.100.1", "198.51.100.2"):
        assert world.view(ip=ip).headers["content-type"] == "image/gif"
    (funnel,) = world.visitors.funnel("h1")
    assert (funnel.visits, funnel.seen) == (2, 2)
    world.clock.advance(86_400)
    world.view()
    assert world.visitors.funnel()[0].visits == 3


def test_who_does_not_count(world: World) -> None:
    world.view(agent="Googlebot/2.1")
    world.view(agent="")
    world.view(headers={"sec-purpose": "prefetch"})
    world.view(ip="203.0.113.9")
    world.view(token="h1.a.1.forged")
    world.view(token="")
    assert [(f.visits, f.bots) for f in world.visitors.funnel()] == [(0, 3)]


def test_who_asks_not_to_be_followed_is_counted_without_a_trace(world: World) -> None:
    for headers in ({"sec-gpc": "1"}, {"dnt": "1"}):
        world.view(headers=headers)
    (funnel,) = world.visitors.funnel()
    assert (funnel.visits, funnel.anonymous, funnel.seen) == (0, 2, 2)


def test_nothing_about_a_visitor_is_kept(world: World) -> None:
    world.view(ip="198.51.100.77")
    world.sign_up("someone@example.org")
    stored = b"".join(path.read_bytes() for path in world.path.parent.glob("v.db*"))
    assert b"198.51.100.77" not in stored
    assert b"Firefox" not in stored
    assert b"someone@example.org" not in stored
    database = sqlite3.connect(world.path)
    before = database.execute("SELECT salt FROM salts").fetchall()
    world.clock.advance(86_400)
    world.view()
    after = database.execute("SELECT salt FROM salts").fetchall()
    database.close()
    assert len(after) == 1
    assert before != after


def test_double_opt_in(world: World) -> None:
    answer = world.sign_up("Someone@example.org")
    assert "does not exist yet" in answer.text
    ((to, _, text),) = world.mailer.sent
    assert to == "Someone@example.org"
    link = re.search(r"https://c\.example(/confirm\?code=\S+)", text)
    assert link
    code = link[1].split("=")[1]
    assert world.visitors.funnel()[0].confirmed == 0
    assert "<form" in world.ask("GET", link[1]).text  # a scanner that opens the link confirms nothing
    assert world.visitors.funnel()[0].confirmed == 0
    assert world.ask("POST", "/confirm", data={"code": code}).status_code == 200
    assert (world.visitors.funnel()[0].signups, world.visitors.funnel()[0].confirmed) == (1, 1)
    assert [(s.address, s.confirmed) for s in world.visitors.export("h1")] == [("Someone@example.org", True)]
    assert world.ask("POST", "/forget", data={"code": code}).status_code == 200
    assert world.visitors.export() == []
    assert world.ask("POST", "/confirm", data={"code": code}).status_code == 404


def test_nobodys_mailbox_is_filled(world: World) -> None:
    for _ in range(5):
        world.sign_up("a@example.org")
    assert len(world.mailer.sent) == 1
    world.clock.advance(90_000)
    world.sign_up("A@example.org")
    assert len(world.mailer.sent) == 2
    assert world.visitors.funnel()[0].signups == 1
    assert world.visitors.delete(address="a@EXAMPLE.org") == 1


@pytest.mark.parametrize("email", ["", "x", "a@b", "a b@c.example", "a@c..example", "a@b.example\nBcc: x@y.example"])
def test_what_is_no_address(world: World, email: str) -> None:
    assert world.sign_up(email).status_code == 400
    assert world.mailer.sent == []


def test_forms_of_programs(world: World) -> None:
    assert world.sign_up("a@example.org", website="https://spam.example").status_code == 200
    assert world.ask("POST", "/signup", data={"token": "forged", "email": "a@example.org"}).status_code == 400
    assert world.ask("POST", "/signup", content=b"x" * 20_000).status_code == 400
    assert world.ask("POST", "/signup", content=b"\xff\xfe").status_code == 400
    assert world.ask("GET", "/confirm?code=%3Cscript%3E").status_code == 400
    assert world.ask("GET", "/health").json() == {"status": "ok"}
    assert world.visitors.export() == []


def test_pages_of_ours_carry_no_script(world: World) -> None:
    answer = world.sign_up("a@example.org")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert "set-cookie" not in answer.headers


def test_only_a_trusted_proxy_is_believed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.view(ip="203.0.113.9, 198.51.100.5")  # the client claims to be one of ours
    assert world.visitors.funnel()[0].visits == 1
    world.visitors.close()


def test_the_key_is_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "k"
    key = load_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path) == key
    path.chmod(0o644)
    with pytest.raises(DependencyError, match="read by others"):
        load_key(path)
    with pytest.raises(UsageError, match="no key"):
        load_key(path, "short")


@pytest.mark.parametrize("agent, bot", [(PEOPLE, False), ("curl/8", True), ("", True), ("AdsBot-Google", True)])
def test_bots(agent: str, bot: bool) -> None:
    assert is_bot(agent) is bot


def test_addresses() -> None:
    assert valid_email("a.b+c@sub.example.org")
    assert not valid_email("a" * 250 + "@example.org")


class Smtp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        data = False
        while line := self.rfile.readline():
            if data:
                self.server.text += line  # type: ignore[attr-defined]
                if line == b".\r\n":
                    data = False
                    self.wfile.write(b"250 kept\r\n")
                continue
            word = line[:4].upper()
            data = word == b"DATA"
            self.wfile.write(b"354 go\r\n" if data else b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
            if word == b"QUIT":
                return


def test_smtp() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Smtp) as server:
        server.text = b""  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        SmtpMailer("127.0.0.1", server.server_address[1], "ann@example.org", tls=False).send(
            "b@example.org", "S", "Text"
        )
        thread.join(60)
        assert b"To: b@example.org" in server.text  # type: ignore[attr-defined]
    with pytest.raises(UnreachableError, match="mail server"):
        SmtpMailer("127.0.0.1", 1, "a@example.org", tls=False, timeout=2).send("b@example.org", "S", "Text")
