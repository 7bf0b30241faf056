"""Work that takes longer than a request: an id at once, then its state, its progress, and a way to call it off."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any, Literal

from avyay.clock import Clock
from avyay.errors import AvyayError, PolicyError, UsageError
from avyay.ports import Progress

__all__ = ["Job", "JobBoard"]

KEPT = 200


@dataclass
class Job:
    """`result` and `error` are for programs; times are Unix seconds."""

    id: str
    kind: str
    state: Literal["running", "done", "failed", "cancelled"] = "running"
    what: str = ""
    done: int = 0
    total: int | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    result: Any = None
    error: str | None = None
    cancel_requested: bool = False

    def data(self) -> dict[str, Any]:
        return asdict(self)


class JobBoard:
    """The jobs of this process, run in threads. A finished job is remembered until many newer ones have come."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        return sum(job.state == "running" for job in self._jobs.values())

    def start(self, kind: str, work: Callable[[Progress], Any]) -> Job:
        """Run `work` in a thread. It must call its progress often: that is where a cancelled job ends."""
        job = Job(secrets.token_hex(8), kind, started_at=self._clock.now())
        while len(self._jobs) >= KEPT:
            ended = next((one.id for one in self._jobs.values() if one.state != "running"), None)
            if ended is None:
                raise PolicyError("Too many jobs are running.", hint="Wait for one to end.", code="too_many_jobs")
            del self._jobs[ended]
        self._jobs[job.id] = job
        self._spawn(self._run(job, work))
        return job

    def get(self, identity: str) -> Job:
        """A job by id.

        Raises:
            UsageError: there is none.
        """
        try:
            return self._jobs[identity]
        except KeyError:
            raise UsageError(f"There is no job {identity!r}.", code="no_job") from None

    def cancel(self, identity: str) -> Job:
        """Ask a job to end; what it has not published stays unpublished."""
        job = self.get(identity)
        job.cancel_requested = True
        return job

    async def drain(self) -> None:
        """Call all jobs off and wait for them."""
        for job in self._jobs.values():
            job.cancel_requested = True
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job, work: Callable[[Progress], Any]) -> None:
        def progress(done: int, total: int | None, what: str) -> None:
            job.done, job.total, job.what = done, total, what
            if job.cancel_requested:
                raise PolicyError("The job was cancelled.", code="cancelled")

        try:
            job.result = await asyncio.to_thread(work, progress)
            job.state = "done"
        except AvyayError as error:
            job.state = "cancelled" if error.code == "cancelled" else "failed"
            job.error = error.message
        except Exception as error:
            job.state, job.error = "failed", f"internal error: {type(error).__name__}"
            raise
        finally:
            job.ended_at = self._clock.now()
