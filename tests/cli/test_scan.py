"""`avyay scan` as a user meets it: exit codes, outputs, `raksha` as another name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BAD = "import subprocess\n\n\ndef f(cmd):\n    subprocess.run(cmd, shell=True)\n"


def avyay(*arguments: str, cwd: Path | None = None, entry: str = "main") -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.argv[0] = 'avyay'; from avyay.cli.main import {entry}; {entry}()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    root.mkdir()
    (root / "api.py").write_text(BAD)
    return root


def test_the_table_of_the_article(bad: Path) -> None:
    done = avyay("scan", "--severity", "critical", "--severity", "high", cwd=bad, entry="raksha")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "🛡️ RAKṢĀ Security Scan"
    assert lines[2] == f"Scanning: {bad}"
    assert lines[3].startswith("Files analyzed: 1 | Time: ")
    assert "│ HIGH   │ api.py:5 │" in done.stdout
    assert done.stderr == ""


def test_severity_filters_the_view_only(bad: Path) -> None:
    done = avyay("scan", "--severity", "critical", str(bad))
    assert done.returncode == 1
    assert "api.py" not in done.stdout
    assert "1 not shown" in done.stdout


def test_fail_on(bad: Path) -> None:
    assert avyay("scan", str(bad), "--fail-on", "critical").returncode == 0
    assert avyay("scan", str(bad), "--fail-on", "nonsense").returncode == 2


def test_clean_unchecked_and_missing(tmp_path: Path) -> None:
    (tmp_path / "ok.py").write_text("x = 1\n")
    clean = avyay("scan", str(tmp_path))
    assert (clean.returncode, "No findings." in clean.stdout) == (0, True)
    (tmp_path / "broken.py").write_text("def (:\n")
    unchecked = avyay("scan", str(tmp_path))
    assert unchecked.returncode == 3
    assert "Could not check 1:" in unchecked.stdout
    missing = avyay("scan", str(tmp_path / "nope"))
    assert (missing.returncode, "Traceback" in missing.stderr) == (2, False)
    assert "There is no file or folder" in missing.stderr


def test_json_and_sarif(bad: Path, tmp_path: Path) -> None:
    sarif = tmp_path / "raksha-results.sarif"
    done = avyay("scan", str(bad), "--json", "--sarif", str(sarif))
    document = json.loads(done.stdout)
    assert (document["schema_version"], document["verdict"], document["summary"]["high"]) == (1, "findings", 1)
    (finding,) = document["findings"]
    assert (finding["path"], finding["line"], finding["severity"]) == ("api.py", 5, "high")
    log = json.loads(sarif.read_text())
    assert log["version"] == "2.1.0"
    (result,) = log["runs"][0]["results"]
    assert result["level"] == "error"
    assert result["partialFingerprints"]["primaryLocationLineHash"] == finding["fingerprint"]
    assert [path.name for path in tmp_path.iterdir() if "sarif" in path.name] == ["raksha-results.sarif"]


def test_unwritable_output_is_refused_before_the_scan(bad: Path) -> None:
    done = avyay("scan", str(bad), "--sarif", str(bad / "none" / "x.sarif"))
    assert done.returncode == 2
    assert "Cannot write" in done.stderr


def test_rules_and_explain() -> None:
    listed = json.loads(avyay("raksha", "rules", "--json").stdout)["rules"]
    assert {"bandit-b501", "bandit-b506"} <= {rule["id"] for rule in listed}
    page = avyay("explain", "bandit-b501", entry="raksha")
    assert page.returncode == 0
    assert "CWE-295" in page.stdout
    typo = avyay("raksha", "explain", "bandit-b50")
    assert typo.returncode == 2
    assert "Did you mean" in typo.stderr


RULE = """\
rules:
  - id: demo-yaml
    languages: [python]
    severity: ERROR
    message: Unsafe loader.
    metadata: {cwe: CWE-502, aliases: ["bandit:B506"], fix-safety: safe}
    pattern: yaml.load($X)
    fix: yaml.safe_load($X)
"""


def test_fix_dry_run_and_for_real(tmp_path: Path) -> None:
    (tmp_path / "rule.yaml").write_text(RULE)
    root = tmp_path / "shop"
    root.mkdir()
    (root / "a.py").write_text("import yaml\n\nyaml.load(f)\n")
    dry = avyay("scan", ".", "--rules", "../rule.yaml", "--fix", "--dry-run", cwd=root)
    assert dry.returncode == 1
    assert "-yaml.load(f)\n+yaml.safe_load(f)\n" in dry.stdout
    assert "safe_load" not in (root / "a.py").read_text()
    done = avyay("scan", ".", "--rules", "../rule.yaml", "--fix", cwd=root)
    assert (done.returncode, "Repaired a.py:3 demo-yaml" in done.stderr) == (0, True)
    assert (root / "a.py").read_text() == "import yaml\n\nyaml.safe_load(f)\n"
    assert avyay("scan", ".", "--fix=unsafe", cwd=root).returncode == 0
    assert avyay("scan", ".", "--fix=nonsense", cwd=root).returncode == 2
    assert avyay("scan", ".", "--dry-run", cwd=root).returncode == 2


def test_agent_output_and_baseline(bad: Path, tmp_path: Path) -> None:
    told = avyay("scan", ".", "--agent", cwd=bad)
    assert told.returncode == 1
    assert told.stdout.startswith("FAIL: 1 findings at high or above")
    assert told.stdout.rstrip().endswith("Verify: avyay scan . --agent")
    baseline = tmp_path / "baseline.json"
    assert avyay("scan", ".", "--write-baseline", str(baseline), cwd=bad).returncode == 0
    accepted = avyay("scan", ".", "--baseline", str(baseline), cwd=bad)
    assert (accepted.returncode, "1 suppressed." in accepted.stdout) == (0, True)
    assert avyay("scan", ".", "--baseline", "none.json", cwd=bad).returncode == 2


def test_broken_rule_file_is_named(bad: Path, tmp_path: Path) -> None:
    (tmp_path / "rule.yaml").write_text("rules:\n  - id: [\n")
    done = avyay("scan", str(bad), "--rules", str(tmp_path / "rule.yaml"))
    assert done.returncode == 2
    assert "rule.yaml:3: broken YAML" in done.stderr


def test_markdown_and_annotations(bad: Path, tmp_path: Path) -> None:
    done = avyay("scan", ".", "--github", "--markdown", str(tmp_path / "summary.md"), cwd=bad)
    assert "::error file=api.py,line=5" in done.stdout
    assert "| 🟠 high | api.py:5 |" in (tmp_path / "summary.md").read_text()
