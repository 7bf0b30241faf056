"""What `avyay engine doctor` looks at: agents, nodes, repositories; leases against processes, worktrees, branches."""

from __future__ import annotations

from dataclasses import dataclass

from avyay.engine import keeper
from avyay.engine.contracts import TaskQueue
from avyay.engine.loop import Dispatcher, owner_is_gone
from avyay.engine.types import ACTIVE
from avyay.errors import AvyayError, UnreachableError
from avyay.lock_holder import file_locker

__all__ = ["NO_AGENTS", "Check", "inspect"]

NO_AGENTS = "none (install claude, codex, opencode, gemini or aider, or set engine.agents)"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `note` says something that is no fault but should be known."""

    what: str
    ok: bool
    detail: str
    note: bool = False


def inspect(dispatcher: Dispatcher, queue: TaskQueue) -> list[Check]:
    """Every check; changes nothing."""
    checks: list[Check] = []
    for node in dispatcher.nodes:
        try:
            agents = ", ".join(node.agents())
            able = ", ".join(sorted(item for item in node.capabilities() if not item.startswith("agent:")))
            slots = f"{node.slots} slot{'' if node.slots == 1 else 's'}"
            state = f"{slots}; agents: {agents or NO_AGENTS}; offers {able}"
            checks.append(Check(f"node {node.name}", bool(agents) and node.ready(), state))
        except AvyayError as error:
            checks.append(Check(f"node {node.name}", False, error.message))
    for name, place in dispatcher.places.items():
        label = f"repository {name or 'default'}"
        try:
            workshop = place.workshop
            head = workshop.head()
            edits = workshop.uncommitted()
            text = f"{workshop.repository.root}, {workshop.branch} at {head[:7]}"
            checks.append(Check(label, True, f"{text}; {edits}" if edits else text, note=edits is not None))
        except AvyayError as error:
            checks.append(Check(label, False, error.message))
    try:
        checks.append(Check("today", True, dispatcher.today()))
    except UnreachableError as error:
        checks.append(Check("today", False, f"{error.message} {error.hint or ''}".rstrip()))
    if said := dispatcher.lacking():
        checks.append(Check("models", False, " ".join(said)))
    if said := dispatcher.spending():
        checks.append(Check("dollars", True, " ".join(said), note=True))
    if (stuck := queue.stuck()) is not None:
        checks.append(Check("queue lock", False, ": ".join(stuck)))
    for name, place in dispatcher.places.items():
        if (left := place.merging.left_behind()) is not None:
            detail = f"{left} has not followed {place.workshop.branch} yet: avyay engine doctor --fix"
            checks.append(Check(f"work tree of {name or 'default'}", False, detail))
        for lock in ("lock", "merge.lock"):
            holder = file_locker(place.workshop.folder / lock)
            if holder is not None and holder.stopped:
                checks.append(Check(f"{lock} of {name or 'default'}", False, f"{holder}. {holder.remedy}"))
    checks += _leases(dispatcher, queue)
    counts = queue.counts()
    checks.append(Check("queue", True, ", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "empty"))
    return checks


def _leases(dispatcher: Dispatcher, queue: TaskQueue) -> list[Check]:
    """Leases x processes x worktrees x branches."""
    branches = [branch for place in dispatcher.places.values() for branch in place.workshop.branches()]
    active = list(queue.tasks(*sorted(ACTIVE)))
    gone = [task.id for task in active if task.owner is not None and owner_is_gone(task.owner)]
    checks = [
        Check(
            "leases",
            not gone,
            f"{len(active)} held" + (f"; the dispatcher of {', '.join(gone[:5])} is gone" if gone else ""),
        )
    ]
    attempts = dispatcher.folders
    folders = attempts.open_folders()
    stale = [f"{folder.parent.name}/{folder.name}" for folder, alive in folders if not alive]
    checks.append(Check("worktrees", not stale, _found(len(folders), "of a dispatcher that is gone", stale)))
    alive = {attempts.mark(folder.parent.name, int(folder.name)) for folder, lives in folders if lives}
    marks = keeper.marks(f"{attempts.prefix}/")
    orphans = sorted(str(pid) for pid, mark in marks.items() if mark not in alive)
    checks.append(Check("processes", not orphans, _found(len(marks), "of no attempt under way", orphans)))
    leased = {f"avyay/{task.id}/{task.fence}" for task in active}
    loose = [branch for branch in branches if branch not in leased]
    checks.append(Check("branches", not loose, _found(len(branches), "without a lease", loose)))
    return checks


def _found(number: int, what: str, wrong: list[str]) -> str:
    return f"{number} found" + (f"; {what}: {', '.join(wrong[:5])} (avyay engine doctor --fix)" if wrong else "")
