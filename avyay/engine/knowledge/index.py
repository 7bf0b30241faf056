"""Brings the stored graph of a repository to a commit: only files whose contents changed are read again.

Git and the parsers run first, with nothing locked; then one transaction writes what they found, unless somebody else
brought the graph to another commit meanwhile. So whoever is stopped or killed over a large repository is in nobody's
way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avyay.db import Database
from avyay.engine.knowledge.reading import Change, FileRows, Reader, new_history, tree
from avyay.engine.knowledge.types import Update
from avyay.engine.worktree import take_turn
from avyay.errors import UnreachableError, UsageError
from avyay.git import GitRepository
from avyay.ports import Progress

__all__ = ["bring_to_commit", "repository_number"]

RULES = "1"
"""Changes when files must be read again because they are read differently."""

_TRIES = 10
_TURN = 20.0  # seconds: longer than it takes to read most repositories


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the database knows of a repository: the commit of its files, of its history, the rules, path -> blob."""

    commit: str
    history: str
    rules: str
    blobs: Mapping[str, str]

    def is_at(self, commit: str) -> bool:
        return (self.commit, self.rules) == (commit, RULES)


def repository_number(db: Database, repository: GitRepository) -> int:
    """The number of a repository in the database; all worktrees of one share it."""
    root = repository.output("rev-parse", "--path-format=absolute", "--git-common-dir").strip()
    query = "SELECT id FROM repositories WHERE root = ?"
    if (row := db.execute(query, (root,)).fetchone()) is None:  # writing waits for whoever writes, reading does not
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
        UnreachableError: others keep indexing other commits, or somebody keeps the database locked.
    """
    done = repository.git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    commit = done.text.strip()
    if not commit:
        raise UsageError(f"{repository.root} has no commit {revision}.", hint="Commit something first.")
    number = repository_number(db, repository)
    if (files := _indexed(db, number, commit)) is not None:
        return Update(commit, 0, 0, files)
    with ExitStack() as stack:
        # One reads at a time, and it serves all; but nobody waits long for one that is stopped.
        with suppress(UnreachableError):
            stack.enter_context(take_turn(db.path.with_name(f"{db.path.name}.{number}.lock"), patience=_TURN))
        reader = Reader(repository)
        entries = None
        for _ in range(_TRIES):
            stored = _stored(db, number)
            if stored.is_at(commit):
                return Update(commit, 0, 0, len(stored.blobs))
            if entries is None:
                entries = {entry.path: entry for entry in tree(repository, commit)}
            again = stored.rules != RULES
            fresh = reader.read(
                [e for path, e in entries.items() if again or stored.blobs.get(path) != e.blob], progress
            )
            gone = [path for path in stored.blobs if path not in entries]
            on, changes = new_history(repository, stored.history, commit)
            if _write(db, number, stored, commit, reader.names, fresh, gone, changes, forget=not on):
                unreadable = tuple(file.entry.path for file in fresh if file.unreadable)
                return Update(commit, len(fresh), len(gone), len(entries), unreadable)
    raise UnreachableError(
        f"Others keep indexing other commits of {repository.root}.", hint="Look again when they are done.", code="busy"
    )


def _indexed(db: Database, number: int, commit: str) -> int | None:
    """How many files of a commit are indexed; None when another commit is."""
    row = db.execute("SELECT commit_id, rules FROM repositories WHERE id = ?", (number,)).fetchone()
    if row != (commit, RULES):
        return None
    (files,) = db.execute("SELECT count(*) FROM files WHERE repository = ?", (number,)).fetchone()
    return int(files)


def _place(db: Database, number: int) -> tuple[str, str, str]:
    commit, history, rules = db.execute(
        "SELECT commit_id, history, rules FROM repositories WHERE id = ?", (number,)
    ).fetchone()
    return str(commit), str(history), str(rules)


def _stored(db: Database, number: int) -> _Stored:
    with db.transaction(immediate=False) as db:
        blobs = db.execute("SELECT path, blob FROM files WHERE repository = ?", (number,)).fetchall()
        return _Stored(*_place(db, number), {str(path): str(blob) for path, blob in blobs})


def _write(
    db: Database,
    number: int,
    stored: _Stored,
    commit: str,
    names: Mapping[str, int],
    fresh: Sequence[FileRows],
    gone: Sequence[str],
    changes: Sequence[Change],
    *,
    forget: bool,
) -> bool:
    """All of it or nothing; False when the graph is not any more what the reading began from."""
    with db.transaction() as db:
        if _place(db, number) != (stored.commit, stored.history, stored.rules):
            return False
        ids = _name_ids(db, names) if fresh else np.zeros(0, dtype=np.int32)
        dropped = [*gone, *(file.entry.path for file in fresh if file.entry.path in stored.blobs)]
        db.executemany("DELETE FROM files WHERE repository = ? AND path = ?", [(number, path) for path in dropped])
        for file in fresh:
            _store(db, number, file, ids)
        if forget:
            db.execute("DELETE FROM changes WHERE repository = ?", (number,))
        db.executemany(
            "INSERT INTO changes (repository, path, author, commits, last) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET commits = commits + excluded.commits, last = max(last, excluded.last)",
            [(number, change.path, change.author, change.commits, change.last) for change in changes],
        )
        db.execute(
            "UPDATE repositories SET commit_id = ?, history = ?, rules = ? WHERE id = ?",
            (commit, commit, RULES, number),
        )
    return True


def _name_ids(db: Database, names: Mapping[str, int]) -> NDArray[np.int32]:
    """The reader's numbers of names -> their ids; those that are new get one."""
    known = {str(text): int(key) for key, text in db.execute("SELECT id, text FROM names")}
    new = [text for text in names if text not in known]
    known.update({text: key for key, text in enumerate(new, len(known) + 1)})
    db.executemany("INSERT INTO names (id, text) VALUES (?, ?)", [(known[text], text) for text in new])
    return np.array([known[text] for text in names], dtype=np.int32)  # a dict keeps the order its numbers came in


def _store(db: Database, number: int, file: FileRows, ids: NDArray[np.int32]) -> None:
    entry, pairs = file.entry, file.references.copy()
    pairs[:, 0] = ids[pairs[:, 0]]
    key = db.execute(
        "INSERT INTO files (repository, path, blob, language, lines, broken, refs) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (number, entry.path, entry.blob, file.language, file.lines, int(file.broken), pairs.tobytes()),
    ).lastrowid
    db.executemany(
        "INSERT INTO symbols (file, name, kind, line, last_line, scope, signature) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(key, int(ids[name]), *rest) for name, *rest in file.symbols],
    )
    db.executemany(
        "INSERT INTO imports (file, line, module, names) VALUES (?, ?, ?, ?)", [(key, *row) for row in file.imports]
    )
    db.executemany("INSERT INTO mentions (file, line, word) VALUES (?, ?, ?)", [(key, *row) for row in file.mentions])
