"""The daemon over HTTP: questions, jobs, webhooks, MCP, health; with and without a key."""

from __future__ import annotations

import gc
import hashlib
import hmac
import json
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from avyay.config import Environment
from avyay.serve.launch import Launch
from avyay.serve.rag import build_app, serve_rag
from avyay.wiring import Services, open_services

RUNBOOK = "# KafkaBrokerDown\n\n## Mitigation\n\nRestart the broker: `kubectl delete pod kafka-0`.\n"


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    root = tmp_path / "ops"
    root.mkdir()
    (root / "kafka.md").write_text(RUNBOOK)
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "first")
    return root


def services(home: Path, **variables: str) -> Services:
    values = {"AVYAY_HOME": str(home / "avyay"), "AVYAY_RAG_EMBEDDER_NAME": "hashing", "PATH": "/usr/bin:/bin"}
    values |= {"AVYAY_RAG_POLL_INTERVAL": "0", "AVYAY_MARGA_DISCOVER": "false", "HOME": str(home)}
    values |= {f"GIT_{role}_{what}": "x@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return open_services(directory=home, environment=Environment({**values, **variables}))


@pytest.fixture
def client(origin: Path, home: Path) -> Iterator[TestClient]:
    made = services(home)
    made.rag.index(f"file://{origin}")
    with TestClient(build_app(made, webhook_secret="s3cret"), base_url="http://127.0.0.1") as running:
        yield running


def test_questions(client: TestClient) -> None:
    answer = client.post("/v1/ask", json={"question": "KafkaBrokerDown"}).json()
    assert answer["mode"] == "extractive"
    assert answer["passages"][0]["citation"].startswith("kafka.md:")
    found = client.post("/v1/search", json={"query": "kafka", "limit": 1}).json()
    assert len(found["passages"]) == 1
    whole = client.post("/v1/search", json={"query": "kafka", "limit": 1, "expand": "section"}).json()
    assert whole["passages"][0]["last_line"] >= found["passages"][0]["last_line"]
    assert client.get("/v1/sources").json()["sources"][0]["name"] == "ops"
    assert client.post("/v1/feedback", json={"id": answer["id"], "verdict": "up"}).status_code == 204
    with client.stream("POST", "/v1/ask", json={"question": "KafkaBrokerDown", "stream": True}) as stream:
        events = stream.read().decode()
    assert events.startswith("event: answer\ndata: {")


@pytest.mark.parametrize(
    "method, path, body, status",
    [
        ("POST", "/v1/ask", {"question": " "}, 400),
        ("POST", "/v1/ask", {}, 422),
        ("POST", "/v1/search", {"query": "x", "sources": ["nope"]}, 404),
        ("POST", "/v1/feedback", {"id": "nope", "verdict": "up"}, 404),
        ("GET", "/v1/jobs/nope", None, 404),
        ("GET", "/nothing", None, 404),
    ],
)
def test_bad_requests(client: TestClient, method: str, path: str, body: object, status: int) -> None:
    response = client.request(method, path, json=body)
    assert response.status_code == status
    assert "Traceback" not in response.text


def test_a_sync_is_a_job(client: TestClient, origin: Path) -> None:
    (origin / "new.md").write_text("# New\n\nzebra\n")
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "-m", "second")
    started = client.post("/v1/sync", json={})
    assert started.status_code == 202
    with client.stream("GET", f"/v1/jobs/{started.json()['id']}/events") as stream:
        last = json.loads(stream.read().decode().strip().splitlines()[-1].removeprefix("data: "))
    assert last["state"] == "done"
    assert last["result"][0] | {"head": ""} == {"source": "ops", "head": "", "added": 1, "changed": 0, "removed": 0}
    assert client.post("/v1/search", json={"query": "zebra"}).json()["passages"][0]["path"] == "new.md"
    assert client.delete(f"/v1/jobs/{started.json()['id']}").status_code == 202
    assert client.post("/v1/sync", json={"sources": ["nope"]}).status_code == 202


def test_a_push_is_taken_up(client: TestClient, origin: Path) -> None:
    (origin / "new.md").write_text("# New\n\nwalrus\n")
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "-m", "second")
    body = json.dumps({"ref": "refs/heads/main", "repository": {"clone_url": f"file://{origin}"}}).encode()
    headers = {"X-GitHub-Event": "push", "Content-Type": "application/json"}
    assert client.post("/v1/webhooks/push", content=body, headers=headers).status_code == 401
    headers["X-Hub-Signature-256"] = "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    accepted = client.post("/v1/webhooks/push", content=body, headers=headers)
    assert (accepted.status_code, accepted.json()) == (202, {"sources": ["ops"]})
    while "rag_source_changes_total 1" not in client.get("/metrics").text:
        time.sleep(0.02)
    assert client.post("/v1/search", json={"query": "walrus"}).json()["passages"][0]["path"] == "new.md"


def test_house(client: TestClient) -> None:
    health = client.get("/health").json()
    assert (health["status"], health["index"]["documents"]) == ("ok", 1)
    assert client.get("/ready").status_code == 200
    assert "rag_chunks 1" in client.get("/metrics").text
    assert {"/v1/ask", "/v1/search", "/v1/sync"} <= client.get("/openapi.json").json()["paths"].keys()


def test_a_path_with_another_method_says_so(client: TestClient) -> None:
    asked = client.get("/v1/ask")
    assert (asked.status_code, asked.json()["code"], asked.headers["allow"]) == (405, "method_not_allowed", "POST")
    assert client.get("/nowhere").json()["code"] == "not_found"


def test_mcp_is_mounted(client: TestClient) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Accept": "application/json, text/event-stream", "Host": "127.0.0.1:8082"}
    response = client.post("/mcp", json=call, headers=headers)
    with warnings.catch_warnings():
        # The SDK leaves a stream of each stateless request to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert response.status_code == 200
    assert "ask_devops" in response.text


def test_a_foreign_host_name_is_refused(client: TestClient) -> None:
    assert client.post("/v1/search", json={"query": "x"}, headers={"Host": "evil.example"}).status_code == 400


def test_a_key(origin: Path, home: Path) -> None:
    made = services(home, RAG_KEY="k3y", AVYAY_RAG_API_KEY_ENV="RAG_KEY")
    made.rag.index(str(origin))
    with TestClient(build_app(made, key="k3y"), base_url="http://127.0.0.1") as client:
        assert client.post("/v1/search", json={"query": "kafka"}).status_code == 401
        assert client.post("/mcp", json={}).status_code == 401
        good = {"Authorization": "Bearer k3y"}
        assert client.post("/v1/search", json={"query": "kafka"}, headers=good).status_code == 200
        assert client.get("/health").status_code == 200
        assert client.post("/v1/webhooks/push", content=b"{}").status_code == 403


def test_nothing_indexed_yet(home: Path) -> None:
    with TestClient(build_app(services(home)), base_url="http://127.0.0.1") as client:
        assert client.get("/ready").status_code == 503
        assert client.get("/health").json()["status"] == "degraded"
        response = client.post("/v1/ask", json={"question": "kafka"})
        assert (response.status_code, response.json()["code"]) == (409, "no_index")


def test_others_need_a_key(home: Path) -> None:
    from avyay.errors import PolicyError, UsageError

    with pytest.raises(PolicyError, match="Anyone who reaches"):
        serve_rag(services(home), Launch(host="0.0.0.0", port=0))
    with pytest.raises(UsageError, match="RAG_KEY, which is not set"):
        serve_rag(services(home, AVYAY_RAG_API_KEY_ENV="RAG_KEY"), Launch(port=0))
