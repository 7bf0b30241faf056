"""`avyay events` as people and programs use it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from receiver import Receiver

from avyay.cli.app import run
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


def test_dead_letters(capsys: pytest.CaptureFixture[str]) -> None:
    with open_services() as services:
        deliveries = Deliveries(deliveries_file(services.paths))
    here = deliveries.begin("ops", Cursor)
    deliveries.add("ops", [Recorded("evt_1", "marga.provider.tripped", 0.0, {}, here)], here)
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
