"""What a commit says, read with git and the parsers: no database is open while they work."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avyay.engine.knowledge.languages import language_of
from avyay.engine.knowledge.parse import parse
from avyay.engine.knowledge.types import Parsed
from avyay.errors import DependencyError
from avyay.git import GitRepository
from avyay.ports import Progress

__all__ = ["Change", "Entry", "FileRows", "Reader", "new_history", "tree"]

_LARGEST = 1_000_000
_HISTORY_COMMITS = 3000  # of a repository seen for the first time: owners are those of recent years
_BATCH = 400
_DOCUMENTS = (".md", ".markdown", ".rst", ".adoc", ".txt")
_NOT_OURS = re.compile(r"(?:^|/)(?:node_modules|vendor|third_party|dist|build|\.venv|venv|site-packages)/|\.min\.js$")
_WORD = re.compile(r"[A-Za-z0-9_./-]*[./][A-Za-z0-9_./-]+")
_GIT_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a commit."""

    path: str
    blob: str
    size: int


@dataclass(frozen=True, slots=True)
class FileRows:
    """A file as the rows that tell of it; names are numbers of the `Reader` that read it.

    Args:
        references: int32 pairs: name, count.
        symbols: (name, kind, line, last line, scope, signature).
        imports: (line, module, names as JSON).
        mentions: (line, word).
        unreadable: Its contents cannot be had here.
    """

    entry: Entry
    language: str
    lines: int
    broken: bool
    references: NDArray[np.int32]
    symbols: tuple[tuple[int, str, int, int, str, str], ...]
    imports: tuple[tuple[int, str, str], ...]
    mentions: tuple[tuple[int, str], ...]
    unreadable: bool


@dataclass(frozen=True, slots=True)
class Change:
    """How often an author changed a file, and when last (seconds since the epoch)."""

    path: str
    author: str
    commits: int
    last: int


def tree(repository: GitRepository, commit: str) -> Iterator[Entry]:
    """The files of a commit that are the project's own."""
    for row in repository.output("ls-tree", "-r", "-l", "-z", commit, timeout=_GIT_TIMEOUT).split("\0"):
        if not row:
            continue
        about, path = row.split("\t", 1)
        mode, kind, blob, size = about.split()
        if kind == "blob" and mode != "120000" and not _NOT_OURS.search(path):
            yield Entry(path, blob, int(size))


class Reader:
    """Reads files, none twice.

    Attributes:
        names: All names that were met, with the numbers that stand for them in what was read.
    """

    def __init__(self, repository: GitRepository) -> None:
        self.names: dict[str, int] = {}
        self._repository = repository
        self._read: dict[Entry, FileRows] = {}

    def read(self, entries: Sequence[Entry], progress: Progress | None = None) -> list[FileRows]:
        """Each of these files.

        Raises:
            DependencyError: git fails.
        """
        fresh = [entry for entry in entries if entry not in self._read]
        for count, (entry, source) in enumerate(_contents(self._repository, fresh), 1):
            self._read[entry] = self._rows(entry, source)
            if progress is not None and count % 100 == 0:
                progress(count, len(fresh), "reading files")
        return [self._read[entry] for entry in entries]

    def _rows(self, entry: Entry, contents: bytes | None) -> FileRows:
        language, source = language_of(entry.path), contents or b""
        parsed = parse(source, language) if language is not None and source else Parsed(lines=source.count(b"\n"))
        mentions: Iterable[tuple[int, str]] = ()
        if source and language is None:
            text = source.decode("utf-8", "replace")
            mentions = _go_module(text) if _is_go_module(entry.path) else _mentions(text)
        return FileRows(
            entry=entry,
            language=language or "",
            lines=parsed.lines,
            broken=parsed.broken,
            references=np.array(
                [(self._number(name), count) for name, count in parsed.references.items()], dtype=np.int32
            ).reshape(-1, 2),
            symbols=tuple(
                (self._number(s.name), s.kind, s.line, s.last_line, s.scope, s.signature) for s in parsed.symbols
            ),
            imports=tuple((item.line, item.module, json.dumps(item.names)) for item in parsed.imports),
            mentions=tuple(mentions),
            unreadable=contents is None,
        )

    def _number(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))


def _wanted(entry: Entry) -> bool:
    return entry.size <= _LARGEST and (
        language_of(entry.path) is not None or entry.path.endswith(_DOCUMENTS) or _is_go_module(entry.path)
    )


def _is_go_module(path: str) -> bool:
    return path == "go.mod" or path.endswith("/go.mod")


def _contents(repository: GitRepository, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | None]]:
    """Each entry with its contents: empty when nothing is to be read in it, None when it cannot be had."""
    yield from ((entry, b"") for entry in entries if not _wanted(entry))
    wanted = [entry for entry in entries if _wanted(entry)]
    for start in range(0, len(wanted), _BATCH):
        part = wanted[start : start + _BATCH]
        asked = "".join(f"{entry.blob}\n" for entry in part).encode()
        done = repository.git("cat-file", "--batch", stdin=asked, timeout=_GIT_TIMEOUT)
        if done.timed_out or done.code != 0:
            reason = "it took too long" if done.timed_out else done.error_text.strip()[:300]
            raise DependencyError(f"git cat-file failed in {repository.root}: {reason}", hint="Try: git fsck")
        answer, place = done.stdout, 0
        for entry in part:
            end = answer.index(b"\n", place)
            header = answer[place:end].split()
            if len(header) == 3 and header[1] == b"blob":
                size = int(header[2])
                yield entry, answer[end + 1 : end + 1 + size]
                place = end + 1 + size + 1
            else:  # a partial clone does not have it, and we fetch nothing
                yield entry, None
                place = end + 1


def _go_module(text: str) -> Iterable[tuple[int, str]]:
    """The module's own path, as the mention of line 0."""
    found = re.search(r"^module\s+(\S+)", text, re.MULTILINE)
    return [(0, found[1].strip('"'))] if found else []


def _mentions(text: str) -> Iterable[tuple[int, str]]:
    """Words of a document that may be paths or dotted module names, with their lines."""
    seen = set()
    for number, line in enumerate(text.splitlines(), 1):
        for word in _WORD.findall(line):
            word = word.strip("./-")
            if len(word) > 3 and word not in seen:
                seen.add(word)
                yield number, word


def new_history(repository: GitRepository, before: str, commit: str) -> tuple[bool, list[Change]]:
    """Who changed what up to `commit`: since `before` (True), or all anew when that is no ancestor (False)."""
    on = bool(before) and repository.git("merge-base", "--is-ancestor", before, commit).code == 0
    span = [f"{before}..{commit}"] if on else [commit, f"--max-count={_HISTORY_COMMITS}"]
    log = repository.output(
        "log",
        *span,
        "--no-merges",
        "--no-renames",
        "--name-only",
        "-z",
        "--format=%x01%aE%x02%at",
        timeout=_GIT_TIMEOUT,
    )
    counts: Counter[tuple[str, str]] = Counter()
    newest: dict[tuple[str, str], int] = {}
    for part in log.split("\x01")[1:]:
        head, _, names = part.partition("\0")
        author, _, at = head.strip().partition("\x02")
        for path in names.split("\0"):
            if path := path.strip("\n"):
                key = (path, author)
                counts[key] += 1
                newest[key] = max(newest.get(key, 0), int(at))
    return on, [Change(path, author, count, newest[path, author]) for (path, author), count in counts.items()]
