"""The real agents, those that are there, driven by the engine against a provider whose answers stand in the task."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_site import Site, git, start, until
from scripted_provider import ScriptedProvider

from avyay.engine import keeper
from avyay.engine.attempts import Attempts
from avyay.engine.types import NewTask

NAMES = ("claude", "codex", "opencode", "gemini", "aider")
AGENTS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in NAMES]
WITH_TOOLS = [item for item in AGENTS if item.values[0] != "aider"]
SLEEPS = "(setsid sleep 600 &) ; sleep 600 & sleep 600"


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    made = ScriptedProvider()
    yield made
    made.close()


def make_site(
    folder: Path,
    provider: ScriptedProvider,
    *agents: str,
    more: dict[str, object] | None = None,
    **settings: object,
) -> Site:
    entry = {"endpoint": provider.url, "api_key_env": "TEST_KEY", "model": "m", **(more or {})}
    entries = [{"name": name, "kind": name, **entry} for name in agents]
    os.environ["TEST_KEY"] = "sk-test"
    return Site(folder, agents=entries, **{"lease_timeout": 10.0, "heartbeat": 2.0, **settings})


class TestEach:
    @pytest.mark.parametrize("agent", AGENTS)
    def test_its_work_is_merged(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = make_site(tmp_path, provider, agent)
        add(site, "one", "[[write hello.txt: hi]] [[say: all done]]")
        site.run()
        assert site.task("one").state == "done", site.task("one").reason
        assert (site.repository / "hello.txt").read_text() == "hi\n"
        assert site.data("one", "verifying")["files"] == ["hello.txt"]  # and nothing that is its own
        assert site.data("one", "verifying")["turns"] == (1 if agent == "aider" else 2)

    @pytest.mark.parametrize("agent", AGENTS)
    def test_no_change_is_no_success(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = make_site(tmp_path, provider, agent)
        add(site, "one", "[[say: all done]]", attempts=1)
        site.run()
        assert site.data("one", "failed")["outcome"] == "no change"

    @pytest.mark.parametrize("agent", AGENTS)
    def test_a_refusing_provider(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = make_site(tmp_path, provider, agent)
        add(site, "one", "[[status 400]]", attempts=1)
        site.run()
        assert site.task("one").state == "failed"
        assert site.data("one", "failed")["outcome"] == "provider-permanent"

    @pytest.mark.parametrize("agent", AGENTS)
    def test_a_key_that_is_refused_parks_the_agent_not_the_task(
        self, tmp_path: Path, provider: ScriptedProvider, agent: str
    ) -> None:
        site = make_site(tmp_path, provider, agent)
        add(site, "one", "[[status 401]]")
        site.run()
        task = site.task("one")
        assert (task.state, task.attempt) == ("ready", 0)
        assert "401" in task.reason

    @pytest.mark.parametrize("agent", WITH_TOOLS)
    def test_an_endless_loop_ends_within_its_cap(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = make_site(tmp_path, provider, agent)
        add(site, "one", "[[loop]]", attempts=1, caps={"turns": 5})
        site.run()
        assert site.data("one", "failed")["outcome"] == "capped"
        assert 5 <= len(provider.requests) <= 6


@pytest.mark.parametrize("agent", AGENTS)
class TestNothingSurvives:
    """Background children in sessions of their own, ten seconds after the end, whoever brings it about."""

    def test_a_cap(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        # Codex does not wait for a command beyond ten seconds.
        site = sleeper(tmp_path, provider, agent, caps={"wall": 8.0 if agent == "codex" else 15.0})
        process = start(site)
        try:
            until(lambda: sleeping(site) >= 3, 60)
            until(lambda: site.task("one").state == "dead", 60)
            until(lambda: not marked(site), 10)
            assert site.data("one", "failed")["outcome"] == "capped"
        finally:
            end(process)

    def test_a_cancel(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = sleeper(tmp_path, provider, agent)
        process = start(site)
        try:
            until(lambda: sleeping(site) >= 3, 60)
            queue = site.open_queue()
            queue.cancel("one")
            queue.close()
            until(lambda: not marked(site), 10)
        finally:
            end(process)

    def test_the_dispatchers_own_death(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        site = sleeper(tmp_path, provider, agent)
        process = start(site)
        try:
            until(lambda: sleeping(site) >= 3, 60)
            end(process)
            until(lambda: not marked(site), 10)
        finally:
            end(process)

    def test_the_death_of_dispatcher_and_keeper(self, tmp_path: Path, provider: ScriptedProvider, agent: str) -> None:
        """Nobody is left who could end them: the next dispatcher does, at its start."""
        site = sleeper(tmp_path, provider, agent)
        process = start(site)
        again = None
        try:
            until(lambda: sleeping(site) >= 3, 60)
            process.send_signal(signal.SIGSTOP)  # it would sweep up after its keeper
            for pid in keeper.descendants(process.pid):
                if b"keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
            end(process)
            assert sleeping(site) >= 2
            queue = site.open_queue()
            queue.cancel("one")
            queue.close()
            again = start(site)
            until(lambda: not marked(site), 10)
        finally:
            for running in (process, again):
                if running is not None:
                    end(running)


def make_sleeper_entry(agent: str) -> dict[str, object]:
    """aider has no tool of its own to run commands with, but tests what it has edited."""
    return {"arguments": ["--auto-test", "--test-cmd", SLEEPS]} if agent == "aider" else {}


def sleeper(folder: Path, provider: ScriptedProvider, agent: str, **more: object) -> Site:
    site = make_site(folder, provider, agent, more=make_sleeper_entry(agent))
    script = "[[write hello.txt: hi]]" if agent == "aider" else f"[[run: {SLEEPS}]]"
    add(site, "one", script, attempts=1, **more)
    return site


def add(site: Site, name: str, description: str, **more: object) -> None:
    queue = site.open_queue()
    queue.add([NewTask(f"Task {name}", description, id=name, **more)])  # type: ignore[arg-type]
    queue.close()


def marked(site: Site) -> dict[int, str]:
    """The living processes of attempts."""
    return keeper.marks(Attempts(site.paths.component("engine") / "attempts").prefix)


def sleeping(site: Site) -> int:
    return sum(_command(pid) == "sleep" for pid in marked(site))


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.soak
@pytest.mark.needs("claude", "codex")
def test_twenty_dependent_tasks_on_three_nodes_with_one_killed(tmp_path: Path, provider: ScriptedProvider) -> None:
    """All agents that are there. A node's dispatcher dies midway: every task is merged once, and main stays green."""
    agents = [name for name in NAMES if shutil.which(name)]
    sites = [
        make_site(tmp_path, provider, *agents, nodes=[{"name": f"node{number}", "slots": 2}], lease_timeout=6.0)
        for number in range(3)
    ]
    site = sites[0]
    site.commit({"check.sh": "for f in done/*; do test -e $f || continue; sh $f || exit 1; done\n"})
    before = site.head()
    queue = site.open_queue()
    tasks = []
    for number in range(20):
        needs = tuple(f"t{n}" for n in ((number - 3, number - 4) if number >= 4 else (number - 3,)) if n >= 0)
        test = f"test {' -a '.join(f'-e done/{need}' for need in needs) or '1 = 1'}"
        script = f"[[write done/t{number}: {test}]] [[say: t{number} is done]]"
        agent = agents[number % len(agents)]
        tasks.append(NewTask(f"Task {number}", script, id=f"t{number}", needs=needs, agent=agent, attempts=6))
    queue.add(tasks)
    processes = [start(item) for item in sites]
    try:
        until(lambda: queue.counts().get("done", 0) >= 5, 240)
        processes[1].send_signal(signal.SIGKILL)
        until(lambda: queue.counts().get("done", 0) == 20, 480)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
        queue.close()
    merged = site.merged()
    assert sorted(merged) == sorted(f"t{number}" for number in range(20))
    assert not marked(site)
    for commit in git(site.repository, "rev-list", f"{before}..main").split():
        git(site.repository, "checkout", "--quiet", "--detach", commit)
        assert os.system(f"cd {site.repository} && sh check.sh") == 0
