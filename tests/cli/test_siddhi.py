"""`avyay siddhi` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def avyay(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avyay", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_decide_over_json_lines() -> None:
    start = {"type": "start", "cap_usd": 30, "bar": 0.05, "gain_usd": 300, "overspend": 1.0, "prior": None}
    offer = {"type": "offer", "id": "h0", "segment": "s1", "cpc_usd": 2.5}
    lines = "\n".join(json.dumps(line) for line in (start, offer, {"type": "end"}))
    done = avyay("siddhi", "decide", "--stdio", "--mode", "strict", given=lines)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == "h0"
    assert "too expensive" in done.stderr
    broken = avyay("siddhi", "decide", "--stdio", given="{")
    assert (broken.returncode, "Line 1" in broken.stderr) == (2, True)
    assert avyay("siddhi", "decide").returncode == 2


def test_power() -> None:
    done = avyay("siddhi", "power", "--price", "0.5", "--bar", "0.03", "--rate", "0.06", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["clicks"], round(found["fixed"], 2)) == (0, 60, 0.29)
    refused = avyay("siddhi", "power", "--price", "40")
    assert refused.returncode == 5
    assert "cannot decide" in refused.stderr


def test_demo() -> None:
    done = avyay("siddhi", "demo", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["label"].startswith("DEMO")
    assert {one["state"] for one in found["hypotheses"]} >= {"VALIDATED", "KILLED"}
    assert all(one["billed"] <= 30 for one in found["hypotheses"])
    assert "made-up" in done.stderr


def test_from_a_file_to_a_page(tmp_path: Path) -> None:
    lines = [
        "I hate having to match supplier invoices to bank payments. It takes me hours every week.",
        "Every month we match supplier invoices and bank payments by hand. So tedious.",
        "Is there really nothing that can match invoices to bank payments? I'd pay $20 a month.",
    ]
    rows = [{"text": line, "url": f"https://a.example/{i}", "source": f"s{i % 2}"} for i, line in enumerate(lines)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = tmp_path / "avyay.yaml"
    settings.write_text(
        "rag: {embedder: {name: hashing}}\nmarga: {discover: false}\n"
        f"siddhi:\n  mine: {{file: [{tmp_path}/c.jsonl]}}\n"
        f"  page: {{contact: 'Ann', publish: 'directory:{tmp_path}/web', url: 'https://a.example/{{id}}'}}\n"
    )

    def siddhi(*arguments: str) -> subprocess.CompletedProcess[str]:
        return avyay("siddhi", *arguments, "--config", str(settings))

    assert "3 new" in siddhi("mine").stdout
    assert siddhi("score").returncode == 0
    honest = settings.read_text()
    settings.write_text(honest.replace("'Ann'", "'Ann, trusted by 2,000 teams'"))
    refused = siddhi("run")
    assert "may not be shown" in refused.stdout
    assert "invented users" in refused.stdout
    assert not (tmp_path / "web").exists()
    settings.write_text(honest)
    ran = siddhi("run", "--json")
    assert ran.returncode == 0, ran.stderr
    assert "pages made" in ran.stdout
    for page in ("h1/index.html", "h1/b/index.html"):
        assert "does not exist yet" in (tmp_path / "web" / page).read_text()
    (one,) = json.loads(siddhi("status", "--json").stdout)["hypotheses"]
    assert (one["state"], one["scored_by"]) == ("TESTING", "rule")
    assert "https://a.example/" in siddhi("show", "h1").stdout
    assert "SCORED -> GENERATING" in siddhi("why", "h1").stdout
    assert siddhi("override", "h1", "KILLED", "--reason", "changed my mind").returncode == 0
    assert "(by hand): changed my mind" in siddhi("why", "h1").stdout
    assert siddhi("page", "h1", "--undo").returncode == 0
    assert "has ended" in (tmp_path / "web" / "h1" / "b" / "index.html").read_text()
    assert "$30.00 a hypothesis" in siddhi("budget").stdout
    assert siddhi("stop", "--all").returncode == 0
    assert "HALTED" in siddhi("status").stdout
    assert siddhi("resume").returncode == 0
    refused = siddhi("run", "--mode", "live")
    assert (refused.returncode, "switched off" in refused.stderr) == (5, True)
    (tmp_path / "home").mkdir()
    for bad in (
        ("run", "--mode", "nonsense"),
        ("mine", "nowhere"),
        ("stop",),
        ("override", "h1", "X", "--reason", "y"),
    ):
        assert siddhi(*bad).returncode == 2
