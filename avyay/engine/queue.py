"""The queue: every change one transaction with its line of history, every write of an owner fenced.

A claim hands out a fence, a number that only grows. Whatever an owner writes later is conditional on that fence, so an
agent that wakes up after its task was given to another changes nothing. It lives in SQLite, or in PostgreSQL by URL.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.engine.announce import WAITS_FOR_APPROVAL
from avyay.engine.bookkeeping import Bookkeeping
from avyay.engine.changes import (
    alter,
    blame,
    change,
    known,
    read,
    settle,
    story,
    tell,
    wake,
)
from avyay.engine.database import QueueDatabase, open_queue_database
from avyay.engine.intake import take_in
from avyay.engine.lease import Breath
from avyay.engine.overlap import overlapping
from avyay.engine.rows import read_entry, read_task
from avyay.engine.schema import OPEN
from avyay.engine.types import ACTIVE, FINAL, Entry, Lease, NewTask, State, Task, allowed
from avyay.errors import AvyayError, UsageError
from avyay.resilience.backoff import Backoff

__all__ = ["LostLeaseError", "Queue"]

_BATCH = 100
_FEW = 2
_LINE = "number, task, at, kind, before, after, owner, fence, detail, data"


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
        with self._db.transaction("graph") as db:
            return take_in(db, new, self._clock.now())

    # ---------------------------------------------------------------- claiming

    def claim(self, owner: str, capabilities: frozenset[str] = frozenset()) -> Lease | None:
        """Take the first task that this owner can do now, or None.

        First is: highest priority, then oldest. Tasks that touch files of one at work are passed over.
        """
        now = self._clock.now()
        with self._db.transaction() as db:
            busy: list[str] | None = None
            for name, files, requires, attempt, attempts, latest in self._ready(db, now):
                if not capabilities.issuperset(orjson.loads(requires)):
                    continue
                globs = orjson.loads(files)
                if globs:
                    busy = self._busy(db) if busy is None else busy
                    if overlapping(globs, busy):
                        continue
                if db.skip_locked and not self._hold(db, name, latest, globs):
                    continue
                return self._lease(db, name, owner, now, attempt + 1, attempts)
        return None

    def _ready(self, db: QueueDatabase, now: float) -> Iterator[tuple[str, str, str, int, int, int]]:
        """(id, files, requires, attempt, attempts, latest) of what may be claimed, first things first."""
        query = (
            "SELECT id, files, requires, attempt, attempts, latest, priority, number FROM tasks"  # noqa: S608 - fixed words
            f" WHERE {OPEN} AND owner IS NULL AND not_before <= ?{{}} ORDER BY priority DESC, number LIMIT ?"
        )
        found = db.execute(query.format(""), (now, _FEW)).fetchall()  # the first one usually fits
        while found:
            for row in found:
                yield row[:6]
            *_, priority, number = found[-1]
            # On through this priority, then to those below: the index leads straight to either.
            found = (
                db.execute(query.format(" AND priority = ? AND number > ?"), (now, priority, number, _BATCH)).fetchall()
                or db.execute(query.format(" AND priority < ?"), (now, priority, _BATCH)).fetchall()
            )

    def _busy(self, db: QueueDatabase) -> list[str]:
        """The globs of all tasks at work."""
        rows = db.execute(f"SELECT files FROM tasks WHERE {OPEN} AND owner >= ''")  # noqa: S608 - fixed words
        return [glob for (files,) in rows for glob in orjson.loads(files)]

    def _hold(self, db: QueueDatabase, name: str, latest: int, globs: Sequence[str]) -> bool:
        """Keep claims that run side by side off this task; False when one was quicker, or took its files meanwhile."""
        # Ready is not enough: it may have been claimed and given back since we looked, one attempt later.
        query = f"SELECT 1 FROM tasks WHERE id = ? AND state = 'ready' AND latest = ?{db.skip_locked}"  # noqa: S608
        if db.execute(query, (name, latest)).fetchone() is None:
            return False
        if globs:  # two claims could each see the other's files as free
            db.guard("files")
            return not overlapping(globs, self._busy(db))
        return True

    def _lease(self, db: QueueDatabase, name: str, owner: str, now: float, attempt: int, attempts: int) -> Lease:
        # The line of history that tells of the claim has a number greater than all before: that is the fence.
        fence = tell(db, name, now, "claimed", ("ready", "leased"), (owner, None), f"attempt {attempt} of {attempts}")
        alter(
            db, name, state="leased", owner=owner, fence=fence, attempt=attempt, beats=0, reason="", updated=now,
            latest=fence,
        )  # fmt: skip
        return Lease(read(db, name), owner, fence)

    def beat(self, lease: Lease) -> None:
        """Say that the owner is alive.

        Raises:
            LostLeaseError: it is not the owner any more, and must stop.
        """
        with self._db.transaction() as db:
            done = db.execute(
                f"UPDATE tasks SET beats = beats + 1 WHERE id = ? AND fence = ? AND owner = ? AND {OPEN}",  # noqa: S608
                (lease.task.id, lease.fence, lease.owner),
            )
            if done.rowcount != 1:
                raise self._lost(db, lease)

    def breaths(self) -> list[Breath]:
        """The heartbeat counters of all active tasks, for a `LeaseWatch`."""
        rows = self._db.execute(f"SELECT id, fence, beats FROM tasks WHERE {OPEN} AND owner >= ''")  # noqa: S608
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
            self._change(db, lease, after, (before, after), detail, data, reason="")

    def finish(self, lease: Lease, detail: str = "", *, act: Callable[[], None] | None = None, **data: Any) -> None:
        """The task is done; whatever waited for it alone becomes ready.

        Args:
            act: Done inside the transaction, when the lease is known to hold and nobody can take it: the step that
                must not happen twice, such as moving a branch. When it raises, the task stays what it was.

        Raises:
            LostLeaseError: the lease is lost.
        """
        with self._db.transaction("graph") as db:
            before = self._owned(db, lease, "done")
            if act is not None:
                act()
            self._change(db, lease, "done", (before, "done"), detail, data, reason="", owner=None)
            wake(db, lease.task.id, self._clock.now())

    def fail(self, lease: Lease, reason: str, *, final: bool = False, **data: Any) -> State:
        """The attempt failed: try again later, or give up. Returns the state it led to.

        Args:
            final: Another attempt would fail the same way.

        Raises:
            LostLeaseError: the lease is lost.
        """
        with self._db.transaction("graph") as db:
            before = self._owned(db, lease, "failed")
            return self._end_attempt(db, lease, before, "failed", reason, final=final, data=data)

    def park(self, lease: Lease, seconds: float, reason: str, /, **data: Any) -> None:
        """Give the task back untried, for a rate limit or a node that goes away: it is no attempt.

        Whoever claims it next finds `data` in the history.

        Raises:
            LostLeaseError: the lease is lost.
        """
        until, tried = self._clock.now() + seconds, lease.attempt - 1
        with self._db.transaction() as db:
            states: tuple[State, State] = self._owned(db, lease, "ready"), "ready"
            self._change(
                db, lease, "parked", states, reason, data, reason=reason, owner=None, attempt=tried, not_before=until
            )

    def hold(self, lease: Lease, reason: str = WAITS_FOR_APPROVAL, **data: Any) -> None:
        """Wait for a person's approval; it is no attempt. Whoever claims it next finds `data` in the history.

        Raises:
            LostLeaseError: the lease is lost.
        """
        with self._db.transaction() as db:
            states: tuple[State, State] = self._owned(db, lease, "blocked"), "blocked"
            own = {"reason": reason, "owner": None, "attempt": lease.attempt - 1, "approval": 1}
            self._change(db, lease, "waiting", states, reason, data, **own)

    def expire(self, breath: Breath, reason: str = "no heartbeat") -> State | None:
        """Take the task from an owner that stopped breathing; None when it breathed after all, or was quicker."""
        with self._db.transaction("graph") as db:
            # avyay: ignore[sql-injection] one of two constants
            row = db.execute(
                f"SELECT * FROM tasks WHERE id = ? AND fence = ? AND beats = ?{db.for_update}",  # noqa: S608
                (breath.task, breath.fence, breath.beats),
            ).fetchone()
            task = read_task(row, ()) if row is not None else None
            if task is None or task.state not in ACTIVE:
                return None
            lease = Lease(task, task.owner or "", task.fence)
            return self._end_attempt(db, lease, task.state, "lease_lost", reason, final=False, data={})

    def _end_attempt(
        self,
        db: QueueDatabase,
        lease: Lease,
        before: State,
        kind: str,
        reason: str,
        *,
        final: bool,
        data: Mapping[str, Any],
    ) -> State:
        task = lease.task
        if final or task.attempt >= task.attempts:
            after: State = "failed" if final else "dead"
            self._change(db, lease, kind, (before, after), reason, data, reason=reason, owner=None, not_before=0.0)
            blame(db, task.id, after, self._clock.now())
            return after
        delay = self._backoff.delay(task.attempt, self._random) or 0.0
        detail, again = f"{reason}; again in {delay:.0f} s", self._clock.now() + delay
        self._change(db, lease, kind, (before, "ready"), detail, data, reason=reason, owner=None, not_before=again)
        return "ready"

    # ---------------------------------------------------------------- what a person may do

    def cancel(self, name: str, reason: str = "cancelled by hand") -> None:
        """End a task; an agent at work on it loses its lease.

        Raises:
            UsageError: no such task, or it has ended already.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            task = known(db, name, lock=True)
            if task.state in FINAL:
                raise UsageError(f"The task {name} is {task.state} already.", hint=f"See: avyay engine show {name}")
            states: tuple[State, State] = task.state, "cancelled"
            change(db, name, now, "cancelled", states, detail=reason, reason=reason, owner=None)
            blame(db, name, "cancelled", now)

    def resolve(self, name: str, reason: str) -> None:
        """Close a task that nobody works on, because what it asks for is so already; what waits for it goes on.

        Raises:
            UsageError: no such task, or it is being worked on, or has ended.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            task = known(db, name, lock=True)
            if task.state not in ("ready", "blocked"):
                raise UsageError(f"The task {name} is {task.state}.", hint=f"See: avyay engine show {name}")
            change(db, name, now, "resolved", (task.state, "done"), detail=reason, reason=reason, owner=None)
            wake(db, name, now)

    def retry(self, name: str) -> None:
        """Give a failed, dead or cancelled task all its attempts again; one that waits for its next need not wait.

        Raises:
            UsageError: no such task, or it is none of these.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            task = known(db, name, lock=True)
            waits = task.state == "ready" and task.not_before > now
            if not waits and (task.state not in FINAL or task.state == "done"):
                hint = f"See: avyay engine {'why' if task.state == 'blocked' else 'show'} {name}"
                raise UsageError(f"The task {name} is {task.state}: nothing to retry.", hint=hint)
            if waits:
                settle(db, name, now, "freed", not_before=0.0)
                return
            settle(db, name, now, "retried", attempt=0, not_before=0.0)
            blame(db, name, "blocked", now)

    def approve(self, name: str, by: str) -> None:
        """Let a task that asked for approval go on.

        Raises:
            UsageError: no such task, or it waits for no approval.
        """
        now = self._clock.now()
        with self._db.transaction("graph") as db:
            task = known(db, name, lock=True)
            done = db.execute("UPDATE tasks SET approval = 0 WHERE id = ? AND approval = 1", (name,))
            if done.rowcount != 1:
                raise UsageError(f"The task {name} waits for no approval.", hint=f"See: avyay engine show {name}")
            if task.state in ("ready", "blocked"):
                settle(db, name, now, "approved", by=by)
            else:
                alter(db, name, latest=tell(db, name, now, "approved", (None, None), (by, None)))

    # ---------------------------------------------------------------- reading

    def get(self, name: str) -> Task:
        """The task of that id.

        Raises:
            UsageError: there is none.
        """
        return known(self._db, name)

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
        """What names this queue in the ids of its events, whichever home tells of them."""
        return str(self._db.execute("SELECT id FROM identity").fetchone()[0])

    def last_entry(self) -> int:
        """The number of the newest line of history; 0 when there is none."""
        return int(self._db.execute("SELECT coalesce(max(number), 0) FROM history").fetchone()[0])

    def history(self, name: str | None = None, *, after: int = 0, limit: int = 1000) -> list[Entry]:
        """What happened, oldest first: to one task, or to all."""
        if name is not None:
            return list(story(self._db, name, after, limit))
        with self._db.whole_history() as db:
            rows = db.execute(f"SELECT {_LINE} FROM history WHERE number > ? ORDER BY number LIMIT ?", (after, limit))  # noqa: S608
        return [read_entry(row) for row in rows]

    def newest(self, limit: int = 30) -> list[Entry]:
        """What happened last, newest first."""
        rows = self._db.execute(f"SELECT {_LINE} FROM history ORDER BY number DESC LIMIT ?", (limit,))  # noqa: S608
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

    def _change(
        self,
        db: QueueDatabase,
        lease: Lease,
        kind: str,
        states: tuple[State, State],
        detail: str,
        data: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> None:
        by = (lease.owner, lease.fence)
        change(db, lease.task.id, self._clock.now(), kind, states, by, detail, data, **columns)

    def _lost(self, db: QueueDatabase, lease: Lease) -> LostLeaseError:
        now = read(db, lease.task.id)
        return LostLeaseError(
            f"{lease.owner} no longer holds {lease.task.id}: it is {now.state} with fence {now.fence},"
            f" not {lease.fence}.",
            hint="Stop working on it; nothing was written.",
        )
