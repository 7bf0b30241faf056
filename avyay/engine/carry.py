"""From one commit to another with uncommitted changes in the way: they are carried along, none is lost.

For what `git read-tree` refuses: a file that somebody edited in the moment between the look and the step, or a checkout
that was cut in the middle. Each file that differs between the commits is looked at by itself.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avyay.errors import DependencyError
from avyay.git import GitRepository

__all__ = ["carry"]

_TIMEOUT = 1800.0
_LINK = "120000"
_SUBMODULE = "160000"


@dataclass(frozen=True, slots=True)
class _Change:
    path: str
    old_mode: str
    mode: str
    old: str
    new: str

    @property
    def fresh(self) -> bool:
        return self.old_mode == "000000"

    @property
    def gone(self) -> bool:
        return self.mode == "000000"


def carry(tree: GitRepository, index: Path, before: str, after: str, *, pass_fds: Sequence[int] = ()) -> dict[str, str]:
    """Bring the files of a work tree, and that index, to `after`; returns what became of files that were changed.

    Files that are as in either commit become those of `after`, and so do those that are missing, or are the beginning
    of the new one: they were being written. A file that is none of these is merged with what `after` changed, with
    conflict marks where both changed the same lines; what cannot be merged stays as it is.

    Raises:
        DependencyError: git fails.
    """
    changes = _changes(tree, before, after)
    present, sparse = _present(tree, changes), _sparse(tree, index)
    plain: list[_Change] = []
    own: list[_Change] = []
    for change in changes:
        here = present[change.path]
        if _SUBMODULE in (change.mode, change.old_mode) or here == (None if change.gone else change.new):
            continue
        if here is None and change.path in sparse:
            continue
        begun = here is None or (here == change.old and not change.fresh) or _begins(tree, change)
        (plain if begun else own).append(change)
    _set_index(tree, index, changes, pass_fds)
    kept_out = [change.path for change in changes if change.path in sparse and not change.gone]
    _stdin(tree, index, kept_out, pass_fds, "update-index", "-z", "--skip-worktree", "--stdin")
    for change in plain:
        _remove(tree.root, change.path)
    fresh = [change.path for change in plain if not change.gone]
    _stdin(tree, index, fresh, pass_fds, "checkout-index", "-f", "-q", "-u", "-z", "--stdin")
    said = {change.path: _merge(tree, change) for change in own}
    tree.git("update-index", "-q", "--refresh", timeout=_TIMEOUT, index=index, pass_fds=pass_fds)
    return said


def _changes(tree: GitRepository, before: str, after: str) -> list[_Change]:
    told = _git(tree, "diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", before, after)
    parts = os.fsdecode(told).split("\0")
    found = []
    for about, path in zip(parts[0::2], parts[1::2], strict=False):
        old_mode, mode, old, new, _ = about.lstrip(":").split(" ")
        found.append(_Change(path, old_mode, mode, old, new))
    return found


def _present(tree: GitRepository, changes: Sequence[_Change]) -> dict[str, str | None]:
    """The object that each file would be, as it is now; None: there is none; "": it is no file."""
    found: dict[str, str | None] = {}
    files = []
    for change in changes:
        path = tree.root / change.path
        if path.is_symlink():
            found[change.path] = (
                _git(tree, "hash-object", "--stdin", stdin=os.fsencode(path.readlink())).decode().strip()
            )
        elif path.is_file():
            files.append(change.path)
        else:
            found[change.path] = "" if path.exists() else None
    plain = [name for name in files if "\n" not in name]
    told = _git(tree, "hash-object", "--stdin-paths", stdin=b"".join(os.fsencode(f"{name}\n") for name in plain))
    found.update(zip(plain, told.decode().split(), strict=True))
    for name in set(files).difference(plain):
        found[name] = _git(tree, "hash-object", "--", name).decode().strip()
    return found


def _set_index(tree: GitRepository, index: Path, changes: Sequence[_Change], pass_fds: Sequence[int]) -> None:
    lines = [
        f"{'0' if change.gone else change.mode} {change.new}\t{change.path}\0"
        # What is gone first: a folder may stand where a file was.
        for change in sorted(changes, key=lambda change: not change.gone)
    ]
    told = os.fsencode("".join(lines))
    _git(tree, "update-index", "-z", "--index-info", stdin=told, index=index, pass_fds=pass_fds)


def _sparse(tree: GitRepository, index: Path) -> set[str]:
    """What a sparse checkout keeps out of the work tree."""
    told = os.fsdecode(_git(tree, "ls-files", "-t", "-z", index=index))
    return {line[2:] for line in told.split("\0") if line.startswith("S ")}


def _stdin(tree: GitRepository, index: Path, paths: Sequence[str], pass_fds: Sequence[int], *command: str) -> None:
    if paths:
        told = os.fsencode("".join(f"{path}\0" for path in paths))
        _git(tree, *command, stdin=told, index=index, pass_fds=pass_fds)


def _git(
    tree: GitRepository,
    *arguments: str,
    stdin: bytes | None = None,
    index: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> bytes:
    done = tree.git(*arguments, stdin=stdin, timeout=_TIMEOUT, index=index, pass_fds=pass_fds)
    if done.timed_out or done.code != 0:
        raise DependencyError(
            f"git {arguments[0]} failed in {tree.root}: {done.error_text.strip()[:300]}", hint="Look at the repository."
        )
    return done.stdout


def _begins(tree: GitRepository, change: _Change) -> bool:
    """Whether a file is the beginning of what it is to become."""
    path = tree.root / change.path
    if change.gone or change.mode == _LINK or path.is_symlink() or not path.is_file():
        return False
    return _contents(tree, change.path, change.new).startswith(path.read_bytes())


def _contents(tree: GitRepository, path: str, blob: str) -> bytes:
    """As a work tree has it: with its line ends and filters."""
    return _git(tree, "cat-file", "--filters", f"--path={path}", blob)


def _remove(root: Path, name: str) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        (root / name).unlink()
    with contextlib.suppress(OSError):
        for folder in Path(name).parents[:-1]:
            (root / folder).rmdir()  # until one has something else in it


def _merge(tree: GitRepository, change: _Change) -> str:
    """A file that is neither the old one nor the new one."""
    path = tree.root / change.path
    mergeable = not change.fresh and not change.gone and _LINK not in (change.old_mode, change.mode)
    if not mergeable or path.is_symlink() or not path.is_file():
        return "stays as it was changed"
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for name, blob in (("before", change.old), ("after", change.new)):
            side = Path(folder) / name
            side.write_bytes(_contents(tree, change.path, blob))
            sides.append(str(side))
        merged = tree.git("merge-file", "-p", "-L", "yours", "-L", "before", "-L", "merged", str(path), *sides)
        if merged.code < 0 or merged.code >= 128 or merged.timed_out:
            return "stays as it was changed"
        path.write_bytes(merged.stdout)
    return "merged with your changes" if merged.code == 0 else f"merged, with {merged.code} conflicts to resolve"
