"""The real Claude Code and Codex, driven by the engine against a provider whose answers stand in the task."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_site import Site, git, start, until
from scripted_provider import ScriptedProvider

from avyay.engine import keeper
from avyay.engine.types import NewTask

AGENTS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("claude", "codex")]


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    made = ScriptedProvider()
    yield made
    made.close()


def make_site(folder: Path, provider: ScriptedProvider, *agents: str, **settings: object) -> Site:
    entries = [
        {"name": name, "kind": name, "endpoint": provider.url, "api_key_env": "TEST_KEY", "model": "m"}
        for name in agents
    ]
    os.environ["TEST_KEY"] = "sk-test"
    return Site(folder, agents=entries, **{"lease_timeout": 10.0, "heartbeat": 2.0, **settings})


@pytest.mark.parametrize("agent", AGENTS)
class TestEach:
    def test_its_work_is_merged(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = make_site(tmp_path, provider, agent)
        self.add(site, "one", "[[run: echo hi > hello.txt]] [[run: git add -A]] [[say: all done]]")
        site.run()
        assert site.task("one").state == "done", site.task("one").reason
        assert (site.repository / "hello.txt").read_text() == "hi\n"
        assert site.data("one", "verifying")["turns"] == 3

    def test_a_refusing_provider(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = make_site(tmp_path, provider, agent)
        self.add(site, "one", "[[status 400]]", attempts=1)
        site.run()
        assert site.task("one").state == "failed"
        assert site.data("one", "failed")["outcome"] == "provider-permanent"

    def test_a_key_that_is_refused_parks_the_agent_not_the_task(
        self, tmp_path: Path, provider: ScriptedProvider, agent: str
    ) -> None:
        site = make_site(tmp_path, provider, agent)
        self.add(site, "one", "[[status 401]]")
        site.run()
        task = site.task("one")
        assert (task.state, task.attempt) == ("ready", 0)
        assert "401" in task.reason

    def test_an_endless_loop_ends_within_its_cap(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = make_site(tmp_path, provider, agent)
        self.add(site, "one", "[[loop]]", attempts=1, caps={"turns": 5})
        site.run()
        assert site.data("one", "failed")["outcome"] == "capped"
        assert 5 <= len(provider.requests) <= 6

    def test_nothing_survives_it(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        """Background children, and the dispatcher's own death by kill -9 in the middle of a `sleep 600`."""
        site = make_site(tmp_path, provider, agent)
        self.add(site, "one", "[[run: (setsid sleep 600 &) ; sleep 600 & sleep 600]]")
        process = start(site)
        prefix = site.dispatcher().folders.prefix

        def sleeping() -> int:
            return sum(_command(pid) == "sleep" for pid in keeper.marks(prefix))

        try:
            until(lambda: sleeping() >= 3, 60)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed = time.monotonic()
            until(lambda: not keeper.marks(prefix), 10)
            assert time.monotonic() - killed < 10
        finally:
            process.kill()
            process.wait()

    def add(self, site: Site, name: str, description: str, **more: object) -> None:
        queue = site.open_queue()
        queue.add([NewTask(f"Task {name}", description, id=name, **more)])  # type: ignore[arg-type]
        queue.close()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.soak
@pytest.mark.needs("claude", "codex")
def test_twenty_dependent_tasks_on_three_nodes_with_one_killed(tmp_path: Path, provider: ScriptedProvider) -> None:
    """A node's dispatcher dies midway; every task is merged once, and main is green at every commit."""
    sites = [
        make_site(
            tmp_path, provider, *(("claude", "codex") if number % 2 else ("codex", "claude")),
            nodes=[{"name": f"node{number}", "slots": 2}], lease_timeout=6.0,
        )
        for number in range(3)
    ]  # fmt: skip
    site = sites[0]
    check = "n=$(ls done 2>/dev/null | wc -l); for f in done/*; do test -e $f || continue; sh $f || exit 1; done\n"
    site.commit({"check.sh": check})
    before = site.head()
    queue = site.open_queue()
    tasks = []
    for number in range(20):
        needs = tuple(f"t{n}" for n in ((number - 3, number - 4) if number >= 4 else (number - 3,)) if n >= 0)
        test = f"test {' -a '.join(f'-e done/{need}' for need in needs) or '1 = 1'}"
        script = f"[[run: mkdir -p done; echo '{test}' > done/t{number}; sleep 0.5]] [[say: t{number} done]]"
        agent = ("claude", "codex")[number % 2]
        tasks.append(NewTask(f"Task {number}", script, id=f"t{number}", needs=needs, agent=agent))
    queue.add(tasks)
    processes = [start(item) for item in sites]
    try:
        until(lambda: queue.counts().get("done", 0) >= 5, 120)
        processes[1].send_signal(signal.SIGKILL)
        until(lambda: queue.counts().get("done", 0) == 20, 240)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
        queue.close()
    merged = site.merged()
    assert sorted(merged) == sorted(f"t{number}" for number in range(20))
    for commit in git(site.repository, "rev-list", f"{before}..main").split():
        git(site.repository, "checkout", "--quiet", "--detach", commit)
        assert os.system(f"cd {site.repository} && sh check.sh") == 0
