"""What `pip install avyay` users get: the wheel, built from this tree and used from an environment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(into: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(into), str(ROOT)],
        check=True,
        capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000"},
        timeout=120,
    )
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `avyay` of a new environment that holds the wheel, and sees this one's libraries but not its avyay."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    (site,) = (folder / "lib").glob("python3.*/site-packages")
    # A path named in a .pth is searched, but .pth files inside it are not read: an editable avyay there stays unseen.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "avyay"


def run(program: Path, *arguments: str, cwd: Path, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "AVYAY_HOME": str(home / "avyay"), "LANG": "C.UTF-8"}
    return subprocess.run(
        [str(program), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=180
    )


def test_two_builds_are_bit_identical(wheel: Path, tmp_path: Path) -> None:
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (wheel, build(tmp_path))}
    assert len(digests) == 1


def test_the_wheel_runs_nothing_on_install(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".pth") or "sitecustomize" in name or ".data/scripts" in name]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"avyay"}


def test_the_wheel_is_complete(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "avyay"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    if not any(tracked):
        pytest.skip("not a git checkout")
    assert {name for name in tracked if name} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_version_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "--version", cwd=tmp_path, home=tmp_path)
    assert done.returncode == 0
    where = run(
        installed.parent / "python", "-c", "import avyay; print(avyay.__file__)", cwd=tmp_path, home=tmp_path
    ).stdout
    assert str(installed.parent.parent) in where


@pytest.mark.needs("git")
def test_quickstart_works_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """No key, no network, an empty home, a repository that is not ours."""
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "README.md").write_text(
        "# Widget\n\nMakes widgets.\n\n## Installation\n\nRun `pip install widget`, then `widget serve`.\n\n"
        "## Tests\n\nRun `pytest` in the repository.\n"
    )
    (repository / "app.py").write_text(
        "import os\nimport sys\n\n\ndef clean(name):\n    os.system('rm -rf ' + name)\n\n\nclean(sys.argv[1])\n"
    )
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=repository, check=True)
    done = run(installed, "quickstart", ".", cwd=repository, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "README.md:" in done.stdout
    assert "app.py" in done.stdout
    as_json = run(installed, "quickstart", ".", "--json", cwd=repository, home=tmp_path)
    document = json.loads(as_json.stdout)
    assert [step["state"] for step in document["steps"]] == ["done"] * 4
    assert subprocess.run(["git", "status", "--porcelain"], cwd=repository, capture_output=True).stdout == b""
