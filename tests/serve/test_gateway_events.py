"""`/v1/events` at a real gateway: one stream of what happened here and in other homes, as far as a key may see it."""

from __future__ import annotations

import json
import re
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from daemon import Served, services_in, wait_for
from family import Family, Line
from gate import Gate, keys_in, make_key
from listener import Listener

from avyay.events.follow import Backoff
from avyay.ports import Event
from avyay.serve.gateway import stream
from avyay.serve.gateway.daemon import build_app as build_gateway
from avyay.serve.gateway.daemon import door_limits
from avyay.serve.gateway.door import door_protocol
from avyay.serve.gateway.stream import EventsPage
from avyay.serve.raksha import build_app
from avyay.wiring import Services


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from avyay.events import follow

    monkeypatch.setattr(follow.Follower.__init__, "__kwdefaults__", {
        **follow.Follower.__init__.__kwdefaults__,  # type: ignore[dict-item]
        "again": 0.1,
        "backoff": Backoff(base=0.02, cap=0.1, attempts=10**9, patience=float("inf")),
    })  # fmt: skip


SHARED = "what a gateway and the components of other homes know " * 2


def gate_in(folder: Path, **upstreams: str) -> Gate:
    """A gateway whose word components elsewhere believe."""
    places = {name: {"url": url, "connect": 1} for name, url in upstreams.items()}
    made = Gate.__new__(Gate)
    made.folder = folder
    settings = {"gateway": {"upstreams": places}, "serve": {"principal_secret_env": "SHARED"}}
    services = services_in(folder, settings, SHARED=SHARED)
    made.gateway = build_gateway(services)
    Served.__init__(made, services, made.gateway, protocol=door_protocol(door_limits(services.settings.gateway)))
    return made


class Elsewhere(Served):
    """The scanner's daemon of another home."""

    def __init__(self, folder: Path, *, key: str | None = None, port: int = 0) -> None:
        services = services_in(folder, {"raksha": {}, "serve": {"principal_secret_env": "SHARED"}}, SHARED=SHARED)
        super().__init__(services, build_app(services, key=key), port=port)

    def publish(self, name: str, n: int) -> None:
        publish(self.services, name, n)


def publish(services: Services, name: str, n: int) -> None:
    services.events.publish_now(Event(name, {"n": n}))


def numbers(place: Served, query: str = "", **headers: str) -> list[int]:
    """What a page of all events holds."""
    got = place.get(f"/v1/events?after=start&limit=1000{query}", **headers)
    assert got.status == 200, got.raw
    return [event["data"]["n"] for event in got.body["events"]]


def listen(gate: Gate, count: int, query: str = "?after=start", **headers: str) -> tuple[list[int], str]:
    """The numbers of so many events, and the last id."""
    listener = Listener(gate.url, f"/v1/events{query}", **headers)
    last, got = "", []
    for fields in listener:
        last = fields.get("id", last)
        if "data" in fields:
            got.append(json.loads(fields["data"])["data"]["n"])
        if len(got) == count:
            break
    listener.close()
    return got, last


def test_what_happens_here_and_elsewhere_is_one_stream(tmp_path: Path) -> None:
    with Elsewhere(tmp_path / "there") as there, gate_in(tmp_path / "here", raksha=there.url) as gate:
        there.publish("raksha.finding.found", 1)
        publish(gate.services, "engine.task.merged", 2)
        wait_for(lambda: sorted(numbers(gate)) == [1, 2])
        there.publish("raksha.finding.found", 3)
        got, last = listen(gate, 3)
        assert sorted(got) == [1, 2, 3]
        publish(gate.services, "siddhi.hypothesis.decided", 4)
        there.publish("raksha.finding.found", 5)
        resumed, _ = listen(gate, 2, "", last_event_id=last)
        assert sorted(resumed) == [4, 5]
        assert numbers(gate, "&kind=raksha.*") == [1, 3, 5]
        assert numbers(gate, "&name=engine.*&kind=siddhi.*") == [2, 4]
        assert sorted(numbers(gate, "&own=true")) == [2, 4]  # a home tells others only of itself
        ids = [event["id"] for event in there.get("/v1/events?after=start&limit=9").body["events"]]
        here = [event["id"] for event in gate.get("/v1/events?after=start&limit=9&kind=raksha.*").body["events"]]
        assert here == ids  # the same events, not others like them
        wait_for(lambda: gate.get("/health").body["events"] == {"streams": 0, "followed": ["raksha"]})
        metrics = gate.get("/metrics").raw.decode()
        assert 'gateway_events_followed{component="raksha"} 1' in metrics
        assert 'gateway_events_followed{component="rag"} 0' in metrics


def test_a_component_that_was_down_and_a_gateway_that_was(tmp_path: Path) -> None:
    """None is lost and none comes twice, whoever was away while it happened."""
    with Elsewhere(tmp_path / "there") as there:
        port, url = there.port, there.url
        there.publish("raksha.finding.found", 1)
        with gate_in(tmp_path / "here", raksha=url) as gate:
            got, last = listen(gate, 1)
        there.publish("raksha.finding.found", 2)  # while the gateway is down
    services = services_in(tmp_path / "there", {"raksha": {}})
    publish(services, "raksha.finding.found", 3)  # while the component is down
    services.close()
    with gate_in(tmp_path / "here", raksha=url) as gate:
        publish(gate.services, "engine.task.merged", 4)
        got, last = listen(gate, 1, "", last_event_id=last)
        assert got == [4]
        with Elsewhere(tmp_path / "there", port=port) as there:
            got, last = listen(gate, 2, "", last_event_id=last)
            assert got == [2, 3]
            there.publish("raksha.finding.found", 5)
            got, last = listen(gate, 1, "", last_event_id=last)
            assert got == [5]
        assert sorted(numbers(gate)) == [1, 2, 3, 4, 5]


def test_components_of_this_home_are_read_and_not_followed(tmp_path: Path) -> None:
    with Elsewhere(tmp_path) as beside, gate_in(tmp_path, raksha=beside.url, rag=beside.url) as gate:
        beside.publish("raksha.finding.found", 1)
        publish(gate.services, "engine.task.merged", 2)
        wait_for(lambda: numbers(gate) == [1, 2])
        assert not (tmp_path / "home/data/gateway/followed.db").exists() or numbers(gate, "&own=true") == [1, 2]


def test_two_components_of_another_home_are_one(tmp_path: Path) -> None:
    with Elsewhere(tmp_path / "there", key="k") as one, Elsewhere(tmp_path / "there", key="k") as other:
        places = {"raksha": one.url, "rag": other.url}
        upstreams = {name: {"url": url, "api_key_env": "THERE"} for name, url in places.items()}
        with Gate(tmp_path / "here", {}, {"upstreams": upstreams}, THERE="k") as gate:
            for n in range(5):
                (one, other)[n % 2].publish("raksha.finding.found", n)
            wait_for(lambda: len(numbers(gate)) >= 5)
            assert sorted(numbers(gate)) == [0, 1, 2, 3, 4]


def test_gateways_that_follow_one_another_do_not_echo(tmp_path: Path) -> None:
    with (
        Elsewhere(tmp_path / "a") as a,
        Elsewhere(tmp_path / "b") as b,
        gate_in(tmp_path / "a", raksha=b.url) as left,
        gate_in(tmp_path / "b", raksha=a.url) as right,
    ):
        a.publish("raksha.finding.found", 1)
        b.publish("raksha.finding.found", 2)
        for gate in (left, right):
            wait_for(lambda gate=gate: sorted(numbers(gate)) == [1, 2])  # type: ignore[misc]
        a.publish("raksha.finding.found", 3)
        for gate in (left, right):
            wait_for(lambda gate=gate: sorted(numbers(gate)) == [1, 2, 3])  # type: ignore[misc]


def test_a_component_that_asks_for_a_key(tmp_path: Path) -> None:
    with Elsewhere(tmp_path / "there", key="secret") as there:
        there.publish("raksha.finding.found", 1)
        upstreams = {"raksha": {"url": there.url, "api_key_env": "THERE"}}
        with Gate(tmp_path / "here", {}, {"upstreams": upstreams}, THERE="secret") as gate:
            wait_for(lambda: numbers(gate) == [1])


ALL = ["marga.budget.neared", "rag.job.ended", "rag.documents.indexed", "raksha.finding.found", "engine.task.merged"]


@pytest.mark.parametrize(
    "scopes, seen",
    [
        (["*"], [0, 1, 2, 3, 4]),
        (["admin"], [0, 1, 2, 3, 4]),
        (["gateway:events"], [0, 1, 2, 3, 4]),
        (["raksha:scan"], [3]),
        (["rag:ask"], [2]),
        (["rag:jobs"], [1]),
        (["rag", "engine:api"], [1, 2, 4]),
        (["marga:events"], [0]),
        (["marga"], None),
        (["marga:chat", "rag:mcp"], None),
        (["gateway"], None),
    ],
    ids=lambda value: "+".join(map(str, value)) if value else "nothing",
)
def test_a_key_sees_what_its_scopes_allow(scopes: list[str], seen: list[int] | None, tmp_path: Path) -> None:
    key = make_key(tmp_path, scopes=scopes)
    with Gate(tmp_path, {}) as gate:
        for n, name in enumerate(ALL):
            publish(gate.services, name, n)
        for path in ("/v1/events?after=start&limit=9", "/v1/events?after=start&limit=9&name=*"):
            got = gate.get(path, authorization=f"Bearer {key}")
            if seen is None:
                assert (got.status, got.body["code"]) == (403, "missing_scope")
            else:
                assert sorted(event["data"]["n"] for event in got.body["events"]) == seen
        assert gate.get("/v1/events").status == 401
        if seen:
            got, _ = listen(gate, len(seen), authorization=f"Bearer {key}")
            assert sorted(got) == seen


def test_a_stream_ends_when_its_key_is_revoked(tmp_path: Path) -> None:
    key = make_key(tmp_path, "doomed", scopes=["*"])
    make_key(tmp_path, "other", scopes=["*"])
    with Gate(tmp_path, {}) as gate:
        listener = Listener(gate.url, "/v1/events", authorization=f"Bearer {key}")
        listener.next()
        publish(gate.services, "rag.job.ended", 1)
        assert json.loads(listener.next()["data"])["data"] == {"n": 1}
        book = keys_in(tmp_path)
        book.revoke("doomed")
        book.close()
        wait_for(lambda: gate.get("/v1/events?limit=1", authorization=f"Bearer {key}").status == 401)
        publish(gate.services, "rag.job.ended", 2)
        assert list(listener) == []
        listener.close()


@pytest.mark.parametrize("query", ["after=nonsense", "limit=0", "own=maybe", "kind=" + "a" * 300])
def test_bad_questions_are_refused_before_a_stream_begins(query: str, tmp_path: Path) -> None:
    with Gate(tmp_path, {}) as gate:
        got = gate.get(f"/v1/events?{query}")
        assert (got.status, got.headers["content-type"]) == (400, "application/problem+json")
        assert gate.request("HEAD", "/v1/events").status == 200
        assert gate.request("POST", "/v1/events", b"").status == 405
        listener = Listener(gate.url, "/v1/events")
        headers = listener.answer.headers
        assert (headers["x-accel-buffering"], headers["cache-control"]) == ("no", "no-store")
        listener.close()


def test_a_caller_that_does_not_read_holds_no_place(tmp_path: Path) -> None:
    with Gate(tmp_path, {}, {"send_timeout": 1}) as gate:
        page = gate.gateway.pages[b"/v1/events"]
        assert isinstance(page, EventsPage)
        large = [Event("rag.job.ended", {"n": n, "text": "x" * 30_000}) for n in range(600)]
        gate.services.events.publish_now(*large)
        with socket.create_connection(("127.0.0.1", gate.port)) as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            idle.sendall(b"GET /v1/events?after=start HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            wait_for(lambda: page.streams == 1)
            wait_for(lambda: page.streams == 0)


def test_one_key_holds_so_many_streams_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MOST_OF_ONE", 2)
    keys = [make_key(tmp_path, name, scopes=["*"]) for name in ("one", "other")]
    with Gate(tmp_path, {}) as gate:
        held = [Listener(gate.url, "/v1/events", authorization=f"Bearer {keys[0]}") for _ in range(2)]
        for listener in held:
            listener.next()
        refused = gate.get("/v1/events", authorization=f"Bearer {keys[0]}")
        assert (refused.status, refused.body["code"]) == (429, "too_many_streams")
        assert gate.get("/v1/events?limit=1", authorization=f"Bearer {keys[1]}").status == 200
        for listener in held:
            listener.close()
        wait_for(lambda: gate.get("/v1/events?limit=1", authorization=f"Bearer {keys[0]}").status == 200)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_health_is_that_of_all_workers_whoever_answers(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    with ExitStack() as stack:
        there = stack.enter_context(Elsewhere(tmp_path / "there"))
        nobody = stack.enter_context(socket.socket())
        nobody.bind(("127.0.0.1", 0))  # and does not listen: neither a router nor a Redis
        absent = f"127.0.0.1:{nobody.getsockname()[1]}"
        settings = {
            "upstreams": {"raksha": {"url": there.url}, "marga": {"url": f"http://{absent}"}},
            "redis_url": f"redis://{absent}",
            "limits": [{"requests": 1_000}],
        }
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({"gateway": settings, "serve": {"principal_secret_env": "SHARED"}}))
        family = Family("gateway", tmp_path, "--config", str(config), SHARED=SHARED)
        stack.callback(family.kill)
        wait_for(family.answers, 120)
        lines: dict[int, list[Line]] = {}

        def meet() -> bool:
            line = stack.enter_context(Line(family.port))
            lines.setdefault(line.get("/health")["worker"], []).append(line)
            return len(lines) == 2 and all(len(mine) >= 2 for mine in lines.values())

        wait_for(meet, 120)
        one, other = lines.values()
        assert one[0].get("/health")["limits"] == "ok"  # nobody has asked Redis yet
        assert one[0].ask("GET", "/v1/models")[0] in (502, 503)
        streams = [line.stream("/v1/events") for line in (one[1], *other[1:])]
        expected = {"streams": len(streams), "followed": ["raksha"]}
        for line in (one[0], other[0]):
            wait_for(lambda line=line: line.get("/health")["events"] == expected)  # type: ignore[misc]
            health = line.get("/health")
            assert (health["status"], health["limits"]) == ("degraded", "lost")
            wait_for(lambda line=line: line.get("/health")["usage"]["backlog"] == 0)  # type: ignore[misc]
            assert line.get("/health")["usage"] == {"healthy": True, "backlog": 0, "refused": 0, "unspooled": 0}
            metrics = line.get("/metrics")
            assert re.search(r"^gateway_redis_lost 1$", metrics, re.MULTILINE)
            assert re.search(r"^gateway_limits_fallback_total [1-9]", metrics, re.MULTILINE)
        assert family.end() == 0
