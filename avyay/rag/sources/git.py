"""A git repository read at a commit: from its objects, so an unfinished edit in the work tree is never indexed."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from avyay.errors import AuthError, AvyayError, DependencyError, UnreachableError, UsageError
from avyay.git import GitRepository
from avyay.log import redact
from avyay.paths import ensure_directory
from avyay.rag.sources.base import Change, Entry, Selection, SourceSpec, Unread, too_large

if TYPE_CHECKING:
    from avyay.process import Completed

__all__ = ["GitTree", "fetch_mirror", "resolve_commit"]

FETCH_TIMEOUT = 900.0
FETCH_ATTEMPTS = 3
READ_BYTES = 32_000_000  # blobs read by one git process
WINDOW = 2_000  # commits read at once when looking for the last change of files
MAX_COMMITS = 60_000
_SYMLINK, _SUBMODULE = "120000", "160000"


class GitTree:
    """The tree of one commit."""

    def __init__(self, repository: GitRepository, commit: str, selection: Selection) -> None:
        self.repository = repository
        self.commit = commit
        self._selection = selection
        self._unread: list[Unread] = []

    @property
    def unread(self) -> Sequence[Unread]:
        _ = self.entries
        return self._unread

    @cached_property
    def entries(self) -> Sequence[Entry]:
        arguments = ["ls-tree", "-r", "-z", "-l", "--full-tree", self.commit]
        if self._selection.prefix:
            arguments += ["--", self._selection.prefix]
        done = self.repository.git(*arguments, timeout=120.0)
        if done.code != 0 or done.timed_out:
            raise DependencyError(
                f"git cannot list commit {self.commit[:7]} of {self.repository.root}: {_last_line(done)}",
                hint="Check the repository with: git fsck",
            )
        found = []
        for record in done.stdout.split(b"\0"):
            if not record:
                continue
            head, _, raw = record.partition(b"\t")
            mode, _, blob, size = head.decode("ascii").split()
            try:
                path = raw.decode("utf-8")
            except UnicodeDecodeError:
                if self._selection.wants(raw.decode("utf-8", "replace")):
                    self._unread.append(Unread(raw.decode("utf-8", "replace"), "its name is not UTF-8"))
                continue
            # What a symlink names is in the tree itself, or outside of what may be read.
            if mode in (_SYMLINK, _SUBMODULE) or not self._selection.wants(path):
                continue
            if (left_out := too_large(path, int(size))) is not None:
                self._unread.append(left_out)
                continue
            found.append(Entry(path, blob, int(size)))
        return sorted(found, key=lambda entry: entry.path)

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        batch: list[Entry] = []
        size = 0
        for entry in entries:
            batch.append(entry)
            size += entry.size
            if size >= READ_BYTES:
                yield from self._read_batch(batch)
                batch, size = [], 0
        if batch:
            yield from self._read_batch(batch)

    def history(self, paths: Sequence[str]) -> dict[str, Change]:
        wanted = set(paths)
        changes: dict[str, Change] = {}
        skip = 0
        while wanted and skip < MAX_COMMITS:
            commits = list(self._log(skip))
            for commit, author_time, touched in commits:
                for path in wanted.intersection(touched):
                    changes[path] = Change(commit, author_time)
                    wanted.discard(path)
            if len(commits) < WINDOW:
                break
            skip += WINDOW
        for path in wanted:  # changed only while merging, or further back than anyone reads
            changes[path] = self._last_change(path) if len(wanted) <= 50 else Change(self.commit, None)
        return changes

    def descends_from(self, commit: str) -> bool:
        """Whether `commit` is part of this state's history: False after a rewrite."""
        return self.repository.git("merge-base", "--is-ancestor", commit, self.commit, timeout=60.0).code == 0

    def _read_batch(self, batch: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        stdin = "".join(f"{entry.content}\n" for entry in batch).encode()
        done = self.repository.git("cat-file", "--batch", timeout=300.0, stdin=stdin)
        out, position = done.stdout, 0
        for entry in batch:
            end = out.find(b"\n", position)
            fields = out[position:end].split() if end != -1 else []
            if len(fields) != 3 or fields[1] != b"blob":
                raise DependencyError(
                    f"git cannot read {entry.path} at {self.commit[:7]} in {self.repository.root}.",
                    hint="Objects are missing: check with git fsck, or fetch the repository again.",
                    code="git_object_missing",
                )
            size = int(fields[2])
            yield entry, out[end + 1 : end + 1 + size]
            position = end + 1 + size + 1

    def _log(self, skip: int) -> Iterator[tuple[str, int, list[str]]]:
        """(commit, author time, files it changed), newest first."""
        done = self.repository.git(
            "log",
            "--format=%x01%H %at",
            "--name-only",
            "--no-renames",
            "-z",
            f"--max-count={WINDOW}",
            f"--skip={skip}",
            self.commit,
            timeout=120.0,
        )
        if done.code != 0:
            return
        for block in done.stdout.split(b"\x01")[1:]:
            head, _, names = block.partition(b"\0") if b"\0" in block[:80] else block.partition(b"\n")
            commit, _, seconds = head.decode("ascii", "replace").strip().partition(" ")
            files = [name.decode("utf-8", "replace").lstrip("\n") for name in names.split(b"\0") if name.strip()]
            yield commit, int(seconds or 0), files

    def _last_change(self, path: str) -> Change:
        done = self.repository.git("log", "-1", "-m", "--format=%H %at", self.commit, "--", f":(literal){path}")
        commit, _, seconds = done.text.strip().partition("\n")[0].partition(" ")
        return Change(commit or self.commit, int(seconds) if seconds.isdigit() else None)


def resolve_commit(repository: GitRepository, branch: str | None) -> str:
    """The commit that `branch` (a branch, tag or commit; HEAD when None) names.

    Raises:
        UsageError: there is no such thing, or no commit at all.
    """
    if branch is None:
        head = repository.head()
        if head is None:
            raise UsageError(
                f"The repository {repository.root} has no commits yet.",
                hint="Commit something, or index the files as they lie on disk: avyay rag index --worktree",
                code="no_commits",
            )
        return head
    for name in (branch, f"refs/heads/{branch}", f"refs/remotes/origin/{branch}"):
        if name.startswith("-"):
            break
        done = repository.git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if done.code == 0:
            return done.text.strip()
    raise UsageError(
        f"{repository.root} has no branch, tag or commit called {branch!r}.",
        hint=f"See what there is: git -C {repository.root} branch --all",
        code="no_branch",
    )


def fetch_mirror(spec: SourceSpec, mirrors: Path) -> tuple[GitRepository, str]:
    """Bring the newest state of a remote repository here.

    Returns:
        Our bare copy of it, and the commit that `spec.branch` names there now.

    Raises:
        AuthError: it refuses us.
        UnreachableError: it does not answer.
        UsageError: there is no such repository or branch.
    """
    ensure_directory(mirrors)
    folder = mirrors / f"{hashlib.sha256(spec.location.encode()).hexdigest()[:20]}.git"
    repository = GitRepository(folder)
    target = f"refs/avyay/{hashlib.sha256((spec.branch or 'HEAD').encode()).hexdigest()[:12]}"
    if not _sound(repository, target):
        shutil.rmtree(folder, ignore_errors=True)  # ours, and all of it is to be had again
        folder.mkdir()
        repository.output("init", "--quiet", "--bare", ".")
    wanted = spec.branch or "HEAD"
    _fetch(repository, spec, f"+{wanted}:{target}")
    return repository, repository.output("rev-parse", "--verify", f"{target}^{{commit}}").strip()


def _sound(mirror: GitRepository, target: str) -> bool:
    """Whether a mirror is a repository, and what was fetched last is still in it."""
    if not all((mirror.root / part).exists() for part in ("HEAD", "objects", "refs")):
        return False
    known = mirror.git("rev-parse", "--verify", "--quiet", target)
    return known.code != 0 or mirror.git("cat-file", "-e", f"{target}^{{tree}}").code == 0


def _fetch(repository: GitRepository, spec: SourceSpec, refspec: str) -> None:
    from avyay.retries import retry_context

    arguments = [
        "-c",
        "protocol.ext.allow=never",
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        "--no-recurse-submodules",
        "--",
        spec.location,
        refspec,
    ]
    for attempt in retry_context(
        on=UnreachableError, attempts=FETCH_ATTEMPTS, timeout=FETCH_TIMEOUT, wait_initial=0.3, wait_max=5.0
    ):
        with attempt:
            done = repository.git(*arguments, timeout=FETCH_TIMEOUT)
            if done.code != 0 or done.timed_out:
                raise _fetch_error(done, spec)


_REFUSED = re.compile(
    r"(?i)authentication failed|could not read (username|password)|permission denied|terminal prompts disabled"
    r"|access denied|error: 40[13]\b|host key verification failed"
)
_ABSENT = re.compile(r"(?i)not found|does not appear to be a git repository|does not exist|no such file|error: 404\b")
_NO_REF = re.compile(r"(?i)couldn't find remote ref|not our ref|no such ref")


def _fetch_error(done: Completed, spec: SourceSpec) -> AvyayError:
    where = redact(spec.location)
    said = redact(done.error_text)
    if done.timed_out:
        return UnreachableError(
            f"Fetching {where} took longer than {FETCH_TIMEOUT:.0f} s.", hint="Check the network and try again."
        )
    if _NO_REF.search(said):
        what = f"branch or tag {spec.branch!r}" if spec.branch else "commit"
        return UsageError(f"{where} has no {what}.", hint=f"See what there is: git ls-remote {where}", code="no_branch")
    if _REFUSED.search(said):
        return AuthError(
            f"{where} refused access: {_last_line(done)}",
            hint="Set up an SSH key or a git credential helper for it; this must work: git ls-remote " + where,
        )
    if _ABSENT.search(said) and "resolve host" not in said:
        return UsageError(
            f"{where} is not a git repository that can be read: {_last_line(done)}",
            hint="Check the address; private repositories often say 'not found' to those who may not read them.",
            code="no_repository",
        )
    return UnreachableError(
        f"{where} cannot be fetched: {_last_line(done)}", hint=f"This must work: git ls-remote {where}"
    )


def _last_line(done: Completed) -> str:
    lines = [line.strip() for line in redact(done.error_text).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(("fatal:", "error:", "ssh:"))]
    return (named or lines or ["no message"])[0].removeprefix("fatal: ")[:300]
