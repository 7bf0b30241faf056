"""From what the user typed to a source, and from a source to its present state."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from avyay.errors import UsageError
from avyay.git import GitRepository, find_repository
from avyay.rag.sources.base import Selection, SourceSpec, SourceTree
from avyay.rag.sources.folder import FolderTree
from avyay.rag.sources.git import GitTree, fetch_mirror, resolve_commit

__all__ = ["open_source", "resolve_source"]

_SCHEMES = frozenset({"https", "http", "ssh", "git", "file", "git+ssh"})
_SCP = re.compile(r"^(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9.-]+:(?!//|:)[^\\]+$")  # git@host:owner/repository.git


def resolve_source(
    location: str,
    *,
    name: str | None = None,
    branch: str | None = None,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    worktree: bool = False,
) -> SourceSpec:
    """What `location` is: a folder, a folder in a repository, or the URL of a repository.

    Raises:
        UsageError: it is none of these.
        DependencyError: git is missing.
    """
    scheme = location.partition("://")[0] if "://" in location else ""
    local = Path(location).expanduser()
    if scheme or (not local.exists() and _SCP.match(location)):
        _check_url(location, scheme)
        if worktree:
            raise UsageError("--worktree is for local folders; a remote repository has none.")
        title = re.sub(r"\.git$", "", location.rstrip("/")).replace(":", "/").rpartition("/")[2]
        return SourceSpec(name or _name(title), "git", location, branch, "", include, exclude)
    if not local.exists():
        raise UsageError(
            f"There is no file or folder {location}.",
            hint="Give a path, or the URL of a git repository (https://… or git@host:owner/name).",
            code="no_path",
        )
    return _local(local.resolve(), name, branch, include, exclude, worktree)


def open_source(spec: SourceSpec, mirrors: Path) -> SourceTree:
    """The state of a source as it is now; a remote one is fetched first.

    Args:
        mirrors: Where copies of remote repositories are kept.

    Raises:
        UsageError, AuthError, DependencyError, UnreachableError: it cannot be read; nothing was changed.
    """
    selection = Selection(spec.include, spec.exclude, spec.prefix)
    if spec.remote:
        repository, commit = fetch_mirror(spec, mirrors)
        return GitTree(repository, commit, selection)
    root = Path(spec.location)
    if not root.exists():
        raise UsageError(
            f"The source {spec.name} is gone: there is no {root}.",
            hint=f"Forget it with: avyay rag remove {spec.name}",
            code="no_path",
        )
    if spec.kind == "folder":
        return FolderTree(root, selection)
    repository = GitRepository(root)
    return GitTree(repository, resolve_commit(repository, spec.branch), selection)


def _local(
    path: Path, name: str | None, branch: str | None, include: tuple[str, ...], exclude: tuple[str, ...], worktree: bool
) -> SourceSpec:
    repository = find_repository(path)
    root = repository.root.resolve() if repository else (path if path.is_dir() else path.parent)
    prefix = "" if path == root else path.relative_to(root).as_posix() + ("/" if path.is_dir() else "")
    name = name or _name(path.name if path.is_dir() else root.name)
    if repository is None or worktree:
        if branch is not None:
            raise UsageError(
                f"{path} is not in a git repository, so it has no branch {branch!r}."
                if repository is None
                else "--branch and --worktree exclude each other.",
                code="no_branch",
            )
        return SourceSpec(name, "folder", str(root), None, prefix, include, exclude, worktree)
    return SourceSpec(name, "git", str(root), branch, prefix, include, exclude)


def _check_url(location: str, scheme: str) -> None:
    if location.startswith("-") or (scheme and scheme not in _SCHEMES):
        raise UsageError(
            f"{scheme or location}: not an address that can be indexed.",
            hint="Use https://…, ssh://… or git@host:owner/name.",
            code="bad_url",
        )
    if scheme and urlsplit(location).password:
        raise UsageError(
            "The address contains a password, which would be stored with the index.",
            hint="Leave it out and set up a git credential helper or an SSH key.",
            code="password_in_url",
        )


def _name(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.") or "source"
