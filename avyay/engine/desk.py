"""The queue and the knowledge graph for callers from many threads: every call opens its own connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from avyay.clock import Clock
from avyay.engine.knowledge.service import Knowledge
from avyay.engine.knowledge.types import FileCard, RepositoryMap
from avyay.engine.narrate import narrate, why
from avyay.engine.queue import Queue
from avyay.engine.types import ACTIVE, NewTask, State, Task
from avyay.errors import UsageError

__all__ = ["Desk"]


class Desk:
    """What may be asked of the build engine from outside.

    Args:
        repositories: The repositories by name; "" is the default one.
        approval: A person approves every task that is added here.
        settle: Says of tasks which repository they belong to.
    """

    def __init__(
        self,
        open_queue: Callable[[], Queue],
        open_knowledge: Callable[[], Knowledge],
        repositories: Callable[[], dict[str, Path]],
        clock: Clock,
        *,
        approval: bool = True,
        settle: Callable[[Sequence[NewTask]], Sequence[NewTask]] = list,
    ) -> None:
        self._open_queue = open_queue
        self._open_knowledge = open_knowledge
        self._repositories = repositories
        self._clock = clock
        self._approval = approval
        self._settle = settle

    def add(self, tasks: Sequence[NewTask]) -> list[Task]:
        """Add tasks, all or none.

        Raises:
            UsageError: see `Queue.add`.
        """
        with closing(self._open_queue()) as queue:
            settled = self._settle(tasks)
            ids = queue.add([replace(task, approval=task.approval or self._approval) for task in settled])
            return [queue.get(name) for name in ids]

    def tasks(self, *states: State, limit: int = 50) -> tuple[list[Task], dict[str, int]]:
        """The newest tasks, oldest first, and how many there are in each state."""
        with closing(self._open_queue()) as queue:
            return list(queue.tasks(*states))[-limit:], queue.counts()

    def story(self, name: str) -> tuple[Task, list[str], list[str]]:
        """A task, its whole history in words, and why it is not running.

        Raises:
            UsageError: there is none.
        """
        with closing(self._open_queue()) as queue:
            task = queue.get(name)
            return (
                task,
                narrate(task, queue.history(name)),
                why(task, queue.get, self._clock.now(), queue.tasks(*ACTIVE)),
            )

    def map(self, repository: str, *, query: str, files: Sequence[str], tokens: int) -> RepositoryMap:
        """A ranked map of a repository.

        Raises:
            UsageError: no such repository.
        """
        with self._knowledge() as knowledge:
            return knowledge.map(self._root(repository), query=query, files=files, tokens=tokens)

    def card(self, repository: str, path: str) -> FileCard:
        """All that is known of a file.

        Raises:
            UsageError: no such repository, or file.
        """
        root = self._root(repository)
        with self._knowledge() as knowledge, closing(self._open_queue()) as queue:
            knowledge.learn(root, queue.tasks(), queue.history)
            return knowledge.card(root, path)

    @contextmanager
    def _knowledge(self) -> Iterator[Knowledge]:
        with closing(self._open_knowledge()) as knowledge:
            yield knowledge

    def _root(self, name: str) -> Path:
        known = self._repositories()
        if name not in known:
            names = ", ".join(name or "(the default)" for name in known) or "none"
            raise UsageError(f"There is no repository {name!r}.", hint=f"Configured: {names}.")
        return known[name]
