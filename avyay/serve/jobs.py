"""Work that takes longer than a request: an id at once, then its state, progress and result, and a way to call it off.

Jobs are rows of the component's own `jobs.db`, so they outlive the daemon. Any process of a home accepts them, tells of
them and calls them off; one of them, the leader, claims and runs them. One that a restart interrupts runs again where
its kind says that this is harmless, and is reported as interrupted where not.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.db import Database, Migration, Schema, open_database
from avyay.db_gaps import hold_liveness, is_held
from avyay.errors import AvyayError, InternalError, PolicyError, UsageError
from avyay.events.outbox import OUTBOX, append_event
from avyay.log import get_logger
from avyay.ports import Event, Progress

__all__ = ["ENDED", "Job", "JobBoard", "JobKind", "State"]

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
ENDED = frozenset({"done", "failed", "cancelled", "interrupted"})
KEPT = 200  # ended jobs
MOST_OPEN = 100  # queued or running
AT_ONCE = 2
LOOK = 5.0  # seconds between two looks for jobs that nobody told of: another daemon's, or of one that has died
_WRITE = 0.5  # seconds between two times that progress is written down
_GRACE = 25.0
_CANCELLED = "The job was cancelled."
_MOST_RUNS = 3  # a job that takes the daemon with it each time is not run for ever
_STALE = 3_600.0  # seconds after which the lock file of a daemon that died is cleared away
_SCHEMA = Schema(
    "jobs",
    (
        Migration(
            "0001_jobs",
            """
            CREATE TABLE jobs (
                number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
                state TEXT NOT NULL, arguments TEXT NOT NULL, input BLOB, key TEXT, print TEXT NOT NULL,
                owner TEXT NOT NULL, runs INTEGER NOT NULL DEFAULT 0, what TEXT NOT NULL DEFAULT '',
                done INTEGER NOT NULL DEFAULT 0, total INTEGER, created_at REAL NOT NULL, started_at REAL,
                ended_at REAL, result BLOB, error TEXT, code TEXT, cancel_requested INTEGER NOT NULL DEFAULT 0
            );
            CREATE UNIQUE INDEX jobs_by_key ON jobs (kind, key) WHERE key IS NOT NULL;
            CREATE INDEX jobs_open ON jobs (state) WHERE state IN ('queued', 'running');
            """,
        ),
    ),
)
_COLUMNS = (
    "id, kind, state, what, done, total, created_at, started_at, ended_at, runs, error, code, cancel_requested, result"
)


@dataclass(frozen=True, slots=True)
class Job:
    """A job. Times are Unix seconds; `runs` counts how often it was begun."""

    id: str
    kind: str
    state: State
    what: str
    done: int
    total: int | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    runs: int
    error: str | None
    code: str | None
    cancel_requested: bool
    result: Any = None

    def data(self, *, result: bool = True) -> dict[str, Any]:
        """As JSON shows it."""
        names = [name for name in self.__slots__ if result or name != "result"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class JobKind:
    """What jobs of one kind do.

    Args:
        work: Given the arguments, the input and a progress, in a thread; its result is JSON. It must call its progress
            often: that is where a cancelled job ends.
        again: Whether running it again does no harm, so that it goes on after a restart.
    """

    name: str
    work: Callable[[Mapping[str, Any], bytes | None, Progress], Any]
    again: bool = False


class _StoppedError(PolicyError):
    """The daemon ends, or somebody called the job off."""


@dataclass
class _Running:
    stopped: Literal["", "cancelled", "drained"] = ""
    progress: tuple[int, int | None, str] = (0, None, "")
    written_at: float = field(default=float("-inf"))


class JobBoard:
    """The jobs of one component. All processes of a home share the file; who leads runs them.

    Args:
        path: The file.
        kinds: What jobs there are.
        at_once: Jobs that run side by side, whoever runs them; the others wait.
        news: Called when others may want to look: a job was accepted, called off, or has ended.
    """

    def __init__(
        self,
        path: Path,
        *kinds: JobKind,
        clock: Clock = SYSTEM_CLOCK,
        at_once: int = AT_ONCE,
        news: Callable[[], None] = lambda: None,
    ) -> None:
        self._path, self._clock = path, clock
        self._kinds = {kind.name: kind for kind in kinds}
        self._at_once, self._news = at_once, news
        self._lock = threading.Lock()
        self._database = open_database(path, _SCHEMA, OUTBOX, check_same_thread=False)
        self._token = secrets.token_hex(8)
        self._liveness = hold_liveness(self._lock_file(self._token))
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = asyncio.Event()
        self._wake = asyncio.Event()
        self._claiming: asyncio.Task[None] | None = None
        self._resting = False
        self._log = get_logger("jobs")

    # ------------------------------------------------------------ for a daemon's life

    async def open(self) -> None:
        """Run what waits and what comes; needs a running loop."""
        self._resting = False
        self._claiming = asyncio.create_task(self._keep_claiming())

    async def rest(self) -> None:
        """Begin nothing more; what runs goes on."""
        self._resting = True
        self._wake.set()
        if self._claiming is not None:
            await self._claiming  # not cancelled: a job claimed in its thread must be begun
            self._claiming = None

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        """`open`, and in the end `rest`: a duty."""
        await self.open()
        try:
            yield
        finally:
            await self.rest()

    async def drain(self) -> None:
        """End: jobs that may run again wait for the next process, others are called off."""
        self._draining.set()
        await self.rest()
        for running in self._running.values():
            running.stopped = running.stopped or "drained"
        if self._tasks:  # what does not look at its progress is found as running by the next daemon
            await asyncio.wait(self._tasks, timeout=_GRACE)
        await asyncio.to_thread(self._close)

    def look(self) -> None:
        """Look at once at what there is to run and to call off; to be called in the loop."""
        self._wake.set()

    def _close(self) -> None:
        with self._lock:
            self._database.close()
        self._lock_file(self._token).unlink(missing_ok=True)
        os.close(self._liveness)

    # ------------------------------------------------------------ for callers

    @property
    def running(self) -> int:
        """How many run here."""
        return len(self._tasks)

    def open_jobs(self) -> int:
        """How many run or wait, wherever; may block for a moment."""
        with self._lock, self._database.errors():
            query = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"
            return int(self._database.execute(query).fetchone()[0])

    async def start(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        *,
        payload: bytes | None = None,
        key: str | None = None,
        once: bool = False,
    ) -> Job:
        """Accept a job.

        Args:
            arguments: JSON; kept, like `payload`, until the job has ended.
            key: The caller's idempotency key: the same request with the same key is the same job.
            once: An equal one that still waits is the same job.

        Raises:
            PolicyError: too many are open (`too_many_jobs`).
            UsageError: the key was used for another request (`key_reused`), or is no key.
        """
        if self._draining.is_set():
            raise PolicyError("This daemon is ending.", hint="Ask again in a moment.", code="draining")
        job, made = await asyncio.to_thread(self._insert, kind, arguments, payload, key, once)
        if made:
            self.look()
            self._news()
        return job

    def get(self, identity: str) -> Job:
        """A job by id; may block for a moment.

        Raises:
            UsageError: there is none.
        """
        with self._lock, self._database.errors():
            row = self._database.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (identity,)).fetchone()  # noqa: S608
        if row is None:
            raise UsageError(f"There is no job {identity[:64]!r}.", code="no_job")
        return self._job(row)

    def jobs(self, limit: int = 50) -> list[Job]:
        """The newest jobs, without their results."""
        columns = _COLUMNS.replace("result", "NULL")
        with self._lock, self._database.errors():
            rows = self._database.execute(
                f"SELECT {columns} FROM jobs ORDER BY number DESC LIMIT ?",  # noqa: S608 - constants
                (limit,),
            ).fetchall()
        return [self._job(row) for row in rows]

    def cancel(self, identity: str) -> Job:
        """Ask a job to end; what it has not published stays unpublished. Nothing happens to one that has ended."""
        self.get(identity)
        if (running := self._running.get(identity)) is not None:
            running.stopped = "cancelled"
        with self._lock, self._database.transaction() as database:
            waiting = database.execute(
                "UPDATE jobs SET cancel_requested = 1, state = 'cancelled', code = 'cancelled', error = ?,"
                " ended_at = ?, input = NULL WHERE id = ? AND state = 'queued' RETURNING kind",
                (_CANCELLED, self._clock.now(), identity),
            ).fetchone()
            database.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND state = 'running'", (identity,))
            if waiting is not None:
                self._record(database, identity, waiting[0], "cancelled", _CANCELLED)
        return self.get(identity)

    def _job(self, row: tuple[Any, ...]) -> Job:
        fields = dict(zip(_COLUMNS.split(", "), row, strict=True))
        fields["cancel_requested"] = bool(fields["cancel_requested"])
        fields["result"] = orjson.loads(fields["result"]) if fields["result"] is not None else None
        if fields["state"] == "running" and (running := self._running.get(fields["id"])) is not None:
            fields["done"], fields["total"], fields["what"] = running.progress  # newer than what is written down
        return Job(**fields)

    # ------------------------------------------------------------ accepting

    def _insert(
        self, kind: str, arguments: Mapping[str, Any], payload: bytes | None, key: str | None, once: bool
    ) -> tuple[Job, bool]:
        if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
            raise UsageError("An idempotency key is 1 to 255 printable characters.", code="bad_key")
        if kind not in self._kinds:
            raise InternalError(f"there are no jobs of kind {kind}")
        text = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS)
        fingerprint = hashlib.sha256(text + b"\0" + (payload or b"")).hexdigest()
        identity = f"{self._path.parent.name}_{secrets.token_hex(8)}"  # says whose it is
        with self._lock, self._database.transaction() as database:
            if key is not None:
                row = database.execute("SELECT id, print FROM jobs WHERE kind = ? AND key = ?", (kind, key)).fetchone()
                if row is not None and row[1] != fingerprint:
                    raise UsageError(
                        "That idempotency key was used for another request.", hint="Use a new key.", code="key_reused"
                    )
            elif once:
                query = "SELECT id FROM jobs WHERE state = 'queued' AND kind = ? AND print = ?"
                row = database.execute(query, (kind, fingerprint)).fetchone()
            else:
                row = None
            identity = row[0] if row is not None else identity
            if row is None:
                query = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"
                if database.execute(query).fetchone()[0] >= MOST_OPEN:
                    raise PolicyError("Too many jobs wait.", hint="Wait for one to end.", code="too_many_jobs")
                database.execute(
                    "INSERT INTO jobs (id, kind, state, arguments, input, key, print, owner, created_at)"
                    " VALUES (?, ?, 'queued', ?, ?, ?, ?, '', ?)",
                    (identity, kind, text.decode(), payload, key, fingerprint, self._clock.now()),
                )
                database.execute(
                    "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs WHERE state NOT IN ('queued', 'running')"
                    " ORDER BY number DESC LIMIT -1 OFFSET ?)",
                    (KEPT,),
                )
        return self.get(identity), row is None

    # ------------------------------------------------------------ running

    async def _keep_claiming(self) -> None:
        while not self._resting:
            self._wake.clear()
            try:
                for identity, kind in await asyncio.to_thread(self._claim):
                    self._spawn(identity, kind)
            except AvyayError as error:
                self._log.error("jobs_not_read", error=error.message)
            if self._resting:
                return
            pauses = {asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(self._clock.sleep(LOOK))}
            try:
                await asyncio.wait(pauses, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pause in pauses:
                    pause.cancel()

    def _claim(self) -> list[tuple[str, str]]:
        """Take what may run now: this process is its owner from here on."""
        self._take_back()
        with self._lock, self._database.transaction() as database:
            for (identity,) in database.execute(
                "SELECT id FROM jobs WHERE state = 'running' AND owner = ? AND cancel_requested", (self._token,)
            ):
                if (running := self._running.get(identity)) is not None:
                    running.stopped = running.stopped or "cancelled"
            (busy,) = database.execute("SELECT count(*) FROM jobs WHERE state = 'running'").fetchone()
            found = database.execute(
                "SELECT id, kind FROM jobs WHERE state = 'queued' AND owner = '' ORDER BY number LIMIT ?",
                (max(0, self._at_once - busy),),
            ).fetchall()
            for identity, _ in found:
                database.execute(
                    "UPDATE jobs SET state = 'running', owner = ?, runs = runs + 1, started_at = ? WHERE id = ?",
                    (self._token, self._clock.now(), identity),
                )
        return found

    def _take_back(self) -> None:
        """What belongs to a process that has died waits again, or ends where it may not run again."""
        with self._lock, self._database.errors():
            query = "SELECT id, kind, owner, runs, state FROM jobs WHERE state IN ('queued', 'running') AND owner != ?"
            rows = self._database.execute(query, (self._token,)).fetchall()
        for identity, name, owner, runs, state in rows:
            if owner and is_held(self._lock_file(owner)):
                continue
            kind = self._kinds.get(name)
            if kind is None or (state == "running" and not kind.again) or runs >= _MOST_RUNS:
                ended = kind or JobKind(name, lambda arguments, payload, progress: None)
                self._end(identity, ended, "interrupted", error="The daemon ended while it ran.", code="interrupted")
            elif owner:
                with self._lock, self._database.transaction() as database:
                    query = "UPDATE jobs SET owner = '', state = 'queued' WHERE id = ? AND owner = ?"
                    taken = database.execute(query, (identity, owner)).rowcount
                if taken:
                    self._log.warning("job_taken_over", job=identity, kind=name, runs=runs)
        for file in self._path.parent.glob(f"{self._path.name}-owner-*.lock"):
            # A fresh one may be about to be locked by who has just made it.
            with suppress(OSError):
                if self._clock.now() - file.stat().st_mtime > _STALE and not is_held(file):
                    file.unlink()

    def _spawn(self, identity: str, kind: str) -> None:
        self._running[identity] = _Running()
        if self._draining.is_set():
            self._running[identity].stopped = "drained"
        task = asyncio.create_task(self._run(identity, self._kinds[kind]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, identity: str, kind: JobKind) -> None:
        running = self._running[identity]
        try:
            await asyncio.to_thread(self._work, identity, kind, running)
        except Exception as error:  # noqa: BLE001 - the disk fails, or a bug: the job's row says what it can
            self._log.error("job_not_recorded", job=identity, error=type(error).__name__)
        finally:
            self._running.pop(identity, None)
            self.look()
            self._news()

    def _work(self, identity: str, kind: JobKind, running: _Running) -> None:
        def progress(done: int, total: int | None, what: str) -> None:
            running.progress = (done, total, what)
            now = self._clock.monotonic()
            if now - running.written_at >= _WRITE:
                running.written_at = now
                if self._note(identity, done, total, what):
                    running.stopped = running.stopped or "cancelled"
            if running.stopped:
                raise _StoppedError(_CANCELLED, code="cancelled")

        if running.stopped == "drained":  # before it began
            self._put_back(identity, unbegun=True)
            return
        if running.stopped:
            self._stop(identity, kind, running)
            return
        arguments, payload = self._order(identity)
        try:
            result = orjson.dumps(kind.work(arguments, payload, progress), default=str)
        except _StoppedError:
            self._stop(identity, kind, running)
        except AvyayError as error:
            self._end(identity, kind, "failed", error=error.message, code=error.code)
        except Exception as error:  # noqa: BLE001 - a bug in the work ends the job, not the daemon
            self._log.exception("job_failed", job=identity, kind=kind.name)
            self._end(identity, kind, "failed", error=f"internal error: {type(error).__name__}", code="internal")
        else:
            self._end(identity, kind, "done", result=result)

    def _order(self, identity: str) -> tuple[Mapping[str, Any], bytes | None]:
        with self._lock, self._database.errors():
            query = "SELECT arguments, input FROM jobs WHERE id = ?"
            arguments, payload = self._database.execute(query, (identity,)).fetchone()
        return orjson.loads(arguments), payload

    def _note(self, identity: str, done: int, total: int | None, what: str) -> bool:
        """Write progress down; says whether somebody asked, perhaps of another process, to call the job off."""
        try:
            with self._lock, self._database.transaction() as database:
                row = database.execute(
                    "UPDATE jobs SET done = ?, total = ?, what = ? WHERE id = ? RETURNING cancel_requested",
                    (done, total, what[:200], identity),
                ).fetchone()
        except AvyayError:  # progress is not worth a job
            return False
        return bool(row and row[0])

    def _stop(self, identity: str, kind: JobKind, running: _Running) -> None:
        if running.stopped == "drained":
            if kind.again:
                self._put_back(identity)
            else:
                self._end(identity, kind, "interrupted", error="The daemon ended while it ran.", code="interrupted")
        else:
            self._end(identity, kind, "cancelled", error=_CANCELLED, code="cancelled")

    def _put_back(self, identity: str, *, unbegun: bool = False) -> None:
        with self._lock, self._database.transaction() as database:
            query = "UPDATE jobs SET state = 'queued', owner = '', runs = runs - ? WHERE id = ?"
            database.execute(query, (int(unbegun), identity))

    def _end(
        self,
        identity: str,
        kind: JobKind,
        state: State,
        *,
        result: bytes | None = None,
        error: str | None = None,
        code: str | None = None,
    ) -> None:
        running = self._running.get(identity)
        done, total, what = running.progress if running is not None else (0, None, "")
        with self._lock, self._database.transaction() as database:
            database.execute(
                "UPDATE jobs SET state = ?, result = ?, error = ?, code = ?, ended_at = ?, input = NULL, done = ?,"
                " total = ?, what = ? WHERE id = ?",
                (state, result, error, code, self._clock.now(), done, total, what[:200], identity),
            )
            self._record(database, identity, kind.name, state, error)

    def _record(self, database: Database, identity: str, kind: str, state: State, error: str | None) -> None:
        data = {"job": identity, "kind": kind, "state": state, "error": error}
        append_event(database, Event(f"{self._path.parent.name}.job.ended", data), self._clock.now())

    def _lock_file(self, token: str) -> Path:
        return self._path.with_name(f"{self._path.name}-owner-{token}.lock")
