"""How a result is judged: the scan of what changed, the review, a main branch that is red itself, pull requests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from engine_site import Site, git
from scripted_model import Model

from avyay.engine.review import CHECKLIST, Reviewer
from avyay.engine.worktree import Workshop, default_branch
from avyay.errors import UnreachableError
from avyay.git import GitRepository
from avyay.ports import Finding, ScanReport, Skipped
from avyay.wiring import open_services

WRITE = "echo done > out.txt"
TOKEN = (
    "ghp_" + "A9b8C7d6E5f4G3h2I1j0K9l8M7n6" + "O5p4Q3r2"
)  # built here, so that no scanner takes this file for a leak


class TestScan:
    """With the real scanner."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> Site:
        return Site(tmp_path, verify={"accept": "true"})

    def run(self, site: Site) -> None:
        with open_services() as services:
            site.run(scanner=services.make_scanner)

    def test_a_new_secret_is_refused_with_its_line(self, site: Site) -> None:
        site.add("one", f"echo 'token = \"{TOKEN}\"' > settings.py", attempts=1)
        self.run(site)
        assert site.data("one", "failed")["by"] == "scan"
        assert "settings.py:1" in site.data("one", "failed")["log"]
        assert TOKEN not in json.dumps(site.data("one", "failed"))

    def test_what_was_there_before_is_not_the_agents_fault(self, site: Site) -> None:
        site.commit({"settings.py": f'x = 1\ntoken = "{TOKEN}"\n'})
        site.add("one", "sed -i '1i # more' settings.py")
        self.run(site)
        assert site.task("one").state == "done", site.task("one").reason


class Blind:
    """A scanner that cannot read anything."""

    def scan(self, paths: object, *, progress: object = None) -> ScanReport:
        return ScanReport(Path("/"), (), (Skipped("a.py", "no parser"),), 1, 0.0)


@pytest.mark.parametrize(("mode", "state"), [("auto", "done"), ("required", "dead")])
def test_could_not_check_is_a_third_answer(tmp_path: Path, mode: str, state: str) -> None:
    site = Site(tmp_path, verify={"accept": "true", "scan": mode})
    site.add("one", WRITE, attempts=1)
    site.run(scanner=Blind)
    assert site.task("one").state == state


def finding(severity: str) -> Finding:
    return Finding("rule", severity, "bad", "out.txt", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("severity", "state"), [("low", "done"), ("high", "dead"), ("critical", "dead")])
def test_only_findings_from_a_severity_on_refuse(tmp_path: Path, severity: str, state: str) -> None:
    class Found:
        def scan(self, paths: list[Path], *, progress: object = None) -> ScanReport:
            return ScanReport(paths[0].parent, (finding(severity),), (), 1, 0.0)

    site = Site(tmp_path, verify={"accept": "true", "scan": "auto"})
    site.add("one", WRITE, attempts=1)
    site.run(scanner=Found)
    assert site.task("one").state == state


class TestReview:
    def problems(self, *items: tuple[int, str, str]) -> str:
        return json.dumps({"problems": [{"question": q, "place": p, "why": w} for q, p, w in items]})

    def test_what_the_model_objects_to_is_the_next_prompt(self, tmp_path: Path) -> None:
        site = Site(tmp_path, verify={"accept": "true", "scan": "off", "review": True})
        model = Model(self.problems((1, "out.txt:1", "the session token stands in the URL")))
        site.add("one", WRITE, attempts=1)
        site.run(completer=lambda: model)
        assert site.data("one", "failed")["by"] == "review"
        assert "session token" in site.data("one", "failed")["log"]
        (asked,) = model.asked
        assert asked.tier == "premium"
        assert (asked.service, asked.customer) == ("engine", "one")
        assert "+done" in asked.messages[-1].content

    def test_no_objection(self, tmp_path: Path) -> None:
        site = Site(tmp_path, verify={"accept": "true", "scan": "off", "review": True})
        site.add("one", WRITE)
        site.run(completer=lambda: Model(self.problems()))
        assert site.merged() == ["one"]

    def test_without_an_answer_nothing_is_merged_and_nothing_is_held_against_the_task(self, tmp_path: Path) -> None:
        site = Site(tmp_path, verify={"accept": "true", "scan": "off", "review": True})
        site.add("one", WRITE)
        site.run(completer=lambda: Model(UnreachableError("all providers are down")))
        assert (site.task("one").state, site.task("one").attempt) == ("ready", 0)
        assert site.merged() == []

    @pytest.mark.parametrize("text", ["no JSON", "{}", '{"problems": [{"question": "x"}]}', "[]"])
    def test_an_answer_that_is_none(self, tmp_path: Path, text: str) -> None:
        site = Site(tmp_path)
        site.add("one")
        with pytest.raises(UnreachableError, match="answered no checklist"):
            Reviewer(lambda: Model(text)).review(site.task("one"), "+x")

    def test_a_diff_too_large_is_said_to_be(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        site.add("one")
        (problem,) = Reviewer(lambda: Model("")).review(site.task("one"), "x" * 200_000)
        assert "too large" in problem
        assert len(CHECKLIST) == len(set(CHECKLIST))


class TestRedMain:
    def test_is_not_held_against_the_task(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        site.commit({"tests/broken.sh": "exit 1\n"})
        site.add("one", WRITE, attempts=1)
        site.run()
        task = site.task("one")
        assert (task.state, task.attempt) == ("ready", 0)
        assert "main itself is red" in task.reason

    def test_a_tasks_own_command_may_be_red_before(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        site.add("one", "echo nothing useful > other.txt", accept="test -f out.txt", attempts=1)
        site.run()
        assert site.task("one").state == "dead"


GH = """#!/bin/sh
echo "$@" >> {log}
case "$1 $2" in "pr create") {create};; "pr view") echo https://example.test/pull/7;; esac
"""


class TestPullRequests:
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: str) -> Site:
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "gh").write_text(GH.format(log=tmp_path / "gh.log", create=create))
        (tools / "gh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        site = Site(tmp_path, merge={"mode": "pull_request"})
        git(tmp_path, "init", "--quiet", "--bare", "origin.git")
        git(site.repository, "remote", "add", "origin", str(tmp_path / "origin.git"))
        return site

    def test_one_is_opened_and_main_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        site = self.site(tmp_path, monkeypatch, "echo https://example.test/pull/7")
        before = site.head()
        site.add("one", WRITE)
        site.run()
        assert site.task("one").state == "done"
        assert site.data("one", "done")["url"] == "https://example.test/pull/7"
        assert site.head() == before
        assert git(tmp_path / "origin.git", "show", "avyay/one/2:out.txt") == "done\n"
        assert "--base main" in (tmp_path / "gh.log").read_text()

    def test_one_that_exists_already_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        site = self.site(tmp_path, monkeypatch, "echo a pull request already exists >&2; exit 1")
        site.add("one", WRITE)
        site.run()
        assert site.data("one", "done")["url"] == "https://example.test/pull/7"

    def test_when_gh_fails_the_reason_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        site = self.site(tmp_path, monkeypatch, "echo not logged in >&2; exit 4")
        site.add("one", WRITE, attempts=1)
        site.run()
        assert site.task("one").state == "dead"
        assert "not logged in" in site.task("one").reason


class TestApprovalOfMerges:
    def test_a_verified_result_waits_for_a_person(self, tmp_path: Path) -> None:
        site = Site(tmp_path, merge={"approval": True})
        before = site.head()
        site.add("one", WRITE)
        site.run()
        task = site.task("one")
        assert (task.state, task.reason) == ("blocked", "waits for approval")
        assert site.head() == before
        queue = site.open_queue()
        queue.approve("one", by="me")
        queue.close()
        site.run()
        assert site.merged() == ["one"]
        attempts = site.paths.component("engine") / "attempts/one"
        assert len(list(attempts.glob("*/prompt.md"))) == 1, "the agent's work was not done twice"


@pytest.mark.parametrize(
    ("branches", "remote", "current", "expected"),
    [
        (("main", "dev"), None, "dev", "main"),
        (("master", "dev"), None, "dev", "master"),
        (("main", "trunk"), "trunk", "main", "trunk"),
        (("work",), "trunk", "work", "work"),  # the default branch was never checked out here
        (("dev",), None, "dev", "dev"),
    ],
)
def test_results_go_to_the_default_branch(
    tmp_path: Path, branches: tuple[str, ...], remote: str | None, current: str, expected: str
) -> None:
    git(tmp_path, "init", "--quiet", f"--initial-branch={branches[0]}")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "Begin")
    for name in branches[1:]:
        git(tmp_path, "branch", name)
    git(tmp_path, "checkout", "--quiet", current)
    if remote is not None:
        git(tmp_path, "symbolic-ref", "refs/remotes/origin/HEAD", f"refs/remotes/origin/{remote}")
    assert default_branch(GitRepository(tmp_path)) == expected


def test_a_work_tree_that_turned_to_another_branch_is_left_alone(tmp_path: Path) -> None:
    """Between the look at where the branch is checked out and the step that moves it."""
    site = Site(tmp_path)
    workshop = Workshop(site.repository, tmp_path / "workshop")
    before, where = workshop.fetch(), workshop.checked_out()
    assert where == site.repository
    git(site.repository, "checkout", "--quiet", "-b", "mine")
    after = site.commit({"more.txt": "more\n"}) and git(site.repository, "rev-parse", "mine").strip()
    git(site.repository, "reset", "--quiet", "--hard", before)
    assert not workshop.fast_forward(before, after, where)
    assert git(site.repository, "rev-parse", "mine").strip() == before
    assert workshop.checked_out() is None
    assert workshop.fast_forward(before, after, None)
    assert site.head() == after
    assert not workshop.fast_forward(before, after, None)  # it stands elsewhere now
