"""A task's history as text: open it and read what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from avyay.engine.announce import WAITS_FOR_APPROVAL
from avyay.engine.overlap import globs_overlap
from avyay.engine.types import FINAL, Entry, Task
from avyay.money import Picodollars, format_usd

__all__ = ["moment", "narrate", "sentence", "why"]

_SENTENCES = {
    "added": "was added",
    "guessed": "is taken to touch {detail}",
    "claimed": "was claimed by {owner} ({detail})",
    "running": "began to run",
    "verifying": "was handed to verification",
    "merging": "was handed to the merge queue",
    "done": "was done",
    "failed": "failed: {detail}",
    "lease_lost": "was taken from {owner}: {detail}",
    "parked": "was given back untried by {owner}: {detail}",
    "cancelled": "was cancelled: {detail}",
    "resolved": "was closed without work: {detail}",
    "retried": "was given all its attempts again",
    "approved": "was approved by {owner}",
    "waiting": "was verified, and waits: {detail}",
    "freed": "had everything it waited for",
    "held": "is held: {detail}",
}


_DETAILED = ("added", "freed", "retried", "running", "verifying", "merging", "done")


def _effort(entry: Entry) -> str:
    """What an attempt used up, and where its log lies."""
    data = entry.data
    if "seconds" not in data or "turns" not in data:
        return ""
    parts = [f"{data['seconds']:.0f} s", f"{data['turns']} turn{'' if data['turns'] == 1 else 's'}"]
    if data.get("picodollars"):
        parts.append(format_usd(Picodollars(int(data["picodollars"]))))
    elif data.get("own_dollars"):
        parts.append(f"${float(data['own_dollars']):.2f} by its own count")
    if data.get("killed"):
        one = data["killed"] == 1
        parts.append(f"{data['killed']} {'process it left was' if one else 'processes it left were'} ended")
    return f"{', '.join(parts)}; log: {data.get('transcript', '')}"


def moment(at: float) -> str:
    """A point in time, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def sentence(entry: Entry) -> str:
    """What happened to a task, as the rest of a sentence that begins with its id."""
    kind = "waiting" if entry.kind == "parked" and "commit" in entry.data else entry.kind
    said = _SENTENCES.get(kind, kind).format(owner=entry.owner or "somebody", detail=entry.detail)
    return said + (f" ({entry.detail})" if entry.detail and entry.kind in _DETAILED else "")


def narrate(task: Task, history: Sequence[Entry]) -> list[str]:
    """The whole story of a task, a line for each thing that happened."""
    lines = [f"{task.id}: {task.title}", f"  state: {task.state}{f' ({task.reason})' if task.reason else ''}"]
    lines.append(f"  attempt {task.attempt} of {task.attempts}, priority {task.priority}")
    files = [f"{path} (guessed; {reason})" for path, reason in task.guessed.items()] if task.guessed else task.files
    if task.repository:
        lines.append(f"  repository: {task.repository}")
    for label, values in (("needs", task.needs), ("files", files), ("evidence", task.evidence)):
        if values:
            lines.append(f"  {label}: {', '.join(values)}")
    if task.accept:
        lines.append(f"  accepted when this succeeds: {task.accept}")
    if task.description:
        lines += ["", *(f"  {line}" for line in task.description.splitlines())]
    lines.append("")
    for entry in history:
        fence = f" [fence {entry.fence}]" if entry.fence else ""
        lines.append(f"  {moment(entry.at)}  {sentence(entry)}{fence}")
        if effort := _effort(entry):
            lines.append(f"{' ' * 23}{effort}")
    return lines


def _shares(task: Task, other: Task) -> str | None:
    """What a task has in common with one at work, in words; None when nothing."""
    for mine in task.files:
        for theirs in other.files:
            if globs_overlap(mine, theirs):
                reasons = [t.guessed[f] for t, f in ((task, mine), (other, theirs)) if t.guessed and f in t.guessed]
                guess = f" (guessed; {', '.join(dict.fromkeys(reasons))})" if reasons else ""
                return f"{other.id}, which touches {theirs} too{guess}"
    return None


def why(task: Task, get: Callable[[str], Task], now: float, active: Iterable[Task] = ()) -> list[str]:
    """Why a task is not running: the reason, and what is at the root of it.

    Args:
        active: The tasks at work, whose files others wait for.
    """
    if task.state in FINAL:
        return [f"{task.id} is {task.state}{f': {task.reason}' if task.reason else ''}."]
    if task.state == "ready":
        if task.not_before > now:
            sooner = f"sooner: avyay engine retry {task.id}"
            return [f"{task.id} may be claimed in {task.not_before - now:.0f} s ({task.reason}); {sooner}"]
        if in_the_way := [line for other in active if (line := _shares(task, other)) is not None]:
            return [f"{task.id} is ready, and waits for {'; '.join(in_the_way)}."]
        wanted = f" that offers {', '.join(sorted(task.requires))}" if task.requires else ""
        where = f" in {task.repository}" if Path(task.repository).is_absolute() else ""
        return [f"{task.id} is ready: avyay engine run{where} starts it when a node{wanted} is free."]
    if task.state != "blocked":
        return [f"{task.id} is {task.state}, held by {task.owner} with fence {task.fence}."]
    approve = f" Let it go on: avyay engine approve {task.id}" if task.reason == WAITS_FOR_APPROVAL else ""
    lines = [f"{task.id} is blocked: {task.reason}.{approve}"]
    seen = {task.id}
    waiting = list(task.needs)
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        need = get(name)
        if need.state == "blocked":
            waiting += need.needs
        if need.state != "done":
            again = f" Give it another chance: avyay engine retry {need.id}" if need.state in FINAL else ""
            lines.append(
                f"  {need.id} is {need.state}{f': {need.reason}' if need.reason else ''} - {need.title}{again}"
            )
    return lines
