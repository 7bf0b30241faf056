"""The engine's queue over HTTP, and its board."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from daemon import wait_for
from starlette.testclient import TestClient

from avyay.config import Environment
from avyay.errors import CorruptError, PolicyError, UsageError
from avyay.serve.engine import build_app, dispatching, serve_engine
from avyay.serve.launch import Launch
from avyay.wiring import Services, open_services


def services(home: Path, **variables: str) -> Services:
    values = {"AVYAY_HOME": str(home / "avyay"), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    return open_services(directory=home, environment=Environment({**values, **variables}))


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    with TestClient(build_app(services(home)), base_url="http://127.0.0.1") as found:
        yield found


def add(client: TestClient, **task: object) -> str:
    answer = client.post("/v1/engine/tasks", json={"tasks": [{"title": "Mend it", **task}]})
    assert answer.status_code == 201
    return str(answer.json()["added"][0])


def test_a_task_from_its_beginning_to_its_end(client: TestClient) -> None:
    first = add(client, id="first", files=["a/*.py"], requires=["os:linux"])
    second = add(client, id="second", needs=["first"], title="Then <i>this</i>")
    rows = client.get("/v1/engine/tasks").json()
    assert ([row["state"] for row in rows["tasks"]], rows["counts"]) == (
        ["ready", "blocked"],
        {"ready": 1, "blocked": 1},
    )
    assert rows["tasks"][0]["requires"] == ["os:linux"]
    assert "first" in str(client.get(f"/v1/engine/tasks/{second}/why").json()["reasons"])
    assert "first" in client.get("/v1/engine/graph").text
    assert client.get("/v1/engine/graph?format=mermaid").text.startswith(("graph", "flowchart"))
    assert client.post(f"/v1/engine/tasks/{first}/cancel", json={"reason": "no"}).json()["state"] == "cancelled"
    assert client.post(f"/v1/engine/tasks/{first}/retry").json()["state"] == "ready"
    story = client.get(f"/v1/engine/tasks/{first}").json()
    assert len(story["history"]) >= 3
    assert "Mend it" in story["story"]
    log = client.get("/v1/engine/log?limit=1").json()["history"]
    assert client.get(f"/v1/engine/log?after={log[-1]['number']}").json()["history"][0]["number"] > log[-1]["number"]
    page = client.get("/").text
    assert "Then &lt;i&gt;this&lt;/i&gt;" in page
    assert 'engine_tasks{state="ready"} 1' in client.get("/metrics").text


def test_approval_and_fingerprints(client: TestClient) -> None:
    task = add(client, approval=True, fingerprint="f")
    assert client.get(f"/v1/engine/tasks/{task}").json()["state"] == "blocked"
    assert client.post(f"/v1/engine/tasks/{task}/approve", json={"by": "me"}).json()["state"] == "ready"
    assert add(client, fingerprint="f") == task


@pytest.mark.parametrize(
    "method, path, body, status",
    [
        ("GET", "/v1/engine/tasks/nope", None, 404),
        ("GET", "/v1/engine/tasks?state=nope", None, 422),
        ("POST", "/v1/engine/tasks", {"tasks": []}, 422),
        ("POST", "/v1/engine/tasks", {"tasks": [{"title": "a", "needs": ["missing"]}]}, 400),
        ("POST", "/v1/engine/tasks/nope/retry", None, 404),
        ("DELETE", "/v1/engine/tasks", None, 405),
    ],
)
def test_bad_requests(client: TestClient, method: str, path: str, body: object, status: int) -> None:
    answer = client.request(method, path, json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_a_queue_that_cannot_be_opened(home: Path) -> None:
    made = services(home)
    made.paths.component("engine").joinpath("engine.db").write_bytes(b"no database, whatever its name" * 200)
    with pytest.raises(CorruptError):
        build_app(made)


def test_others_need_a_key(home: Path) -> None:
    with pytest.raises(PolicyError, match="your agents"):
        serve_engine(services(home), Launch(host="0.0.0.0", port=0))


@pytest.mark.needs("git")
def test_with_its_loop_tasks_are_done_and_told(home: Path, tmp_path: Path) -> None:
    """A task that comes over HTTP is worked on, verified, merged, and told as an event."""
    root = tmp_path / "code"
    root.mkdir()
    (root / "README.md").write_text("# Code\n")
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["commit", "--quiet", "-m", "first"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)
    agent = "{name: writer, kind: command, command: [sh, -c, 'echo x > x.txt']}"
    config = home / "avyay.yaml"
    config.write_text(f"engine:\n  repository: {root}\n  agents: [{agent}]\n  tick: 0.2\n")
    values = {"AVYAY_HOME": str(home / "avyay"), "PATH": os.environ["PATH"], "HOME": str(home)}
    made = open_services(config_file=config, environment=Environment(values))
    app = build_app(made, duties=[partial(dispatching, made)])
    with TestClient(app, base_url="http://127.0.0.1") as client:
        task = add(client, accept="test -e x.txt", files=["x.txt"])
        wait_for(lambda: client.get(f"/v1/engine/tasks/{task}").json()["state"] in ("done", "failed", "dead"), 60)
        found = client.get(f"/v1/engine/tasks/{task}").json()
        assert found["state"] == "done", found["story"]
        names = "/v1/events?name=engine.task.merged&limit=5&after=start"
        wait_for(lambda: len(client.get(names).json()["events"]) == 1)


def test_a_loop_without_agents_is_refused(home: Path, tmp_path: Path) -> None:
    made = services(home)
    for command in ("init --quiet --initial-branch=main", "commit --quiet --allow-empty --message=first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)

    async def main() -> None:
        with pytest.raises(UsageError, match="No node has an agent"):
            async with dispatching(made, directory=tmp_path):
                raise AssertionError("it began")

    asyncio.run(main())
