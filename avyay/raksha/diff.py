"""What changed since a commit: the files to scan, and how they were before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avyay.errors import UsageError
from avyay.git import GIT_HINT, GitRepository
from avyay.raksha.source import SourceFile

__all__ = ["Changes", "changes_since", "files_before"]

TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Changes:
    """Files that differ from `base` (a commit). `before` maps a changed file's present name to its name then.

    Names are relative to the scan root; a new file is in `names` and not in `before`.
    """

    base: str
    names: frozenset[str]
    before: dict[str, str]


def changes_since(base: str, repository: GitRepository | None, root: Path) -> Changes:
    """Compare the work tree with where it branched off `base`.

    Raises:
        UsageError: no repository, or no such commit.
    """
    if repository is None:
        raise UsageError(
            f"{root} is in no git repository: nothing to compare with.",
            hint="Scan a clone of the repository, or leave out --diff." if shutil.which("git") else GIT_HINT,
            code="no_repository",
        )
    commit = _commit(base, repository)
    merge_base = repository.git("merge-base", commit, "HEAD").text.strip()
    start = merge_base or commit
    here = GitRepository(root)
    raw = here.git(
        "diff",
        "--name-status",
        "-z",
        "--find-renames",
        "--relative",
        "--no-ext-diff",
        start,
        "--",
        ".",
        timeout=TIMEOUT,
    )
    if raw.code != 0:
        raise UsageError(f"git cannot compare with {base}: {raw.error_text.strip()}", hint="Check the name.")
    names: set[str] = set()
    before: dict[str, str] = {}
    parts = iter(os.fsdecode(part) for part in raw.stdout.split(b"\0"))
    for status in parts:
        if not status:
            continue
        old = next(parts)
        new = next(parts) if status[0] in "RC" else old
        if status[0] == "D":
            continue
        names.add(new)
        if status[0] != "A":
            before[new] = old
    untracked = here.git("ls-files", "-z", "--others", "--exclude-standard", "--", ".", timeout=TIMEOUT)
    names.update(os.fsdecode(name) for name in untracked.stdout.split(b"\0") if name)
    return Changes(start, frozenset(names), before)


def files_before(changes: Changes, files: Sequence[SourceFile], root: Path, folder: Path) -> list[SourceFile]:
    """The same files as they stood at the base, under their present names, written below `folder` for the engines."""
    here = GitRepository(root)
    old: list[SourceFile] = []
    for number, file in enumerate(files):
        name = changes.before.get(file.name)
        if name is None:
            continue
        done = here.git("show", f"{changes.base}:./{name}", timeout=TIMEOUT)
        if done.code != 0:
            continue  # the file came into the folder from elsewhere: all of it is new here
        place = folder / str(number) / Path(file.name).name
        place.parent.mkdir()
        place.write_bytes(done.stdout)
        old.append(SourceFile(file.name, done.stdout, file.language, path=place))
    return old


def _commit(base: str, repository: GitRepository) -> str:
    done = repository.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}")
    if done.code != 0:
        raise UsageError(
            f"There is no commit {base!r} in {repository.root}.",
            hint="Check the name; in CI fetch the base first (actions/checkout with fetch-depth: 0).",
            code="unknown_commit",
        )
    return done.text.strip()
