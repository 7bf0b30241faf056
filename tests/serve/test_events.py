"""`/v1/events` of running daemons, and what the components publish."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon, wait_for
from listener import Listener
from starlette.requests import Request
from starlette.testclient import TestClient
from upstream import Reply, Upstream

from avyay.config import Environment
from avyay.errors import UsageError
from avyay.events.reader import Cursor, EventReader
from avyay.marga import watch
from avyay.ports import Event
from avyay.serve.events import EventFeed
from avyay.serve.raksha import build_app
from avyay.serve.run import Stopping
from avyay.siddhi.machine import State
from avyay.siddhi.store import Store
from avyay.wiring import Services, open_services

BAD = "import yaml\n\n\ndef f(text):\n    return yaml.load(text)\n"


def services(home: Path, **variables: str) -> Services:
    values = {"AVYAY_HOME": str(home / "avyay"), "PATH": "/usr/bin:/bin", "HOME": str(home), **variables}
    return open_services(directory=home, environment=Environment(values))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    provider = {"name": "fake", "kind": "fake", "endpoint": "http://127.0.0.1:9"}
    with Daemon(tmp_path_factory.mktemp("marga"), {"providers": [provider]}) as running:
        yield running


def publish(daemon: Daemon, name: str, n: int) -> None:
    daemon.services.events.publish(Event(name, {"n": n}))
    daemon.services.events.flush()


def test_live_then_resumed_where_it_was(daemon: Daemon) -> None:
    listener = Listener(daemon.url, "/v1/events?name=marga.test.*")
    assert listener.answer.headers["content-type"].startswith("text/event-stream")
    first = listener.next()
    assert first["retry"] == "2000"
    publish(daemon, "marga.other.happened", 0)
    publish(daemon, "marga.test.happened", 1)
    got = listener.next()
    assert (got["event"], json.loads(got["data"])["data"]) == ("marga.test.happened", {"n": 1})
    listener.close()
    publish(daemon, "marga.test.happened", 2)  # while nobody listens
    resumed = Listener(daemon.url, "/v1/events?name=marga.test.*", last_event_id=got["id"])
    resumed.next()
    assert json.loads(resumed.next()["data"])["data"] == {"n": 2}
    publish(daemon, "marga.test.happened", 3)
    assert json.loads(resumed.next()["data"])["data"] == {"n": 3}
    resumed.close()


def test_pages(daemon: Daemon) -> None:
    for n in range(5):
        publish(daemon, "marga.page.turned", n)
    page = daemon.get("/v1/events?name=marga.page.*&limit=2").body
    assert [event["data"]["n"] for event in page["events"]] == [3, 4]
    met: list[int] = []
    after = "start"
    while events := (page := daemon.get(f"/v1/events?name=marga.page.*&limit=2&after={after}").body)["events"]:
        met += [event["data"]["n"] for event in events]
        after = page["cursor"]
    assert met == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("query", ["after=nonsense", "limit=0", "limit=x", "name=a" + 20 * "&name=a"])
def test_bad_queries(daemon: Daemon, query: str) -> None:
    got = daemon.get(f"/v1/events?{query}", accept="application/json")
    assert (got.status in (400, 422), got.headers["content-type"]) == (True, "application/problem+json")


def test_streams_end_when_the_daemon_drains_and_say_that_they_live_until_then(home: Path) -> None:
    async def main() -> list[bytes]:
        stopping = Stopping()
        feed = EventFeed(services(home), stopping=stopping, look=0.01, keep_alive=0.02)
        request = Request({"type": "http", "query_string": b"", "headers": []})
        answer: Any = await feed.answer(request)
        chunks = []
        async for chunk in answer.body_iterator:
            chunks.append(chunk)
            if len(chunks) == 3:
                stopping.begin()
        await feed.stop()
        return chunks

    chunks = asyncio.run(main())
    assert chunks[0].startswith(b"retry: ")
    assert chunks[1:3] == [b": still here\n\n"] * 2


def test_a_sink_that_cannot_work_is_told_at_the_start(home: Path) -> None:
    hooks = '[{"name": "ops", "url": "https://example.com/hook", "secret_env": "NOT_SET"}]'
    (home / "avyay.yaml").write_text(f"events: {{webhooks: {hooks}}}\n")
    made = open_services(config_file=home / "avyay.yaml", environment=Environment({"AVYAY_HOME": str(home / "avyay")}))

    async def main() -> None:
        with pytest.raises(UsageError, match="NOT_SET"):
            await EventFeed(made).start()

    asyncio.run(main())


# ---------------------------------------------------------------- what components publish


def test_a_provider_that_fails_and_recovers(tmp_path: Path) -> None:
    with Upstream() as upstream, Upstream() as other:
        providers = [
            {
                "name": name,
                "kind": "openai",
                "endpoint": f"{server.url}/v1",
                "api_key_env": "K",
                "models": [{"name": "m", "input_price": 1, "output_price": 2}],
                "circuit_breaker": {"failure_threshold": 3, "recovery_timeout": "100ms"},
                "priority": priority,
            }
            for priority, (name, server) in enumerate((("first", upstream), ("second", other)), 1)
        ]
        with Daemon(tmp_path, {"providers": providers}, K="k") as daemon:
            listener = Listener(daemon.url, "/v1/events?name=marga.provider.*&after=start")
            listener.next()
            upstream.default = Reply(status=500)
            for _ in range(3):
                daemon.chat()
            tripped = listener.next()
            upstream.default = Reply()
            recovered = listener.next()
            listener.close()
    assert [one["event"] for one in (tripped, recovered)] == ["marga.provider.tripped", "marga.provider.recovered"]
    assert json.loads(tripped["data"])["data"]["provider"] == "first"


def test_a_budget_near_its_cap_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_SYNC", 0.01)
    with Upstream() as upstream:
        upstream.default = Reply(input=850, output=0)
        provider = {
            "name": "p",
            "kind": "openai",
            "endpoint": f"{upstream.url}/v1",
            "api_key_env": "K",
            "models": [{"name": "m", "input_price": 1000, "output_price": 0}],
        }
        with Daemon(tmp_path, {"providers": [provider], "budgets": [{"daily": 1}]}, K="k") as daemon:
            assert daemon.chat("m").status == 200
            listener = Listener(daemon.url, "/v1/events?name=marga.budget.*&after=start")
            listener.next()
            event = listener.next()
            listener.close()
            rows = daemon.get("/v1/events?name=marga.budget.*&limit=9").body["events"]
    data = json.loads(event["data"])["data"]
    assert (event["event"], data["used"], data["cap_usd"]) == ("marga.budget.neared", 0.85, "1")
    assert len(rows) == 1


def test_a_hypothesis_is_decided_in_the_same_transaction(tmp_path: Path) -> None:
    store = Store(tmp_path / "siddhi" / "siddhi.db")
    made = store.discover("A thing", "general", [], "seen often")
    for after in (State.SCORED, State.GENERATING, State.TESTING, State.ANALYZING):
        store.change(made.id, after, "goes on")
    store.change(made.id, State.KILLED, "3 of 60 signed up", data={"trials": 60, "secret": "text stays here"})
    reader = EventReader(tmp_path)
    events = reader.read(Cursor()).events
    reader.close()
    store.close()
    assert [event.name for event in events] == ["siddhi.hypothesis.changed"] * 4 + ["siddhi.hypothesis.decided"]
    assert events[-1].data["after"] == "KILLED"
    assert events[-1].data["numbers"] == {"trials": 60}


def test_documents_are_indexed(tmp_path: Path, home: Path) -> None:
    root = tmp_path / "ops"
    root.mkdir()
    (root / "kafka.md").write_text("# Kafka\n\nRestart the broker.\n")
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)
    with services(home, AVYAY_RAG_EMBEDDER_NAME="hashing") as made:
        made.rag.index(str(root))
        made.rag.index(str(root))  # nothing new: nothing to tell
        made.events.flush()
        reader = EventReader(made.paths.data)
        (event,) = reader.read(Cursor()).events
        reader.close()
    assert (event.name, event.data["added"], event.data["paths"]) == ("rag.documents.indexed", 1, ["kafka.md"])


def test_findings_that_are_new(home: Path) -> None:
    baseline = home / "baseline.json"
    baseline.write_text('{"raksha_baseline": 1, "findings": []}')
    made = services(home, AVYAY_RAKSHA_BASELINE=str(baseline))
    with TestClient(build_app(made), base_url="http://127.0.0.1") as client:
        for _ in range(2):  # the second scan finds nothing that was not told
            client.post("/v1/scan", json={"files": [{"path": "a.py", "content": BAD}]})
        wait_for(lambda: len(client.get("/v1/events?limit=10&after=start").json()["events"]) == 1)
        (event,) = client.get("/v1/events?limit=10&after=start").json()["events"]
    assert (event["type"], event["data"]["path"], event["data"]["line"]) == ("raksha.finding.found", "a.py", 5)
