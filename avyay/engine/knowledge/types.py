"""What is known of a file, and of a codebase as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["FileCard", "Import", "Kind", "MapEntry", "Parsed", "PastTask", "RepositoryMap", "Symbol", "Update"]

Kind = Literal["class", "function", "method", "type", "constant"]


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name that a file defines. Lines are 1-based and inclusive; `scope` is what it is a member of."""

    name: str
    kind: Kind
    line: int
    last_line: int
    signature: str
    scope: str = ""

    @property
    def qualified(self) -> str:
        return f"{self.scope}.{self.name}" if self.scope else self.name


@dataclass(frozen=True, slots=True)
class Import:
    """An import as written: `module` as in the language, `names` taken out of it, dots in front for relative ones."""

    module: str
    names: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one file says. `references` counts every identifier in it; `broken` when the parser had to guess."""

    symbols: tuple[Symbol, ...] = ()
    imports: tuple[Import, ...] = ()
    references: Mapping[str, int] = field(default_factory=dict)
    lines: int = 0
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """What bringing the index to a commit took."""

    commit: str
    parsed: int
    removed: int
    files: int
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PastTask:
    """A task that touched a file, and how it ended."""

    id: str
    title: str
    state: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class FileCard:
    """All that is known of one file. Paths are relative to the repository."""

    path: str
    language: str
    lines: int
    symbols: tuple[Symbol, ...]
    imports: tuple[str, ...]
    imported_by: tuple[str, ...]
    tests: tuple[str, ...]
    owners: tuple[str, ...]
    commits: int
    tasks: tuple[PastTask, ...]
    documents: tuple[str, ...]
    covered: float | None = None


@dataclass(frozen=True, slots=True)
class MapEntry:
    """A file of the map with the symbols that fitted."""

    path: str
    score: float
    symbols: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class RepositoryMap:
    """The most relevant files and symbols, as text within a token budget."""

    commit: str
    entries: tuple[MapEntry, ...]
    text: str
    tokens: int
    files: int
    symbols: int
