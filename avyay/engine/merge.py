"""The merge queue: one result at a time, each verified on top of what it is merged into, then a fast-forward.

Two results that are green alone can be red together: the second is verified again on top of the first, and sent back
with the log when it fails. The step that moves the branch happens inside the queue's transaction, under the fence; a
work tree follows it (`avyay.engine.follow`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avyay.engine.contracts import TaskQueue
from avyay.engine.follow import IN_THE_WAY, Follower
from avyay.engine.nodes.base import Control
from avyay.engine.types import Lease
from avyay.engine.verify import Verdict, Verifier
from avyay.engine.worktree import Workshop, take_turn
from avyay.errors import AvyayError, DependencyError, UnreachableError
from avyay.git import GitRepository
from avyay.log import get_logger
from avyay.process import find_program, run

__all__ = ["MergeQueue", "Merged", "Result", "merged_before"]

log = get_logger("engine")

_ROUNDS = 10
_LONGEST_TURN = 7200.0  # seconds: the results before this one are verified again, each in its turn
_PATIENCE = 20  # tries, a pause apart, while somebody's uncommitted changes are in the way


@dataclass(frozen=True, slots=True)
class Result:
    """A verified result: the attempt's branch as one commit on top of `base`."""

    branch: str
    base: str
    commit: str
    message: str


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of it: merged as `commit`, or a pull request, or evicted with a verdict."""

    how: Literal["merged", "pull request", "branch", "evicted"]
    commit: str = ""
    url: str = ""
    verdict: Verdict | None = None


def merged_before(queue: TaskQueue, workshop: Workshop, task: str) -> str | None:
    """The commit that an earlier attempt was merged as, when its dispatcher died before that was written down."""
    for entry in reversed(queue.history(task)):
        commit = str(entry.data.get("commit", "")) if entry.kind == "merging" else ""
        if commit and workshop.contains(commit):
            return commit
    return None


class _MovedError(Exception):
    """The branch moved between the look and the step."""


class MergeQueue:
    """The way into one repository's branch.

    Args:
        pause: Seconds between two tries while a work tree is in the way.
    """

    def __init__(
        self,
        workshop: Workshop,
        verifier: Verifier,
        *,
        mode: Literal["merge", "pull_request", "branch"] = "merge",
        remote: str = "origin",
        pause: float = 3.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._workshop = workshop
        self._verifier = verifier
        self._mode = mode
        self._remote = remote
        self._pause = pause
        self._sleep = sleep
        self._lock = threading.Lock()
        self._follower = Follower(workshop.folder, workshop.branch)

    @contextmanager
    def _turn(self) -> Iterator[int]:
        with self._lock, take_turn(self._workshop.folder / "merge.lock", patience=_LONGEST_TURN) as turn:
            yield turn

    def left_behind(self) -> Path | None:
        """The user's work tree, when somebody died before it had followed the branch."""
        if (tree := self._follower.pending()) is None or not self._lock.acquire(blocking=False):
            return None
        try:
            with take_turn(self._workshop.folder / "merge.lock", patience=0.0):
                return tree
        except UnreachableError:
            return None  # whoever merges is at it
        finally:
            self._lock.release()

    def settle(self) -> str | None:
        """Finish what somebody who died left half done in the user's work tree; says what. Not while anybody merges."""
        if self._follower.pending() is None or not self._lock.acquire(blocking=False):
            return None
        try:
            with take_turn(self._workshop.folder / "merge.lock", patience=0.0) as turn:
                return self._follower.settle(turn)
        except UnreachableError:
            return None  # whoever merges does it
        except (AvyayError, OSError) as error:
            return f"a work tree is left behind for now: {error}"
        finally:
            self._lock.release()

    def merge(self, queue: TaskQueue, lease: Lease, result: Result, folder: Path, control: Control) -> Merged:
        """Merge a result, or say why not. The task is "done" afterwards exactly when it was merged.

        Raises:
            LostLeaseError: the lease is lost; nothing was merged.
            DependencyError: git or gh fails, or a work tree stays in the way.
        """
        if self._mode != "merge":
            return self._hand_over(queue, lease, result)
        with self._turn() as turn:
            for _ in range(_ROUNDS):
                if (commit := merged_before(queue, self._workshop, lease.task.id)) is not None:
                    return self._was_merged(queue, lease, commit)
                head = self._workshop.head()
                if head != result.base:
                    again = self._again(lease, result, folder, control)
                    if isinstance(again, Merged):
                        return again
                    result = again
                self._workshop.deliver(result.commit)
                queue.advance(lease, "merging", f"onto {result.base[:7]}", commit=result.commit)
                try:
                    self._step(queue, lease, result, turn)
                except _MovedError:
                    queue.advance(lease, "verifying", "the branch moved meanwhile")
                    continue
                return Merged("merged", result.commit)
        raise DependencyError(
            f"{self._workshop.branch} moved {_ROUNDS} times during one merge.", hint="Somebody else commits to it."
        )

    def _was_merged(self, queue: TaskQueue, lease: Lease, commit: str) -> Merged:
        queue.advance(lease, "merging", "it was merged by an attempt whose dispatcher died", commit=commit)
        queue.finish(lease, f"was merged as {commit[:7]}", commit=commit, merged=True)
        return Merged("merged", commit)

    def _again(self, lease: Lease, result: Result, folder: Path, control: Control) -> Result | Merged:
        """The result on top of the branch as it is now, verified there."""
        head = self._workshop.fetch()
        tree = folder / "candidate"
        try:
            commit, conflict = self._workshop.candidate(tree, head, result.branch, result.message)
            if commit is None:
                reason = f"conflicts with what was merged meanwhile ({head[:7]})"
                return Merged("evicted", verdict=Verdict(False, "conflict", reason, conflict[-6000:]))
            if commit == head:
                reason = "what it changed is in the branch already"
                return Merged("evicted", verdict=Verdict(False, "conflict", reason))
            verdict = self._verifier.check(lease.task, lease.fence, GitRepository(tree), head, commit, folder, control)
            if not verdict.passed:
                return Merged("evicted", verdict=verdict)
            return Result(result.branch, head, commit, result.message)
        finally:
            self._workshop.remove(tree)

    def _step(self, queue: TaskQueue, lease: Lease, result: Result, turn: int) -> None:
        """Move the branch and end the task, both or neither; a work tree that has the branch goes along."""

        def move() -> None:
            if not self._workshop.fast_forward(result.base, result.commit, where, pass_fds=(turn,)):
                raise _MovedError

        for number in range(_PATIENCE):
            try:
                self._follower.settle(turn)  # what the last one left
                if (where := self._workshop.checked_out()) is not None:
                    self._follower.prepare(where, result.base, result.commit, turn)
                break
            except DependencyError as error:
                if error.code != IN_THE_WAY or number == _PATIENCE - 1:
                    raise
                if number == 0:
                    log.warning("merge_waits", task=lease.task.id, reason=error.message, hint=error.hint)
                self._sleep(self._pause)
        try:
            queue.finish(lease, f"merged as {result.commit[:7]}", act=move, commit=result.commit, merged=True)
        finally:
            try:
                self._follower.settle(turn)
            except (AvyayError, OSError) as error:  # it is done or not; the files have another chance at every tick
                log.warning("work_tree_left_behind", reason=str(error))

    def _hand_over(self, queue: TaskQueue, lease: Lease, result: Result) -> Merged:
        """Leave the verified commit as a branch of the user's repository, or open a pull request for it."""
        self._workshop.deliver(result.commit)
        user = self._workshop.repository
        user.output("update-ref", f"refs/heads/{result.branch}", result.commit)
        queue.advance(lease, "merging", self._mode.replace("_", " "), commit=result.commit)
        if self._mode == "branch":
            queue.finish(lease, f"left as branch {result.branch}", commit=result.commit)
            return Merged("branch", result.commit)
        url = self._pull_request(user, result)
        queue.finish(lease, f"pull request {url}", commit=result.commit, url=url)
        return Merged("pull request", result.commit, url)

    def _pull_request(self, user: GitRepository, result: Result) -> str:
        gh = find_program("gh", hint="Install the GitHub CLI (https://cli.github.com) and run: gh auth login")
        user.output(
            "push", "--quiet", "--force", self._remote, f"{result.commit}:refs/heads/{result.branch}", timeout=300.0
        )
        title, _, body = result.message.partition("\n")
        command = [gh, "pr", "create", "--head", result.branch, "--base", self._workshop.branch]
        done = run([*command, "--title", title, "--body", body.strip() or title], cwd=user.root, timeout=120.0)
        if done.code != 0 and "already exists" in done.error_text:
            done = run([gh, "pr", "view", result.branch, "--json", "url", "--jq", ".url"], cwd=user.root, timeout=60.0)
        if done.code != 0:
            raise DependencyError(
                f"gh pr create failed: {done.error_text.strip()[:300]}",
                hint=f"The branch {result.branch} is pushed: open the pull request by hand.",
            )
        return done.text.strip().splitlines()[-1] if done.text.strip() else ""
