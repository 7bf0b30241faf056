"""What a source is: a named place whose documents can be listed and read in one fixed state."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from posixpath import splitext
from typing import Literal, Protocol

__all__ = ["DOCUMENT_SUFFIXES", "Change", "Entry", "Selection", "SourceSpec", "SourceTree", "Unread", "too_large"]

DOCUMENT_SUFFIXES = frozenset(
    {".md", ".markdown", ".mdx", ".rst", ".adoc", ".asciidoc", ".txt", ".yaml", ".yml", ".pdf"}
)
MAX_BYTES = 5_000_000  # a runbook is never this long: a log or a dump is
MAX_PDF_BYTES = 50_000_000  # most of a PDF is fonts and pictures
# Text that is nobody's runbook: dependency lists and licences.
_NOT_DOCUMENTS = re.compile(r"(?i)^(requirements.*|constraints.*|licen[cs]e.*|robots|cmakelists|manifest)\.txt$")
_IGNORED_FOLDERS = frozenset({"node_modules", ".git", ".venv", "vendor", "__pycache__"})
_NOT_FOR_TEXT = frozenset({"requirements", "constraints", "licenses", "licences"})  # of .txt files only


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What the user asked to index; kept so that it can be indexed again.

    location: an absolute path or a URL. branch: a branch, tag or commit; None is what HEAD names. prefix: the
    folder inside a repository whose documents count, with a trailing slash, or "". worktree: read the files as they
    lie on disk instead of the commit.
    """

    name: str
    kind: Literal["git", "folder"]
    location: str
    branch: str | None = None
    prefix: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    worktree: bool = False

    @property
    def remote(self) -> bool:
        """Whether it must be fetched."""
        return self.kind == "git" and not self.location.startswith("/")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a source: `content` names its bytes (a git blob id, or a SHA-256)."""

    path: str
    content: str
    size: int


@dataclass(frozen=True, slots=True)
class Change:
    """The last change of a file: which commit, and when its author wrote it (Unix seconds, None when unknown)."""

    commit: str
    author_time: int | None


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that was left out, and why."""

    path: str
    reason: str


class SourceTree(Protocol):
    """One state of a source. What it lists cannot change while it is read."""

    @property
    def commit(self) -> str:
        """40 hex digits; "" for a folder without git."""
        ...

    @property
    def entries(self) -> Sequence[Entry]:
        """The selected documents, sorted by path."""
        ...

    @property
    def unread(self) -> Sequence[Unread]:
        """Documents that cannot be read, found while listing."""
        ...

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        """The bytes of the given entries, in order."""
        ...

    def history(self, paths: Sequence[str]) -> dict[str, Change]:
        """The last change of each path."""
        ...

    def descends_from(self, commit: str) -> bool:
        """Whether `commit`, indexed earlier, is part of this state's history: False after a rewrite."""
        ...


@dataclass(frozen=True)
class Selection:
    """Which paths are documents: globs over the path from the root of the source (`**` crosses folders)."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prefix: str = ""

    @cached_property
    def _patterns(self) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
        return [glob_pattern(glob) for glob in self.include], [glob_pattern(glob) for glob in self.exclude]

    def wants(self, path: str) -> bool:
        """Whether `path` (with slashes) is a document to index."""
        if not path.startswith(self.prefix):
            return False
        include, exclude = self._patterns
        if any(pattern.fullmatch(path) for pattern in exclude):
            return False
        if include:
            return any(pattern.fullmatch(path) for pattern in include)
        *folders, name = path.split("/")  # a repository may list a hundred thousand files: no path objects
        suffix = splitext(name)[1].lower()
        if suffix not in DOCUMENT_SUFFIXES or _NOT_DOCUMENTS.match(name):
            return False
        return _IGNORED_FOLDERS.isdisjoint(folders) and not (suffix == ".txt" and not _NOT_FOR_TEXT.isdisjoint(folders))


def too_large(path: str, size: int) -> Unread | None:
    """Why a file of so many bytes is left out; None when it is not."""
    if size <= (MAX_PDF_BYTES if path.lower().endswith(".pdf") else MAX_BYTES):
        return None
    return Unread(path, f"{size / 1e6:.0f} MB: larger than any runbook")


def glob_pattern(glob: str) -> re.Pattern[str]:
    """A glob as people write it in ignore files: without a slash it names files anywhere, `**` crosses folders."""
    glob = glob.removeprefix("./")
    if glob.endswith("/"):
        glob += "**"
    if "/" not in glob.rstrip("*"):
        glob = f"**/{glob}"
    glob = glob.removeprefix("/")
    out, position = [], 0
    while position < len(glob):
        if glob.startswith("**/", position):
            out.append("(?:.*/)?")
            position += 3
        elif glob.startswith("**", position):
            out.append(".*")
            position += 2
        elif glob[position] == "*":
            out.append("[^/]*")
            position += 1
        elif glob[position] == "?":
            out.append("[^/]")
            position += 1
        elif glob[position] == "[" and (end := glob.find("]", position + 2)) != -1:
            inner = glob[position + 1 : end].replace("\\", "\\\\")
            inner = f"^{inner[1:]}" if inner[0] in "!^" else inner
            out.append(f"[{inner}]")
            position = end + 1
        elif glob[position] == "{" and (end := glob.find("}", position)) != -1:
            out.append("(?:" + "|".join(map(re.escape, glob[position + 1 : end].split(","))) + ")")
            position = end + 1
        else:
            out.append(re.escape(glob[position]))
            position += 1
    return re.compile("".join(out), re.DOTALL)
