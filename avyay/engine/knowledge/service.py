"""The knowledge graph as its users see it: maps within a token budget, cards of files, tests, owners, overlap."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avyay.db import open_database
from avyay.engine.knowledge.coverage import Coverage, CoverageError, find_report, read_report
from avyay.engine.knowledge.guess import guess_files
from avyay.engine.knowledge.index import bring_to_commit, repository_number
from avyay.engine.knowledge.languages import is_test
from avyay.engine.knowledge.owners import CODEOWNERS_PLACES, owners_of, parse_codeowners, principal_authors
from avyay.engine.knowledge.rank import page_rank, query_words, word_match
from avyay.engine.knowledge.render import fit, render
from avyay.engine.knowledge.schema import SCHEMA
from avyay.engine.knowledge.snapshot import Snapshot, load_snapshot
from avyay.engine.knowledge.types import FileCard, PastTask, RepositoryMap, Symbol, Update
from avyay.errors import AvyayError, UnreachableError, UsageError
from avyay.git import GitRepository, find_repository
from avyay.ports import Progress

if TYPE_CHECKING:
    from avyay.engine.types import Entry, Task
    from avyay.ports import Retriever

__all__ = ["Knowledge"]

_TEST_SHARE = 0.3  # a test file matters to who writes code, but less than what it tests
_NAMED = 25.0  # a file that was asked for by name
_PASSAGES = 5
_TRIES = 5
_BUSY = 300.0  # seconds: a large repository that is seen for the first time takes long


class Knowledge:
    """What is known of repositories. Not for several threads at once.

    Args:
        path: The database file.
        count_tokens: Tokens of a text, for budgets.
        retriever: Finds passages of runbooks; None when there are none.
    """

    def __init__(
        self,
        path: Path,
        count_tokens: Callable[[str], int],
        retriever: Callable[[], Retriever | None] = lambda: None,
    ) -> None:
        self._db = open_database(path, SCHEMA, busy_timeout=_BUSY)
        self._count = count_tokens
        self._retriever = retriever
        self._loaded: dict[str, Snapshot] = {}

    def close(self) -> None:
        self._db.close()

    # ---------------------------------------------------------------- bringing it up to date

    def update(self, repository: Path, *, progress: Progress | None = None) -> Update:
        """Index the commit that is checked out.

        Raises:
            UsageError: no git repository, or no commit in it.
        """
        return bring_to_commit(self._db, _repository(repository), progress=progress)

    def learn(self, repository: Path, tasks: Iterable[Task], history: Callable[[str], Sequence[Entry]]) -> int:
        """Remember which tasks touched which files and how they ended; returns how many.

        Files are those that the merge reported (`files` in the history's data), else those that the task names.
        """
        snapshot = self._snapshot(repository)
        rows = []
        for task in tasks:
            touched = {
                str(path)
                for entry in history(task.id)
                if isinstance(paths := entry.data.get("files"), list | tuple)
                for path in paths
            }
            named = {reference.split(":", 1)[0] for reference in task.evidence}
            rows += [
                (snapshot.number, task.id, path, task.title, task.state, task.reason, task.updated)
                for path in touched or {*self._expand(snapshot, () if task.guessed else task.files), *named}
            ]
        with self._db.transaction() as db:
            db.execute("DELETE FROM outcomes WHERE repository = ?", (snapshot.number,))
            db.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        return len({row[1] for row in rows})

    # ---------------------------------------------------------------- maps

    def map(self, repository: Path, *, query: str = "", files: Sequence[str] = (), tokens: int = 2000) -> RepositoryMap:
        """The files and symbols that matter most, to a question or for the whole, within a token budget.

        Args:
            query: What it is about, in words; identifiers and paths in it count most.
            files: Globs of files it is about.
        """
        snapshot = self._snapshot(repository)
        about = frozenset(self._expand(snapshot, files))
        words = query_words(query)
        match = word_match(words, snapshot.words) if words else np.zeros(len(snapshot.paths))
        for place, path in enumerate(snapshot.paths):
            if path in about or (query and posixpath.basename(path) in query and len(posixpath.basename(path)) > 5):
                match[place] += _NAMED * max(match.max(), 1.0)
        asked = bool(match.any())
        source, target, name, weight = snapshot.edges
        rank = page_rank(len(snapshot.paths), source, target, weight, match if asked else None)
        if asked:
            # Reading on from a file leads to what it uses; who uses it must be found as well.
            rank = 0.6 * rank + 0.4 * page_rank(len(snapshot.paths), target, source, weight, match)
            rank = 0.35 * rank / max(rank.max(), 1e-12) + 0.65 * match / match.max()
        score = np.where(snapshot.tests, rank * (1.0 if asked and is_about_tests(query) else _TEST_SHARE), rank)
        order = [int(i) for i in np.argsort(-score, kind="stable") if snapshot.languages[int(i)] or match[int(i)] > 0]
        best = order[: max(60, tokens // 20)]
        symbols = self._ranked_symbols(snapshot, best, rank, words, (source, target, name, weight))
        listed = [(snapshot.paths[i], float(score[i] / max(score.max(), 1e-12))) for i in best]
        entries = fit(listed, {p: [(s, v * f) for s, v in symbols[p]] for p, f in listed}, tokens, self._count)
        text = render(entries)
        (total,) = self._db.execute(
            "SELECT count(*) FROM symbols JOIN files ON files.id = file WHERE repository = ?", (snapshot.number,)
        ).fetchone()
        return RepositoryMap(snapshot.commit, entries, text, self._count(text), len(snapshot.paths), int(total))

    def context(self, repository: Path, task: Task, *, tokens: int) -> str:
        """What an agent should know of the code before it begins: see `avyay.engine.contracts.ContextSource`."""
        if tokens <= 0:
            return ""
        named = tuple(reference.split(":", 1)[0] for reference in task.evidence)
        found = self.map(
            repository, query=f"{task.title}\n{task.description}", files=(*task.files, *named), tokens=tokens
        )
        return found.text

    def guess(self, repository: Path, tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
        """Which files tasks will likely touch: see `avyay.engine.contracts.ContextSource`."""
        names = self._snapshot(repository).called
        return {
            task.id: guess_files(names, title=task.title, description=task.description, evidence=task.evidence)
            for task in tasks
        }

    def _ranked_symbols(
        self, snapshot: Snapshot, best: Sequence[int], rank: object, words: frozenset[str], edges: tuple[object, ...]
    ) -> dict[str, list[tuple[Symbol, float]]]:
        """The symbols of some files: by who refers to them, and by the words of the question."""
        source, target, name, weight = (np.asarray(part) for part in edges)
        ranks = np.asarray(rank)
        wanted = np.isin(target, np.asarray(best, dtype=np.int64)) & (name >= 0)
        flow: dict[tuple[int, int], float] = defaultdict(float)
        for t, n, value in zip(
            target[wanted].tolist(), name[wanted].tolist(), (weight * ranks[source])[wanted].tolist(), strict=True
        ):
            flow[t, n] += value
        most = max(flow.values(), default=1.0) or 1.0
        out: dict[str, list[tuple[Symbol, float]]] = {snapshot.paths[i]: [] for i in best}
        for place in best:
            for key, symbol in snapshot.symbols_of(self._db, place):
                hits = len(words & query_words(symbol.qualified)) if words else 0
                value = 0.25 + 0.75 * (flow.get((place, key), 0.0) / most) ** 0.5
                if symbol.name.startswith("_") and not hits:
                    value *= 0.3
                out[snapshot.paths[place]].append((symbol, min(1.0, value + 0.35 * hits) * 0.999))
        return out

    # ---------------------------------------------------------------- one file

    def card(self, repository: Path, path: str) -> FileCard:
        """All that is known of a file.

        Raises:
            UsageError: the commit has no such file.
        """
        snapshot = self._snapshot(repository)
        place = snapshot.place(path)
        if place is None:
            close = [p for p in snapshot.paths if posixpath.basename(p) == posixpath.basename(path)][:3]
            raise UsageError(
                f"{path} is not in the commit.",
                hint=f"Did you mean {' or '.join(close)}?" if close else "See what is there: avyay engine map",
            )
        report = _coverage(_repository(repository).root)
        covered = report.files.get(path) if report else None
        return FileCard(
            path=path,
            language=snapshot.languages[place],
            lines=snapshot.lines[place],
            symbols=tuple(symbol for _, symbol in snapshot.symbols_of(self._db, place)),
            imports=tuple(snapshot.paths[i] for i in sorted(snapshot.imports_of(place))),
            imported_by=tuple(p for p in self._importers(snapshot, place) if not is_test(p)),
            tests=self.tests_of(repository, [path]),
            owners=self.owners(repository, path),
            commits=self.churn(repository).get(path, 0),
            tasks=tuple(
                PastTask(*row)
                for row in self._db.execute(
                    "SELECT task, title, state, reason, at FROM outcomes WHERE repository = ? AND path = ?"
                    " ORDER BY at DESC LIMIT 20",
                    (snapshot.number, path),
                )
            ),
            documents=self.documents(repository, path),
            covered=covered.share if covered else None,
        )

    def symbols(self, repository: Path, path: str) -> tuple[Symbol, ...]:
        """The symbols of a file; none when the commit has no such file."""
        snapshot = self._snapshot(repository)
        place = snapshot.place(path)
        return () if place is None else tuple(symbol for _, symbol in snapshot.symbols_of(self._db, place))

    def imports(self, repository: Path, path: str) -> tuple[str, ...]:
        """The files of the repository that a file imports."""
        snapshot = self._snapshot(repository)
        place = snapshot.place(path)
        return () if place is None else tuple(snapshot.paths[i] for i in snapshot.imports_of(place))

    def owners(self, repository: Path, path: str) -> tuple[str, ...]:
        """CODEOWNERS first, else the authors of most commits."""
        top = _repository(repository)
        for name in CODEOWNERS_PLACES:
            done = top.git("show", f"HEAD:{name}")
            if done.code == 0:
                if found := owners_of(path, parse_codeowners(done.text)):
                    return found
                break
        number = self._snapshot(repository).number
        rows = self._db.execute(
            "SELECT author, commits FROM changes WHERE repository = ? AND path = ?", (number, path)
        ).fetchall()
        return principal_authors([(str(author), int(commits)) for author, commits in rows])

    def churn(self, repository: Path) -> dict[str, int]:
        """Commits that changed each file, as far back as was read."""
        number = self._snapshot(repository).number
        rows = self._db.execute("SELECT path, sum(commits) FROM changes WHERE repository = ? GROUP BY path", (number,))
        return {str(path): int(commits) for path, commits in rows}

    def tests_of(self, repository: Path, paths: Sequence[str]) -> tuple[str, ...]:
        """Test files that cover these: they ran it (where a coverage report tells), import it, or are named so."""
        snapshot = self._snapshot(repository)
        report = _coverage(_repository(repository).root)
        found: dict[str, None] = {}
        for path in paths:
            if is_test(path) and snapshot.place(path) is not None:
                found[path] = None
            if report and (covered := report.files.get(path)):
                for test in sorted(covered.tests):
                    name = test.split("::", 1)[0]
                    if snapshot.place(name) is not None:
                        found[name] = None
            stem = posixpath.basename(path).split(".", 1)[0].strip("_")
            named = [p for p in snapshot.test_names.get(stem, ()) if p != path] if stem != "init" else []
            found.update(dict.fromkeys(_nearest(path, named)))
            place = snapshot.place(path)
            if place is not None:
                found.update(dict.fromkeys(p for p in self._importers(snapshot, place) if is_test(p)))
        return tuple(found)

    def documents(self, repository: Path, path: str) -> tuple[str, ...]:
        """Places of documents that name this file: `path:line` in the repository, citations of the runbook index."""
        snapshot = self._snapshot(repository)
        names = {path, posixpath.splitext(path)[0].replace("/", ".")}
        base = posixpath.basename(path)
        if sum(posixpath.basename(p) == base for p in snapshot.paths) == 1:
            names.add(base)
        marks = ", ".join("?" * len(names))
        rows = self._db.execute(
            f"SELECT path, line FROM mentions JOIN files ON files.id = mentions.file"  # noqa: S608 - marks only
            f" WHERE repository = ? AND (word IN ({marks}) OR word LIKE ?) ORDER BY path, line LIMIT 50",
            (snapshot.number, *sorted(names), f"%/{path}"),
        )
        found = [f"{document}:{line}" for document, line in rows]
        if (retriever := self._retriever()) is not None:
            try:
                passages = retriever.search(path, limit=_PASSAGES)
            except AvyayError:
                passages = ()  # an index that cannot be searched has its own doctor; the file's card is still true
            found += [passage.citation for passage in passages if path in passage.text or base in passage.text]
        return tuple(dict.fromkeys(found))

    # ---------------------------------------------------------------- files that tasks touch

    def inside(self, repository: Path, path: str) -> str:
        """A path as the user writes it, relative to the repository's top."""
        top = _repository(repository).root.resolve()
        full = Path(path).absolute()
        if not full.exists() or not full.resolve().is_relative_to(top):
            return path
        return full.resolve().relative_to(top).as_posix()

    def touched(self, repository: Path, globs: Sequence[str]) -> tuple[str, ...]:
        """The present files that globs stand for, with the tests that cover them."""
        snapshot = self._snapshot(repository)
        files = self._expand(snapshot, globs)
        code = [path for path in files if snapshot.languages[snapshot.place(path) or 0]]
        return tuple(dict.fromkeys([*files, *self.tests_of(repository, code)])) if len(code) <= 50 else tuple(files)

    def expand(self, repository: Path, globs: Sequence[str]) -> tuple[str, ...]:
        """The present files that globs stand for."""
        return tuple(self._expand(self._snapshot(repository), globs))

    def overlap(self, repository: Path, one: Sequence[str], two: Sequence[str]) -> tuple[str, ...]:
        """The present files that both lists of globs stand for."""
        snapshot = self._snapshot(repository)
        both = set(self._expand(snapshot, one)) & set(self._expand(snapshot, two))
        return tuple(sorted(both))

    def _expand(self, snapshot: Snapshot, globs: Sequence[str]) -> list[str]:
        found: dict[str, None] = {}
        for glob in globs:
            plain = glob.strip("/").removeprefix("./")
            if snapshot.place(plain) is not None:
                found[plain] = None
            elif any(mark in plain for mark in "*?["):
                pattern = plain.replace("**/", "*")
                found.update(dict.fromkeys(path for path in snapshot.paths if fnmatchcase(path, pattern)))
            else:
                found.update(
                    dict.fromkeys(path for path in snapshot.paths if path.startswith(f"{plain}/") or not plain)
                )
        return list(found)

    def _importers(self, snapshot: Snapshot, place: int) -> list[str]:
        pairs = snapshot.graph.imports
        return [snapshot.paths[int(i)] for i in np.unique(pairs[pairs[:, 1] == place, 0])]

    # ---------------------------------------------------------------- the stored graph

    def _snapshot(self, repository: Path) -> Snapshot:
        """The graph of the commit that is checked out; brought up to date on the way."""
        found = _repository(repository)
        number = repository_number(self._db, found)
        for _ in range(_TRIES):
            commit = bring_to_commit(self._db, found).commit
            key = f"{number}@{commit}"
            if key in self._loaded:
                return self._loaded[key]
            with self._db.transaction(immediate=False) as db:
                row = db.execute("SELECT commit_id FROM repositories WHERE id = ?", (number,)).fetchone()
                if row == (commit,):
                    self._loaded = {key: load_snapshot(db, number, commit)}
                    return self._loaded[key]
        raise UnreachableError(
            f"Others keep indexing other commits of {found.root}.", hint="Look again when they are done.", code="busy"
        )


def is_about_tests(query: str) -> bool:
    """Whether a question is about tests."""
    return "test" in query.lower()


def _repository(path: Path) -> GitRepository:
    found = find_repository(path) if path.exists() else None
    if found is None:
        raise UsageError(f"{path} is in no git repository.", hint="The map is made of commits: git init, git commit.")
    return found


def _coverage(root: Path) -> Coverage | None:
    report = find_report(root)
    if report is None:
        return None
    try:
        return read_report(report, root)
    except CoverageError:
        return None


def _nearest(path: str, candidates: Sequence[str]) -> list[str]:
    """Of test files with the right name, those whose folders agree best with the file's."""
    folders = set(path.split("/")[:-1])
    scored = [(len(folders & set(candidate.split("/")[:-1])), candidate) for candidate in candidates]
    best = max((score for score, _ in scored), default=0)
    return [candidate for score, candidate in scored if score == best]
