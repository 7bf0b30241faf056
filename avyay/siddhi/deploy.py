"""Where a site is published: to a directory, a branch of a git repository, or by any command.

The contract of a command: it gets the folder of the site as the last argument (or wherever `{folder}` stands),
publishes all of it in place of what was there, and exits 0. Publishing the same folder twice is the same as once.
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from avyay.errors import DependencyError, UsageError
from avyay.git import GitRepository
from avyay.log import redact
from avyay.process import find_program, run

__all__ = ["PRESETS", "CommandTarget", "DirectoryTarget", "GitTarget", "Target", "open_target"]

PRESETS: Mapping[str, tuple[str, ...]] = {
    "cloudflare": ("wrangler", "pages", "deploy", "{folder}", "--project-name", "{project}"),
    "netlify": ("netlify", "deploy", "--prod", "--no-build", "--dir", "{folder}", "--site", "{project}"),
    "vercel": ("vercel", "deploy", "{folder}", "--prod", "--yes"),
}
"""The hosts' own programs, which hold their own credentials."""
_TIMEOUT = 300.0


class Target(ABC):
    """Where the site of one installation appears."""

    @abstractmethod
    def publish(self, folder: Path) -> None:
        """Make exactly what lies in `folder` appear, and nothing else.

        Raises:
            DependencyError: It did not work; what was there before is still there.
        """


class DirectoryTarget(Target):
    """A folder that a web server shows. It is replaced as a whole."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def publish(self, folder: Path) -> None:
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".siddhi-", dir=self.place.parent))
            shutil.copytree(folder, fresh, dirs_exist_ok=True)
            fresh.chmod(0o755)
            old = fresh.with_name(f"{fresh.name}-old")
            if self.place.exists():
                if not (self.place / ".siddhi").exists() and any(self.place.iterdir()):
                    shutil.rmtree(fresh)
                    raise UsageError(
                        f"{self.place} holds something that SIDDHI did not put there.", hint="Name an empty folder."
                    )
                self.place.rename(old)
            (fresh / ".siddhi").touch()
            fresh.rename(self.place)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise DependencyError(
                f"Cannot publish to {self.place}: {error.strerror}.", hint="Make the folder writable."
            ) from error


class GitTarget(Target):
    """A branch, such as `gh-pages`, whose tree becomes the site; history is kept. Nothing else in the clone changes."""

    def __init__(self, repository: GitRepository, branch: str, *, remote: str | None = "origin") -> None:
        self.repository = repository
        self.branch = branch
        self.remote = remote

    def publish(self, folder: Path) -> None:
        git = self.repository
        tree = self._tree(folder)
        reference = f"refs/heads/{self.branch}"
        known = git.git("rev-parse", "--verify", "--quiet", reference)
        parent = known.text.strip() if known.code == 0 else ""
        if parent and git.output("rev-parse", f"{parent}^{{tree}}").strip() == tree:
            commit = parent
        else:
            before = ("-p", parent) if parent else ()
            commit = git.output("commit-tree", tree, *before, "-m", "Publish page").strip()
            git.output("update-ref", reference, commit, *((parent,) if parent else ()))
        if self.remote is not None:
            git.output("push", "--quiet", self.remote, f"{reference}:{reference}", timeout=_TIMEOUT)

    def _tree(self, folder: Path) -> str:
        """Write a folder into the object store; its tree's name."""
        git, lines = self.repository, []
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                lines.append(f"040000 tree {self._tree(path)}\t{path.name}")
            else:
                blob = git.output("hash-object", "-w", "--no-filters", str(path)).strip()
                lines.append(f"100644 blob {blob}\t{path.name}")
        return git.git("mktree", stdin="".join(f"{line}\n" for line in lines).encode()).text.strip()


class CommandTarget(Target):
    """Any program that keeps the contract."""

    def __init__(self, command: Sequence[str], *, project: str = "") -> None:
        if not command:
            raise UsageError("There is no command to publish with.", hint="Set siddhi.page.command.")
        self.command = tuple(command)
        self.project = project

    def publish(self, folder: Path) -> None:
        words = [word.replace("{folder}", str(folder)).replace("{project}", self.project) for word in self.command]
        if "{folder}" not in " ".join(self.command):
            words.append(str(folder))
        program = find_program(words[0], hint="Install it, or publish to a directory.")
        done = run([program, *words[1:]], timeout=_TIMEOUT, cwd=folder)
        if done.code != 0:
            why = "took too long" if done.timed_out else f"ended with {done.code}"
            raise DependencyError(
                f"{words[0]} {why}: {redact(done.error_text[-300:]).strip()}", hint="Run it by hand to see more."
            )


def open_target(spec: str, *, project: str = "", command: Sequence[str] = ()) -> Target:
    """A target by its name: `directory:PATH`, `git:PATH#BRANCH`, `command`, or one of `PRESETS`.

    Raises:
        UsageError: There is no such target.
    """
    kind, _, rest = spec.partition(":")
    if kind == "directory" and rest:
        return DirectoryTarget(Path(rest).expanduser().absolute())
    if kind == "git" and rest:
        place, _, branch = rest.partition("#")
        return GitTarget(GitRepository(Path(place).expanduser().absolute()), branch or "gh-pages")
    if kind == "command":
        return CommandTarget(command)
    if kind in PRESETS:
        return CommandTarget(PRESETS[kind], project=project)
    raise UsageError(
        f"There is no place to publish called {spec!r}.",
        hint=f"Use directory:PATH, git:PATH#BRANCH, command, {', '.join(PRESETS)}.",
    )
