"""What a source is, what is read of it, and what is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.errors import AvyayError, UsageError
from avyay.rag.sources import Selection, open_source, resolve_source
from avyay.rag.sources.base import glob_pattern
from avyay.rag.sources.folder import FolderTree
from tests.unit.rag.conftest import Repository


@pytest.mark.parametrize(
    "glob, path, matches",
    [
        ("*.md", "a.md", True),
        ("*.md", "deep/er/a.md", True),
        ("docs/*.md", "docs/a.md", True),
        ("docs/*.md", "docs/deep/a.md", False),
        ("docs/**/*.md", "docs/a.md", True),
        ("docs/**/*.md", "docs/deep/er/a.md", True),
        ("docs/", "docs/deep/a.md", True),
        ("/docs/**", "docs/a.md", True),
        ("./docs/**", "docs/a.md", True),
        ("**/drafts/**", "x/drafts/a.md", True),
        ("a?.md", "ab.md", True),
        ("a[bc].md", "ac.md", True),
        ("a[!bc].md", "ac.md", False),
        ("*.{md,rst}", "x/y.rst", True),
        ("a[.md", "a[.md", True),
        ("docs/*.md", "xdocs/a.md", False),
    ],
)
def test_globs(glob: str, path: str, matches: bool) -> None:
    assert bool(glob_pattern(glob).fullmatch(path)) is matches


@given(st.text(max_size=30))
def test_no_glob_breaks_anything(glob: str) -> None:
    glob_pattern(glob).fullmatch("docs/a.md")


def test_default_selection() -> None:
    wants = Selection().wants
    assert all(map(wants, ["a.md", "b/c.rst", "d.adoc", "e.txt", "rules/f.yaml", "G.MD"]))
    assert not any(
        map(wants, ["a.py", "requirements.txt", "requirements/dev.txt", "LICENSE.txt", "node_modules/x/README.md"])
    )


def test_a_remote_repository_is_fetched_and_followed(repository: Repository, tmp_path: Path) -> None:
    spec = resolve_source(f"file://{repository.root}")
    assert (spec.name, spec.kind, spec.remote) == ("runbooks", "git", True)
    first = open_source(spec, tmp_path / "mirrors")
    assert [entry.path for entry in first.entries] == ["etcd.md", "messaging/kafka.md"]
    repository.git("commit", "--quiet", "--amend", "--allow-empty", "-m", "rewritten")
    second = open_source(spec, tmp_path / "mirrors")
    assert second.commit == repository.git("rev-parse", "HEAD") != first.commit
    assert not second.descends_from(first.commit)
    branch = resolve_source(f"file://{repository.root}", branch="nope")
    with pytest.raises(UsageError, match="no branch or tag 'nope'"):
        open_source(branch, tmp_path / "mirrors")


def test_remotes_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avyay.rag.sources.git.FETCH_ATTEMPTS", 1)
    with pytest.raises(UsageError, match="is not a git repository"):
        open_source(resolve_source(f"file://{tmp_path}/nothing.git"), tmp_path / "mirrors")
    with pytest.raises(AvyayError) as caught:
        open_source(resolve_source("http://127.0.0.1:9/x.git"), tmp_path / "mirrors")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "location, message",
    [
        ("nowhere/at/all", "There is no file or folder"),
        ("https://user:secret@example.com/x.git", "contains a password"),
        ("ext::sh -c id", "There is no file or folder"),
        ("javascript://x", "not an address"),
    ],
)
def test_locations_that_are_refused(location: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_source(location)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "location, name",
    [("git@github.com:acme/ops-runbooks.git", "ops-runbooks"), ("https://example.com/team/docs/", "docs")],
)
def test_names_of_remotes(location: str, name: str) -> None:
    assert resolve_source(location).name == name


def test_an_empty_repository(tmp_path: Path) -> None:
    made = Repository(tmp_path / "empty")
    with pytest.raises(UsageError, match="no commits yet"):
        open_source(resolve_source(str(made.root)), tmp_path / "mirrors")


def test_links_and_large_files_in_git(repository: Repository, tmp_path: Path) -> None:
    (repository.root / "link.md").symlink_to("etcd.md")
    (repository.root / "out.md").symlink_to("/etc/passwd")
    repository.write("huge.md", b"x" * 5_000_001)
    repository.commit()
    tree = open_source(resolve_source(str(repository.root)), tmp_path / "mirrors")
    assert [entry.path for entry in tree.entries] == ["etcd.md", "messaging/kafka.md"]
    assert [(item.path, item.reason) for item in tree.unread] == [("huge.md", "5 MB: larger than any runbook")]


def test_links_and_names_in_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "notes"
    root.mkdir()
    (root / "a.md").write_text("# A\n")
    (root / "inside.md").symlink_to("a.md")
    (root / "outside.md").symlink_to("/etc/hostname")
    (root / "broken.md").symlink_to("nothing")
    with (root / "huge.md").open("wb") as file:
        file.truncate(100_000_000)
    os.mkfifo(root / "pipe.md")
    with (root / os.fsdecode(b"caf\xe9.md")).open("w") as file:
        file.write("# x")
    tree = FolderTree(root, Selection())
    assert [entry.path for entry in tree.entries] == ["a.md", "inside.md"]
    assert {item.path: item.reason.split(":")[0] for item in tree.unread} == {
        "outside.md": "a symbolic link that leads out of the folder",
        "broken.md": "cannot be read",
        "huge.md": "100 MB",
        "caf\ufffd.md": "its name is not UTF-8",
    } or "caf?.md" in {item.path for item in tree.unread}


def test_a_bare_repository_and_odd_names(repository: Repository, tmp_path: Path) -> None:
    odd = 'a b/Ärger "quoted" *.md'
    repository.write(odd, "# Odd\n\nname\n")
    repository.commit()
    bare = tmp_path / "bare.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(repository.root), str(bare)], check=True)
    tree = open_source(resolve_source(str(bare)), tmp_path / "mirrors")
    entry = next(entry for entry in tree.entries if entry.path == odd)
    assert next(tree.read([entry]))[1] == b"# Odd\n\nname\n"
    assert tree.history([odd])[odd].commit == repository.git("rev-parse", "HEAD")


def test_history_through_a_merge(repository: Repository, tmp_path: Path) -> None:
    repository.git("checkout", "--quiet", "-b", "side")
    repository.write("side.md", "# Side\n")
    side = repository.commit(date="2026-02-02T00:00:00Z")
    repository.git("checkout", "--quiet", "main")
    repository.write("main.md", "# Main\n")
    repository.commit()
    repository.git("merge", "--quiet", "--no-ff", "-m", "merge", "side")
    tree = open_source(resolve_source(str(repository.root)), tmp_path / "mirrors")
    change = tree.history(["side.md"])["side.md"]
    assert (change.commit, change.author_time) == (side, 1_769_990_400)
