"""The knowledge graph: what is read of four languages, where imports lead, what changes between commits, the map."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avyay.db import open_database
from avyay.engine.knowledge.coverage import CoverageError, find_report, read_report
from avyay.engine.knowledge.languages import LANGUAGES, is_test, language_of
from avyay.engine.knowledge.owners import owners_of, parse_codeowners, principal_authors
from avyay.engine.knowledge.parse import parse
from avyay.engine.knowledge.rank import page_rank, query_words
from avyay.engine.knowledge.render import fit, render
from avyay.engine.knowledge.resolve import Resolver
from avyay.engine.knowledge.service import Knowledge
from avyay.engine.knowledge.types import Import, Symbol
from avyay.engine.types import Entry, Task
from avyay.errors import UsageError
from avyay.ports import Passage

PYTHON = b"""import os, json as j
from .tree import Node, walk as go
LIMIT = 3
class Parser(Base):
    depth = 0
    def parse(self, text: str) -> Node:
        def inner(): ...
        return go(text)
async def main(): await Parser().parse("x")
"""
TYPESCRIPT = b"""import { Shape, area as size } from "./shape";
import type { Unit } from "../unit.js";
export * from "./all";
export interface Box extends Shape { w: number }
export type Name = string;
export enum Side { Left }
export const scale = (box: Box): number => size(box);
export const LIMIT = 3;
export class Store<T> { constructor(private x: T) {} get(key: string): T { const f = () => 1; return this.x } }
const lazy = await import("./lazy");
"""
JAVASCRIPT = b"""const fs = require("fs"); const { a } = require("./a");
function run(x) { return a(x) }
class App { start() { run(1) } }
module.exports = { run };
"""
GO = b"""package store
import ("fmt"; "example.com/app/model")
const Limit = 3
type Store struct { n int }
func (s *Store) Get(key string) (model.Item, error) { return fmt.Sprint(key), nil }
func New() *Store { return &Store{} }
"""


def named(language: str, source: bytes) -> list[tuple[str, str]]:
    return [(s.kind, s.qualified) for s in parse(source, language).symbols]


class TestParsing:
    def test_python(self) -> None:
        assert named("python", PYTHON) == [
            ("constant", "LIMIT"), ("class", "Parser"), ("method", "Parser.parse"), ("function", "main"),
        ]  # fmt: skip
        parsed = parse(PYTHON, "python")
        assert [(i.module, i.names, i.line) for i in parsed.imports] == [
            ("os", (), 1), ("json", (), 1), (".tree", ("Node", "walk"), 2),
        ]  # fmt: skip
        assert parsed.symbols[2].signature == "def parse(self, text: str) -> Node"
        assert (parsed.symbols[2].line, parsed.symbols[2].last_line, parsed.lines) == (6, 8, 9)
        assert parsed.references["Parser"] == 2
        assert not parsed.broken

    @pytest.mark.parametrize("language", ["typescript", "tsx"])
    def test_typescript(self, language: str) -> None:
        source = TYPESCRIPT
        assert named(language, source) == [
            ("type", "Box"), ("type", "Name"), ("type", "Side"), ("function", "scale"), ("constant", "LIMIT"),
            ("class", "Store"), ("method", "Store.constructor"), ("method", "Store.get"), ("constant", "lazy"),
        ]  # fmt: skip
        imports = {item.module: item.names for item in parse(source, language).imports}
        assert imports == {"./shape": ("Shape", "area"), "../unit.js": ("Unit",), "./all": (), "./lazy": ()}

    def test_javascript(self) -> None:
        assert ("function", "run") in named("javascript", JAVASCRIPT)
        assert ("method", "App.start") in named("javascript", JAVASCRIPT)
        assert [item.module for item in parse(JAVASCRIPT, "javascript").imports] == ["fs", "./a"]

    def test_go(self) -> None:
        assert named("go", GO) == [
            ("constant", "Limit"), ("type", "Store"), ("method", "Store.Get"), ("function", "New"),
        ]  # fmt: skip
        assert [item.module for item in parse(GO, "go").imports] == ["fmt", "example.com/app/model"]
        assert parse(GO, "go").symbols[2].signature == "func (s *Store) Get(key string) (model.Item, error)"

    @pytest.mark.parametrize("language", sorted(LANGUAGES))
    @given(source=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
    def test_nothing_is_too_broken_to_read(self, language: str, source: bytes) -> None:
        parsed = parse(source, language)
        assert all(1 <= symbol.line <= symbol.last_line for symbol in parsed.symbols)

    def test_broken_code_still_gives_its_names(self) -> None:
        parsed = parse(b"def good(): pass\n<<<<<<< HEAD\nclass Also: pass\n", "python")
        assert parsed.broken
        assert "good" in [symbol.name for symbol in parsed.symbols]

    @pytest.mark.parametrize(
        "path, test",
        [
            ("tests/test_a.py", True), ("a_test.py", True), ("a.py", False), ("a_test.go", True), ("test_a.go", False),
            ("src/a.test.ts", True), ("src/a.spec.tsx", True), ("__tests__/a.js", True), ("contest.py", False),
            ("tests/__init__.py", False), ("tests/data.json", False),
        ],
    )  # fmt: skip
    def test_what_a_test_file_is(self, path: str, test: bool) -> None:
        assert is_test(path) is test

    def test_language_of_a_path(self) -> None:
        assert [language_of(p) for p in ("a.py", "x.d/README", "a.TSX", "Makefile", ".py/x")] == [
            "python", None, "tsx", None, None,
        ]  # fmt: skip


class TestResolving:
    resolver = Resolver(
        [
            "src/app/__init__.py", "src/app/core/__init__.py", "src/app/core/tree.py", "src/app/main.py",
            "tools/run.py", "web/index.ts", "web/lib/shape.tsx", "web/lib/index.js", "cmd/main.go", "model/item.go",
            "model/item_test.go",
        ],
        {"": "example.com/app"},
    )  # fmt: skip

    @pytest.mark.parametrize(
        "path, language, module, names, targets",
        [
            ("tools/run.py", "python", "app.core.tree", (), ["src/app/core/tree.py"]),
            ("tools/run.py", "python", "app.core", ("tree",), ["src/app/core/tree.py"]),
            ("tools/run.py", "python", "app.core", ("VERSION",), ["src/app/core/__init__.py"]),
            ("tools/run.py", "python", "src.app.main", ("x",), ["src/app/main.py"]),
            ("src/app/main.py", "python", ".core", ("tree",), ["src/app/core/tree.py"]),
            ("src/app/core/tree.py", "python", "..main", ("run",), ["src/app/main.py"]),
            ("src/app/core/tree.py", "python", "..", ("main",), ["src/app/main.py"]),
            ("tools/run.py", "python", ".....x", ("y",), []),
            ("tools/run.py", "python", "numpy", (), []),
            ("web/index.ts", "typescript", "./lib/shape", (), ["web/lib/shape.tsx"]),
            ("web/index.ts", "typescript", "./lib/shape.js", (), ["web/lib/shape.tsx"]),
            ("web/index.ts", "typescript", "./lib", (), ["web/lib/index.js"]),
            ("web/index.ts", "typescript", "react", (), []),
            ("cmd/main.go", "go", "example.com/app/model", (), ["model/item.go"]),
            ("cmd/main.go", "go", "fmt", (), []),
        ],
    )  # fmt: skip
    def test_where_imports_lead(
        self, path: str, language: str, module: str, names: tuple[str, ...], targets: list[str]
    ) -> None:
        assert self.resolver.targets(path, language, Import(module, names)) == targets


class TestOwners:
    rules = parse_codeowners(
        "# comment\n* @all\n*.js @web # trailing\n/build/ @ops\ndocs/* @docs\napps/ @apps\n/apps/github\n"
        "[Section] @default\n**/logs @logs\nsection.md\n"
    )

    @pytest.mark.parametrize(
        "path, owners",
        [
            ("a.txt", ("@all",)), ("x/y.js", ("@web",)), ("build/logs/x", ("@logs",)), ("build/x", ("@ops",)),
            ("sub/build/x", ("@all",)), ("docs/a.md", ("@docs",)), ("docs/deep/a.md", ("@all",)),
            ("x/apps/y", ("@apps",)), ("apps/github/z", ()), ("section.md", ("@default",)),
        ],
    )  # fmt: skip
    def test_the_last_match_decides(self, path: str, owners: tuple[str, ...]) -> None:
        assert owners_of(path, self.rules) == owners

    def test_principal_authors(self) -> None:
        assert principal_authors([("a", 1), ("b", 30), ("c", 3), ("d", 2)]) == ("b", "c")
        assert principal_authors([]) == ()


class TestRanking:
    @given(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0.1, 9)), max_size=40),
        st.lists(st.floats(0, 5), min_size=10, max_size=10),
    )
    def test_ranks_are_a_distribution(self, edges: list[tuple[int, int, float]], restart: list[float]) -> None:
        source, target = (np.array([e[i] for e in edges], dtype=np.int64) for i in (0, 1))
        rank = page_rank(10, source, target, np.array([e[2] for e in edges], dtype=float), np.array(restart))
        assert rank.min() >= 0
        assert abs(rank.sum() - 1) < 1e-6

    def test_what_is_used_more_ranks_higher(self) -> None:
        rank = page_rank(4, np.array([0, 1, 2]), np.array([3, 3, 0]), np.ones(3))
        assert rank.argmax() == 3

    def test_words_of_identifiers(self) -> None:
        assert query_words("parseHTTPUrl_fast the files") == {"parse", "http", "url", "fast"}

    @given(
        st.integers(50, 400),
        st.lists(
            st.tuples(st.text("ab/", min_size=1, max_size=8), st.integers(0, 12)), max_size=8, unique_by=lambda x: x[0]
        ),
    )
    def test_a_map_never_exceeds_its_budget(self, tokens: int, files: list[tuple[str, int]]) -> None:
        symbols = {
            path: [(Symbol(f"f{i}", "function", i + 1, i + 1, f"def f{i}()"), 0.5) for i in range(n)]
            for path, n in files
        }
        entries = fit([(path, 1.0) for path, _ in files], symbols, tokens, lambda text: len(text) // 3 + 1)
        assert len(render(entries)) // 3 <= tokens


class TestCoverage:
    def test_three_formats_agree(self, tmp_path: Path) -> None:
        (tmp_path / "coverage.json").write_text(
            json.dumps(
                {
                    "files": {
                        "a.py": {
                            "executed_lines": [1, 2],
                            "missing_lines": [4],
                            "contexts": {"1": ["", "tests/test_a.py::test_x|run"]},
                        }
                    }
                }
            )
        )
        (tmp_path / "coverage.xml").write_text(
            f"<coverage><sources><source>{tmp_path}</source></sources><packages><package><classes>"
            '<class filename="a.py"><lines><line number="1" hits="1"/><line number="2" hits="3"/>'
            '<line number="4" hits="0"/></lines></class></classes></package></packages></coverage>'
        )
        (tmp_path / "lcov.info").write_text(f"SF:{tmp_path}/a.py\nDA:1,1\nDA:2,1\nDA:4,0\nend_of_record\n")
        for name in ("coverage.json", "coverage.xml", "lcov.info"):
            found = read_report(tmp_path / name, tmp_path).files["a.py"]
            assert (found.covered, found.missing) == ({1, 2}, {4})
        assert read_report(tmp_path / "coverage.json", tmp_path).files["a.py"].tests == {"tests/test_a.py::test_x"}
        assert find_report(tmp_path) is not None
        assert find_report(tmp_path / "none") is None

    @pytest.mark.parametrize(
        "name, text",
        [
            ("coverage.json", "{"), ("coverage.json", "[]"), ("coverage.xml", "<x/>"), ("coverage.xml", "<!ENTITY a>"),
            ("lcov.info", "hello"),
        ],
    )  # fmt: skip
    def test_what_is_no_report_is_refused(self, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(CoverageError, match="no coverage report"):
            read_report(tmp_path / name, tmp_path)


FILES = {
    "pkg/__init__.py": "",
    "pkg/parser.py": "from pkg.tree import Node\n\nclass Parser:\n    def parse(self, text):\n        return Node(1)\n",
    "pkg/tree.py": "class Node:\n    def __init__(self, text): self.text = text\n",
    "pkg/cli.py": "from pkg.parser import Parser\n\ndef main():\n    Parser().parse('x')\n",
    "tests/test_parser.py": "from pkg.parser import Parser\n\ndef test_parse(): Parser().parse('')\n",
    "docs/guide.md": "# Guide\n\nThe grammar stands in `pkg/parser.py`, nodes in pkg.tree.\n",
    "CODEOWNERS": "/pkg/tree.py @trees\n",
}


class Repo:
    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout

    def commit(self, files: dict[str, str | None], author: str = "ada@example.com") -> None:
        for name, text in files.items():
            path = self.root / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change", f"--author=A <{author}>")


def task(**values: object) -> Task:
    defaults = {
        "id": "t1", "title": "Fix the parser", "description": "", "accept": "", "needs": (), "files": (),
        "requires": frozenset(), "priority": 0, "evidence": (), "fingerprint": None, "state": "done", "reason": "",
        "attempt": 1, "attempts": 3, "fence": 1, "owner": None, "beats": 0, "not_before": 0.0, "created": 0.0,
        "updated": 5.0,
    }  # fmt: skip
    return Task(**(defaults | values))  # type: ignore[arg-type]


def slow_indexer(root: Path, folder: Path) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """A process that indexes a repository, and waits in the middle of it: (it, it waits, the sign to go on)."""
    path = root / "pkg/tree.py"
    path.write_text(path.read_text() + "# more\n")
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", "commit", "-qm", "more", "--author=A <ada@example.com>"], cwd=root, check=True)
    (root / "pkg/late.py").write_text("x = 1\n")
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", "commit", "-qm", "late", "--author=A <ada@example.com>"], cwd=root, check=True)
    reached, go, programs = folder / "reached", folder / "go", folder / "programs"
    programs.mkdir()
    git = programs / "git"
    git.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *cat-file*) : > "{reached}"; while [ ! -e "{go}" ]; do sleep 0.05; done;; esac\n'
        f'exec "{shutil.which("git")}" "$@"\n'
    )
    git.chmod(0o755)
    script = (
        "import sys; from pathlib import Path; from avyay.engine.knowledge.service import Knowledge\n"
        "Knowledge(Path(sys.argv[1]), len).update(Path(sys.argv[2]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "knowledge.db"), str(root)],
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
    )
    return child, reached, go


def end(child: subprocess.Popen[bytes], go: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    child.wait()
    go.touch()  # git is in a process group of its own, and outlives it


def wait_until(condition: Callable[[], bool], patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


@pytest.mark.needs("git")
class TestRepository:
    @pytest.fixture
    def repo(self, tmp_path: Path) -> Repo:
        made = Repo(tmp_path / "repo")
        made.commit(dict(FILES))
        return made

    @pytest.fixture
    def knowledge(self, tmp_path: Path) -> Iterator[Knowledge]:
        made = Knowledge(tmp_path / "knowledge.db", lambda text: len(text) // 3 + 1)
        yield made
        made.close()

    def test_a_card_tells_all_that_is_known(self, repo: Repo, knowledge: Knowledge) -> None:
        repo.commit({"pkg/parser.py": FILES["pkg/parser.py"] + "# more\n"}, "bob@example.com")
        card = knowledge.card(repo.root, "pkg/parser.py")
        assert (card.language, card.lines, card.commits) == ("python", 6, 2)
        assert [s.qualified for s in card.symbols] == ["Parser", "Parser.parse"]
        assert card.imports == ("pkg/tree.py",)
        assert card.imported_by == ("pkg/cli.py",)
        assert card.tests == ("tests/test_parser.py",)
        assert set(card.owners) == {"ada@example.com", "bob@example.com"}
        assert card.documents == ("docs/guide.md:3",)
        assert knowledge.owners(repo.root, "pkg/tree.py") == ("@trees",)
        assert knowledge.documents(repo.root, "pkg/tree.py") == ("docs/guide.md:3",)

    def test_only_what_changed_is_read_again(self, repo: Repo, knowledge: Knowledge) -> None:
        assert knowledge.update(repo.root).parsed == len(FILES)
        assert knowledge.update(repo.root).parsed == 0
        repo.commit({"pkg/tree.py": "class Leaf: pass\n", "pkg/cli.py": None})
        update = knowledge.update(repo.root)
        assert (update.parsed, update.removed, update.files) == (1, 1, len(FILES) - 1)
        assert [s.name for s in knowledge.card(repo.root, "pkg/tree.py").symbols] == ["Leaf"]
        assert knowledge.card(repo.root, "pkg/parser.py").imported_by == ()
        with pytest.raises(UsageError, match=r"pkg/cli\.py is not in the commit"):
            knowledge.card(repo.root, "pkg/cli.py")

    def test_incremental_equals_from_scratch(self, repo: Repo, knowledge: Knowledge, tmp_path: Path) -> None:
        knowledge.update(repo.root)
        for number in range(3):
            repo.commit({"pkg/tree.py": f"class Node{number}: pass\n", f"pkg/new{number}.py": "import pkg.tree\n"})
            knowledge.update(repo.root)
        fresh = Knowledge(tmp_path / "fresh.db", lambda text: len(text) // 3 + 1)
        for path in ("pkg/tree.py", "pkg/parser.py"):
            assert knowledge.card(repo.root, path) == fresh.card(repo.root, path)
        assert knowledge.map(repo.root, tokens=500).text == fresh.map(repo.root, tokens=500).text
        fresh.close()

    def test_history_that_was_rewritten_is_counted_anew(self, repo: Repo, knowledge: Knowledge) -> None:
        repo.commit({"pkg/tree.py": "x = 1\n"})
        assert knowledge.churn(repo.root)["pkg/tree.py"] == 2
        repo.git("reset", "-q", "--hard", "HEAD~1")
        repo.commit({"pkg/tree.py": "x = 2\n"})
        assert knowledge.churn(repo.root)["pkg/tree.py"] == 2

    def test_worktrees_share_what_is_known(self, repo: Repo, knowledge: Knowledge) -> None:
        knowledge.update(repo.root)
        repo.git("worktree", "add", "-q", str(repo.root.parent / "tree"), "-b", "other")
        assert knowledge.update(repo.root.parent / "tree").parsed == 0

    def test_the_map_answers_a_question_within_its_budget(self, repo: Repo, knowledge: Knowledge) -> None:
        found = knowledge.map(repo.root, query="how does the parser parse text", tokens=60)
        assert found.entries[0].path == "pkg/parser.py"
        assert found.tokens <= 60
        assert "class Parser" in found.text
        whole = knowledge.map(repo.root, tokens=400)
        assert {"pkg/parser.py", "pkg/tree.py", "pkg/cli.py"} <= {entry.path for entry in whole.entries}
        assert whole.entries[-1].path != "pkg/tree.py"

    def test_context_of_a_task_and_files_it_touches(self, repo: Repo, knowledge: Knowledge) -> None:
        about = task(title="Crash", evidence=("pkg/tree.py:2",))
        assert knowledge.context(repo.root, about, tokens=200).startswith("pkg/tree.py")
        assert knowledge.context(repo.root, about, tokens=0) == ""
        assert knowledge.touched(repo.root, ["pkg/parser.py"]) == ("pkg/parser.py", "tests/test_parser.py")
        assert knowledge.overlap(repo.root, ["pkg/*.py"], ["**/tree.py", "docs/"]) == ("pkg/tree.py",)
        assert knowledge.overlap(repo.root, ["pkg/p*.py"], ["pkg/*e.py"]) == ()

    def test_past_tasks_are_remembered_with_their_outcome(self, repo: Repo, knowledge: Knowledge) -> None:
        done = task(id="t1", evidence=("pkg/tree.py:1",))
        failed = task(id="t2", state="failed", reason="tests fail", files=("pkg/*.py",), updated=9.0)
        entry = Entry(1, "t1", 1.0, "done", "merging", "done", None, None, data={"files": ["pkg/parser.py"]})

        def history(name: str) -> Sequence[Entry]:
            return [entry] if name == "t1" else []

        assert knowledge.learn(repo.root, [done, failed], history) == 2
        assert [t.id for t in knowledge.card(repo.root, "pkg/parser.py").tasks] == ["t2", "t1"]
        (known,) = knowledge.card(repo.root, "pkg/tree.py").tasks
        assert (known.id, known.state, known.reason) == ("t2", "failed", "tests fail")

    def test_runbooks_that_mention_a_file(self, repo: Repo, tmp_path: Path) -> None:
        class Runbooks:
            def search(self, query: str, *, limit: int = 5) -> Sequence[Passage]:
                texts = ("Restart when pkg/tree.py grows.", "Something else.")
                return [Passage("ops", f"r{i}.md", "H", 1, 2, "", text, 1.0) for i, text in enumerate(texts)]

        knowledge = Knowledge(tmp_path / "k.db", len, lambda: Runbooks())
        assert knowledge.documents(repo.root, "pkg/tree.py") == ("docs/guide.md:3", "r0.md:1-2 (H)")
        knowledge.close()

    def test_many_that_index_at_once_agree(self, repo: Repo, tmp_path: Path) -> None:
        def look(number: int) -> str:
            knowledge = Knowledge(tmp_path / "knowledge.db", lambda text: len(text) // 3 + 1)
            try:
                return knowledge.map(repo.root, tokens=300).text
            finally:
                knowledge.close()

        for number in range(3):
            repo.commit({f"pkg/more{number}.py": "from pkg.tree import Node\n"})
            with ThreadPoolExecutor(4) as pool:
                assert len(set(pool.map(look, range(4)))) == 1

    def test_whoever_reads_a_repository_is_in_nobodys_way(self, repo: Repo, tmp_path: Path) -> None:
        child, reached, go = slow_indexer(repo.root, tmp_path)
        try:
            wait_until(reached.exists)
            # It reads with git: the database can be written by others at once, who index another repository.
            other = Repo(tmp_path / "other")
            other.commit({"a.py": "def a(): pass\n"})
            knowledge = Knowledge(tmp_path / "knowledge.db", len)
            with closing(open_database(tmp_path / "knowledge.db", busy_timeout=0.0)) as held, held.transaction():
                pass
            assert knowledge.update(other.root).parsed == 1
            # What it began from is not any more what is there: it goes on from what is.
            with closing(open_database(tmp_path / "knowledge.db")) as held, held.transaction() as database:
                head = repo.git("rev-parse", "HEAD~1").strip()
                database.execute("UPDATE repositories SET commit_id = 'another', history = ? WHERE id = 1", (head,))
                database.execute("INSERT INTO changes VALUES (1, 'pkg/tree.py', 'ada@example.com', 7, 0)")
            go.touch()
            assert child.wait(timeout=60) == 0
            assert knowledge.update(repo.root).parsed == 0, "the child did it"
            assert knowledge.churn(repo.root)["pkg/tree.py"] == 7, "counted on from there"
            knowledge.close()
        finally:
            end(child, go)

    def test_an_indexer_killed_halfway_leaves_nothing_behind(self, repo: Repo, tmp_path: Path) -> None:
        child, reached, go = slow_indexer(repo.root, tmp_path)
        try:
            wait_until(reached.exists)
        finally:
            end(child, go)
        knowledge = Knowledge(tmp_path / "knowledge.db", len)
        assert knowledge.update(repo.root).parsed == len(FILES) + 1
        assert knowledge.churn(repo.root)["pkg/tree.py"] == 2
        knowledge.close()

    def test_what_is_no_repository_is_refused(self, knowledge: Knowledge, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="in no git repository"):
            knowledge.update(tmp_path)
        subprocess.run(["git", "init", "-q", str(tmp_path / "empty")], check=True)
        with pytest.raises(UsageError, match="has no commit"):
            knowledge.update(tmp_path / "empty")
