"""`avyay siddhi` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys


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
