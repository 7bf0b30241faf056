"""What a source of evidence finds, and how it becomes a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from avyay.clock import Clock
from avyay.engine.knowledge.service import Knowledge
from avyay.engine.types import NewTask
from avyay.git import GitRepository
from avyay.ports import Alarms, Scanner
from avyay.process import Completed

__all__ = ["Found", "Generated", "Need", "Run", "Site", "Size", "Source"]

Size = Literal["small", "medium", "large"]


class Run(Protocol):
    """Runs a program in the repository, with a time limit; `avyay.process.run` does."""

    def __call__(
        self, command: Sequence[str], *, timeout: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> Completed: ...


@dataclass(frozen=True, slots=True)
class Need:
    """Something that wants doing, with the evidence for it.

    Args:
        key: Tells this need from others of its source, and stays the same while the need does: no line numbers.
        evidence: Where it was seen, `path:line`; the first is the best.
        accept: The command that fails now and succeeds when it is done.
        weight: 0..1, how much it matters within its source.
        stranger: The description quotes people who are not of the project: a person must read it first.
    """

    key: str
    title: str
    description: str
    evidence: tuple[str, ...]
    accept: str
    files: tuple[str, ...] = ()
    size: Size = "small"
    weight: float = 0.5
    allow: frozenset[str] = frozenset()
    stranger: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a source found: needs, or why it could not look. `whole` is false when some of it could not be checked:
    what is missing from the needs is then no proof that it was fixed."""

    needs: tuple[Need, ...] = ()
    skipped: str = ""
    whole: bool = True

    @classmethod
    def not_checked(cls, reason: str) -> Found:
        return cls((), reason, whole=False)


@dataclass(frozen=True)
class Site:
    """The repository that is looked at, and the means to look.

    Args:
        tests: The command that runs the tests; empty when none is configured.
        online: Whether sources may ask package registries and forges.
        scanner: None when there is none to ask.
        alarms: What the router finds unusual; None when there is no router.
    """

    root: Path
    git: GitRepository
    knowledge: Knowledge
    clock: Clock
    run: Run
    tests: str = ""
    online: bool = False
    scanner: Callable[[], Scanner] | None = None
    alarms: Callable[[], Alarms] | None = None
    path: str | None = field(default=None)
    """Where programs are looked for, as PATH has it."""

    def tests_for(self, paths: Sequence[str]) -> str:
        """A command that runs the tests of some files; empty when none is known."""
        found = [path for path in self.knowledge.tests_of(self.root, paths) if path.endswith(".py")]
        if found and (not self.tests or "pytest" in self.tests):
            base = self.tests or "python -m pytest -q"
            return f"{base} {' '.join(sorted(found)[:10])}"
        return self.tests


class Source(Protocol):
    """A kind of evidence. Registered in `avyay.engine.generate.registry`."""

    def find(self, site: Site) -> Found:
        """Look for needs.

        Raises:
            AvyayError: it could not look; taken as `Found.not_checked`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Generated:
    """What a round of generation did, or would do.

    Attributes:
        added: Ids of new tasks; empty when nothing was written.
        tasks: The new tasks, most valuable first.
        closed: Ids of open tasks whose evidence is gone.
        known: How many needs had a task already.
        left: How many were beyond the limit.
        checked: Source -> needs found.
        skipped: Source -> why it could not look.
    """

    tasks: tuple[NewTask, ...]
    added: tuple[str, ...]
    closed: tuple[str, ...]
    known: int
    left: int
    checked: Mapping[str, int]
    skipped: Mapping[str, str]
