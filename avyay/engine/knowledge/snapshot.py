"""The graph of one commit in memory, as arrays: what ranking and look-ups work on."""

from __future__ import annotations

import json
import posixpath
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from avyay.db import Database
from avyay.engine.knowledge.guess import Names
from avyay.engine.knowledge.languages import is_test
from avyay.engine.knowledge.rank import Floats, Graph, Ints, query_words
from avyay.engine.knowledge.resolve import Resolver
from avyay.engine.knowledge.types import Import, Kind, Symbol

__all__ = ["Snapshot", "load_snapshot"]


@dataclass
class Snapshot:
    """Files by place: 0 is the first path. Filled by `load_snapshot`."""

    number: int
    commit: str
    paths: list[str]
    ids: list[int]
    languages: list[str]
    lines: list[int]
    graph: Graph
    name_texts: dict[int, str]
    _places: dict[str, int] = field(default_factory=dict)

    def place(self, path: str) -> int | None:
        """Where a file stands, or None."""
        return self._places.get(path)

    @cached_property
    def tests(self) -> NDArray[np.bool_]:
        return np.array([is_test(path) for path in self.paths], dtype=bool)

    @cached_property
    def test_names(self) -> dict[str, list[str]]:
        """What a test file seems to be about, by its name -> the files."""
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            if is_test(path):
                stem = posixpath.basename(path).split(".", 1)[0]
                found[stem.removeprefix("test_").removesuffix("_test").removesuffix("_tests")].append(path)
        return found

    @cached_property
    def edges(self) -> tuple[Ints, Ints, Ints, Floats]:
        return self.graph.edges()

    @cached_property
    def words(self) -> list[frozenset[str]]:
        """The words of each file's path and of the names it defines."""
        defined: dict[int, list[str]] = defaultdict(list)
        for place, name in zip(self.graph.def_file.tolist(), self.graph.def_name.tolist(), strict=True):
            defined[place].append(self.name_texts[name])
        return [query_words(" ".join((path, *defined[place]))) for place, path in enumerate(self.paths)]

    @cached_property
    def called(self) -> Names:
        """The files by everything that a text may call them."""
        defined: dict[str, list[str]] = defaultdict(list)
        for place, name in zip(self.graph.def_file.tolist(), self.graph.def_name.tolist(), strict=True):
            if not is_test(self.paths[place]):
                defined[self.name_texts[name]].append(self.paths[place])
        code = {path for path, language in zip(self.paths, self.languages, strict=True) if language}
        return Names(self.paths, code.__contains__, defined)

    def imports_of(self, place: int) -> list[int]:
        pairs = self.graph.imports
        return [int(i) for i in np.unique(pairs[pairs[:, 0] == place, 1])]

    def symbols_of(self, db: Database, place: int) -> list[tuple[int, Symbol]]:
        """(name's number, symbol) in the order of the file."""
        rows = db.execute(
            "SELECT name, kind, line, last_line, scope, signature FROM symbols WHERE file = ? ORDER BY line",
            (self.ids[place],),
        )
        return [
            (int(name), Symbol(self.name_texts[name], cast("Kind", kind), line, last, signature, scope))
            for name, kind, line, last, scope, signature in rows
        ]


def load_snapshot(db: Database, number: int, commit: str) -> Snapshot:
    """Read the graph of a repository as it is stored."""
    rows = db.execute(
        "SELECT id, path, language, lines, refs FROM files WHERE repository = ? ORDER BY path", (number,)
    ).fetchall()
    paths = [str(row[1]) for row in rows]
    places = {int(row[0]): place for place, row in enumerate(rows)}
    parts = [np.frombuffer(row[4], dtype=np.int32).reshape(-1, 2) for row in rows]
    sizes = np.array([len(part) for part in parts], dtype=np.int64)
    refs = np.concatenate(parts).astype(np.int64) if parts else np.zeros((0, 2), dtype=np.int64)
    definitions = db.execute(
        "SELECT DISTINCT file, name FROM symbols WHERE file IN (SELECT id FROM files WHERE repository = ?)", (number,)
    ).fetchall()
    defined = np.array([(places[file], name) for file, name in definitions], dtype=np.int64).reshape(-1, 2)
    names = {
        int(key): str(text)
        for key, text in db.execute(
            "SELECT id, text FROM names WHERE id IN (SELECT name FROM symbols JOIN files ON files.id = file"
            " WHERE repository = ?)",
            (number,),
        )
    }
    graph = Graph(
        size=len(paths),
        ref_file=np.repeat(np.arange(len(paths), dtype=np.int64), sizes),
        ref_name=refs[:, 0],
        ref_count=refs[:, 1],
        def_file=defined[:, 0],
        def_name=defined[:, 1],
        imports=_import_pairs(db, number, rows, places),
        plain=np.array([key for key, text in names.items() if text.islower() and text.isalpha()], dtype=np.int64),
    )
    return Snapshot(
        number=number,
        commit=commit,
        paths=paths,
        ids=[int(row[0]) for row in rows],
        languages=[str(row[2]) for row in rows],
        lines=[int(row[3]) for row in rows],
        graph=graph,
        name_texts=names,
        _places={path: place for place, path in enumerate(paths)},
    )


def _import_pairs(db: Database, number: int, rows: list[tuple[object, ...]], places: dict[int, int]) -> Ints:
    resolver = Resolver([str(row[1]) for row in rows], _go_modules(db, number))
    by_path = {str(row[1]): places[cast("int", row[0])] for row in rows}
    pairs = set()
    found = db.execute(
        "SELECT path, language, module, names FROM imports JOIN files ON files.id = imports.file WHERE repository = ?",
        (number,),
    )
    for path, language, module, names in found:
        for target in resolver.targets(path, language, Import(module, tuple(json.loads(names)))):
            pairs.add((by_path[path], by_path[target]))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _go_modules(db: Database, number: int) -> dict[str, str]:
    rows = db.execute(
        "SELECT path, word FROM mentions JOIN files ON files.id = mentions.file"
        " WHERE repository = ? AND (path = 'go.mod' OR path LIKE '%/go.mod') AND line = 0",
        (number,),
    )
    return {posixpath.dirname(path): str(word) for path, word in rows}
