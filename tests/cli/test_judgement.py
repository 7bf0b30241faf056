"""`avyay marga cache`, `anomalies`, `calibrate`, `replay` and the MCP server, as users and agents start them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from avyay.marga.cache import Entry, tenant_of
from avyay.marga.cache_store import DiskCache


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "avyay.yaml").write_text(
        "marga:\n  discover: false\n  providers:\n"
        "    - {name: one, kind: fake, endpoint: 'http://one', models: [{name: small, tier: local, input_price: 1,"
        " output_price: 1}, {name: gpt-4o, tier: premium}]}\n"
    )
    return tmp_path


def avyay(home: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AVYAY_HOME": str(home / "home"), "AVYAY_CONFIG": str(home / "avyay.yaml")}
    return subprocess.run(
        [sys.executable, "-m", "avyay", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=home,
        env=environment,
        timeout=60,
        check=False,
    )


def test_the_cache_on_disk_is_shown_and_forgotten(home: Path) -> None:
    empty = avyay(home, "marga", "cache", "--json")
    assert empty.returncode == 0, empty.stderr
    assert json.loads(empty.stdout)["saved_usd"] == "0"
    assert avyay(home, "marga", "cache", "--clear").returncode == 2  # nothing is kept on disk
    folder = home / "home" / "data" / "marga"
    store = DiskCache(folder / "cache.db", 1_000_000)
    for name, customer in (("a", None), ("b", "acme")):
        tenant = tenant_of(None, customer)
        key = name.encode() * 20
        store.put(Entry(key, tenant, 0, 1e12, False, "application/json", b"{}", "p", "m", "local", 1, 1, 1, "d"), 1.0)
    store.close()
    found = json.loads(avyay(home, "marga", "cache", "--clear", "--customer", "acme", "--json").stdout)
    assert (found["cleared"], found["entries"]) == (1, 1)
    assert json.loads(avyay(home, "marga", "cache", "--clear", "--json").stdout)["entries"] == 0


def test_nothing_unusual_is_no_finding(home: Path) -> None:
    done = avyay(home, "marga", "anomalies", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["told"] == []


def test_calibration_refuses_what_is_not_better(home: Path) -> None:
    rng = random.Random(1)
    lines = [
        json.dumps({"prompt": f"question {n} {'x' * rng.randint(1, 50)}", "weak": 0, "strong": rng.random() < 0.5})
        for n in range(200)
    ]
    (home / "labels.jsonl").write_text("\n".join(lines))
    done = avyay(home, "marga", "calibrate", "--labels", "labels.jsonl", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert not found["adopted"]
    assert set(found["over"]) == {"scorer", "length", "random"}
    assert not (home / "home" / "data" / "marga" / "calibration.json").exists()


def test_usage_of_another_tool_is_replayed(home: Path) -> None:
    spend = {"request_id": "r", "model": "openai/gpt-4o", "spend": 0.5, "prompt_tokens": 100, "completion_tokens": 10}
    (home / "spend.json").write_text(json.dumps([{**spend, "startTime": "2026-01-02 03:04:05"}] * 3))
    done = avyay(home, "marga", "replay", "spend.json", "--from", "litellm", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["calls"], found["recorded_cost_usd"]) == (3, "1.5")
    assert found["before"] == {"openai/gpt-4o": 3}
    (home / "usage.jsonl").write_text(
        json.dumps({"model": "gpt-4o", "usage": {"prompt_tokens": 10, "completion_tokens": 5}}) + "\n"
    )
    for name, calls in (("usage.jsonl", 1), ("spend.json", 3)):
        guessed = avyay(home, "marga", "replay", "--from", name, "--json")
        assert json.loads(guessed.stdout)["calls"] == calls
    assert avyay(home, "marga", "replay", "--from", "absent.jsonl").returncode == 2
    assert avyay(home, "marga", "replay", "--from", "openai").returncode == 2


def test_the_mcp_server_ends_quietly_when_its_client_goes(home: Path) -> None:
    done = avyay(home, "mcp", "marga")
    assert done.returncode == 0
    assert "internal error" not in done.stderr
