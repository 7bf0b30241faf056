"""SIDDHI over HTTP: reading, deciding, runs as jobs, the board; and the collector, which shows nothing else."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from server import running
from starlette.testclient import TestClient

from avyay.config import Environment
from avyay.errors import PolicyError
from avyay.serve.launch import Launch
from avyay.serve.run import bind, serving_beside
from avyay.serve.siddhi import build_app, build_collector, serve_siddhi
from avyay.wiring import Services, open_services


def services(home: Path, **variables: str) -> Services:
    values = {"AVYAY_HOME": str(home / "avyay"), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    values |= {"AVYAY_RAG_EMBEDDER_NAME": "hashing", "AVYAY_MARGA_DISCOVER": "false"}
    return open_services(directory=home, environment=Environment({**values, **variables}))


@pytest.fixture
def made(home: Path) -> Services:
    return services(home)


@pytest.fixture
def client(made: Services) -> Iterator[TestClient]:
    with TestClient(build_app(made), base_url="http://127.0.0.1") as found:
        yield found


def finished(client: TestClient, identity: str) -> dict[str, Any]:
    for _ in range(600):
        job: dict[str, Any] = client.get(f"/v1/jobs/{identity}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.02)
    raise AssertionError("the job does not end")


def test_a_hypothesis_is_read_and_decided(made: Services, client: TestClient) -> None:
    one = made.siddhi.store.discover("Invoices <b>by hand</b>", "billing", [], "8 complaints")
    assert client.get("/v1/siddhi/status").json()["states"]["DISCOVERED"] == 1
    (row,) = client.get("/v1/siddhi/hypotheses?state=DISCOVERED").json()["hypotheses"]
    assert (row["id"], row["clicks"]) == (one.id, 0)
    assert client.get("/v1/siddhi/hypotheses?state=NOPE").status_code == 422
    assert client.get(f"/v1/siddhi/hypotheses/{one.id}").json()["complaints"] == []
    assert client.get("/v1/siddhi/hypotheses/h99").status_code == 404
    decided = client.post(f"/v1/siddhi/hypotheses/{one.id}/decide", json={"state": "KILLED", "reason": "not for us"})
    assert decided.json()["state"] == "KILLED"
    events = client.get(f"/v1/siddhi/hypotheses/{one.id}/why").json()["events"]
    assert (events[-1]["reason"], events[-1]["manual"]) == ("not for us", True)
    again = client.post(f"/v1/siddhi/hypotheses/{one.id}/decide", json={"state": "KILLED", "reason": "again"})
    assert (again.status_code, again.json()["code"]) == (400, "illegal_transition")
    page = client.get("/")
    assert "Invoices &lt;b&gt;by hand&lt;/b&gt;" in page.text
    assert "script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_run_is_a_job(client: TestClient) -> None:
    accepted = client.post("/v1/siddhi/run", json={}, headers={"idempotency-key": "monday"})
    assert accepted.status_code == 202
    assert (
        client.post("/v1/siddhi/run", json={}, headers={"idempotency-key": "monday"}).json()["id"]
        == (accepted.json()["id"])
    )
    job = finished(client, accepted.json()["id"])
    assert (job["state"], job["result"]) == ("done", {"mined": [], "lines": []})


def test_live_needs_the_switch_and_the_total(made: Services, client: TestClient) -> None:
    refused = client.post("/v1/siddhi/run", json={"mode": "live", "total": "300"})
    assert (refused.status_code, refused.json()["code"]) == (403, "not_live")
    made.paths.config.mkdir(parents=True)
    (made.paths.config / "siddhi-live").touch()
    refused = client.post("/v1/siddhi/run", json={"mode": "live", "total": "1"})
    assert (refused.status_code, refused.json()["code"]) == (403, "total_not_typed")


def test_money_stops_and_goes_on(client: TestClient) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.post("/v1/siddhi/stop", json={"reason": "weekend"}).json() == {"halted": True, "not_stopped": []}
    assert (client.get("/health").json()["status"], client.get("/health").json()["halted"]) == ("degraded", "weekend")
    assert "siddhi_halted 1" in client.get("/metrics").text
    assert "weekend" in client.get("/v1/siddhi/board").text
    assert client.post("/v1/siddhi/resume").json() == {"halted": False}
    assert client.get("/v1/siddhi/budget").json() == {"scopes": [], "alarms": []}


def test_a_key_opens_the_board_as_a_password(made: Services) -> None:
    with TestClient(build_app(made, key="k3y"), base_url="http://127.0.0.1") as client:
        assert client.get("/v1/siddhi/status").status_code == 401
        refused = client.get("/")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="avyay"')
        assert client.get("/", auth=("me", "wrong")).status_code == 401
        assert client.get("/", headers={"authorization": "Basic !!!"}).status_code == 401
        assert client.get("/", auth=("me", "k3y")).status_code == 200
        assert client.get("/", headers={"authorization": "Bearer k3y"}).status_code == 200


def test_others_need_a_key(home: Path) -> None:
    with pytest.raises(PolicyError, match="see and steer"):
        serve_siddhi(services(home), Launch(host="0.0.0.0", port=0))


def test_the_collector_is_an_application_of_its_own(made: Services) -> None:
    """On its own port strangers find the pages' addresses, and nothing of the daemon."""
    listener = bind("127.0.0.1", 0, name="siddhi")
    public = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = build_app(made, beside=[partial(serving_beside, build_collector(made), listener)])

    def status(url: str) -> int:
        try:
            with urllib.request.urlopen(url) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    with running(app) as inner:
        with urllib.request.urlopen(f"{inner}/openapi.json") as answer:
            paths = json.load(answer)["paths"]
        assert status(f"{public}/view.gif") == 200
        for path in (*paths, "/", "/v1/siddhi/board", "/docs", "//v1/siddhi/status", "/%2e%2e/v1/siddhi/status"):
            expected = 200 if path == "/health" else 404
            assert status(public + path.replace("{identity}", "h1")) == expected, path
        assert status(f"{inner}/view.gif") == 404
