"""New tasks on their way into the queue: all of a call are taken, or none."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence

from avyay.engine.changes import exists, settle
from avyay.engine.database import QueueDatabase
from avyay.engine.graph import find_cycle
from avyay.engine.types import REPOSITORY, NewTask, pack_extra
from avyay.errors import UsageError

__all__ = ["take_in"]

_ID_BYTES = 5


def take_in(db: QueueDatabase, new: Sequence[NewTask], now: float) -> list[str]:
    """Insert tasks, inside a transaction; see `Queue.add`."""
    ids: list[str] = []
    fresh: list[tuple[str, NewTask]] = []
    for task in new:
        present = _with_fingerprint(db, task.fingerprint)
        name = present or task.id or f"t-{secrets.token_hex(_ID_BYTES)}"
        ids.append(name)
        if present is None:
            fresh.append((name, task))
    _check(db, fresh)
    for name, task in fresh:
        _insert(db, name, task, now)
    db.executemany("INSERT INTO needs (task, need) VALUES (?, ?)", [(n, need) for n, t in fresh for need in {*t.needs}])
    for name, _ in fresh:
        settle(db, name, now, "added", first=True)
    return ids


def _with_fingerprint(db: QueueDatabase, fingerprint: str | None) -> str | None:
    if fingerprint is None:
        return None
    row = db.execute("SELECT id FROM tasks WHERE fingerprint = ?", (fingerprint,)).fetchone()
    return str(row[0]) if row else None


def _check(db: QueueDatabase, fresh: Sequence[tuple[str, NewTask]]) -> None:
    times = Counter(name for name, _ in fresh)
    for name, task in fresh:
        if not task.title.strip():
            raise UsageError("A task has no title.", hint="Say in one line what is to be done.")
        if task.attempts < 1:
            raise UsageError(f"The task {name} allows {task.attempts} attempts.", hint="Allow at least one.")
        if times[name] > 1 or exists(db, name):
            raise UsageError(f"There is a task {name!r} already.", hint="Choose another id, or leave it out.")
    for _, task in fresh:
        for need in task.needs:
            if need not in times and not exists(db, need):
                raise UsageError(
                    f"The task {task.id or repr(task.title)} needs {need!r}, which does not exist.",
                    hint="Add it first, or in the same call.",
                )
    # What is in the queue already cannot need what is new, so a cycle can only lie among the new.
    graph = {name: [need for need in task.needs if need in times] for name, task in fresh}
    if cycle := find_cycle(graph):
        raise UsageError(f"These tasks wait for each other: {' -> '.join(cycle)}.", hint="Break the cycle.")


def _insert(db: QueueDatabase, name: str, task: NewTask, now: float) -> None:
    wants = {*task.requires, *([f"{REPOSITORY}{task.repository}"] if task.repository else [])}
    db.execute(
        "INSERT INTO tasks (id, title, description, accept, files, requires, evidence, fingerprint, priority,"
        " state, approval, attempts, created, updated, extra)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'blocked', ?, ?, ?, ?, ?)",
        (
            name, task.title.strip(), task.description, task.accept, json.dumps(task.files),
            json.dumps(sorted(wants)), json.dumps(task.evidence), task.fingerprint, task.priority,
            int(task.approval), task.attempts, now, now, json.dumps(pack_extra(task)),
        ),
    )  # fmt: skip
