"""The user's work tree while its branch moves: the queue is free, no change is lost, and a kill leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from engine_site import Site, git, until

from avyay.engine.checkup import inspect
from avyay.engine.database import SqliteQueue
from avyay.engine.follow import Follower
from avyay.engine.loop import Dispatcher, owner_name
from avyay.engine.merge import MergeQueue, Result, merged_before
from avyay.engine.types import NewTask
from avyay.errors import DependencyError

SUPPORT = Path(__file__).parents[2] / "support"
FILES = [f"data/{number}.txt" for number in range(8)]
MINE = "mine.txt"

# A dispatcher that is about to merge: what it runs, and who it is, is in the hands of the test.
MERGES = """
import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])
from engine_site import Site
from avyay.engine.loop import owner_name
from avyay.engine.merge import Result
folder = Path(sys.argv[1])
site = Site(folder)
(place,) = site.dispatcher().places.values()
queue = site.open_queue()
lease = queue.claim(owner_name("node"))
queue.advance(lease, "running")
queue.advance(lease, "verifying")
queue.advance(lease, "merging", commit=sys.argv[4])
(folder / "pid").write_text(str(os.getpid()))
with place.merging._turn() as turn:
    place.merging._step(queue, lease, Result("avyay/one/1", sys.argv[3], sys.argv[4], "One"), turn)
"""

KILL = 'kill -9 "$PPID"'
RUN_IT = '"$GIT" "$@"; code=$?'
LOOK = "read-tree -m -u -n"
STEP = "update-ref -m"
CHECKOUT = "read-tree -m -u [0-9a-f]"


class Scene:
    """A repository whose main is checked out, with uncommitted changes, and a verified commit on top of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = Site(folder)
        self.opened: list[Dispatcher] = []
        self.root = self.site.repository
        lines = "".join(f"line {number}\n" for number in range(20))
        self.base = self.site.commit({**dict.fromkeys(FILES, lines), MINE: "old\n", "gone.txt": "x\n"})
        git(self.root, "checkout", "--quiet", "-b", "next")
        for name in FILES:
            (self.root / name).write_text(lines.replace("line 1\n", "LINE ONE\n"))
        (self.root / "fresh").mkdir()
        (self.root / "fresh/new.txt").write_text("new\n")
        (self.root / "gone.txt").unlink()
        git(self.root, "add", "--all")
        git(self.root, "commit", "--quiet", "-m", "One\n\nAvyay-Task: one")
        self.commit = git(self.root, "rev-parse", "HEAD").strip()
        git(self.root, "checkout", "--quiet", "main")
        git(self.root, "branch", "--quiet", "-D", "next")
        (self.root / MINE).write_text("precious\n")
        with closing(self.site.open_queue()) as queue:
            queue.add([NewTask("one", id="one", accept="true"), NewTask("two", id="two", accept="true")])

    def start(self, when: str = "", what: str = ":") -> subprocess.Popen[bytes]:
        """A dispatcher that merges, and whose git does `what` (a shell script) the first time it is called `when`."""
        programs = self.folder / "programs"
        programs.mkdir(exist_ok=True)
        script, pattern = programs / "git", when.replace(" ", "\\ ") or "never"
        script.write_text(
            f'#!/bin/sh\nGIT="{shutil.which("git")}"\n'
            f'case "$*" in *{pattern}*)\n'
            f'  if mkdir "{self.folder}/reached" 2>/dev/null; then\n{what}\nfi;; esac\nexec "$GIT" "$@"\n'
        )
        script.chmod(0o755)
        return subprocess.Popen(
            [sys.executable, "-c", MERGES, str(self.folder), str(SUPPORT), self.base, self.commit],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            },
        )

    def dispatcher(self) -> Dispatcher:
        """One that is closed when the test is over."""
        self.opened.append(self.site.dispatcher())
        return self.opened[-1]

    def repair(self) -> Dispatcher:
        """The next dispatcher comes, and looks until nothing is left to be put right."""
        dispatcher = self.dispatcher()
        merging = self.merging(dispatcher)

        def right() -> bool:
            dispatcher.recover()
            return merging._follower.pending() is None

        until(right, 60)
        return dispatcher

    def merging(self, dispatcher: Dispatcher) -> MergeQueue:
        (place,) = dispatcher.places.values()
        return place.merging

    def check(self) -> None:
        """It was merged once; the files are those of main but for the user's own change; nobody holds anything."""
        assert git(self.root, "rev-list", f"{self.base}..main").split() == [self.commit]
        assert git(self.root, "symbolic-ref", "HEAD").strip() == "refs/heads/main"
        assert git(self.root, "status", "--porcelain") == f" M {MINE}\n"
        assert (self.root / MINE).read_text() == "precious\n"
        assert git(self.root, "diff", "main", "--stat", "--", "data", "fresh", "gone.txt") == ""
        assert not (self.root / "gone.txt").exists()
        assert [
            path.name for path in (self.root / ".git").iterdir() if "avyay" in path.name or "lock" in path.name
        ] == []
        assert self.site.task("one").state == "done"
        assert self.site.story("one").count("done") == 1

    def merge_again(self, dispatcher: Dispatcher) -> None:
        """What the next attempt at the task does, when there is one."""
        with closing(self.site.open_queue()) as queue:
            if queue.get("one").state == "done":
                return
            queue.cancel("two")
            until(lambda: queue.get("one").not_before <= time.time(), 60)
            lease = queue.claim(owner_name("again"))
            assert lease is not None
            (place,) = dispatcher.places.values()
            queue.advance(lease, "running")
            queue.advance(lease, "verifying")
            if merged_before(queue, place.workshop, "one") is not None:
                queue.finish(lease, merged=True)
                return
            queue.advance(lease, "merging", commit=self.commit)
            with place.merging._turn() as turn:
                place.merging._step(queue, lease, Result("avyay/one/1", self.base, self.commit, "One"), turn)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    for dispatcher in made.opened:
        dispatcher.close()


def test_the_files_go_along(scene: Scene) -> None:
    assert scene.start().wait(60) == 0
    scene.check()


@pytest.mark.parametrize("when", [LOOK, STEP, CHECKOUT], ids=["look", "step", "checkout"])
@pytest.mark.parametrize(
    "what",
    [f"{KILL}; exit 1", f"{KILL}", f"{RUN_IT}; {KILL}; exit $code", f"{KILL}; sleep 1"],
    ids=["both-die", "git-goes-on", "git-has-ended", "git-is-late"],
)
def test_killed_between_any_two_steps(scene: Scene, when: str, what: str) -> None:
    assert scene.start(when, what).wait(60) == -signal.SIGKILL
    dispatcher = scene.repair()
    scene.merge_again(dispatcher)
    scene.check()


def test_killed_in_the_middle_of_the_checkout(scene: Scene) -> None:
    """Git as well, as by a power cut: some files are new, some old, and the index knows nothing of it."""
    killer = scene.folder / "smudge"
    killer.write_text(
        "#!/bin/sh\ncat\n"
        f'if [ -e "{scene.folder}/pid" ]; then echo >> "{scene.folder}/count"\n'
        f'if [ "$(wc -l < "{scene.folder}/count")" -ge 4 ]; then kill -9 "$(cat "{scene.folder}/pid")" 0; fi; fi\n'
    )
    killer.chmod(0o755)
    git(scene.root, "config", "filter.late.smudge", str(killer))
    (scene.root / ".git/info").mkdir(exist_ok=True)
    (scene.root / ".git/info/attributes").write_text("data/*.txt filter=late\n")
    assert scene.start().wait(60) == -signal.SIGKILL
    (scene.folder / "pid").unlink()
    seen = {(scene.root / name).read_text().count("LINE ONE") for name in FILES if (scene.root / name).exists()}
    assert seen == {0, 1}, "some are new and some are old"
    (scene.root / FILES[-1]).write_text("line")  # as if it were being written
    dispatcher = scene.dispatcher()
    with closing(scene.site.open_queue()) as queue:
        (problem,) = [check for check in inspect(dispatcher, queue) if check.what.startswith("work tree")]
    assert not problem.ok
    assert "doctor --fix" in problem.detail
    scene.merge_again(scene.repair())
    scene.check()


class TestMeanwhile:
    """What others do between the look and the checkout."""

    def test_the_queue_is_free_while_files_are_checked_out(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SqliteQueue, "busy_timeout", 0.0)
        process = scene.start(CHECKOUT, f'while [ ! -e "{scene.folder}/go" ]; do sleep 0.05; done')
        try:
            until((scene.folder / "reached").exists, 60)
            with closing(scene.site.open_queue()) as queue:
                assert queue.get("one").state == "done"
                lease = queue.claim("other")
                assert lease is not None
                queue.advance(lease, "running")
                queue.park(lease, 0.0, "enough")
        finally:
            (scene.folder / "go").touch()
        assert process.wait(60) == 0
        scene.check()

    def test_a_commit_from_a_state_in_between_is_refused_by_git(self, scene: Scene) -> None:
        commit = f'"$GIT" -C "{scene.root}" commit -qam mine 2> "{scene.folder}/refused"'
        assert scene.start(STEP, f"{RUN_IT}; {commit}; exit $code").wait(60) == 0
        assert "index.lock" in (scene.folder / "refused").read_text()
        scene.check()

    @pytest.mark.parametrize(
        ("edit", "expected"),
        [
            ("s/line 15/MY LINE/", ["LINE ONE", "MY LINE"]),
            ("s/^line 1$/MY LINE/", ["<<<<<<< yours", "MY LINE", "LINE ONE", ">>>>>>> merged"]),
        ],
        ids=["elsewhere", "same-line"],
    )
    def test_an_edit_is_carried_along(self, scene: Scene, edit: str, expected: list[str]) -> None:
        path = scene.root / FILES[3]
        assert scene.start(STEP, f'sed -i.old "{edit}" "{path}"; rm "{path}.old"').wait(60) == 0
        text = path.read_text()
        for part in expected:
            assert part in text
        assert git(scene.root, "status", "--porcelain") == f" M {FILES[3]}\n M {MINE}\n"
        git(scene.root, "checkout", "--quiet", "--", FILES[3])
        scene.check()

    def test_a_sparse_work_tree_stays_sparse(self, scene: Scene) -> None:
        git(scene.root, "sparse-checkout", "set", "--no-cone", "/*", "!/data/5.txt", "!/data/6.txt")
        path = scene.root / FILES[3]
        assert scene.start(STEP, f'echo "MY LINE" >> "{path}"').wait(60) == 0
        assert git(scene.root, "status", "--porcelain") == f" M {FILES[3]}\n M {MINE}\n"
        assert {name for name in FILES if not (scene.root / name).exists()} == {"data/5.txt", "data/6.txt"}
        git(scene.root, "checkout", "--quiet", "--", FILES[3])
        scene.check()

    def test_a_file_in_the_way_stays(self, scene: Scene) -> None:
        root = scene.root
        what = f'cd "{root}"; mkdir fresh; echo own > fresh/new.txt; echo y > gone.txt; cd - > /dev/null'
        assert scene.start(STEP, what).wait(60) == 0
        assert (root / "fresh/new.txt").read_text() == "own\n"
        status = git(root, "status", "--porcelain").splitlines()
        assert status == [" M fresh/new.txt", f" M {MINE}", "?? gone.txt"]
        (root / "gone.txt").unlink()
        git(root, "checkout", "--quiet", "--", "fresh/new.txt")
        scene.check()


class TestFollower:
    @pytest.fixture
    def turn(self) -> Iterator[int]:
        read, write = os.pipe()
        yield read
        os.close(read)
        os.close(write)

    def test_a_lock_of_git_or_of_another_home_is_left_alone(self, scene: Scene, tmp_path: Path, turn: int) -> None:
        (tmp_path / "other").mkdir()
        first, second = Follower(tmp_path, "main"), Follower(tmp_path / "other", "main")
        lock = scene.root / ".git/index.lock"
        lock.touch()
        with pytest.raises(DependencyError, match=r"index\.lock is left"):
            first.prepare(scene.root, scene.base, scene.commit, turn)
        assert lock.exists()
        assert first.pending() is None
        lock.unlink()
        first.prepare(scene.root, scene.base, scene.commit, turn)
        with pytest.raises(DependencyError, match=r"index\.lock is left"):
            second.prepare(scene.root, scene.base, scene.commit, turn)
        assert second.pending() is None
        assert first.settle(turn) is None, "the branch did not move"
        assert not lock.exists()
        assert git(scene.root, "status", "--porcelain") == f" M {MINE}\n"

    def test_a_file_system_without_hard_links_is_named(
        self, scene: Scene, tmp_path: Path, turn: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        follower = Follower(tmp_path, "main")
        with pytest.raises(DependencyError, match="Operation not permitted") as caught:
            follower.prepare(scene.root, scene.base, scene.commit, turn)
        assert "hard links" in str(caught.value.hint)
        assert follower.pending() is None
        assert [path.name for path in (scene.root / ".git").iterdir() if "avyay" in path.name] == []

    def test_a_work_tree_that_was_removed_is_forgotten(self, scene: Scene, tmp_path: Path, turn: int) -> None:
        git(scene.root, "checkout", "--quiet", "--detach")
        linked = tmp_path / "linked"
        git(scene.root, "worktree", "add", "--quiet", str(linked), "main")
        follower = Follower(tmp_path, "main")
        follower.prepare(linked, scene.base, scene.commit, turn)
        shutil.rmtree(linked)
        assert "is gone" in str(follower.settle(turn))
        assert follower.pending() is None

    def test_a_note_that_cannot_be_read_is_no_note(self, tmp_path: Path, turn: int) -> None:
        (tmp_path / "following.json").write_text('{"where": ')
        assert Follower(tmp_path, "main").settle(turn) is None
        (tmp_path / "following.json").write_text(json.dumps({"other": 1}))
        assert Follower(tmp_path, "main").pending() is None


def test_whoever_merges_is_not_disturbed(scene: Scene) -> None:
    """A tick meanwhile, of the same process or another, finds the turn taken and leaves the work tree alone."""
    dispatcher = scene.dispatcher()
    merging = scene.merging(dispatcher)
    other = scene.merging(scene.dispatcher())
    with merging._turn() as turn:
        merging._follower.prepare(scene.root, scene.base, scene.commit, turn)
        found: list[object] = []
        for queue in (merging, other):
            thread = threading.Thread(target=lambda queue=queue: found.extend([queue.settle(), queue.left_behind()]))  # type: ignore[misc]
            thread.start()
            thread.join()
        assert found == [None] * 4
        assert merging._follower.pending() == scene.root
    assert other.left_behind() == scene.root
    assert other.settle() is None
    assert other.left_behind() is None
