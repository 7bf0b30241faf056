"""What the loop asks of its parts: the queue, the generator, the sources of context. Small protocols, many makers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from avyay.engine.bookkeeping import DayUse
from avyay.engine.lease import Breath
from avyay.engine.types import Entry, Lease, NewTask, State, Task
from avyay.money import Picodollars

__all__ = ["ContextSource", "Generator", "TaskQueue"]


class TaskQueue(Protocol):
    """A queue of tasks, as `avyay.engine.queue.Queue` documents it. One object is used by one thread."""

    def add(self, new: Sequence[NewTask]) -> list[str]: ...

    def claim(
        self,
        owner: str,
        capabilities: frozenset[str] = frozenset(),
    ) -> Lease | None: ...

    def beat(self, lease: Lease) -> None: ...

    def breaths(self) -> list[Breath]: ...

    def advance(self, lease: Lease, after: State, detail: str = "", **data: Any) -> None: ...

    def finish(self, lease: Lease, detail: str = "", *, act: Callable[[], None] | None = None, **data: Any) -> None: ...

    def fail(self, lease: Lease, reason: str, *, final: bool = False, **data: Any) -> State: ...

    def park(self, lease: Lease, seconds: float, reason: str, /, **data: Any) -> None: ...

    def hold(self, lease: Lease, reason: str = "waits for approval", **data: Any) -> None: ...

    def expire(self, breath: Breath, reason: str = "no heartbeat") -> State | None: ...

    def get(self, name: str) -> Task: ...

    def tasks(self, *states: State) -> Iterator[Task]: ...

    def counts(self) -> dict[str, int]: ...

    def history(self, name: str | None = None, *, after: int = 0, limit: int = 1000) -> list[Entry]: ...

    def book(self, day: str, seconds: float, spent: Picodollars = ...) -> None: ...

    def used(self, day: str) -> DayUse: ...

    def probe(self) -> None: ...

    def stuck(self) -> tuple[str, str] | None: ...

    def unfiled(self, limit: int) -> Sequence[str]: ...

    def guess(self, name: str, files: Mapping[str, str]) -> bool: ...

    def close(self) -> None: ...


class Generator(Protocol):
    """Finds work in a repository."""

    def generate(self, repository: Path, *, limit: int) -> Sequence[NewTask]:
        """Tasks with evidence, acceptance command and fingerprint; the queue drops those it knows by fingerprint.

        Raises:
            AvyayError: nothing could be looked at.
        """
        ...


class ContextSource(Protocol):
    """Knows which parts of a repository matter to a task."""

    def context(self, repository: Path, task: Task, *, tokens: int) -> str:
        """A ranked map of files and symbols, as text of at most so many tokens; empty when nothing is known."""
        ...

    def guess(self, repository: Path, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
        """For each task's id, the files that its words and evidence point at, with the reason for each."""
        ...
