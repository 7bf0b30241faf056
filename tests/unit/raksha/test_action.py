"""The GitHub Action, run as a runner would: its own steps, inputs as variables, outputs and summary as files."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
ACTION = ROOT / "action"
SPEC: dict[str, Any] = yaml.safe_load((ACTION / "action.yml").read_text())
BAD = "import yaml\n\n\ndef f(text):\n    return yaml.load(text)\n"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


class Job:
    """What a runner provides: a workspace, a temporary folder, and files for outputs and the summary."""

    def __init__(self, folder: Path) -> None:
        self.workspace = folder / "work"
        self.temp = folder / "runner temp"
        self.workspace.mkdir()
        program = self.temp / "raksha" / "bin"
        program.mkdir(parents=True)
        # In place of the installation: the package under test.
        (program / "python").symlink_to(sys.executable)
        (program / "avyay").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -P -m avyay "$@"\n')
        (program / "avyay").chmod(0o755)
        self.output = folder / "output"
        self.summary = folder / "summary.md"

    def run(self, **inputs: str) -> subprocess.CompletedProcess[str]:
        step = next(step for step in SPEC["runs"]["steps"] if step.get("id") == "scan")
        values = {name: str(one.get("default", "")) for name, one in SPEC["inputs"].items()} | inputs
        variables = {
            name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: values[match[1]], text)
            for name, text in step["env"].items()
        }
        self.output.write_text("")
        self.summary.write_text("")
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
            cwd=self.workspace,
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith("GITHUB_")},
                **variables,
                "GITHUB_ACTION_PATH": str(ACTION),
                "GITHUB_OUTPUT": str(self.output),
                "GITHUB_STEP_SUMMARY": str(self.summary),
                "RUNNER_TEMP": str(self.temp),
            },
            capture_output=True,
            text=True,
            timeout=120,
        )

    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.output.read_text().splitlines())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_findings_fail_the_step(job: Job) -> None:
    (job.workspace / "a.py").write_text(BAD)
    done = job.run()
    assert done.returncode == 1, done.stderr
    assert "::error file=a.py,line=5" in done.stdout
    assert "a.py:5" in job.summary.read_text()
    assert (job.workspace / "raksha-results.sarif").is_file()
    assert job.outputs() == {
        "verdict": "findings", "findings": "1", "critical": "0", "high": "1", "sarif_file": "raksha-results.sarif",
    }  # fmt: skip


def test_thresholds(job: Job) -> None:
    (job.workspace / "a.py").write_text(BAD)
    assert job.run(severity_threshold="critical").returncode == 0
    assert job.run(fail_on="never").returncode == 0
    assert job.outputs()["verdict"] in ("findings", "clean")
    assert job.run(severity_threshold="low", fail_on="critical").returncode == 0
    assert job.run(severity_threshold="HIGH").returncode == 2
    assert job.run(fail_on="sometimes").returncode == 2


def test_incomplete(job: Job) -> None:
    (job.workspace / "a.py").write_text("def (:\n")
    assert job.run().returncode == 3
    assert job.outputs()["verdict"] == "unchecked"
    assert job.run(allow_incomplete="true").returncode == 0
    assert job.run(paths="missing").returncode == 2


def test_inputs_are_data(job: Job, tmp_path: Path) -> None:
    (job.workspace / "my dir").mkdir()
    (job.workspace / "my dir" / "a.py").write_text("x = 1\n")
    (job.workspace / "--json").write_text("x\n")
    planted = tmp_path / "planted"
    assert job.run(paths=f"my dir\n$(touch {planted})").returncode == 2
    assert job.run(paths="my dir\n--json\n").returncode == 0
    assert job.run(diff=f"; touch {planted}").returncode == 2
    assert job.run(sarif_file="x.sarif\nverdict=hacked").returncode in (0, 2)
    assert job.outputs().get("verdict") != "hacked"
    assert not planted.exists()


def test_no_expression_in_a_script_and_all_actions_pinned() -> None:
    for step in SPEC["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        if "uses" in step:
            assert re.search(r"@[0-9a-f]{40}$", step["uses"])
    scan = next(step for step in SPEC["runs"]["steps"] if step.get("id") == "scan")
    used = set(re.findall(r"inputs\.(\w+)", str(SPEC["runs"])))
    assert used == set(SPEC["inputs"])
    assert set(re.findall(r"\$\{?(RAKSHA_\w+)", (ACTION / "scan.sh").read_text())) <= set(scan["env"])


def test_the_read_me_names_every_input_and_output() -> None:
    text = (ACTION / "README.md").read_text()
    for name in (*SPEC["inputs"], *SPEC["outputs"]):
        assert f"`{name}`" in text, name


def test_scripts_parse() -> None:
    for path in ACTION.glob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_pre_commit_hooks_call_what_exists() -> None:
    for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text()):
        assert hook["entry"].startswith("avyay scan")
        assert hook["language"] == "python"


EXAMPLES = sorted((ACTION / "examples").glob("*.yml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_workflows_use_what_there_is_and_ask_for_little(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    (job,) = workflow["jobs"].values()
    assert set(job["permissions"].items()) <= {("contents", "read"), ("security-events", "write")}
    step = next(step for step in job["steps"] if "avyay/action@" in step.get("uses", ""))
    assert set(step.get("with", {})) <= set(SPEC["inputs"])
    assert set(re.findall(r"steps\.raksha\.outputs\.(\w+)", path.read_text())) <= set(SPEC["outputs"])
    assert not any("${{" in step.get("run", "") for step in job["steps"])


@pytest.mark.skipif(shutil.which("zizmor") is None, reason="needs zizmor")
@pytest.mark.parametrize("path", [ACTION / "action.yml", *EXAMPLES], ids=lambda path: path.stem)
def test_zizmor_is_content(path: Path) -> None:
    command = ["zizmor", "--offline", "--no-config", "--persona=pedantic", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="needs actionlint")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_actionlint_is_content(path: Path) -> None:
    done = subprocess.run(["actionlint", "-no-color", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def tiny_wheel(folder: Path) -> str:
    """A package to install without network; returns the line of the lock file."""
    folder.mkdir()
    path = folder / "tiny-1.0-py3-none-any.whl"
    files = {
        "tiny.py": "",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files["tiny-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return f"tiny==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.mark.parametrize("genuine", [True, False])
def test_the_install_step_makes_a_scanner_of_this_commit(tmp_path: Path, genuine: bool) -> None:
    lock = tiny_wheel(tmp_path / "wheels")
    source = tmp_path / "checked out"
    (source / "requirements").mkdir(parents=True)
    (source / "requirements" / "runtime.txt").write_text(lock if genuine else lock[:-8] + "0" * 7 + "\n")
    shutil.copytree(ACTION, source / "action")
    (source / "avyay").symlink_to(ROOT / "avyay")
    step = next(step for step in SPEC["runs"]["steps"] if step.get("id") == "install")
    temp = tmp_path / "runner temp"
    temp.mkdir()
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "GITHUB_ACTION_PATH": str(source / "action"),
            "RUNNER_TEMP": str(temp),
            "RAKSHA_PYTHON": sys.executable,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        },
        capture_output=True,
        text=True,
        timeout=180,
    )
    if not genuine:
        assert done.returncode != 0
        assert "HASH" in done.stderr.upper()
        return
    assert done.returncode == 0, done.stderr
    program = [str(temp / "raksha" / "bin" / "avyay"), "--version"]
    version = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert version.stdout.startswith("avyay "), version.stderr
    has = [str(temp / "raksha" / "bin" / "python"), "-c", "import tiny"]
    assert subprocess.run(has, timeout=60).returncode == 0
