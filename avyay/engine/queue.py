"""The queue: every change one transaction with its line of history, every write of an owner fenced.

A claim hands out a fence, a number that only grows. Whatever an owner writes later is conditional on that fence, so an
agent that wakes up after its task was given to another changes nothing. It lives in SQLite, or in PostgreSQL by URL.
"""

from __future__ import annotations

import json
import math
import random as random_module
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.engine.announce import WAITS_FOR_APPROVAL, events_of
from avyay.engine.bookkeeping import Bookkeeping
from avyay.engine.database import QueueDatabase, open_queue_database
from avyay.engine.graph import find_cycle
from avyay.engine.lease import Breath
from avyay.engine.overlap import overlapping
from avyay.engine.rows import read_entry, read_task
from avyay.engine.types import ACTIVE, FINAL, Entry, Lease, NewTask, State, Task, allowed, pack_extra
from avyay.errors import AvyayError, UsageError
from avyay.resilience.backoff import Backoff

__all__ = ["LostLeaseError", "Queue"]

_ID_BYTES = 5
_BATCH = 100
_FEW = 8


class LostLeaseError(AvyayError):
    """The task was given to another owner, cancelled, or is in another state: nothing was written."""

    default_code = "lease_lost"


class Queue(Bookkeeping):
    """The tasks of one home.

    Args:
        place: The SQLite file, or a `postgresql://` URL.
        random: Uniform in [0, 1), for the backoff between attempts.
        backoff: Between attempts; how many attempts there are is each task's own.
    """

    def __init__(
        self,
        place: Path | str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        random: Callable[[], float] = random_module.random,
        backoff: Backoff | None = None,
    ) -> None:
        self._db = open_queue_database(place)
        self._clock = clock
        self._random = random
        self._backoff = backoff or Backoff(base=30.0, cap=1800.0, attempts=1_000_000)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # ---------------------------------------------------------------- adding

    def add(self, new: Sequence[NewTask]) -> list[str]:
        """Add tasks, all or none; returns their ids in order.

        A task whose fingerprint is in the queue already is not added again: its present id is returned. `needs` may
        name tasks of the same call.

        Raises:
            UsageError: an id that exists, a need that does not, or a cycle; names the tasks.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            ids: list[str] = []
            fresh: list[tuple[str, NewTask]] = []
            for task in new:
                known = self._with_fingerprint(db, task.fingerprint)
                name = known or task.id or f"t-{secrets.token_hex(_ID_BYTES)}"
                ids.append(name)
                if known is None:
                    fresh.append((name, task))
            self._check(db, fresh)
            for name, task in fresh:
                self._insert(db, name, task, now)
            for name, task in fresh:
                db.executemany("INSERT INTO needs (task, need) VALUES (?, ?)", [(name, n) for n in set(task.needs)])
            for name, task in fresh:
                self._settle_waiting(db, name, "added", now, first=True, approval=task.approval)
        return ids

    def _with_fingerprint(self, db: QueueDatabase, fingerprint: str | None) -> str | None:
        if fingerprint is None:
            return None
        row = db.execute("SELECT id FROM tasks WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return str(row[0]) if row else None

    def _check(self, db: QueueDatabase, fresh: Sequence[tuple[str, NewTask]]) -> None:
        times = Counter(name for name, _ in fresh)
        for name, task in fresh:
            if not task.title.strip():
                raise UsageError(f"The task {name} has no title.", hint="Say in one line what is to be done.")
            if task.attempts < 1:
                raise UsageError(f"The task {name} allows {task.attempts} attempts.", hint="Allow at least one.")
            if times[name] > 1 or _exists(db, name):
                raise UsageError(f"There is a task {name!r} already.", hint="Choose another id, or leave it out.")
        for name, task in fresh:
            for need in task.needs:
                if need not in times and not _exists(db, need):
                    raise UsageError(
                        f"The task {name} needs {need!r}, which does not exist.",
                        hint="Add it first, or in the same call.",
                    )
        # What is in the queue already cannot need what is new, so a cycle can only lie among the new.
        graph = {name: [need for need in task.needs if need in times] for name, task in fresh}
        if cycle := find_cycle(graph):
            raise UsageError(f"These tasks wait for each other: {' -> '.join(cycle)}.", hint="Break the cycle.")

    def _insert(self, db: QueueDatabase, name: str, task: NewTask, now: float) -> None:
        db.execute(
            "INSERT INTO tasks (id, title, description, accept, files, requires, evidence, fingerprint, priority,"
            " state, approval, attempts, created, updated, extra)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'blocked', ?, ?, ?, ?, ?)",
            (
                name, task.title.strip(), task.description, task.accept, json.dumps(task.files),
                json.dumps(sorted(task.requires)), json.dumps(task.evidence), task.fingerprint, task.priority,
                int(task.approval), task.attempts, now, now, json.dumps(pack_extra(task)),
            ),
        )  # fmt: skip

    # ---------------------------------------------------------------- claiming

    def claim(self, owner: str, capabilities: frozenset[str] = frozenset()) -> Lease | None:
        """Take the first task that this owner can do now, or None.

        First is: highest priority, then oldest. Tasks that touch files of one at work are passed over.
        """
        now = self._clock.now()
        with self._db.transaction() as db:
            busy = self._busy(db)
            for name, files, requires in self._ready(db, now):
                if not capabilities.issuperset(json.loads(requires)):
                    continue
                globs = json.loads(files)
                if busy and overlapping(globs, busy):
                    continue
                if self._hold(db, name, globs):
                    return self._lease(db, name, owner, now)
        return None

    def _ready(self, db: QueueDatabase, now: float) -> Iterator[tuple[str, str, str]]:
        """(id, files, requires) of what may be claimed, first things first."""
        after: tuple[Any, ...] = (-math.inf, 0)
        batch = _FEW  # the first one usually fits
        while True:
            rows = db.execute(
                "SELECT id, files, requires, priority, number FROM tasks WHERE state = 'ready' AND not_before <= ?"
                " AND (-priority, number) > (?, ?) ORDER BY priority DESC, number LIMIT ?",
                (now, *after, batch),
            ).fetchall()
            for name, files, requires, _, _ in rows:
                yield str(name), str(files), str(requires)
            if len(rows) < batch:
                return
            after, batch = (-rows[-1][3], rows[-1][4]), _BATCH

    def _busy(self, db: QueueDatabase) -> list[str]:
        """The globs of all tasks at work."""
        rows = db.execute("SELECT files FROM tasks WHERE state IN ('leased', 'running', 'verifying', 'merging')")
        return [glob for (files,) in rows for glob in json.loads(files)]

    def _hold(self, db: QueueDatabase, name: str, globs: Sequence[str]) -> bool:
        """Keep other claims off this task; False when one was quicker, or has taken its files meanwhile."""
        query = f"SELECT 1 FROM tasks WHERE id = ? AND state = 'ready'{db.skip_locked}"  # noqa: S608 - fixed words
        if db.execute(query, (name,)).fetchone() is None:
            return False
        if globs and db.skip_locked:  # where claims run side by side, two could each see the other's files as free
            db.guard("files")
            return not overlapping(globs, self._busy(db))
        return True

    def _lease(self, db: QueueDatabase, name: str, owner: str, now: float) -> Lease:
        fence = db.next_fence()
        db.execute(
            "UPDATE tasks SET state = 'leased', owner = ?, fence = ?, attempt = attempt + 1, beats = 0, reason = '',"
            " updated = ? WHERE id = ?",
            (owner, fence, now, name),
        )
        task = self._read(db, name)
        self._record(db, name, "claimed", "ready", "leased", owner, fence, f"attempt {task.attempt} of {task.attempts}")
        return Lease(task, owner, fence)

    def beat(self, lease: Lease) -> None:
        """Say that the owner is alive.

        Raises:
            LostLeaseError: it is not the owner any more, and must stop.
        """
        with self._db.transaction() as db:
            done = db.execute(
                "UPDATE tasks SET beats = beats + 1 WHERE id = ? AND fence = ? AND owner = ?"
                " AND state IN ('leased', 'running', 'verifying', 'merging')",
                (lease.task.id, lease.fence, lease.owner),
            )
            if done.rowcount != 1:
                raise self._lost(db, lease)

    def breaths(self) -> list[Breath]:
        """The heartbeat counters of all active tasks, for a `LeaseWatch`."""
        rows = self._db.execute(
            "SELECT id, fence, beats FROM tasks WHERE state IN ('leased', 'running', 'verifying', 'merging')"
        )
        return [Breath(str(name), int(fence), int(beats)) for name, fence, beats in rows]

    # ---------------------------------------------------------------- what an owner may write

    def advance(self, lease: Lease, after: State, detail: str = "", **data: Any) -> None:
        """Go on to "running", "verifying" or "merging".

        Raises:
            LostLeaseError: the lease is lost, or the task is not in a state from which this follows.
        """
        if after not in ACTIVE:
            raise ValueError(f"advance leads to an active state, not to {after}")
        with self._db.transaction() as db:
            before = self._owned(db, lease, after)
            self._set(db, lease.task.id, after, "")
            self._record(db, lease.task.id, after, before, after, lease.owner, lease.fence, detail, data)

    def finish(self, lease: Lease, detail: str = "", *, act: Callable[[], None] | None = None, **data: Any) -> None:
        """The task is done; whatever waited for it alone becomes ready.

        Args:
            act: Done inside the transaction, when the lease is known to hold and nobody can take it: the step that
                must not happen twice, such as moving a branch. When it raises, the task stays what it was.

        Raises:
            LostLeaseError: the lease is lost.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            before = self._owned(db, lease, "done")
            if act is not None:
                act()
            self._set(db, lease.task.id, "done", "")
            self._record(db, lease.task.id, "done", before, "done", lease.owner, lease.fence, detail, data)
            self._wake(db, lease.task.id, now)

    def fail(self, lease: Lease, reason: str, *, final: bool = False, **data: Any) -> State:
        """The attempt failed: try again later, or give up. Returns the state it led to.

        Args:
            final: Another attempt would fail the same way.

        Raises:
            LostLeaseError: the lease is lost.
        """
        with self._db.transaction("graph") as db:
            before = self._owned(db, lease, "failed")
            return self._end_attempt(db, lease.task.id, before, "failed", reason, final=final, data=data)

    def park(self, lease: Lease, seconds: float, reason: str) -> None:
        """Give the task back untried, for a rate limit or a node that goes away: it is no attempt.

        Raises:
            LostLeaseError: the lease is lost.
        """
        now = self._clock.now()
        with self._db.transaction() as db:
            before = self._owned(db, lease, "ready")
            db.execute(
                "UPDATE tasks SET state = 'ready', owner = NULL, attempt = attempt - 1, reason = ?, not_before = ?,"
                " updated = ? WHERE id = ?",
                (reason, now + seconds, now, lease.task.id),
            )
            self._record(db, lease.task.id, "parked", before, "ready", lease.owner, lease.fence, reason)

    def hold(self, lease: Lease, reason: str = WAITS_FOR_APPROVAL, **data: Any) -> None:
        """Wait for a person's approval; it is no attempt. Whoever claims it next finds `data` in the history.

        Raises:
            LostLeaseError: the lease is lost.
        """
        now = self._clock.now()
        with self._db.transaction() as db:
            before = self._owned(db, lease, "blocked")
            db.execute(
                "UPDATE tasks SET state = 'blocked', owner = NULL, attempt = attempt - 1, approval = 1, reason = ?,"
                " updated = ? WHERE id = ?",
                (reason, now, lease.task.id),
            )
            self._record(db, lease.task.id, "waiting", before, "blocked", lease.owner, lease.fence, reason, data)

    def expire(self, breath: Breath, reason: str = "no heartbeat") -> State | None:
        """Take the task from an owner that stopped breathing; None when it breathed after all, or was quicker."""
        with self._db.transaction("graph") as db:
            # avyay: ignore[sql-injection] one of two constants
            row = db.execute(
                f"SELECT state FROM tasks WHERE id = ? AND fence = ? AND beats = ?{db.for_update}",  # noqa: S608
                (breath.task, breath.fence, breath.beats),
            ).fetchone()
            if row is None or row[0] not in ACTIVE:
                return None
            return self._end_attempt(db, breath.task, row[0], "lease_lost", reason, final=False, data={})

    def _end_attempt(
        self,
        db: QueueDatabase,
        name: str,
        before: State,
        kind: str,
        reason: str,
        *,
        final: bool,
        data: Mapping[str, Any],
    ) -> State:
        now = self._clock.now()
        task = self._read(db, name)
        if final or task.attempt >= task.attempts:
            after: State = "failed" if final else "dead"
            self._set(db, name, after, reason)
            self._record(db, name, kind, before, after, task.owner, task.fence, reason, data)
            self._blame(db, name, after)
            return after
        delay = self._backoff.delay(task.attempt, self._random) or 0.0
        self._set(db, name, "ready", reason, not_before=now + delay)
        self._record(db, name, kind, before, "ready", task.owner, task.fence, f"{reason}; again in {delay:.0f} s", data)
        return "ready"

    # ---------------------------------------------------------------- what a person may do

    def cancel(self, name: str, reason: str = "cancelled by hand") -> None:
        """End a task; an agent at work on it loses its lease.

        Raises:
            UsageError: no such task, or it has ended already.
        """
        with self._db.transaction("graph") as db:
            task = self._known(db, name, lock=True)
            if task.state in FINAL:
                raise UsageError(f"The task {name} is {task.state} already.", hint=f"See: avyay engine show {name}")
            self._set(db, name, "cancelled", reason)
            self._record(db, name, "cancelled", task.state, "cancelled", None, None, reason)
            self._blame(db, name, "cancelled")

    def resolve(self, name: str, reason: str) -> None:
        """Close a task that nobody works on, because what it asks for is so already; what waits for it goes on.

        Raises:
            UsageError: no such task, or it is being worked on, or has ended.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            task = self._known(db, name, lock=True)
            if task.state not in ("ready", "blocked"):
                raise UsageError(f"The task {name} is {task.state}.", hint=f"See: avyay engine show {name}")
            self._set(db, name, "done", reason)
            self._record(db, name, "resolved", task.state, "done", None, None, reason)
            self._wake(db, name, now)

    def retry(self, name: str) -> None:
        """Give a failed, dead or cancelled task all its attempts again.

        Raises:
            UsageError: no such task, or it has not ended badly.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            task = self._known(db, name, lock=True)
            if task.state not in FINAL or task.state == "done":
                raise UsageError(f"The task {name} is {task.state}: nothing to retry.", hint="Only failed ones can be.")
            db.execute("UPDATE tasks SET attempt = 0, not_before = 0 WHERE id = ?", (name,))
            self._settle_waiting(db, name, "retried", now)
            self._blame(db, name, "blocked")

    def approve(self, name: str, by: str) -> None:
        """Let a task that asked for approval go on.

        Raises:
            UsageError: no such task, or it waits for no approval.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            self._known(db, name, lock=True)
            done = db.execute("UPDATE tasks SET approval = 0 WHERE id = ? AND approval = 1", (name,))
            if done.rowcount != 1:
                raise UsageError(f"The task {name} waits for no approval.", hint=f"See: avyay engine show {name}")
            self._record(db, name, "approved", None, None, by, None)
            self._settle_waiting(db, name, "approved", now)

    # ---------------------------------------------------------------- reading

    def get(self, name: str) -> Task:
        """The task of that id.

        Raises:
            UsageError: there is none.
        """
        return self._known(self._db, name)

    def tasks(self, *states: State) -> Iterator[Task]:
        """All tasks, or those in the given states; oldest first."""
        marks = ", ".join("?" * len(states))
        where = f"WHERE state IN ({marks})" if states else ""
        needs = self._all_needs()
        for row in self._db.execute(f"SELECT * FROM tasks {where} ORDER BY number", states):  # noqa: S608 - marks only
            yield read_task(row, needs.get(str(row[1]), ()))

    def counts(self) -> dict[str, int]:
        """How many tasks are in each state that has any."""
        return {str(s): int(n) for s, n in self._db.execute("SELECT state, count(*) FROM tasks GROUP BY state")}

    def identity(self) -> str:
        """What names this queue where several homes tell of it; empty when it publishes by itself."""
        return "" if self._db.tells else str(self._db.execute("SELECT id FROM identity").fetchone()[0])

    def last_entry(self) -> int:
        """The number of the newest line of history; 0 when there is none."""
        return int(self._db.execute("SELECT coalesce(max(number), 0) FROM history").fetchone()[0])

    def history(self, name: str | None = None, *, after: int = 0, limit: int = 1000) -> list[Entry]:
        """What happened, oldest first: to one task, or to all."""
        query = "SELECT number, task, at, kind, before, after, owner, fence, detail, data FROM history WHERE "
        if name is not None:
            rows = self._db.execute(f"{query}task = ? AND number > ? ORDER BY number LIMIT ?", (name, after, limit))
        else:
            with self._db.whole_history() as db:
                rows = db.execute(f"{query}number > ? ORDER BY number LIMIT ?", (after, limit))
        return [read_entry(row) for row in rows]

    def newest(self, limit: int = 30) -> list[Entry]:
        """What happened last, newest first."""
        rows = self._db.execute(
            "SELECT number, task, at, kind, before, after, owner, fence, detail, data FROM history"
            " ORDER BY number DESC LIMIT ?",
            (limit,),
        )
        return [read_entry(row) for row in rows]

    def _all_needs(self) -> dict[str, tuple[str, ...]]:
        needs: dict[str, list[str]] = {}
        for task, need in self._db.execute("SELECT task, need FROM needs ORDER BY task, need"):
            needs.setdefault(str(task), []).append(str(need))
        return {task: tuple(all_of_it) for task, all_of_it in needs.items()}

    # ---------------------------------------------------------------- inside a transaction

    def _owned(self, db: QueueDatabase, lease: Lease, after: State) -> State:
        """The state of a task this lease still holds and that may go to `after`."""
        # avyay: ignore[sql-injection] one of two constants
        row = db.execute(
            f"SELECT state FROM tasks WHERE id = ? AND fence = ? AND owner = ?{db.for_update}",  # noqa: S608
            (lease.task.id, lease.fence, lease.owner),
        ).fetchone()
        if row is None or row[0] not in ACTIVE or not allowed(row[0], after):
            raise self._lost(db, lease)
        state: State = row[0]
        return state

    def _lost(self, db: QueueDatabase, lease: Lease) -> LostLeaseError:
        now = self._read(db, lease.task.id)
        return LostLeaseError(
            f"{lease.owner} no longer holds {lease.task.id}: it is {now.state} with fence {now.fence},"
            f" not {lease.fence}.",
            hint="Stop working on it; nothing was written.",
        )

    def _set(self, db: QueueDatabase, name: str, state: State, reason: str, not_before: float = 0.0) -> None:
        keep_owner = state in ACTIVE
        db.execute(
            "UPDATE tasks SET state = ?, reason = ?, not_before = ?, updated = ?,"
            " owner = CASE WHEN ? THEN owner END WHERE id = ?",
            (state, reason, not_before, self._clock.now(), keep_owner, name),
        )

    def _settle_waiting(
        self, db: QueueDatabase, name: str, kind: str, now: float, *, first: bool = False, approval: bool | None = None
    ) -> None:
        """Put a task that nobody works on into "ready" or "blocked", as its needs and approval have it."""
        open_needs = db.execute(
            "SELECT need, state FROM needs JOIN tasks ON tasks.id = needs.need WHERE needs.task = ? AND state != 'done'"
            " ORDER BY need",
            (name,),
        ).fetchall()
        before, waiting_approval = db.execute("SELECT state, approval FROM tasks WHERE id = ?", (name,)).fetchone()
        ended = [(need, state) for need, state in open_needs if state in FINAL]
        if ended:
            reason = f"needs {ended[0][0]}, which is {ended[0][1]}"
        elif open_needs:
            reason = f"waits for {', '.join(need for need, _ in open_needs[:5])}" + (
                ", …" if len(open_needs) > 5 else ""
            )
        else:
            reason = WAITS_FOR_APPROVAL if waiting_approval else ""
        after: State = "blocked" if reason else "ready"
        db.execute(
            "UPDATE tasks SET state = ?, reason = ?, waits = ?, owner = NULL, updated = ? WHERE id = ?",
            (after, reason, len(open_needs), now, name),
        )
        self._record(db, name, kind, None if first else before, after, None, None, reason)

    def _wake(self, db: QueueDatabase, name: str, now: float) -> None:
        """A task is done: those that waited for it wait for one less."""
        db.execute("UPDATE tasks SET waits = waits - 1 WHERE id IN (SELECT task FROM needs WHERE need = ?)", (name,))
        freed = db.execute(
            "SELECT id FROM tasks JOIN needs ON needs.task = tasks.id"
            " WHERE needs.need = ? AND state = 'blocked' AND waits = 0 ORDER BY number",
            (name,),
        ).fetchall()
        for (follower,) in freed:
            self._settle_waiting(db, str(follower), "freed", now)

    def _blame(self, db: QueueDatabase, name: str, state: State) -> None:
        """Tell all that wait for `name`, however far downstream, what holds them (or that it is on its way again)."""
        reason = f"needs {name}, which is {state}" if state in FINAL else f"waits for {name}"
        rows = db.execute(
            "WITH RECURSIVE below (id) AS (SELECT task FROM needs WHERE need = ?"
            " UNION SELECT needs.task FROM needs JOIN below ON needs.need = below.id)"
            " UPDATE tasks SET reason = ?, updated = ? WHERE state = 'blocked' AND id IN (SELECT id FROM below)"
            " RETURNING id",
            (name, reason, self._clock.now()),
        ).fetchall()
        for (follower,) in rows:
            self._record(db, str(follower), "held", "blocked", "blocked", None, None, reason)

    def _record(
        self,
        db: QueueDatabase,
        name: str,
        kind: str,
        before: State | None,
        after: State | None,
        owner: str | None,
        fence: int | None,
        detail: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        now = self._clock.now()
        (number,) = db.execute(
            "INSERT INTO history (task, at, kind, before, after, owner, fence, detail, data)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
            (name, now, kind, before, after, owner, fence, detail, json.dumps(data or {})),
        ).fetchone()
        if db.tells:
            entry = Entry(number, name, now, kind, before, after, owner, fence, detail, data or {})
            title, evidence = db.execute("SELECT title, evidence FROM tasks WHERE id = ?", (name,)).fetchone()
            for event in events_of(entry, title, json.loads(evidence)):
                db.tell(event, now)

    def _known(self, db: QueueDatabase, name: str, *, lock: bool = False) -> Task:
        # avyay: ignore[sql-injection] one of two constants
        if db.execute(f"SELECT 1 FROM tasks WHERE id = ?{db.for_update if lock else ''}", (name,)).fetchone() is None:  # noqa: S608
            close = [str(row[0]) for row in db.execute("SELECT id FROM tasks WHERE id LIKE ? LIMIT 3", (f"{name}%",))]
            hint = f"Did you mean {' or '.join(close)}?" if close else "See: avyay engine list"
            raise UsageError(f"There is no task {name!r}.", hint=hint, code="no_task")
        return self._read(db, name)

    def _read(self, db: QueueDatabase, name: str) -> Task:
        needs = tuple(str(row[0]) for row in db.execute("SELECT need FROM needs WHERE task = ? ORDER BY need", (name,)))
        return read_task(db.execute("SELECT * FROM tasks WHERE id = ?", (name,)).fetchone(), needs)


def _exists(db: QueueDatabase, name: str) -> bool:
    return db.execute("SELECT 1 FROM tasks WHERE id = ?", (name,)).fetchone() is not None
