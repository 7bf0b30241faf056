"""A queue serves all projects of its user: a task is worked on in the repository it belongs to, and in no other."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from engine_site import Site, git

from avyay.config.engine import EngineSettings
from avyay.engine.loop import Plan
from avyay.engine.narrate import why
from avyay.engine.repositories import home_of, name_at, settle_repositories
from avyay.engine.types import NewTask, Task
from avyay.errors import UsageError
from avyay.git import GitRepository


def make_repository(folder: Path) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "check.sh").write_text("true\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "Set up")
    return folder


def settle(settings: EngineSettings, directory: Path, *names: str, strict: bool = True) -> list[str]:
    tasks = [NewTask("x", repository=name) for name in names]
    return [task.repository for task in settle_repositories(tasks, settings, directory, strict=strict)]


class TestWhatTasksCallARepository:
    def test_a_path_on_this_machine_the_same_from_every_folder_and_worktree(self, tmp_path: Path) -> None:
        one, two = make_repository(tmp_path / "one"), make_repository(tmp_path / "two")
        (one / "sub").mkdir()
        git(one, "worktree", "add", "--quiet", "-b", "topic", str(tmp_path / "tree"))
        settings = EngineSettings()
        for place in (one, one / "sub", tmp_path / "tree"):
            assert settle(settings, place, "") == [str(one)]
        assert settle(settings, one, str(two), "../two", str(one)) == [str(two), str(two), str(one)]
        assert name_at(two, settings, one) == str(two)

    def test_a_bare_repository(self, tmp_path: Path) -> None:
        one = make_repository(tmp_path / "one")
        subprocess.run(["git", "clone", "--quiet", "--bare", str(one), str(tmp_path / "bare.git")], check=True)
        assert home_of(GitRepository(tmp_path / "bare.git")) == str(tmp_path / "bare.git")

    def test_the_configured_name_where_there_is_one(self, tmp_path: Path) -> None:
        one, two = make_repository(tmp_path / "one"), make_repository(tmp_path / "two")
        settings = EngineSettings(repositories={"web": two})
        assert settle(settings, one, "", "web", str(two)) == [str(one), "web", "web"]
        assert settle(settings, two, "") == ["web"]

    def test_one_that_is_unknown_is_refused(self, tmp_path: Path) -> None:
        one = make_repository(tmp_path / "one")
        for name in ("nope", str(tmp_path / "nowhere"), str(tmp_path)):
            with pytest.raises(UsageError, match="There is no repository"):
                settle(EngineSettings(), one, name)
        with pytest.raises(UsageError, match="no git repository"):
            settle(EngineSettings(), tmp_path, "")
        with pytest.raises(UsageError, match="no git repository"):
            name_at(tmp_path, EngineSettings(), tmp_path)
        assert settle(EngineSettings(), tmp_path, "", strict=False) == [""]

    def test_other_machines_know_names_alone(self, tmp_path: Path) -> None:
        one, two = make_repository(tmp_path / "one"), make_repository(tmp_path / "two")
        shared = EngineSettings(queue_url="postgresql://db/engine", repositories={"web": two})
        assert settle(shared, one, "", str(one), str(two)) == ["", "", "web"]
        three = make_repository(tmp_path / "three")
        with pytest.raises(UsageError, match="There is no repository"):
            settle(shared, one, str(three))
        with pytest.raises(UsageError, match="not configured"):
            name_at(three, shared, one)


class TestTwoProjects:
    """Their dispatchers share a home, and so a queue."""

    @pytest.fixture
    def one(self, tmp_path: Path) -> Site:
        return Site(tmp_path)

    @pytest.fixture
    def two(self, tmp_path: Path, one: Site) -> Site:
        return Site(tmp_path, repository=make_repository(tmp_path / "other"))

    def test_each_works_on_its_own(self, one: Site, two: Site) -> None:
        for site, name in ((one, "first"), (two, "second")):
            (word,) = settle(site.settings, site.folder, "")
            site.add(name, f"echo {name} > out.txt", repository=word)
        assert [plan.task.id for plan in planned(two)] == ["second"]
        two.run()
        assert states(one) == {"first": "ready", "second": "done"}
        root = two.settings.repository
        assert root is not None
        assert git(root, "show", "main:out.txt") == "second\n"
        one.run()
        assert states(one) == {"first": "done", "second": "done"}
        assert git(one.repository, "show", "main:out.txt") == "first\n"
        assert one.merged() == ["first"]

    def test_the_reason_says_where(self, one: Site) -> None:
        (word,) = settle(one.settings, one.folder, "")
        one.add("first", "true", repository=word)
        with closing(one.open_queue()) as queue:
            task = queue.get("first")
            assert why(task, queue.get, task.created) == [
                f"first is ready: avyay engine run in {one.repository} starts it when a node is free."
            ]
            assert (task.requires, len(task.wants)) == (frozenset(), 1)

    def test_a_merge_that_was_cut_short_is_left_to_who_can_see_the_branch(self, one: Site, two: Site) -> None:
        (word,) = settle(one.settings, one.folder, "")
        one.add("first", "true", repository=word)
        with closing(one.open_queue()) as queue:
            gone = one.dispatcher()
            lease = queue.claim("local@" + own_host() + ":1:0", gone._capabilities(gone.nodes[0], ["script"]))
            assert lease is not None
            for state in ("running", "verifying", "merging"):
                queue.advance(lease, state)  # type: ignore[arg-type]
            gone.close()
            other = two.dispatcher()
            assert other.reconcile() == []
            assert queue.get("first").state == "merging"
            other.close()
            own = one.dispatcher()
            assert own.reconcile() == ["first: its dispatcher is gone; now ready"]
            own.close()

    def test_tasks_of_before_that_name_none_go_to_whoever_comes(self, one: Site, two: Site) -> None:
        one.add("old", "echo old > out.txt")
        two.run()
        assert states(one) == {"old": "done"}


def own_host() -> str:
    import socket

    return socket.gethostname()


def planned(site: Site) -> list[Plan]:
    dispatcher = site.dispatcher()
    try:
        return list(dispatcher.plan())
    finally:
        dispatcher.close()


def states(site: Site) -> dict[str, str]:
    with closing(site.open_queue()) as queue:
        tasks: list[Task] = list(queue.tasks())
    return {task.id: task.state for task in tasks}
