"""The workshop: a bare copy of a repository in which attempts have their worktrees and branches.

Agents get a copy's worktree, not one of the user's repository: what they do to refs, configuration and hooks stays
there. Only a verified commit goes back, by a fast-forward.
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from avyay.engine.agents.outcome import GitEvidence
from avyay.errors import DependencyError, UnreachableError, UsageError
from avyay.git import GitRepository
from avyay.lock_holder import file_locker
from avyay.log import get_logger
from avyay.paths import ensure_directory

__all__ = ["IDENTITY", "Workshop", "default_branch", "take_turn"]

IDENTITY = {"name": "avyay engine", "email": "engine@localhost"}
_SIGNED = ("-c", f"user.name={IDENTITY['name']}", "-c", f"user.email={IDENTITY['email']}", "-c", "commit.gpgSign=false")
log = get_logger("engine")

_TELL = 60.0  # seconds: who waits says so
_CLONE_TIMEOUT = 900.0
_TIMEOUT = 300.0


@contextmanager
def take_turn(path: Path, *, patience: float = 60.0) -> Iterator[int]:
    """Hold a lock among processes; it ends with the process that holds it, and those that were given the descriptor.

    Raises:
        UnreachableError: it was not to be had for so many seconds.
    """
    began = told = time.monotonic()
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - began > patience:
                    raise _held(path, patience) from None
                if now - told > _TELL:
                    told = now
                    holder = file_locker(path)
                    log.warning("waits_for_lock", lock=str(path), holder=str(holder), seconds=round(now - began))
                time.sleep(0.02)
        yield file.fileno()


def default_branch(repository: GitRepository) -> str:
    """The branch that results go to where none is named: the remote's default one, main, master, or the current one."""
    remote = repository.git("symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD").text.strip()
    current = repository.git("symbolic-ref", "--quiet", "--short", "HEAD").text.strip()
    for name in (remote.removeprefix("origin/"), "main", "master", current):
        if name and repository.git("rev-parse", "--verify", "--quiet", f"refs/heads/{name}").code == 0:
            return name
    return current or "main"


def _held(path: Path, patience: float) -> UnreachableError:
    holder = file_locker(path)
    return UnreachableError(
        f"{path} has been held for {patience:.0f} s by {holder or 'another process'}.",
        hint=holder.remedy if holder else "Is a dispatcher stopped (state T in ps)? Continue it, or end it.",
        code="lock_held",
    )


class Workshop:
    """Where attempts at one repository happen.

    Args:
        repository: The user's repository, bare or not.
        folder: Ours, for the copy and the worktrees.
        branch: The branch that takes the results; by default the repository's default branch.

    Raises:
        UsageError: there is no such repository or branch.
    """

    def __init__(self, repository: Path, folder: Path, branch: str | None = None) -> None:
        self.repository = GitRepository(repository)
        self.folder = ensure_directory(folder)
        self.branch = branch or default_branch(self.repository)
        self.copy = GitRepository(self.folder / "copy.git")
        self._lock = threading.RLock()
        self.head()

    def head(self) -> str:
        """The commit at the tip of the branch.

        Raises:
            UsageError: there is no such branch.
        """
        done = self.repository.git("rev-parse", "--verify", "--quiet", f"refs/heads/{self.branch}^{{commit}}")
        if done.code != 0:
            raise UsageError(
                f"{self.repository.root} has no branch {self.branch!r} with a commit.",
                hint="Commit something, or name another branch: engine.merge.branch in avyay.yaml.",
            )
        return done.text.strip()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time, among the threads and processes of this machine.

        Raises:
            UnreachableError: somebody has held it for a minute; a process that was stopped does.
        """
        with self._lock, take_turn(self.folder / "lock"):
            yield

    def fetch(self) -> str:
        """Bring the copy up to date; returns the commit at the tip of the branch."""
        with self.locked():
            if not (self.copy.root / "HEAD").exists():
                shutil.rmtree(self.copy.root, ignore_errors=True)
                # A git that outlived its dispatcher may still be at work in a folder of an earlier try.
                for old in self.folder.glob("copy.*.new"):
                    shutil.rmtree(old, ignore_errors=True)
                new = self.folder / f"copy.{secrets.token_hex(4)}.new"
                source = str(self.repository.root.resolve())
                self.repository.output(
                    "clone", "--quiet", "--bare", "--no-tags", source, str(new), timeout=_CLONE_TIMEOUT
                )
                new.rename(self.copy.root)
                # `gc` in the middle of an attempt helps nobody, and only costs.
                self.copy.output("config", "gc.auto", "0")
            head = self.head()
            # Objects only, into no ref: a git that outlived its dispatcher would be in the way of a ref's lock.
            source = str(self.repository.root.resolve())
            plain = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head")
            self.copy.output(*plain, source, f"refs/heads/{self.branch}", timeout=_TIMEOUT)
            return head

    def add(self, path: Path, base: str, branch: str | None = None) -> GitRepository:
        """A worktree at a commit; on a new branch, or on none."""
        with self.locked():
            where = ("-b", branch) if branch is not None else ("--detach",)
            self.copy.output("worktree", "add", "--quiet", "--force", *where, str(path), base, timeout=_TIMEOUT)
        return GitRepository(path)

    def remove(self, path: Path) -> None:
        """Remove a worktree and whatever is in it."""
        shutil.rmtree(path, ignore_errors=True)
        with self.locked():
            self.copy.git("worktree", "prune", timeout=_TIMEOUT)

    def drop(self, branch: str) -> None:
        """Delete a branch of the copy, if it is there."""
        with self.locked():
            self.copy.git("update-ref", "-d", f"refs/heads/{branch}")

    def branches(self) -> list[str]:
        """The branches of attempts."""
        if not (self.copy.root / "HEAD").exists():
            return []
        listed = self.copy.output("for-each-ref", "--format=%(refname:strip=2)", "refs/heads/avyay/")
        return listed.split()

    def collect(
        self, work: GitRepository, base: str, branch: str, message: str, *, ignore: Sequence[str] = ()
    ) -> GitEvidence:
        """Commit what an agent left uncommitted, and say what it changed. The branch then points at the result.

        Args:
            ignore: Globs of new files that are the agent's own affair.

        Raises:
            DependencyError: the worktree is no repository any more.
        """
        work.output("add", "--all", "--", ".", *(f":(exclude){glob}" for glob in ignore), timeout=_TIMEOUT)
        if work.git("diff", "--cached", "--quiet", timeout=_TIMEOUT).code != 0:
            work.output(*_SIGNED, "commit", "--quiet", "--no-verify", "-m", message, timeout=_TIMEOUT)
        head = work.head()
        if head is None:
            raise DependencyError("The agent left a worktree without a commit.", hint="The attempt counts as crashed.")
        self.copy.output("update-ref", f"refs/heads/{branch}", head)
        return self.evidence(base, head)

    def evidence(self, base: str, head: str) -> GitEvidence:
        """What lies between two commits."""
        files = self.copy.output("diff", "--name-only", "-z", "--no-renames", base, head, timeout=_TIMEOUT)
        commits = self.copy.output("rev-list", "--count", f"{base}..{head}")
        return GitEvidence(tuple(sorted(filter(None, files.split("\0")))), int(commits))

    def candidate(self, path: Path, base: str, branch: str, message: str) -> tuple[str | None, str]:
        """The branch as one commit on top of `base`, checked out afresh at `path`.

        One commit, so that every commit of the main branch is one that was verified. Returns the commit, or None and
        what git said about the conflict; a branch that adds nothing to `base` gives `base`.
        """
        self.remove(path)
        tree = self.add(path, base)
        merged = tree.git(*_SIGNED, "merge", "--squash", "--no-commit", "--quiet", branch, timeout=_TIMEOUT)
        if merged.code != 0:
            marked = tree.git("diff", "--diff-filter=U", "--no-color", timeout=_TIMEOUT).text
            return None, f"{merged.text}{merged.error_text}\n{marked}".strip()
        if tree.git("diff", "--cached", "--quiet", timeout=_TIMEOUT).code == 0:
            return base, ""
        done = tree.git(
            *_SIGNED, "commit", "--quiet", "--no-verify", "-F", "-", timeout=_TIMEOUT, stdin=message.encode()
        )
        head = tree.head()
        if done.code != 0 or head is None:
            raise DependencyError(f"git commit failed: {done.error_text.strip()}", hint="See the attempt's log.")
        return head, ""

    def deliver(self, commit: str) -> None:
        """Bring a commit of the copy into the user's repository, on no branch yet."""
        source = str(self.copy.root)
        ref = f"refs/avyay/candidates/{commit}"
        with self.locked():
            self.copy.output("update-ref", ref, commit)
            self.repository.output(
                "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", source, ref, timeout=_TIMEOUT
            )
            self.copy.git("update-ref", "-d", ref)

    def fast_forward(self, before: str, after: str, where: Path | None, *, pass_fds: Sequence[int] = ()) -> bool:
        """Move the user's branch from one commit to its successor; False when it stands elsewhere.

        Whoever calls holds the queue: no git runs here that could run before or after. So a work tree that has the
        branch checked out is taken along by a `Follower`.

        Args:
            where: What `checked_out` said a moment ago.
            pass_fds: For git, which may outlive us.

        Raises:
            DependencyError: git fails.
        """
        name = f"refs/heads/{self.branch}"
        if where is not None:
            now = GitRepository(where).git("rev-parse", "HEAD", "--symbolic-full-name", "HEAD").text.split()
            if now != [before, name]:
                return False  # it moved, or something else was checked out meanwhile
        told = f"avyay engine: fast-forward to {after[:7]}"
        moved = self.repository.git("update-ref", "-m", told, name, after, before, pass_fds=pass_fds)
        if moved.code != 0 and self.head() == before:
            raise DependencyError(f"git update-ref failed: {moved.error_text.strip()}", hint="Look at the repository.")
        return moved.code == 0

    def uncommitted(self) -> str | None:
        """What the user has changed where the branch is checked out, in words; None when nothing."""
        place = self.checked_out()
        if place is None:
            return None
        changed = GitRepository(place).output("status", "--porcelain", "--untracked-files=no").splitlines()
        files = f"{len(changed)} file{'' if len(changed) == 1 else 's'}"
        return f"uncommitted work in {files} of {place} is kept; a task that changes one waits" if changed else None

    def checked_out(self) -> Path | None:
        """The work tree of the user's repository that has the branch checked out."""
        listed = self.repository.output("worktree", "list", "--porcelain")
        path: Path | None = None
        for line in listed.splitlines():
            if line.startswith("worktree "):
                path = Path(line.removeprefix("worktree "))
            elif line == f"branch refs/heads/{self.branch}":
                return path
        return None

    def contains(self, commit: str) -> bool:
        """Whether a commit is part of the user's branch."""
        done = self.repository.git("merge-base", "--is-ancestor", commit, f"refs/heads/{self.branch}")
        return done.code == 0
