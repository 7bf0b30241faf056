"""A reader of the git command line: enough to know what stands at a commit, never a writer of the user's repository."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avyay.config.environment import Environment
from avyay.errors import DependencyError, UsageError
from avyay.process import Completed, find_program, run

__all__ = ["GIT_HINT", "GitRepository", "find_repository", "git_version"]

GIT_HINT = "Install git (https://git-scm.com) and try again."
TIMEOUT = 30.0
DUBIOUS = re.compile(r"dubious ownership(?: in repository at '([^'\n]+)')?")


def git_program() -> str:
    """The path of git.

    Raises:
        DependencyError: it is not installed.
    """
    return find_program("git", hint=GIT_HINT)


def git_version() -> str:
    """The version of the installed git, like `2.39.5`."""
    return run([git_program(), "--version"], timeout=TIMEOUT).text.split()[-1]


@dataclass(frozen=True, slots=True)
class GitRepository:
    """A repository on disk. `root` is its work tree, or the folder itself when it is bare."""

    root: Path

    def git(
        self,
        *arguments: str,
        timeout: float = TIMEOUT,
        stdin: bytes | None = None,
        index: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Completed:
        """Run git in this repository, with its hooks, pager, prompts and external diff drivers off.

        Args:
            index: Another file than the work tree's own index.
            pass_fds: Descriptors git gets: a lock on one of them lasts as long as git, even without us.

        Raises:
            UsageError: git refuses the repository, or one that it fetches from ("dubious ownership").
        """
        command = [
            git_program(),
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "core.fsmonitor=false",
            "-c",
            "core.quotePath=false",
            "--no-pager",
            "--no-optional-locks",
            *arguments,
        ]
        environment = _unattended() if index is None else {**_unattended(), "GIT_INDEX_FILE": str(index)}
        done = run(command, cwd=self.root, timeout=timeout, stdin=stdin, env=environment, pass_fds=pass_fds)
        if done.code != 0 and (refused := DUBIOUS.search(done.error_text)):
            raise _failed(arguments[0], done.error_text, Path(refused[1] or self.root))
        return done

    def output(self, *arguments: str, timeout: float = TIMEOUT) -> str:
        """Standard output of a git command that must succeed.

        Raises:
            DependencyError: git failed; carries its message.
        """
        done = self.git(*arguments, timeout=timeout)
        if done.timed_out:
            raise DependencyError(f"git {arguments[0]} took longer than {timeout:.0f} s.", hint="Try again.")
        if done.code != 0:
            raise _failed(arguments[0], done.error_text, self.root)
        return done.text

    def head(self) -> str | None:
        """The commit checked out, 40 hex digits; None in a repository without commits."""
        done = self.git("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        return done.text.strip() or None


def find_repository(path: Path) -> GitRepository | None:
    """The repository that contains `path`, or None.

    Raises:
        DependencyError: git is missing.
        UsageError: git refuses the repository ("dubious ownership").
    """
    folder = path if path.is_dir() else path.parent
    done = run([git_program(), "rev-parse", "--show-toplevel"], cwd=folder, timeout=TIMEOUT)
    if done.code == 0:
        return GitRepository(Path(done.text.strip()))
    if "dubious ownership" in done.error_text:
        raise _failed("rev-parse", done.error_text, folder)
    bare = run([git_program(), "rev-parse", "--is-bare-repository"], cwd=folder, timeout=TIMEOUT)
    return GitRepository(folder) if bare.text.strip() == "true" else None


def _unattended() -> dict[str, str]:
    """The environment for a git that never asks, and fetches nothing it was not told to."""
    return {
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=15",
        **Environment(),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "SSH_ASKPASS": "true",
        "GIT_NO_LAZY_FETCH": "1",  # a partial clone names a program to fetch with: it may be a stranger's
        "LC_ALL": "C",
    }


def _failed(verb: str, message: str, where: Path) -> DependencyError | UsageError:
    if "dubious ownership" in message:
        return UsageError(
            f"git refuses {where}: it belongs to another user.",
            hint=f"If you trust it: git config --global --add safe.directory {where}",
            code="dubious_ownership",
        )
    last = message.strip().splitlines()[-1] if message.strip() else "no message"
    return DependencyError(f"git {verb} failed in {where}: {last}", hint="Check the repository with: git fsck")
