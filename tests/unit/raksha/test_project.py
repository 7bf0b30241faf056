"""A project knows who works on it and what it depends on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from avyay.raksha.project import Allowed, Project


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def test_without_git_there_are_no_authors(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert project.git_emails == frozenset()
    assert project.top == tmp_path
    assert not project.online


@pytest.mark.needs("git")
def test_people_and_manifests(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.email", "Ada@Lovelace.org")
    (tmp_path / "CODEOWNERS").write_text("* ops@corp.io\n")
    (tmp_path / "pyproject.toml").write_text('authors = [{ email = "pack@corp.io" }]\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "package.json").write_text('{"name": "x", "author": "Web <web@corp.io>"}')
    git(tmp_path, "add", ".")
    git(
        tmp_path, "-c", "user.name=Ada", "commit", "-q", "--author", "Ada <Ada@Lovelace.org>",
        "-m", "First\n\nCo-authored-by: Bob <bob@corp.io>",
    )  # fmt: skip
    names = ("CODEOWNERS", "pyproject.toml", "sub/package.json")
    project = Project(tmp_path, names, Allowed(emails=frozenset({"me@allowed.io"})))
    assert {"ada@lovelace.org", "bob@corp.io"} <= project.git_emails
    assert {"ops@corp.io", "pack@corp.io", "web@corp.io"} <= project.metadata_emails
    assert "me@allowed.io" in project.known_emails
    assert set(project.manifests) == {"pyproject.toml", "sub/package.json"}
    below = Project(tmp_path / "sub", ("package.json",))
    assert {Path(name).name for name in below.manifests} == {"package.json", "pyproject.toml"}

    before = Project(tmp_path, names).fingerprint
    assert Project(tmp_path, names).fingerprint == before
    (tmp_path / "pyproject.toml").write_text("changed\n")
    assert Project(tmp_path, names).fingerprint != before


def test_read_refuses_large_and_missing(tmp_path: Path) -> None:
    (tmp_path / "big").write_text("x" * 100)
    project = Project(tmp_path)
    assert project.read("big", limit=10) is None
    assert project.read("none") is None
    assert project.read("big") == "x" * 100
