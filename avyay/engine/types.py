"""Tasks, their states and what may follow what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

__all__ = [
    "ACTIVE",
    "FINAL",
    "REPOSITORY",
    "STATES",
    "TRANSITIONS",
    "Entry",
    "Lease",
    "NewTask",
    "State",
    "Task",
    "allowed",
    "pack_extra",
    "unpack_extra",
]

State = Literal[
    "blocked",  # waits for other tasks, or for a person's approval
    "ready",  # may be claimed, once its time has come
    "leased",  # claimed by an owner that has not begun
    "running",  # an agent works on it
    "verifying",  # its result is being checked
    "merging",  # its result is being merged
    "done",
    "failed",  # the result was refused for good
    "cancelled",  # a person ended it
    "dead",  # every attempt is used up: the dead letters
]
STATES: tuple[State, ...] = get_args(State)
ACTIVE: frozenset[State] = frozenset({"leased", "running", "verifying", "merging"})
REPOSITORY = "repository:"
"""Begins the capability that lets a dispatcher take tasks of a repository; the queue asks for it by itself."""
FINAL: frozenset[State] = frozenset({"done", "failed", "cancelled", "dead"})

# Who goes where. A lease that is lost, or an attempt that failed, leads back to "ready" or to "dead".
TRANSITIONS: Mapping[State, frozenset[State]] = {
    "blocked": frozenset({"ready", "cancelled", "done"}),
    "ready": frozenset({"leased", "blocked", "cancelled", "done"}),
    "leased": frozenset({"running", "ready", "dead", "failed", "cancelled"}),
    "running": frozenset({"verifying", "ready", "dead", "failed", "cancelled", "blocked"}),
    "verifying": frozenset({"merging", "done", "ready", "dead", "failed", "cancelled", "blocked"}),
    "merging": frozenset({"done", "verifying", "ready", "dead", "failed", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset({"ready", "blocked"}),  # by retry
    "cancelled": frozenset({"ready", "blocked"}),
    "dead": frozenset({"ready", "blocked"}),
}


def pack_extra(task: NewTask) -> dict[str, Any]:
    """The fields that queues keep as one JSON value: those no query looks at."""
    values = {
        "repository": task.repository,
        "agent": task.agent,
        "allow": sorted(task.allow),
        "caps": dict(task.caps),
        "size": task.size,
    }
    return {name: value for name, value in values.items() if value}


def unpack_extra(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for `Task` from what `pack_extra` made."""
    return {**values, "allow": frozenset(values.get("allow", ()))}


def allowed(before: State, after: State) -> bool:
    """Whether a task may go from `before` to `after`."""
    return after in TRANSITIONS[before]


@dataclass(frozen=True, slots=True)
class NewTask:
    """What somebody wants done.

    Args:
        title: One line.
        description: What the agent is told.
        accept: The command that decides whether it is done; run in a clean checkout of the merged result.
        needs: Ids of tasks that must be done before.
        files: Globs of files it will touch; tasks that touch the same files do not run side by side.
        requires: Capabilities a node must have ("os:linux", "agent:codex").
        priority: Higher goes first.
        evidence: Where the need for it was seen, `path:line`.
        fingerprint: Tells the same need found again; a second task with it is not added.
        approval: A person must approve before it is claimed.
        id: By default made up.
        repository: The repository it belongs to: the name of a configured one, or a path; empty is the default one of
            whoever claims it. See `repositories.settle_repositories`.
        agent: The agent that shall do it; empty leaves it to the dispatcher.
        allow: Kinds of protected files it may change: "tests", "ci", "locks", or globs.
        caps: Its own caps, where they differ: "dollars" (a decimal), "wall" and "stall" (seconds), "turns".
        size: A guess: "small", "medium", "large", or empty.
    """

    title: str
    description: str = ""
    accept: str = ""
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    requires: frozenset[str] = frozenset()
    priority: int = 0
    evidence: tuple[str, ...] = ()
    fingerprint: str | None = None
    approval: bool = False
    attempts: int = 3
    id: str | None = None
    repository: str = ""
    agent: str = ""
    allow: frozenset[str] = frozenset()
    caps: Mapping[str, float | str] = field(default_factory=dict)
    size: str = ""

    def __post_init__(self) -> None:
        if self.agent:  # only a node that has it may claim the task
            object.__setattr__(self, "requires", self.requires | {f"agent:{self.agent}"})


@dataclass(frozen=True, slots=True)
class Task:
    """A task as the queue holds it. Times are seconds since the epoch.

    Args:
        guessed: When `files` are a guess: the reason for each. None when they were given, or nobody has looked yet.
    """

    id: str
    title: str
    description: str
    accept: str
    needs: tuple[str, ...]
    files: tuple[str, ...]
    requires: frozenset[str]
    priority: int
    evidence: tuple[str, ...]
    fingerprint: str | None
    state: State
    reason: str
    attempt: int
    attempts: int
    fence: int
    owner: str | None
    beats: int
    not_before: float
    created: float
    updated: float
    repository: str = ""
    agent: str = ""
    allow: frozenset[str] = frozenset()
    caps: Mapping[str, float | str] = field(default_factory=dict)
    size: str = ""
    guessed: Mapping[str, str] | None = None

    @property
    def wants(self) -> frozenset[str]:
        """What a dispatcher must offer to claim it: `requires`, and its repository."""
        return self.requires | {f"{REPOSITORY}{self.repository}"} if self.repository else self.requires


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a task: every later write must show the same fence, which only the newest claim has."""

    task: Task
    owner: str
    fence: int

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.task.attempt


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a task's history."""

    number: int
    task: str
    at: float
    kind: str
    before: State | None
    after: State | None
    owner: str | None
    fence: int | None
    detail: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
