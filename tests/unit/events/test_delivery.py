"""Webhooks and Redis: signed, retried, remembered, given up; whatever the other side does."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receiver import Receiver

from avyay.clock import SYSTEM_CLOCK, FakeClock
from avyay.errors import AuthError, PolicyError, UsageError
from avyay.events import pump as pump_module
from avyay.events.addresses import allowed_address
from avyay.events.deliveries import Deliveries
from avyay.events.outbox import Outboxes
from avyay.events.pump import Pump
from avyay.events.reader import Cursor, EventReader, Recorded
from avyay.events.sinks import Message, NotDeliveredError, RedisSink, WebhookSink
from avyay.events.webhooks import read_secrets, sign, verify
from avyay.ports import Event
from avyay.resilience.backoff import Backoff

SECRET = b"s" * 24
WORD = "whsec_" + base64.b64encode(SECRET).decode()
MESSAGE = Message("evt_1", "marga.provider.tripped", b'{"id":"evt_1"}')
AT_ONCE = Backoff(base=0.001, cap=0.001)


def hook(receiver: Receiver, **options: Any) -> WebhookSink:
    return WebhookSink("ops", receiver.url, [SECRET], now=SYSTEM_CLOCK.now, **options)


# ---------------------------------------------------------------- signatures


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the Standard Webhooks specification's own test suite (`msg_p5jXN8AQM9LWM0D4loKWxJek`)."""
    secrets = read_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = sign(secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(body=st.binary(max_size=200), at=st.integers(0, 2**40))
def test_what_is_signed_verifies_and_nothing_else_does(body: bytes, at: int) -> None:
    headers = sign([SECRET], "evt_1", at, body)
    verify([b"o" * 24, SECRET], headers, body, at + 200)
    for other, secret, now in ((body + b"x", SECRET, at), (body, b"o" * 24, at), (body, SECRET, at + 301)):
        with pytest.raises(AuthError):
            verify([secret], headers, other, now)


def test_while_a_secret_is_replaced_both_fit() -> None:
    old, new = read_secrets(f"{WORD} whsec_{base64.b64encode(b'n' * 24).decode()}")
    headers = sign([old, new], "evt_1", 1, b"x")
    verify([old], headers, b"x", 1)
    verify([new], headers, b"x", 1)


@pytest.mark.parametrize("value", ["", "secret", "whsec_", "whsec_!!!", "whsec_" + base64.b64encode(b"short").decode()])
def test_secrets_that_cannot_be_used(value: str) -> None:
    with pytest.raises(UsageError):
        read_secrets(value)


# ---------------------------------------------------------------- one message


def test_a_webhook_gets_signed_json() -> None:
    async def main(receiver: Receiver) -> None:
        sink = hook(receiver)
        await sink.send(MESSAGE)
        await sink.close()

    with Receiver() as receiver:
        asyncio.run(main(receiver))
    ((headers, body),) = receiver.got
    verify([SECRET], headers, body, SYSTEM_CLOCK.now())
    assert (body, headers["content-type"], headers["webhook-id"]) == (MESSAGE.body, "application/json", "evt_1")


@pytest.mark.parametrize(
    "status, final, retry_after",
    [(500, False, 7.0), (429, False, 7.0), (404, False, 7.0), (302, False, 7.0), (410, True, 7.0), (0, False, None)],
)
def test_a_webhook_that_does_not_take_it(status: int, final: bool, retry_after: float | None) -> None:
    async def main(receiver: Receiver) -> NotDeliveredError:
        sink = hook(receiver)
        try:
            with pytest.raises(NotDeliveredError) as caught:
                await sink.send(MESSAGE)
        finally:
            await sink.close()
        return caught.value

    with Receiver([status], {"retry-after": "7", "location": "http://127.0.0.1:1/"}) as receiver:
        error = asyncio.run(main(receiver))
    assert (error.final, error.retry_after) == (final, retry_after)
    assert len(receiver.got) == 1  # a redirect is not followed


def test_a_webhook_that_says_nothing() -> None:
    async def main(address: str) -> None:
        sink = WebhookSink("ops", address, [SECRET], timeout=0.1, now=SYSTEM_CLOCK.now)
        with pytest.raises(NotDeliveredError, match=r"no answer|Timeout"):
            await sink.send(MESSAGE)
        await sink.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(main(f"http://127.0.0.1:{silent.getsockname()[1]}/"))


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(answer: Answer, **options: Any) -> AsyncIterator[int]:
    """A server on loopback, by its port."""
    under_way: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        under_way.add(task)
        with suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            await answer(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*under_way)


TROUBLES = {
    "garbage": b"\x00\xff nothing of the kind\r\n\r\n",
    "cut off": b"HTTP/1.1 200 O",
    "a head without end": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000,
    "two answers' lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_webhook_that_answers_anything_else(trouble: str) -> None:
    """No receipt, and no error but the one that says so."""

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(MESSAGE.body)
            writer.write(TROUBLES[trouble])
            await writer.drain()

        async with answering(answer) as port:
            sink = WebhookSink("ops", f"http://127.0.0.1:{port}/", [SECRET], timeout=5.0, now=SYSTEM_CLOCK.now)
            with pytest.raises(NotDeliveredError) as caught:
                await sink.send(MESSAGE)
            assert not caught.value.final
            await sink.close()

    asyncio.run(main())


def test_a_receipt_counts_whatever_comes_behind_it() -> None:
    """Its body is not waited for, nor read: it may have no end."""

    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(MESSAGE.body)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nx")
            await writer.drain()
            await reader.read()

        async with answering(answer) as port:
            sink = WebhookSink("ops", f"http://127.0.0.1:{port}/", [SECRET], timeout=5.0, now=SYSTEM_CLOCK.now)
            await sink.send(MESSAGE)
            await sink.close()

    asyncio.run(main())


def test_a_webhook_that_drips_its_answer_is_given_up() -> None:
    async def main() -> None:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for byte in b"HTTP/1.1 200 OK\r\n" * 1_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)

        async with answering(drip) as port:
            sink = WebhookSink("ops", f"http://127.0.0.1:{port}/", [SECRET], timeout=0.2, now=SYSTEM_CLOCK.now)
            with pytest.raises(NotDeliveredError, match="no answer within"):
                await sink.send(MESSAGE)
            await sink.close()

    asyncio.run(main())


def test_a_webhook_that_nobody_listens_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    async def main() -> None:
        sink = WebhookSink("ops", f"http://127.0.0.1:{port}/", [SECRET], now=SYSTEM_CLOCK.now)
        with pytest.raises(NotDeliveredError, match="ConnectError"):
            await sink.send(MESSAGE)
        await sink.close()

    asyncio.run(main())


def test_a_receiver_cannot_put_a_message_off_for_ever(home: Home) -> None:
    """What it asks for is heeded, up to a day; it is then a failed try like any other."""

    async def main(receiver: Receiver) -> None:
        sink = hook(receiver)
        with pytest.raises(NotDeliveredError) as caught:
            await sink.send(MESSAGE)
        assert caught.value.retry_after == 86_400.0
        await sink.close()

    with Receiver([429], {"retry-after": "99999999"}) as receiver:
        asyncio.run(main(receiver))


def test_a_receiver_that_is_busy_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    clock = FakeClock()
    deliveries = Deliveries(tmp_path / "d.db", clock=clock)
    here = deliveries.begin("ops", Cursor)
    deliveries.add("ops", [Recorded("evt_1", "a.b.c", clock.now(), {}, here)], here)
    backoff = Backoff(base=5.0, cap=3_600.0, attempts=10, patience=86_400.0)
    assert not deliveries.failed(1, "HTTP 429", backoff, lambda: 0.5, retry_after=60.0)
    (row,) = deliveries.rows("waiting")
    assert 60.0 <= row.due_at - clock.now() <= 65.0
    waits = []
    for _ in range(8):
        deliveries.failed(1, "HTTP 500", backoff, lambda: 0.999)
        waits.append(round(deliveries.rows("waiting")[0].due_at - clock.now()))
    assert waits == [10, 20, 40, 80, 160, 320, 639, 1279]
    assert deliveries.failed(1, "HTTP 500", backoff, lambda: 0.999)
    assert deliveries.rows("dead")[0].attempts == 10
    deliveries.close()


# ---------------------------------------------------------------- where a webhook may lead


@pytest.mark.parametrize(
    "host, known, private, verdict",
    [
        ("example.com", ["93.184.215.14"], False, "93.184.215.14"),
        ("example.com", ["2606:2800:21f:cb07:6820:80da:af6b:8b2c"], False, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"),
        ("127.0.0.1", [], False, "127.0.0.1"),  # written out
        ("10.1.2.3", [], False, "10.1.2.3"),
        ("[::1]", [], False, "::1"),
        ("localhost", ["127.0.0.1"], False, "127.0.0.1"),
        ("inside", ["10.0.0.5"], True, "10.0.0.5"),
        ("inside", ["10.0.0.5"], False, None),
        ("rebound.example", ["127.0.0.1"], False, None),
        ("rebound.example", ["93.184.215.14", "192.168.0.1"], False, None),  # one of several is enough
        ("mapped.example", ["::ffff:127.0.0.1"], False, None),
        ("sixtofour.example", ["2002:7f00:1::"], False, None),
        ("teredo.example", ["2001:0:0:0:0:0:f5ff:fffe"], False, None),
        ("tailnet.example", ["100.64.0.1"], False, None),
        ("0x7f000001", ["127.0.0.1"], False, None),  # not written out plainly: it is looked up
        ("nothing.example", ["0.0.0.0"], True, None),
        ("cloud.example", ["169.254.169.254"], True, None),
        ("169.254.169.254", [], True, None),
        ("[fd00:ec2::254]", [], True, None),
        ("[::ffff:169.254.169.254]", [], True, None),
        ("[fe80::1%25eth0]", [], True, None),
        ("many.example", ["224.0.0.1"], True, None),
    ],
    ids=lambda value: "/".join(value) if isinstance(value, list) else str(value),
)
def test_where_a_webhook_may_lead(host: str, known: list[str], private: bool, verdict: str | None) -> None:
    async def lookup(name: str, port: int) -> list[str]:
        return known

    if verdict is None:
        with pytest.raises(PolicyError):
            asyncio.run(allowed_address(host, 443, private=private, lookup=lookup))
    else:
        assert asyncio.run(allowed_address(host, 443, private=private, lookup=lookup)) == verdict


def test_the_connection_is_made_to_what_was_judged_and_under_its_name() -> None:
    asked: list[str] = []

    async def main(receiver: Receiver) -> None:
        port = receiver.url.rpartition(":")[2].partition("/")[0]

        async def lookup(name: str, number: int) -> list[str]:
            asked.append(name)
            return ["127.0.0.1"]

        url = f"http://receiver.internal:{port}/hook"
        sink = WebhookSink("ops", url, [SECRET], private=True, lookup=lookup, now=SYSTEM_CLOCK.now)
        await sink.send(MESSAGE)
        await sink.send(MESSAGE)
        await sink.close()
        closed = WebhookSink("ops", url, [SECRET], lookup=lookup, now=SYSTEM_CLOCK.now)
        with pytest.raises(NotDeliveredError, match="leads to 127.0.0.1"):
            await closed.send(MESSAGE)
        await closed.close()

    with Receiver() as receiver:
        asyncio.run(main(receiver))
        assert [headers["host"] for headers, _ in receiver.got] == [f"receiver.internal:{receiver.port}"] * 2
    assert asked == ["receiver.internal"] * 3


@pytest.mark.needs("openssl")
def test_over_tls_the_certificate_must_be_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to an address, the certificate is still that of the name."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = f"-keyout {key} -out {certificate} -subj /CN=x -addext subjectAltName=DNS:receiver.test"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 {made}"
    subprocess.run(command.split(), check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    heads: list[bytes] = []

    async def lookup(name: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        await writer.drain()

    def to(host: str, port: int) -> WebhookSink:
        url = f"https://{host}:{port}/x"
        return WebhookSink("ops", url, [SECRET], private=True, lookup=lookup, now=SYSTEM_CLOCK.now)

    async def main() -> None:
        async with answering(answer, ssl=context) as port:
            sink, other = to("receiver.test", port), to("other.test", port)
            await sink.send(MESSAGE)
            with pytest.raises(NotDeliveredError, match="ConnectError"):
                await other.send(MESSAGE)
            await sink.close()
            await other.close()

    asyncio.run(main())
    (head,) = heads
    assert b"host: receiver.test:" in head.lower()


def test_a_name_that_is_not_known() -> None:
    async def main() -> None:
        async def lookup(name: str, port: int) -> list[str]:
            raise OSError("no such name")

        sink = WebhookSink("ops", "https://nowhere.example/", [SECRET], lookup=lookup, now=SYSTEM_CLOCK.now)
        with pytest.raises(NotDeliveredError, match=r"nowhere\.example is not known"):
            await sink.send(MESSAGE)

    asyncio.run(main())


def test_redis_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]

    async def main() -> None:
        sink = RedisSink(f"redis://127.0.0.1:{port}", "s", timeout=0.5)
        with pytest.raises(NotDeliveredError):
            await sink.send(MESSAGE)
        await sink.close()

    asyncio.run(main())


def test_redis_that_talks_nonsense() -> None:
    async def main() -> None:
        async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
        sink = RedisSink(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", "s", timeout=0.5)
        with pytest.raises(NotDeliveredError):
            await sink.send(MESSAGE)
        await sink.close()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


@pytest.mark.needs("redis-server")
def test_redis_gets_a_stream(tmp_path: Path) -> None:
    import subprocess

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    async def main() -> list[Any]:
        import redis.asyncio

        sink = RedisSink(f"redis://127.0.0.1:{port}", "avyay:events")
        for _ in range(500):
            try:
                await sink.send(MESSAGE)
                break
            except NotDeliveredError:
                await asyncio.sleep(0.02)
        await sink.close()
        client = redis.asyncio.from_url(f"redis://127.0.0.1:{port}")
        found: list[Any] = await client.xrange("avyay:events")
        await client.aclose()
        return found

    try:
        ((_, fields),) = asyncio.run(main())
    finally:
        server.terminate()
        server.wait()
    assert fields == {b"id": b"evt_1", b"type": b"marga.provider.tripped", b"body": MESSAGE.body}


# ---------------------------------------------------------------- the pump


class Home:
    """Outboxes and a pump over one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outboxes = Outboxes(folder / "data")
        self.path = folder / "deliveries.db"

    def pump(self, *sinks: WebhookSink) -> Pump:
        reader = EventReader(self.folder / "data")
        lock = self.folder / "run" / "events.lock"
        return Pump(reader, lambda: Deliveries(self.path), sinks, lock=lock, backoff=AT_ONCE, jitter=lambda: 0.5)

    def rows(self) -> list[tuple[str, str, int]]:
        deliveries = Deliveries(self.path)
        try:
            return [(row.name, row.state, row.attempts) for row in deliveries.rows()]
        finally:
            deliveries.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(pump_module, "LOOK", 0.01)
    monkeypatch.setattr(pump_module, "ELECTION", 0.01)
    return Home(tmp_path)


def test_events_are_delivered_after_failures_and_only_those_wanted(home: Home) -> None:
    async def main(receiver: Receiver) -> None:
        pump = home.pump(hook(receiver, names=("marga.*",)))
        home.outboxes.publish(Event("marga.provider.tripped", {"before": "the sink was known"}))
        home.outboxes.flush()
        task = asyncio.create_task(pump.run())
        await until(lambda: home.path.exists() and pump.leads)
        await asyncio.sleep(0.05)
        home.outboxes.publish(Event("rag.documents.indexed"))
        home.outboxes.publish(Event("marga.provider.recovered", {"provider": "openai"}))
        await until(lambda: ("marga.provider.recovered", "delivered", 3) in home.rows())
        pump.stop()
        await task

    with Receiver([500, 503, 204]) as receiver:
        asyncio.run(main(receiver))
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1  # the same message, again
    body = json.loads(receiver.got[-1][1])
    assert (body["type"], body["data"]) == ("marga.provider.recovered", {"provider": "openai"})
    assert len(home.rows()) == 1


def test_what_is_given_up_is_listed_and_sent_once_more_on_request(home: Home) -> None:
    async def main(receiver: Receiver) -> None:
        pump = home.pump(hook(receiver, attempts=2))
        task = asyncio.create_task(pump.run())
        await until(lambda: pump.leads)
        await asyncio.sleep(0.05)
        home.outboxes.publish(Event("marga.provider.tripped"))
        await until(lambda: ("marga.provider.tripped", "dead", 2) in home.rows())
        deliveries = Deliveries(home.path)
        (row,) = deliveries.rows("dead")
        assert row.problem == "HTTP 500"
        with pytest.raises(UsageError):
            deliveries.retry(["evt_nothing"])
        receiver.statuses = [204]
        assert deliveries.retry([row.event]) == 1
        deliveries.close()
        await until(lambda: ("marga.provider.tripped", "delivered", 3) in home.rows())
        pump.stop()
        await task

    with Receiver([500]) as receiver:
        asyncio.run(main(receiver))


def test_one_process_delivers_and_the_next_takes_over_where_it_stopped(home: Home) -> None:
    async def main(receiver: Receiver) -> None:
        first, second = home.pump(hook(receiver)), home.pump(hook(receiver))
        tasks = [asyncio.create_task(pump.run()) for pump in (first, second)]
        await until(lambda: first.leads)
        await asyncio.sleep(0.05)
        home.outboxes.publish(Event("marga.provider.tripped", {"n": 1}))
        await until(lambda: len(receiver.got) == 1)
        assert not second.leads
        first.stop()
        await tasks[0]
        home.outboxes.publish(Event("marga.provider.tripped", {"n": 2}))
        await until(lambda: len(receiver.got) == 2)
        assert second.leads
        second.stop()
        await tasks[1]

    with Receiver() as receiver:
        asyncio.run(main(receiver))
    assert [json.loads(body)["data"]["n"] for _, body in receiver.got] == [1, 2]


def test_a_restart_forgets_nothing(home: Home) -> None:
    """What waits when the process ends, and what happens while none runs, is delivered by the next."""

    async def main(receiver: Receiver, *, count: int, statuses: list[int]) -> None:
        receiver.statuses = statuses
        pump = home.pump(hook(receiver, attempts=100))
        task = asyncio.create_task(pump.run())
        await until(lambda: pump.leads)
        await asyncio.sleep(0.05)
        if count == 0:
            home.outboxes.publish(Event("marga.provider.tripped", {"n": 1}))
            await until(lambda: len(receiver.got) >= 3)
        else:
            await until(lambda: len({body for headers, body in receiver.got}) == count)
            await until(lambda: all(state == "delivered" for _, state, _ in home.rows()))
        pump.stop()
        await task

    with Receiver() as receiver:
        asyncio.run(main(receiver, count=0, statuses=[503]))
        home.outboxes.publish(Event("marga.provider.recovered", {"n": 2}))
        home.outboxes.flush()
        asyncio.run(main(receiver, count=2, statuses=[204]))
    assert len(home.rows()) == 2


def test_too_many_waiting_are_given_up_and_old_ones_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avyay.events import deliveries as module

    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    clock = FakeClock()
    deliveries = Deliveries(tmp_path / "d.db", clock=clock)
    cursor = deliveries.begin("ops", Cursor)
    events = [Recorded(f"evt_{n}", "a.b.c", clock.now(), {}, cursor) for n in range(5)]
    deliveries.add("ops", events, cursor)
    deliveries.add("ops", events, cursor)  # taken up again after a crash: nothing is sent twice
    assert [row.state for row in deliveries.rows()] == ["waiting"] * 3 + ["dead"] * 2
    assert deliveries.counts() == {"ops": {"waiting": 3, "dead": 2}}
    clock.advance(10)
    assert deliveries.prune(5) == 2
    deliveries.close()
