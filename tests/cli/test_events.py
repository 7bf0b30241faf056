"""`avyay events` as people and programs use it."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from receiver import Receiver

from avyay.cli.app import run
from avyay.clock import SYSTEM_CLOCK
from avyay.config import Environment
from avyay.events.build import deliveries_file
from avyay.events.deliveries import Deliveries
from avyay.events.reader import Cursor, Recorded
from avyay.ports import Event
from avyay.resilience.backoff import Backoff
from avyay.wiring import open_services


def avyay(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run(["events", *arguments])
    return code, capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    with open_services() as services:
        services.events.publish(Event("marga.provider.tripped", {"provider": "openai"}))
        services.events.publish(Event("rag.documents.indexed"))
    code, out = avyay(capsys, "list", "--name", "marga.*", "--json")
    document = json.loads(out)
    assert (code, document["schema_version"], len(document["events"])) == (0, 1, 1)
    assert document["events"][0]["data"] == {"provider": "openai"}
    assert "marga.provider.tripped" in avyay(capsys, "list")[1]
    after = json.loads(avyay(capsys, "list", "--after", document["cursor"], "--json")[1])
    assert after["events"] == []
    assert avyay(capsys, "list", "--after", "nonsense")[0] == 2


def test_a_queue_that_cannot_be_reached_hides_nothing_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with open_services() as services:
        services.events.publish_now(Event("rag.documents.indexed"))
    config = tmp_path / "avyay.yaml"
    config.write_text("engine: {queue_url: 'postgresql://nobody@127.0.0.1:9/none'}\n")
    code, out = avyay(capsys, "list", "--json", "--config", str(config))
    assert (code, len(json.loads(out)["events"])) == (0, 1)


def test_dead_letters(capsys: pytest.CaptureFixture[str]) -> None:
    with open_services() as services:
        deliveries = Deliveries(deliveries_file(services.paths))
    here = deliveries.begin("ops", Cursor)
    deliveries.add("ops", [Recorded("evt_1", "marga.provider.tripped", SYSTEM_CLOCK.now(), {}, here)], here)
    deliveries.failed(1, "HTTP 500", Backoff(attempts=1), lambda: 0.5)
    deliveries.close()
    assert json.loads(avyay(capsys, "dead", "--json")[1])["dead"][0]["problem"] == "HTTP 500"
    assert avyay(capsys, "retry")[0] == 2
    assert avyay(capsys, "retry", "evt_2")[0] == 2
    assert json.loads(avyay(capsys, "retry", "evt_1", "--json")[1])["retried"] == 1
    assert json.loads(avyay(capsys, "deliveries", "--json")[1])["counts"] == {"ops": {"waiting": 1}}


def test_a_test_message(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPS_SECRET", "whsec_" + base64.b64encode(b"s" * 24).decode())
    assert avyay(capsys, "test")[0] == 2  # nobody is configured
    with Receiver([204, 500]) as receiver:
        config = tmp_path / "avyay.yaml"
        hook = f'{{"name": "ops", "url": "{receiver.url}", "secret_env": "OPS_SECRET"}}'
        config.write_text(f"events: {{webhooks: [{hook}]}}\n")
        assert avyay(capsys, "test", "--config", str(config))[0] == 0
        code, out = avyay(capsys, "test", "--config", str(config), "--json")
    assert (code, json.loads(out)["receivers"]) == (3, {"ops": "HTTP 500"})


def test_replay(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_services() as services:
        services.events.publish_now(Event("marga.provider.tripped"), Event("rag.documents.indexed"))
        file = deliveries_file(services.paths)
    assert avyay(capsys, "replay", "--since", "1h")[0] == 2  # nobody is configured
    config = tmp_path / "avyay.yaml"
    hooks = [
        {"name": "ops", "url": "https://example.com/a", "secret_env": "S", "events": ["marga.*"]},
        {"name": "all", "url": "https://example.com/b", "secret_env": "S"},
    ]
    config.write_text(json.dumps({"events": {"webhooks": hooks}}))
    monkeypatch.setenv("AVYAY_CONFIG", str(config))
    assert json.loads(avyay(capsys, "replay", "--since", "1h", "--json")[1])["replayed"] == {"ops": 1, "all": 2}
    deliveries = Deliveries(file)
    assert deliveries.counts() == {"ops": {"waiting": 1}, "all": {"waiting": 2}}
    for number in (1, 2, 3):
        deliveries.delivered(number)
    identity = next(row.event for row in deliveries.rows() if row.name == "rag.documents.indexed")
    assert json.loads(avyay(capsys, "replay", identity, "--to", "all", "--json")[1])["replayed"] == {"all": 1}
    assert deliveries.counts() == {"ops": {"delivered": 1}, "all": {"delivered": 1, "waiting": 1}}
    deliveries.close()
    for arguments in (["evt_nothing"], [], ["--since", "soon"], [identity, "--since", "1h"], [identity, "--to", "x"]):
        assert avyay(capsys, "replay", *arguments)[0] == 2


def test_tail_shows_what_happens(tmp_path: Path) -> None:
    """In a process of its own: it goes on until it is interrupted."""
    environment = {**os.environ, "AVYAY_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    services = open_services(environment=Environment(environment))
    services.events.publish_now(Event("marga.provider.tripped", {"n": 0}))
    command = [sys.executable, "-m", "avyay", "events", "tail", "--kind", "marga.*", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    assert process.stdout is not None
    for n in range(3):
        assert json.loads(process.stdout.readline())["data"] == {"n": n}
        services.events.publish_now(Event("marga.provider.tripped", {"n": n + 1}))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stdout.close()
    services.close()
