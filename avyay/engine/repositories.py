"""Which repository a task belongs to. A queue serves all projects of its user: a task goes only where it belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from avyay.config.engine import EngineSettings
from avyay.engine.types import NewTask
from avyay.errors import UsageError
from avyay.git import GitRepository, find_repository

__all__ = ["copy_name", "home_of", "name_at", "names_of", "repositories_of", "settle_repositories"]


def repositories_of(settings: EngineSettings, directory: Path) -> dict[str, Path]:
    """The repositories by the name that tasks give; "" is the default one.

    Raises:
        UsageError: a configured folder is no repository.
    """
    found: dict[str, Path] = {}
    for name, path in {"": settings.repository or directory, **settings.repositories}.items():
        place = (directory / path.expanduser()).resolve()
        repository = find_repository(place) if place.exists() else None
        if repository is not None:
            found[name] = repository.root
        elif name or settings.repository is not None:
            raise UsageError(f"{place} is no git repository.", hint="Set engine.repository or engine.repositories.")
    return found


def home_of(repository: GitRepository) -> str:
    """A repository's path, the same for all its worktrees: that of the main one, or of the bare repository."""
    common = Path(repository.output("rev-parse", "--path-format=absolute", "--git-common-dir").strip()).resolve()
    return str(common.parent if common.name == ".git" else common)


def names_of(repositories: Mapping[str, Path], *, shared: bool) -> dict[str, str]:
    """What tasks may call each repository -> its name: that name itself, and on a queue of this machine its path.

    Args:
        repositories: See `repositories_of`.
        shared: The queue is used from several machines, whose paths mean nothing to each other.
    """
    paths = {} if shared else {home_of(GitRepository(root)): name for name, root in repositories.items()}
    return {**paths, **{name: name for name in repositories}}


def copy_name(name: str, root: Path) -> str:
    """The folder of the engine's copy of a repository; default ones of different projects have different folders."""
    return name or f"default-{sha256(home_of(GitRepository(root)).encode()).hexdigest()[:8]}"


def name_at(path: Path, settings: EngineSettings, directory: Path) -> str:
    """What tasks call the repository around a path.

    Raises:
        UsageError: there is none; or the queue is shared, and it is not configured.
    """
    found = find_repository(path) if path.exists() else None
    if found is None:
        raise UsageError(f"{path} is in no git repository.", hint="Name a repository.")
    word = _word(found.root, repositories_of(settings, directory), shared=settings.queue_url is not None)
    if word is None:
        raise UsageError(
            f"{found.root} is not configured, and the queue is shared with machines that do not know its path.",
            hint="Give it a name in engine.repositories.",
        )
    return word


def settle_repositories(
    tasks: Sequence[NewTask], settings: EngineSettings, directory: Path, *, strict: bool = True
) -> list[NewTask]:
    """Tasks that say which repository they belong to: the one around `directory` when they name none.

    Args:
        strict: Whether there must be one; else a task may be left to whichever dispatcher is there.

    Raises:
        UsageError: they name none, and there is none; or one that is not configured and no path of one.
    """
    repositories = repositories_of(settings, directory)
    shared = settings.queue_url is not None
    settled = []
    for task in tasks:
        word: str | None = task.repository
        if word == "" and "" in repositories:
            word = _word(repositories[""], repositories, shared=shared)
        elif word == "" and strict:
            hint = "Change there, name one with --repository, or set engine.repository."
            raise UsageError(f"{directory} is in no git repository.", hint=hint)
        elif word and word not in repositories:
            place = directory / Path(word).expanduser()
            found = find_repository(place) if place.is_dir() else None
            word = _word(found.root, repositories, shared=shared) if found is not None else None
        if word is None:
            known = ", ".join(name for name in repositories if name) or "none"
            hint = f"Configured (engine.repositories): {known}." + ("" if shared else " Or give its path.")
            raise UsageError(f"There is no repository {task.repository!r}.", hint=hint)
        settled.append(replace(task, repository=word))
    return settled


def _word(root: Path, repositories: Mapping[str, Path], *, shared: bool) -> str | None:
    """What tasks call a repository: its configured name, else its path; None when others would not know that."""
    home = home_of(GitRepository(root))
    named = [name for name, other in repositories.items() if home_of(GitRepository(other)) == home]
    name = max(named, default=None)  # any but the default one's, which is empty
    return name if name or shared else home
