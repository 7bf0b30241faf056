"""Brings the stored graph of a repository to a commit: only files whose contents changed are read again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avyay.db import Database
from avyay.engine.knowledge.languages import language_of
from avyay.engine.knowledge.parse import parse
from avyay.engine.knowledge.types import Parsed, Update
from avyay.errors import UsageError
from avyay.git import GitRepository
from avyay.ports import Progress

__all__ = ["bring_to_commit", "repository_number"]

RULES = "1"
"""Changes when files must be read again because they are read differently."""

_LARGEST = 1_000_000
_HISTORY_COMMITS = 3000  # of a repository seen for the first time: owners are those of recent years
_BATCH = 400
_DOCUMENTS = (".md", ".markdown", ".rst", ".adoc", ".txt")
_NOT_OURS = re.compile(r"(?:^|/)(?:node_modules|vendor|third_party|dist|build|\.venv|venv|site-packages)/|\.min\.js$")
_WORD = re.compile(r"[A-Za-z0-9_./-]*[./][A-Za-z0-9_./-]+")
_GIT_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    blob: str
    size: int


def repository_number(db: Database, repository: GitRepository) -> int:
    """The number of a repository in the database; all worktrees of one share it."""
    root = repository.output("rev-parse", "--path-format=absolute", "--git-common-dir").strip()
    query = "SELECT id FROM repositories WHERE root = ?"
    if (row := db.execute(query, (root,)).fetchone()) is None:  # writing waits for whoever indexes, reading does not
        with db.errors():
            db.execute("INSERT OR IGNORE INTO repositories (root) VALUES (?)", (root,))
        row = db.execute(query, (root,)).fetchone()
    return int(row[0])


def bring_to_commit(
    db: Database, repository: GitRepository, *, revision: str = "HEAD", progress: Progress | None = None
) -> Update:
    """Index a commit; nothing of the work tree that is not committed.

    Raises:
        UsageError: there is no such commit.
        DependencyError: git fails.
    """
    done = repository.git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    commit = done.text.strip()
    if not commit:
        raise UsageError(f"{repository.root} has no commit {revision}.", hint="Commit something first.")
    number = repository_number(db, repository)
    if (files := _indexed(db, number, commit)) is not None:
        return Update(commit, 0, 0, files)
    entries = {entry.path: entry for entry in _tree(repository, commit)}
    with db.transaction() as db:
        # Again under the lock: another process may have indexed this very commit meanwhile.
        if (files := _indexed(db, number, commit)) is not None:
            return Update(commit, 0, 0, files)
        return _reindex(db, repository, number, commit, entries, progress)


def _indexed(db: Database, number: int, commit: str) -> int | None:
    """How many files of a commit are indexed; None when another commit is."""
    row = db.execute("SELECT commit_id, rules FROM repositories WHERE id = ?", (number,)).fetchone()
    if row != (commit, RULES):
        return None
    (files,) = db.execute("SELECT count(*) FROM files WHERE repository = ?", (number,)).fetchone()
    return int(files)


def _reindex(
    db: Database,
    repository: GitRepository,
    number: int,
    commit: str,
    entries: Mapping[str, _Entry],
    progress: Progress | None,
) -> Update:
    """Inside a transaction: read what changed, forget what is gone."""
    (rules,) = db.execute("SELECT rules FROM repositories WHERE id = ?", (number,)).fetchone()
    stored = {
        str(path): (int(file), str(blob))
        for file, path, blob in db.execute("SELECT id, path, blob FROM files WHERE repository = ?", (number,))
    }
    again = rules != RULES
    fresh = [e for path, e in entries.items() if again or path not in stored or stored[path][1] != e.blob]
    gone = [file for path, (file, _) in stored.items() if path not in entries]
    unreadable: list[str] = []
    changes = _new_history(db, repository, number, commit)
    names = {str(text): int(key) for key, text in db.execute("SELECT id, text FROM names")}
    db.executemany("DELETE FROM files WHERE id = ?", [(file,) for file in gone])
    db.executemany(
        "DELETE FROM files WHERE repository = ? AND path = ?",
        [(number, entry.path) for entry in fresh if entry.path in stored],
    )
    for count, (entry, source) in enumerate(_contents(repository, fresh), 1):
        if source is None:
            unreadable.append(entry.path)
        _store(db, number, entry, source or b"", names)
        if progress is not None and count % 100 == 0:
            progress(count, len(fresh), "reading files")
    db.executemany(
        "INSERT INTO changes (repository, path, author, commits, last) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET commits = commits + excluded.commits, last = max(last, excluded.last)",
        [(number, path, author, count, last) for (path, author), (count, last) in changes.items()],
    )
    db.execute(
        "UPDATE repositories SET commit_id = ?, history = ?, rules = ? WHERE id = ?", (commit, commit, RULES, number)
    )
    return Update(commit, len(fresh), len(gone), len(entries), tuple(unreadable))


def _tree(repository: GitRepository, commit: str) -> Iterator[_Entry]:
    for row in repository.output("ls-tree", "-r", "-l", "-z", commit, timeout=_GIT_TIMEOUT).split("\0"):
        if not row:
            continue
        about, path = row.split("\t", 1)
        mode, kind, blob, size = about.split()
        if kind == "blob" and mode != "120000" and not _NOT_OURS.search(path):
            yield _Entry(path, blob, int(size))


def _wanted(entry: _Entry) -> bool:
    return entry.size <= _LARGEST and (
        language_of(entry.path) is not None or entry.path.endswith(_DOCUMENTS) or _is_go_module(entry.path)
    )


def _is_go_module(path: str) -> bool:
    return path == "go.mod" or path.endswith("/go.mod")


def _contents(repository: GitRepository, entries: Sequence[_Entry]) -> Iterator[tuple[_Entry, bytes | None]]:
    """Each entry with its contents: empty when nothing is to be read in it, None when it cannot be had."""
    yield from ((entry, b"") for entry in entries if not _wanted(entry))
    wanted = [entry for entry in entries if _wanted(entry)]
    for start in range(0, len(wanted), _BATCH):
        part = wanted[start : start + _BATCH]
        asked = "".join(f"{entry.blob}\n" for entry in part).encode()
        answer = repository.git("cat-file", "--batch", stdin=asked, timeout=_GIT_TIMEOUT).stdout
        place = 0
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


def _store(db: Database, number: int, entry: _Entry, source: bytes, names: dict[str, int]) -> None:
    language = language_of(entry.path)
    parsed = parse(source, language) if language is not None and source else Parsed(lines=source.count(b"\n"))
    fresh = []
    for text in (*parsed.references, *(symbol.name for symbol in parsed.symbols)):
        if text not in names:
            names[text] = len(names) + 1
            fresh.append((names[text], text))
    db.executemany("INSERT INTO names (id, text) VALUES (?, ?)", fresh)
    pairs = np.array([(names[name], count) for name, count in parsed.references.items()], dtype=np.int32)
    (file,) = db.execute(
        "INSERT INTO files (repository, path, blob, language, lines, broken, refs) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " RETURNING id",
        (number, entry.path, entry.blob, language or "", parsed.lines, int(parsed.broken), pairs.tobytes()),
    ).fetchone()
    db.executemany(
        "INSERT INTO symbols (file, name, kind, line, last_line, scope, signature) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(file, names[s.name], s.kind, s.line, s.last_line, s.scope, s.signature) for s in parsed.symbols],
    )
    db.executemany(
        "INSERT INTO imports (file, line, module, names) VALUES (?, ?, ?, ?)",
        [(file, item.line, item.module, json.dumps(item.names)) for item in parsed.imports],
    )
    if source and language is None:
        text = source.decode("utf-8", "replace")
        words = _go_module(text) if _is_go_module(entry.path) else _mentions(text)
        db.executemany(
            "INSERT INTO mentions (file, line, word) VALUES (?, ?, ?)", [(file, line, word) for line, word in words]
        )


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


def _new_history(
    db: Database, repository: GitRepository, number: int, commit: str
) -> dict[tuple[str, str], tuple[int, int]]:
    """(path, author) -> (commits, newest) of the commits not yet counted."""
    (before,) = db.execute("SELECT history FROM repositories WHERE id = ?", (number,)).fetchone()
    known = bool(before) and repository.git("merge-base", "--is-ancestor", before, commit).code == 0
    if before and not known:  # history was rewritten, or another branch is looked at: count anew
        db.execute("DELETE FROM changes WHERE repository = ?", (number,))
    span = [f"{before}..{commit}"] if known else [commit, f"--max-count={_HISTORY_COMMITS}"]
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
    return {key: (count, newest[key]) for key, count in counts.items()}
