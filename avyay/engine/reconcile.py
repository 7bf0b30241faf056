"""Putting right what does not belong together: leases, dispatchers, branches, worktrees, processes, cut merges."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence

from avyay.clock import Clock
from avyay.engine import keeper
from avyay.engine.attempt import Place
from avyay.engine.attempts import Attempts
from avyay.engine.contracts import TaskQueue
from avyay.engine.lease import Breath, LeaseWatch
from avyay.engine.merge import merged_before
from avyay.engine.nodes.base import Node
from avyay.engine.queue import LostLeaseError
from avyay.engine.types import ACTIVE, REPOSITORY, Lease, Task
from avyay.errors import UnreachableError
from avyay.log import get_logger

__all__ = ["Reconciler", "owner_is_gone", "owner_name"]

log = get_logger("engine")

_QUICK = 2.0  # seconds: a write that takes longer had to wait for somebody


def owner_name(node: str) -> str:
    """The owner of a lease: a node, and the process that dispatches for it."""
    pid = os.getpid()
    return f"{node}@{socket.gethostname()}:{pid}:{keeper.birth(pid)}"


def owner_is_gone(owner: str) -> bool:
    """Whether an owner is known to be dead: its process was on this machine and is no more."""
    _, _, process = owner.rpartition("@")
    host, pid, birth = (*process.split(":", 2), "", "")[:3]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    return keeper.birth(int(pid)) != birth


class Reconciler:
    """Sweeps up after dispatchers that are gone.

    Args:
        place: The repository of a task.
        watch: Judges who is silent.
        offers: The repositories this dispatcher has, as capabilities.
        sweep_every: Seconds between two looks at the folders of attempts.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        places: Mapping[str, Place],
        folders: Attempts,
        place: Callable[[Task], Place],
        watch: LeaseWatch,
        clock: Clock,
        *,
        offers: frozenset[str],
        sweep_every: float,
    ) -> None:
        self._nodes = nodes
        self._places = places
        self._folders = folders
        self._place = place
        self._watch = watch
        self._clock = clock
        self._offers = offers
        self._sweep_every = sweep_every
        self._swept = -1e18

    def reconcile(self, queue: TaskQueue, at_work: Callable[[], set[tuple[str, int]]]) -> list[str]:
        """Put right what does not belong together; says what it did.

        Args:
            at_work: (task, fence) of this dispatcher's own attempts.
        """
        # Branches first: one that is seen now has a lease that is seen a moment later, or is over.
        branches = [(place, branch) for place in self._places.values() for branch in place.workshop.branches()]
        active = list(queue.tasks(*sorted(ACTIVE)))
        ours = at_work()
        breaths = {breath.task: breath for breath in queue.breaths()}
        mine = {owner_name(node.name) for node in self._nodes}
        silent = self._watch.look(breaths.values(), self._clock.monotonic())
        lost = {breath.task: "no heartbeat" for breath in silent if self._writable(queue)}
        # Only who has a task's repository can tell whether it was merged before its dispatcher died.
        judged = [task for task in active if task.state != "merging" or self._knows(task)]
        for task in judged:
            if task.owner in mine and (task.id, task.fence) not in ours:
                lost[task.id] = "its dispatcher knows nothing of it"
            elif task.owner is not None and task.owner not in mine and owner_is_gone(task.owner):
                lost[task.id] = "its dispatcher is gone"
        said = [
            self._take_away(queue, task, breath, lost[task.id])
            for task in judged
            if task.id in lost and (breath := breaths.get(task.id)) is not None and breath.fence == task.fence
        ]
        if said:  # those leases are over, and so are their branches
            active = list(queue.tasks(*sorted(ACTIVE)))
        leased = {f"avyay/{task.id}/{task.fence}" for task in active} | {
            f"avyay/{task}/{fence}" for task, fence in ours
        }
        for place, branch in branches:
            if branch not in leased:
                said.append(self._drop(place, branch))
        if self._clock.monotonic() - self._swept >= self._sweep_every:
            self._swept = self._clock.monotonic()
            said += self._folders.recover()
        said += [line for place in self._places.values() if (line := place.merging.settle()) is not None]
        for line in said:
            log.warning("reconciled", what=line)
        return said

    def _writable(self, queue: TaskQueue) -> bool:
        """Whether heartbeats could be written just now: who waits for a lock that somebody holds is not dead."""
        began = self._clock.monotonic()
        queue.probe()
        if self._clock.monotonic() - began < _QUICK:
            return True
        self._watch.forgive()
        return False

    def _drop(self, place: Place, branch: str) -> str:
        try:
            place.workshop.drop(branch)
        except UnreachableError as error:
            return f"{branch}: a branch without a lease stays for now: {error.message}"
        return f"{branch}: a branch without a lease was dropped"

    def _take_away(self, queue: TaskQueue, task: Task, breath: Breath, reason: str) -> str:
        """End a lease; a task that was merged before its owner died is done."""
        if task.state == "merging" and (commit := self._merged(queue, task)) is not None:
            try:
                lease = Lease(task, task.owner or "", task.fence)
                queue.finish(lease, f"merged as {commit[:7]}", commit=commit, merged=True)
            except LostLeaseError:
                return f"{task.id}: settled by another dispatcher"
            return f"{task.id}: was merged as {commit[:7]} before its dispatcher died"
        state = queue.expire(breath, reason)
        return f"{task.id}: {reason}; now {state or 'settled by another dispatcher'}"

    def _knows(self, task: Task) -> bool:
        """Whether the repository of a task is one of ours."""
        return not task.repository or f"{REPOSITORY}{task.repository}" in self._offers

    def _merged(self, queue: TaskQueue, task: Task) -> str | None:
        """The commit a task was being merged as, when the branch has it."""
        return merged_before(queue, self._place(task).workshop, task.id)
