"""Every output says the same, in its own form, and none says a secret."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from avyay.raksha.merge import finish
from avyay.raksha.report import sarif
from avyay.raksha.report.agent import agent_report
from avyay.raksha.report.escape import markdown, visible
from avyay.raksha.report.github import workflow_commands
from avyay.raksha.report.json import report_data
from avyay.raksha.report.markdown import summary
from avyay.raksha.report.sarif import sarif_document, write_sarif
from avyay.raksha.report.text import print_report
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Report, Rule, Skipped, Suppressed

SNAPSHOTS = Path(__file__).parent / "snapshots"
SECRET = "wJalr-very-secret-XUtnFEMI"
CODE = f"key = '{SECRET}'\nrun(cmd)\nrun(cmd)\n"
SECRETS = Rule(
    "hardcoded-secret", "Hardcoded secret in source", "critical", ("CWE-798",), owasp=("A07:2021",), bad="key = 'x'",
    why="Whoever reads the code has it.", good="key = os.environ['KEY']", fix="Read it from the environment.",
)  # fmt: skip
SHELL = Rule(
    "shell", "Command run by a shell", "high", ("CWE-78",), why="It runs.", bad="", good="", fix="Use a list.",
    precision="medium", languages=("python",), engine="semgrep",
)  # fmt: skip


@pytest.fixture
def report() -> Report:
    file = SourceFile("src/a é.py", CODE.encode(), "python")
    found = [
        file.finding(SECRETS, 7, 7 + len(SECRET), message=f"The key {SECRET} is in the source", secrets=(SECRET,)),
        Finding("shell", "high", "A shell runs | `cmd` @me", file.name, 2, 1, 2, 9, ("semgrep:shell", "bandit:B602")),
        Finding("shell", "high", "A shell runs cmd", file.name, 3, 1, 3, 9, ("semgrep:shell",), ("CWE-78",)),
    ]
    findings = finish(found, {file.name: file})
    return Report(
        root=Path("/home/user/project"),
        findings=tuple(findings[:2]),
        skipped=(Skipped("b.py", "Not valid Python.", "bandit"), Skipped("", "semgrep is not installed.", "semgrep")),
        files=147,
        seconds=3.2,
        engines={"checks": "0", "semgrep": "1.182.0", "bandit": "1.9.4"},
        suppressed=(Suppressed(findings[2], "inline", "a constant"),),
        rules=(SECRETS, SHELL),
        lines=9000,
    )


def rendered(report: Report, **options: object) -> str:
    console = Console(file=io.StringIO(), width=100, no_color=True, highlight=False)
    print_report(report, console, fail_on="high", **options)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def compare(name: str, text: str) -> None:
    """Against the stored snapshot; UPDATE_SNAPSHOTS=1 stores it."""
    path = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOTS.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_text_snapshot(report: Report) -> None:
    compare("report.txt", rendered(report, verbose=True))


def test_sarif_snapshot(report: Report) -> None:
    text = json.dumps(sarif_document(report, top=Path("/home/user")), indent=2, ensure_ascii=False)
    compare("report.sarif", text.replace(_version(), "0.0.0") + "\n")


def test_agent_snapshot(report: Report) -> None:
    compare("report.agent.txt", agent_report(report, fail_on="high", again="avyay scan . --agent") + "\n")


def test_markdown_snapshot(report: Report) -> None:
    compare("report.md", summary(report, fail_on="high"))


def _version() -> str:
    from avyay import __version__

    return __version__


def test_no_output_says_the_secret(report: Report, tmp_path: Path) -> None:
    write_sarif(tmp_path / "r.sarif", report)
    outputs = [
        rendered(report, verbose=True),
        (tmp_path / "r.sarif").read_text(),
        json.dumps(report_data(report, fail_on="high")),
        summary(report, fail_on="high"),
        agent_report(report, fail_on="high", again="x"),
        "\n".join(workflow_commands(report.findings)),
    ]
    for text in outputs:
        assert SECRET not in text
        assert "hardcoded-secret" in text


def test_conclusions(report: Report) -> None:
    clean = replace(report, findings=(), skipped=(), suppressed=())
    assert rendered(clean).endswith("No findings.\n")
    assert "not everything could" in rendered(replace(clean, skipped=report.skipped))
    assert rendered(replace(clean, files=0)).endswith("No files to scan.\n")
    low = replace(clean, findings=(replace(report.findings[0], severity="low"),), skipped=report.skipped)
    assert "None at high or above, but not everything could be checked." in rendered(low)
    assert agent_report(clean, fail_on="high", again="x") == "PASS: no findings in 147 files."
    assert agent_report(low, fail_on="high", again="x").startswith("INCOMPLETE")
    assert "✅ Clean" in summary(clean, fail_on="high")
    assert "✅ Nothing at high" in summary(replace(low, skipped=()), fail_on="high")


def test_many_findings_stay_readable(report: Report) -> None:
    many = replace(report, findings=tuple(replace(report.findings[1], line=n) for n in range(1, 1001)))
    assert "950 more" in agent_report(many, fail_on="high", again="x")
    assert "800 more" in summary(many, fail_on="high")
    assert len(workflow_commands(many.findings)) == 10


def test_workflow_commands_cannot_be_injected(report: Report) -> None:
    evil = replace(report.findings[1], path="a,line=1::x\n::error::y", message="m\n::set-output name=x::y")
    (line,) = workflow_commands([evil])
    assert "\n" not in line
    assert line.count("::") == 2 + line.split("::", 2)[2].count("::")
    assert "%0A::set-output" in line


def test_markdown_stays_text() -> None:
    assert markdown("![x](https://evil) @me <b>|`") == "!\\[x\\](https:\u200b//evil) @\u200bme \\<b\\>\\|\\`"


def test_control_characters_do_not_reach_the_terminal(report: Report) -> None:
    evil = replace(report.findings[1], path="a\x1b[2K.py", message="m\x1b]0;x\x07\u202e")
    text = rendered(replace(report, findings=(evil,), skipped=(Skipped("\x1b[1A", "r"),)))
    text += agent_report(replace(report, findings=(evil,)), fail_on="high", again="x")
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert visible("tab\tand\nline") == "tab\tand\nline"


def test_sarif_limits(report: Report) -> None:
    crowd = replace(report, findings=report.findings[:1] * 24_990, suppressed=report.suppressed * 100)
    run = sarif_document(crowd)["runs"][0]
    assert len(run["results"]) == 25_000
    assert sum("suppressions" in result for result in run["results"]) == 10
    notes = [note["message"]["text"] for note in run["invocations"][0]["toolExecutionNotifications"]]
    assert "90 results are left out here: GitHub takes no more of them." in notes


def test_sarif_stays_under_the_size_that_is_taken(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sarif, "MAXIMUM_BYTES", 20_000)
    words = random.Random(1)
    findings = [
        replace(report.findings[0], message=" ".join(str(words.random()) for _ in range(20)), line=number)
        for number in range(1, 201)
    ]
    document = sarif_document(replace(report, findings=tuple(findings)))
    results = document["runs"][0]["results"]
    assert 0 < len(results) < 200
    assert len(gzip.compress(json.dumps(document).encode())) < 30_000
    assert [result["locations"][0]["physicalLocation"]["region"]["startLine"] for result in results][:2] == [1, 2]


def test_sarif_is_written_whole_or_not_at_all(report: Report, tmp_path: Path) -> None:
    target = tmp_path / "r.sarif"
    target.mkdir()
    with pytest.raises(OSError):
        write_sarif(target, report)
    assert [path.name for path in tmp_path.iterdir()] == ["r.sarif"]


@pytest.mark.skipif(shutil.which("sarif-multitool") is None, reason="needs sarif-multitool")
def test_microsofts_validator_is_content(report: Report, tmp_path: Path) -> None:
    write_sarif(tmp_path / "r.sarif", report)
    done = subprocess.run(
        ["sarif-multitool", "validate", "r.sarif", "--rule-kind", "Sarif;Ghas", "--output", "out.sarif"],
        cwd=tmp_path,
        env={**os.environ, "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    results = json.loads((tmp_path / "out.sarif").read_text(encoding="utf-8-sig"))["runs"][0].get("results", [])
    assert results == [], done.stdout
