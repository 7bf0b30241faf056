"""Gives tasks that name no files a guess at them, from the knowledge graph, so that claims can keep them apart."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from avyay.engine.contracts import ContextSource, TaskQueue
from avyay.engine.types import Task
from avyay.errors import AvyayError
from avyay.log import get_logger

__all__ = ["FileGuesses"]

log = get_logger("engine")

_AT_A_TIME = 100
_PATIENCE = 5.0  # seconds a tick waits for guesses


class FileGuesses:
    """Guesses before tasks are claimed.

    Args:
        source: Knows the code; None never guesses.
        root: The repository of a task.
    """

    def __init__(self, source: ContextSource | None, root: Callable[[Task], Path]) -> None:
        self._source = source
        self._root = root
        self._thread: threading.Thread | None = None
        self._found: Mapping[str, Mapping[str, str]] = {}

    def note(self, queue: TaskQueue) -> None:
        """Look at the next tasks that name no files, once each.

        A repository that is seen for the first time is read by a thread, for as long as it takes; tasks do not wait.
        """
        if self._source is None:
            return
        self._write(queue)
        if self._thread is None and (names := queue.unfiled(_AT_A_TIME)):
            tasks = [queue.get(name) for name in names]
            self._thread = threading.Thread(target=self._work, args=(tasks,), name="avyay-engine-guess", daemon=True)
            self._thread.start()
            self._thread.join(_PATIENCE)
            self._write(queue)

    def _work(self, tasks: Sequence[Task]) -> None:
        try:
            self._found = self._look(tasks)
        except Exception:  # a bug in the graph must not end the dispatcher
            log.exception("guessing_crashed")

    def _write(self, queue: TaskQueue) -> None:
        """Note what was found, when the look is over."""
        if self._thread is None or self._thread.is_alive():
            return
        found, self._found, self._thread = self._found, {}, None
        for name, files in found.items():
            queue.guess(name, files)

    def apply(self, tasks: Iterable[Task]) -> list[Task]:
        """The tasks with the files that `note` would give them; nothing is written."""
        tasks = list(tasks)
        unfiled = [task for task in tasks if not task.files and task.guessed is None]
        found = self._look(unfiled) if self._source is not None else {}
        return [
            replace(task, files=tuple(files), guessed=files) if (files := found.get(task.id)) else task
            for task in tasks
        ]

    def _look(self, tasks: Iterable[Task]) -> dict[str, Mapping[str, str]]:
        assert self._source is not None
        places: dict[Path, list[Task]] = defaultdict(list)
        found: dict[str, Mapping[str, str]] = {}
        for task in tasks:
            try:
                places[self._root(task)].append(task)
            except AvyayError:  # a repository that is not configured here: whoever claims it will say so
                found[task.id] = {}
        for root, those in places.items():
            try:
                found |= self._source.guess(root, those)
            except AvyayError as error:  # tried again at the next tick; until then they run as tasks without files do
                log.warning("files_not_guessed", repository=str(root), reason=error.message)
        return found
