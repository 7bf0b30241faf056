"""What the scanner asks of an engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from avyay.raksha.project import Project
from avyay.raksha.source import SourceFile
from avyay.raksha.types import Finding, Rule, Skipped

__all__ = ["Confirming", "Engine", "FileResult", "Noting", "Outcome", "Step"]

Step = Callable[[int], None]  # called with the number of files just finished


@dataclass(slots=True)
class FileResult:
    """What one engine found in one file.

    Attributes:
        parsed: It read the file's structure, all of it, as far as it knows.
        sure: A parser accepted the whole file: that outweighs another engine's `problem`. Not sure is a tolerant
            reader, or an engine that need not parse what none of its rules can match.
        problem: Why it could not be parsed.
        failed: What it should have looked for and did not (a check that raised, a rule that ran out of time).
    """

    findings: list[Finding] = field(default_factory=list)
    parsed: bool = True
    problem: str = ""
    failed: str = ""
    sure: bool = False


@dataclass(slots=True)
class Outcome:
    """What one engine found. Files it was given and does not mention were read and have no findings."""

    results: dict[str, FileResult] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)  # faults of the engine as a whole

    def of(self, name: str) -> FileResult:
        """The result of a file, made when it is the first word about it."""
        return self.results.setdefault(name, FileResult())


class Engine(Protocol):
    """Looks for faults in files."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def rules(self) -> Sequence[Rule]:
        """Everything it can find."""
        ...

    def digest(self) -> str:
        """Changes when its rules change."""
        ...

    def key(self, project: Project) -> str:
        """Changes when the same file may give another result; part of the key of cached results."""
        ...

    def reads(self, file: SourceFile) -> bool:
        """Whether it has anything to look for in this file."""
        ...

    def run(self, files: Sequence[SourceFile], project: Project, *, step: Step, cancel: threading.Event) -> Outcome:
        """Look at the files; `reads` is true for each.

        Raises:
            DependencyError: the engine is missing, was killed, took too long or answered nonsense.
        """
        ...


@runtime_checkable
class Confirming(Protocol):
    """An engine that skips files no rule can match, and can be asked to parse them all the same."""

    def confirm(self, files: Sequence[SourceFile], *, cancel: threading.Event) -> dict[str, str]:
        """The files (by name) that it cannot read, and why."""
        ...


@runtime_checkable
class Noting(Protocol):
    """An engine that has to say something about a scan that does not make it incomplete."""

    def notes(self, files: Sequence[SourceFile]) -> list[Skipped]:
        """What was not looked at on purpose, and how to have it looked at."""
        ...
