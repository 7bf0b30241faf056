"""`avyay scan --triage` through the real router: tiers, recorded decisions, money, and no finding taken away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from upstream import Reply, Upstream

ROOT = str(Path(__file__).resolve().parents[2])
CODE = "import yaml\n\n\ndef f(text):\n    return yaml.load(text)\n"
CORS = "from flask_cors import CORS\nCORS(app)\n"


def avyay(folder: Path, upstream: Upstream, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"OPENAI_API_KEY": "sk-canary-0123456789abcdef", "OPENAI_BASE_URL": f"{upstream.url}/v1"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "avyay", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ROOT, "AVYAY_HOME": str(folder / "home"), **environment},
        cwd=folder,
    )


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text(CODE)
    (tmp_path / "code" / "b.py").write_text(CORS)
    return tmp_path


def test_opinions_come_with_reason_model_and_decision(project: Path, upstream: Upstream) -> None:
    upstream.default = Reply('{"verdict": "false-positive", "reason": "The text is a constant."}', input=50, output=9)
    done = avyay(project, upstream, "scan", "code", "--triage", "--json")
    assert done.returncode == 1, "an opinion hides nothing"
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    assert len(findings) >= 2
    for finding in findings:
        assert finding["triage"]["verdict"] == "false-positive"
        assert finding["triage"]["reason"] == "The text is a constant."
        shown = avyay(project, upstream, "marga", "decisions", "--json")
        assert finding["triage"]["decision"] in shown.stdout
    assert "Second opinions on" in done.stderr
    assert len({call.body["model"] for call in upstream.calls}) == 2, "a cheap tier and a strong one"


def test_without_money_nobody_is_asked(project: Path, upstream: Upstream) -> None:
    (project / "avyay.yaml").write_text("raksha: {triage_budget: '0'}\n")
    done = avyay(project, upstream, "scan", "code", "--triage", "--json", "--config", "avyay.yaml")
    assert done.returncode == 1
    assert upstream.calls == []
    assert "the budget is spent" in done.stderr


def test_a_provider_that_fails_leaves_the_scan_standing(project: Path, upstream: Upstream) -> None:
    upstream.default = Reply("nonsense")
    done = avyay(project, upstream, "scan", "code", "--triage", "--json")
    assert {finding["triage"]["verdict"] for finding in json.loads(done.stdout)["findings"]} == {"unsure"}
    assert done.returncode == 1
