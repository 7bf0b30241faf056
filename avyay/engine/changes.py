"""What is written inside a transaction: a change of a task, and the line of history that tells of it.

A task names its newest line, each line the one before it. So a story is read along that chain, and no index has to be
written at every change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from avyay.engine.announce import WAITS_FOR_APPROVAL
from avyay.engine.database import QueueDatabase
from avyay.engine.rows import read_entry, read_task
from avyay.engine.types import FINAL, Entry, State, Task
from avyay.errors import UsageError

__all__ = [
    "alter",
    "blame",
    "change",
    "exists",
    "known",
    "needs_of",
    "read",
    "settle",
    "story",
    "tell",
    "wake",
]


def exists(db: QueueDatabase, name: str) -> bool:
    """Whether there is a task of that id."""
    return db.execute("SELECT 1 FROM tasks WHERE id = ?", (name,)).fetchone() is not None


def needs_of(db: QueueDatabase, name: str) -> tuple[str, ...]:
    """What a task needs."""
    return tuple(str(row[0]) for row in db.execute("SELECT need FROM needs WHERE task = ? ORDER BY need", (name,)))


def read(db: QueueDatabase, name: str) -> Task:
    """A task that is known to exist."""
    return read_task(db.execute("SELECT * FROM tasks WHERE id = ?", (name,)).fetchone(), needs_of(db, name))


def known(db: QueueDatabase, name: str, *, lock: bool = False) -> Task:
    """The task of that id.

    Args:
        lock: Keep others from changing it until the transaction ends.

    Raises:
        UsageError: there is none; says which come close.
    """
    # avyay: ignore[sql-injection] one of two constants
    if db.execute(f"SELECT 1 FROM tasks WHERE id = ?{db.for_update if lock else ''}", (name,)).fetchone() is None:  # noqa: S608
        close = [str(row[0]) for row in db.execute("SELECT id FROM tasks WHERE id LIKE ? LIMIT 3", (f"{name}%",))]
        hint = f"Did you mean {' or '.join(close)}?" if close else "See: avyay engine list"
        raise UsageError(f"There is no task {name!r}.", hint=hint, code="no_task")
    return read(db, name)


# -------------------------------------------------------------------- one task


def change(
    db: QueueDatabase,
    name: str,
    now: float,
    kind: str,
    states: tuple[State | None, State],
    by: tuple[str | None, int | None] = (None, None),
    detail: str = "",
    data: Mapping[str, Any] | None = None,
    **columns: Any,
) -> None:
    """Put a task from one state into another, and tell of it.

    Args:
        states: Before and after.
        by: Owner and fence.
        columns: What else of the task is set.
    """
    latest = tell(db, name, now, kind, states, by, detail, data)
    alter(db, name, state=states[1], latest=latest, updated=now, **columns)


def tell(
    db: QueueDatabase,
    name: str,
    now: float,
    kind: str,
    states: tuple[State | None, State | None],
    by: tuple[str | None, int | None] = (None, None),
    detail: str = "",
    data: Mapping[str, Any] | None = None,
) -> int:
    """Add a line to the history and return its number; the caller sets it as the task's `latest`."""
    return db.append(
        "INSERT INTO history (task, at, kind, before, after, owner, fence, detail, data, earlier)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT latest FROM tasks WHERE id = ?))",
        (name, now, kind, *states, *by, detail, json.dumps(data) if data else "{}", name),
    )


def alter(db: QueueDatabase, name: str, **columns: Any) -> None:
    """Set columns of a task; their names are those this package writes."""
    marks = ", ".join([f"{column} = ?" for column in columns])
    # avyay: ignore[sql-injection] column names of our own
    db.execute(f"UPDATE tasks SET {marks} WHERE id = ?", (*columns.values(), name))  # noqa: S608


def story(db: QueueDatabase, name: str, after: int, limit: int) -> Iterator[Entry]:
    """A task's lines of history with greater numbers than `after`, oldest first."""
    rows = db.execute(
        "WITH RECURSIVE story (number) AS (SELECT latest FROM tasks WHERE id = ?"
        " UNION ALL SELECT earlier FROM history JOIN story ON history.number = story.number"
        " WHERE earlier > ?)"
        " SELECT history.number, task, at, kind, before, after, owner, fence, detail, data"
        " FROM story JOIN history ON history.number = story.number"
        " WHERE history.number > ? ORDER BY history.number LIMIT ?",
        (name, after, after, limit),
    )
    return map(read_entry, rows)


# -------------------------------------------------------------------- tasks that wait for each other


def settle(
    db: QueueDatabase, name: str, now: float, kind: str, *, first: bool = False, by: str | None = None, **columns: Any
) -> None:
    """Put a task that nobody works on into "ready" or "blocked", as its needs and its approval have it.

    Args:
        by: The person who did it.
    """
    open_needs = db.execute(
        "SELECT need, state FROM needs JOIN tasks ON tasks.id = needs.need WHERE needs.task = ? AND state != 'done'"
        " ORDER BY need",
        (name,),
    ).fetchall()
    before, waits_for_approval = db.execute("SELECT state, approval FROM tasks WHERE id = ?", (name,)).fetchone()
    ended = [(need, state) for need, state in open_needs if state in FINAL]
    if ended:
        reason = f"needs {ended[0][0]}, which is {ended[0][1]}"
    elif open_needs:
        reason = f"waits for {_few([str(need) for need, _ in open_needs])}"
    else:
        reason = WAITS_FOR_APPROVAL if waits_for_approval else ""
    states: tuple[State | None, State] = (None if first else before, "blocked" if reason else "ready")
    own = {"reason": reason, "waits": len(open_needs), "owner": None, **columns}
    change(db, name, now, kind, states, (by, None), reason, **own)


def wake(db: QueueDatabase, name: str, now: float) -> None:
    """A task is done: those that waited for it wait for one less."""
    followers = db.execute("SELECT task FROM needs WHERE need = ?", (name,)).fetchall()
    if not followers:
        return
    db.executemany("UPDATE tasks SET waits = waits - 1 WHERE id = ?", followers)
    freed = db.execute(
        "SELECT id FROM needs JOIN tasks ON tasks.id = needs.task"
        " WHERE needs.need = ? AND state = 'blocked' AND waits = 0 ORDER BY number",
        (name,),
    ).fetchall()
    for (follower,) in freed:
        settle(db, str(follower), now, "freed")


def blame(db: QueueDatabase, name: str, state: State, now: float) -> None:
    """Tell all that wait for `name`, however far downstream, what holds them (or that it is on its way again)."""
    if db.execute("SELECT 1 FROM needs WHERE need = ? LIMIT 1", (name,)).fetchone() is None:
        return  # nobody, as a rule: a sixth of the walk's price
    reason = f"needs {name}, which is {state}" if state in FINAL else f"waits for {name}"
    # One UPDATE with the walk inside it costs SQLite ten times as much.
    followers = db.execute(
        "WITH RECURSIVE below (id) AS (SELECT task FROM needs WHERE need = ?"
        " UNION SELECT needs.task FROM needs JOIN below ON needs.need = below.id)"
        " SELECT tasks.id FROM below JOIN tasks ON tasks.id = below.id WHERE state = 'blocked' ORDER BY number",
        (name,),
    ).fetchall()
    for (follower,) in followers:
        change(db, str(follower), now, "held", ("blocked", "blocked"), detail=reason, reason=reason)


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
