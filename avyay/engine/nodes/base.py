"""What a node is: a place that runs an attempt and brings its commits home."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avyay.config.engine import EngineAgentSettings
from avyay.engine.agents.base import Access, Transcript
from avyay.engine.agents.outcome import Ending, GitEvidence
from avyay.engine.attempts import Attempts
from avyay.engine.worktree import Workshop

__all__ = ["Caps", "Control", "Node", "NodeParts", "Order", "Report"]


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits of one attempt. Dollars are watched by the dispatcher, who sees the bill."""

    wall: float
    stall: float
    turns: int


@dataclass(frozen=True, slots=True)
class Order:
    """Everything a node needs to know of an attempt.

    Args:
        task, fence: Name the attempt; its branch is `avyay/<task>/<fence>`.
        agent: Name of one of the node's agents.
        repository: The repository on the dispatcher's machine.
        base: The commit to start from.
        prompt: What the agent is told.
        access: How it reaches models.
        environment: Variables to pass on to the agent.
        folder: On the dispatcher's machine, where the attempt's log lies.
    """

    task: str
    fence: int
    attempt: int
    title: str
    agent: str
    repository: Path
    base: str
    prompt: str
    access: Access
    caps: Caps
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def branch(self) -> str:
        return f"avyay/{self.task}/{self.fence}"


class Control:
    """How the dispatcher speaks to an attempt that is under way. Thread-safe."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._reason: tuple[str, str] = ("", "")
        self._watcher: Callable[[], None] | None = None
        self._counter: Callable[[], None] | None = None

    def stop(self, by: str, detail: str = "") -> None:
        """Ask for its end; the first reason given is the one that counts."""
        if not self._stop.is_set():
            self._reason = (by, detail)
            self._stop.set()
            if self._watcher is not None:
                self._watcher()

    def on_stop(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` when the end is asked for (at once, when it was already)."""
        self._watcher = watcher
        if self._stop.is_set():
            watcher()

    def on_turn(self, counter: Callable[[], None]) -> None:
        """Call `counter` at every answer of the model, so that the bill is looked at before the next."""
        self._counter = counter

    def turned(self) -> None:
        """The model has answered once more."""
        if self._counter is not None:
            self._counter()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    @property
    def reason(self) -> tuple[str, str]:
        """Who asked for the end (an `EndedBy`), and more words."""
        return self._reason


@dataclass(frozen=True, slots=True)
class Report:
    """What came back. The branch of the order exists in the dispatcher's repository when `git.changed`."""

    ending: Ending
    transcript: Transcript
    git: GitEvidence
    seconds: float
    log: Path
    killed: int = 0


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What `make_node(settings, parts)` of a node's module is given.

    Args:
        agents: The configured agents; none means all that are found.
        workshop: Finds the workshop of a repository.
        environment: The dispatcher's.
    """

    agents: Sequence[EngineAgentSettings]
    attempts: Attempts
    workshop: Callable[[Path], Workshop]
    environment: Mapping[str, str]


class Node(ABC):
    """A machine that works on attempts. Threads of the dispatcher call `run`, one for each attempt."""

    name: str
    slots: int
    drain_note: Path | None = None
    """A file that says, while it is there, that the node shall get no new tasks."""
    away: str = ""
    """Why it did not answer when last asked; empty when it did, or was not asked."""

    def drained(self) -> bool:
        """Whether a person asked to let it run empty."""
        return self.drain_note is not None and self.drain_note.exists()

    @abstractmethod
    def capabilities(self) -> frozenset[str]:
        """What tasks may require of it: `os:linux`, `agent:codex`, `node:NAME` and whatever the settings add.

        Raises:
            UnreachableError: it does not answer.
        """

    @abstractmethod
    def agents(self) -> tuple[str, ...]:
        """Names of the agents it can start, the preferred one first."""

    def ready(self) -> bool:
        """Whether it can take work now (it answers, and is not asleep)."""
        return True

    @abstractmethod
    def run(self, order: Order, control: Control) -> Report:
        """Run an attempt to its end, whoever ends it; nothing of it is left running.

        Raises:
            UnreachableError: the node went away, or never answered: no attempt was made as far as is known.
        """

    def recover(self) -> list[str]:
        """End and remove what earlier dispatchers left on it; returns what was found, in words."""
        return []

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what it holds."""
