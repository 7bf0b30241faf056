"""Tasks that name no files: which ones their words point at, and that claims keep those apart that share one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from engine_site import Site, until
from hypothesis import given
from hypothesis import strategies as st

from avyay.engine import guessing
from avyay.engine.exchange import export_tasks
from avyay.engine.guessing import FileGuesses
from avyay.engine.knowledge.guess import Names, guess_files
from avyay.engine.knowledge.service import Knowledge
from avyay.engine.narrate import narrate, why
from avyay.engine.prompt import build_prompt
from avyay.engine.queue import Queue
from avyay.engine.types import ACTIVE, NewTask, Task
from avyay.errors import UnreachableError

PATHS = [
    "src/shop/cart.py",
    "src/shop/tax.py",
    "src/shop/__init__.py",
    "lib/cart.go",
    "docs/cart.md",
    "tests/test_tax.py",
]
NAMES = Names(
    PATHS,
    lambda path: not path.endswith(".md"),
    {"add_item": ["src/shop/cart.py"], "Rate": ["src/shop/tax.py"], "run": ["a", "b", "c"], "show": ["x.py", "y.py"]},
)


def guessed(text: str, *evidence: str) -> dict[str, str]:
    return guess_files(NAMES, title=text, description="", evidence=evidence)


class TestWhatIsNamed:
    @pytest.mark.parametrize(
        ("text", "files"),
        [
            ("Round up in src/shop/tax.py", ["src/shop/tax.py"]),
            ("Round up in shop/tax.py.", ["src/shop/tax.py"]),  # the end of a path, and of a sentence
            ("tax.py rounds down", ["src/shop/tax.py"]),
            ("shop.tax rounds down", ["src/shop/tax.py"]),
            ("cart.py and cart.go disagree", ["src/shop/cart.py", "lib/cart.go"]),
            ("The cart is empty", []),  # a word is no name
            ("add_item loses the last one", ["src/shop/cart.py"]),
            ("Calling add_item() twice", ["src/shop/cart.py"]),
            ("`Rate` has no unit", ["src/shop/tax.py"]),
            ("The Rate of change", []),  # not marked as a name
            ("`Rate.round` is wrong", ["src/shop/tax.py"]),
            ("`run` hangs", []),  # too many define it
            ("`show` prints", ["x.py", "y.py"]),
            ("Fix docs/cart.md", ["docs/cart.md"]),
            ("Fix cart.md", []),  # of what is no code only the whole path counts
            ("Fix /etc/passwd and ../x", []),
        ],
    )
    def test_in_words(self, text: str, files: list[str]) -> None:
        assert list(guessed(text)) == files

    def test_evidence_is_the_surest(self) -> None:
        found = guessed("tax.py: add_item", "src/shop/cart.py:12", "nothing here", "gone.py:3")
        assert found == {"src/shop/cart.py": "evidence: src/shop/cart.py:12", "src/shop/tax.py": "named: tax.py"}

    def test_a_text_that_names_everything_names_nothing(self) -> None:
        names = Names([f"m{i}.py" for i in range(20)], lambda _: True, {})
        assert guess_files(names, title=" ".join(f"m{i}.py" for i in range(13)), description="", evidence=()) == {}

    @given(st.text(), st.lists(st.text(), max_size=3))
    def test_anything_may_be_asked(self, text: str, evidence: list[str]) -> None:
        known = {*PATHS, "x.py", "y.py"}
        assert set(guess_files(NAMES, title=text, description=text, evidence=evidence)) <= known


class Graph:
    """The knowledge graph as the loop asks for it, from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def context(self, repository: Path, task: Task, *, tokens: int) -> str:
        return ""

    def guess(self, repository: Path, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
        with closing(Knowledge(self._path, len)) as knowledge:
            return knowledge.guess(repository, tasks)


class Broken(Graph):
    def guess(self, repository: Path, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
        raise UnreachableError("somebody is indexing")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path, nodes=[{"name": "local", "slots": 3}])
    site.commit({"shop/cart.py": "def add_item(): ...\n", "shop/tax.py": "def rate(): ...\n", "README.md": "x\n"})
    return site


def alone(site: Site, name: str, lock: str) -> tuple[str, ...]:
    """A script that fails when another one with the same lock is at work."""
    place = site.folder / lock
    return (f"mkdir {place} || exit 1", "sleep 0.4", f"rmdir {place}", f"echo x > {name}.txt")


class TestDispatch:
    def test_tasks_that_point_at_one_file_wait_for_each_other(self, site: Site) -> None:
        for name, title in (("a", "Fix `add_item`"), ("b", "shop/cart.py is slow"), ("c", "Speed up add_item()")):
            with closing(site.open_queue()) as queue:
                script = "\n".join(f"$ {line}" for line in alone(site, name, "cart"))
                queue.add([NewTask(title, script, id=name, attempts=1)])
        site.run(context=Graph(site.folder / "knowledge.db"))
        assert sorted(site.merged()) == ["a", "b", "c"]
        assert site.task("a").guessed == {"shop/cart.py": "defines add_item"}
        assert "guessed" in site.story("b")

    def test_others_run_side_by_side(self, site: Site) -> None:
        """Both wait for the other to begin, so they end only together."""
        for mine, other, title in (("a", "b", "Fix `add_item`"), ("b", "a", "Fix shop/tax.py")):
            wait = f"while [ ! -e {site.folder}/{other}.begun ]; do sleep 0.02; done"
            with closing(site.open_queue()) as queue:
                script = f"$ touch {site.folder}/{mine}.begun\n$ {wait}\n$ echo x > {mine}.txt"
                queue.add([NewTask(title, script, id=mine, attempts=1, caps={"wall": 20.0})])
        site.run(context=Graph(site.folder / "knowledge.db"))
        assert sorted(site.merged()) == ["a", "b"]

    def test_a_dry_run_knows_and_writes_nothing(self, site: Site) -> None:
        with closing(site.open_queue()) as queue:
            queue.add([NewTask("Fix `add_item`", id="a"), NewTask("cart.py", id="b"), NewTask("tax.py", id="c")])
            dispatcher = site.dispatcher(context=Graph(site.folder / "knowledge.db"))
            assert [plan.task.id for plan in dispatcher.plan()] == ["a", "c"]
            dispatcher.close()
            assert [task.files for task in queue.tasks()] == [(), (), ()]
            assert list(queue.unfiled(10)) == ["a", "b", "c"]

    def test_a_graph_that_is_busy_holds_nothing_up(self, site: Site) -> None:
        site.add("one", "echo 1 > out.txt")
        site.run(context=Broken(site.folder))
        assert site.merged() == ["one"]

    def test_a_graph_that_is_slow_holds_nothing_up(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guessing, "_PATIENCE", 0.1)
        free = threading.Event()

        class Slow(Graph):
            def guess(self, repository: Path, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
                free.wait(30)
                return super().guess(repository, tasks)

        guesses = FileGuesses(Slow(site.folder / "knowledge.db"), lambda _: site.repository)
        with closing(site.open_queue()) as queue:
            queue.add([NewTask("Fix `add_item`", id="a")])
            guesses.note(queue)
            guesses.note(queue)
            assert queue.get("a").guessed is None
            free.set()
            until(lambda: guesses.note(queue) or queue.get("a").guessed is not None)
            assert queue.get("a").files == ("shop/cart.py",)

    def test_a_graph_that_breaks_holds_nothing_up(self, site: Site) -> None:
        class Bug(Graph):
            def guess(self, repository: Path, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
                raise ZeroDivisionError

        site.add("one", "echo 1 > out.txt")
        site.run(context=Bug(site.folder))
        assert site.merged() == ["one"]


class TestQueue:
    def test_a_guess_is_noted_once_and_only_before_the_claim(self, place: Path | str) -> None:
        with closing(Queue(place)) as queue:
            queue.add([NewTask("one", id="one"), NewTask("two", id="two"), NewTask("given", id="given", files=("a",))])
            assert list(queue.unfiled(10)) == ["one", "two"]
            assert list(queue.unfiled(1)) == ["one"]
            assert queue.guess("one", {})
            assert list(queue.unfiled(10)) == ["two"]
            assert (queue.get("one").files, queue.get("one").guessed) == ((), {})
            lease = queue.claim("w")
            assert lease is not None
            assert lease.task.id == "one"
            assert not queue.guess("one", {"a": "named"})
            assert not queue.guess("given", {"b": "named"})
            assert queue.guess("two", {"src/a.py": "named: a.py"})
            assert [task.id for task in queue.tasks() if task.guessed] == ["two"]

    def test_files_that_are_guessed_keep_claims_apart_and_say_so(self, place: Path | str) -> None:
        with closing(Queue(place)) as queue:
            queue.add([NewTask("one", id="one", files=("src/*",)), NewTask("two", id="two")])
            queue.guess("two", {"src/a.py": "defines run_all"})
            assert queue.claim("w") is not None
            assert queue.claim("w") is None
            two = queue.get("two")
            assert why(two, queue.get, 0.0 + two.created, queue.tasks(*ACTIVE)) == [
                "two is ready, and waits for one, which touches src/* too (guessed; defines run_all)."
            ]
            story = "\n".join(narrate(two, queue.history("two")))
            assert "files: src/a.py (guessed; defines run_all)" in story
            assert "is taken to touch src/a.py (defines run_all)" in story
            prompt = build_prompt(two, accept="make", turns=1, wall=60, dollars="1")
            assert "Files it may be about: src/a.py (defines run_all)" in prompt
            assert export_tasks([two])[0]["files"] == []
