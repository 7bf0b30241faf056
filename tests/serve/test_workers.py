"""Several workers are one daemon: one of them runs the jobs, all answer for them, and what dies is taken over."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon import wait_for
from family import Family, Line

from avyay.errors import UsageError
from avyay.serve.house import Metric
from avyay.serve.lead import Lead
from avyay.serve.port_holder import port_holder
from avyay.serve.siblings import Hub, Siblings
from avyay.serve.workers import workers_of

pytestmark = [pytest.mark.needs("ps"), pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")]

# Stands in for git: a clone waits until the gate is open, and then holds one file.
GIT = """#!/bin/sh
case "$*" in *clone*) ;; *) exit 1 ;; esac
for place; do :; done
echo "$$" >> {gate}.clones
n=0
while [ ! -e {gate} ] && [ $n -lt 1200 ]; do sleep 0.05; n=$((n + 1)); done
mkdir -p "$place" && echo 'password = "hunter2hunter2"' > "$place/a.py"
"""
REPOSITORY = {"git": {"url": "https://git.test/ops/site"}}


class Scanners(Family):
    """RAKSHA with two workers, whose clones wait at a gate."""

    def __init__(self, home: Path, **environment: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.gate = home / "gate"
        self.config = home / "config.yaml"
        self.configure("git_hosts: [git.test]")
        folder = home / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "git").write_text(GIT.format(gate=self.gate))
        (folder / "git").chmod(stat.S_IRWXU)
        options = ("--config", str(self.config), "--reload-config")
        super().__init__("raksha", home, *options, path=folder, RAKSHA_KEY="k3y", **environment)

    def configure(self, raksha: str) -> None:
        self.config.write_text(f"raksha: {{{raksha}}}\n")

    def clones(self) -> int:
        """How many clones have begun."""
        file = self.gate.with_name("gate.clones")
        return len(file.read_text().split()) if file.exists() else 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanners]:
    family = Scanners(tmp_path_factory.mktemp("scanners"))
    family.up()
    yield family
    code = family.end()
    family.kill()
    assert code == 0


@pytest.fixture
def scanners(shared: Scanners) -> Scanners:
    shared.gate.unlink(missing_ok=True)
    return shared


def submit(line: Line, key: str | None = None) -> str:
    headers = {} if key is None else {"idempotency_key": key}
    status, job = line.ask("POST", "/v1/scan?wait=false", REPOSITORY, **headers)
    assert status == 202, job
    return str(job["id"])


def state(line: Line, identity: str) -> str:
    return str(line.get(f"/v1/jobs/{identity}")["state"])


def counted(line: Line, name: str) -> float:
    found = re.findall(rf"^{re.escape(name)} ([0-9.e+]+)$", line.get("/metrics"), re.MULTILINE)
    return sum(map(float, found))


def test_a_job_that_loses_its_worker_is_done_by_the_next(scanners: Scanners) -> None:
    with scanners.both() as (leader, other):
        begun = scanners.clones()
        identity = submit(other)
        wait_for(lambda: state(other, identity) == state(leader, identity) == "running")
        wait_for(lambda: scanners.clones() == begun + 1)
        victim = scanners.leader()
        assert victim is not None
        before = counted(other, 'raksha_http_requests_total{method="GET",status="200"}')
        with ThreadPoolExecutor(1) as pool:
            stream = pool.submit(other.get, f"/v1/jobs/{identity}/events")
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: scanners.leader() not in (None, victim))
            scanners.gate.touch()
            last = stream.result().strip().rpartition("data: ")[2]
        job = json.loads(last)
        assert (job["state"], job["runs"]) == ("done", 2)
        # What the dead one had counted is not lost again once it was shown.
        assert counted(other, 'raksha_http_requests_total{method="GET",status="200"}') >= before
        page = other.get("/v1/events?name=raksha.job.ended&limit=100&after=start")
        assert [event["data"]["state"] for event in page["events"] if event["data"]["job"] == identity] == ["done"]
    wait_for(lambda: len(scanners.workers()) == 2)
    scanners.up()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Scanners]:
    family = Scanners(tmp_path / "watched", AVYAY_SERVE_WORKER_TIMEOUT="5s")
    family.up()
    yield family
    family.kill()


def test_a_worker_that_hangs_is_killed_and_the_next_leads(watched: Scanners) -> None:
    victim = watched.leader()
    assert victim is not None
    pids = set(watched.workers())
    assert set(workers_of(watched.process.pid)) == pids
    assert f"(pid {watched.process.pid})" in (port_holder(watched.port) or "")  # not one of its workers
    with watched.both() as (_, other):
        identity = submit(other)
        wait_for(lambda: watched.clones() == 1)
        os.kill(victim, signal.SIGSTOP)
        wait_for(lambda: watched.leader() not in (None, victim), 180)  # ten times as patient with a start
        watched.gate.touch()
        wait_for(lambda: state(other, identity) == "done", 60)
        page = other.get("/v1/events?name=raksha.job.ended&limit=100&after=start")
        assert [event["data"]["state"] for event in page["events"] if event["data"]["job"] == identity] == ["done"]
    ((how, runs),) = watched.jobs()
    assert (how, runs) == ("done", 2)
    assert f'"pid": {victim}' in next(line for line in watched.words().splitlines() if "worker_hung" in line)
    with watched.both():  # whoever does not lead is not missed: it is replaced as well
        (follower,) = set(watched.workers()) - {watched.leader()}
    os.kill(follower, signal.SIGSTOP)
    wait_for(lambda: follower not in watched.workers(), 180)
    with watched.both():
        assert len(watched.workers()) == 2
    assert watched.end() == 0


def test_a_job_is_called_off_through_another_worker(scanners: Scanners) -> None:
    with scanners.both() as (leader, other):
        begun = scanners.clones()
        running = submit(leader)
        wait_for(lambda: scanners.clones() == begun + 1)
        assert other.ask("DELETE", f"/v1/jobs/{running}")[0] == 202
        scanners.gate.touch()
        wait_for(lambda: state(other, running) == "cancelled")
        assert leader.get(f"/v1/jobs/{running}")["result"] is None


def test_one_key_sent_to_all_workers_at_once_is_one_job(scanners: Scanners) -> None:
    with scanners.both() as (leader, other):
        before = len(scanners.jobs())

        def send(line: Line) -> set[str]:
            return {submit(line, key="monday") for _ in range(10)}

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(send, (leader, other))
        assert len(first | second) == 1
        assert len(scanners.jobs()) == before + 1
        scanners.gate.touch()
        (identity,) = first
        wait_for(lambda: state(other, identity) == "done")


def test_counters_are_one_sum_whoever_is_asked(scanners: Scanners) -> None:
    code = {"files": [{"path": "a.py", "content": "x = 1\n"}]}
    with scanners.both() as (leader, other):
        before = counted(leader, "raksha_files_total")
        for line in (leader, other, other):
            assert line.ask("POST", "/v1/scan", code)[0] == 200
        assert counted(leader, "raksha_files_total") == counted(other, "raksha_files_total") == before + 3
        seen = [counted(line, 'raksha_http_requests_total{method="GET",status="200"}') for line in (leader, other) * 5]
        assert seen == sorted(seen)
        assert "raksha_event_streams 0" in other.get("/metrics")


def test_all_workers_read_the_configuration_anew_and_no_request_fails(scanners: Scanners) -> None:
    seen: list[int] = []
    done = threading.Event()

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{scanners.port}{path}", timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def ask() -> None:
        while not done.is_set():
            seen.append(status("/health"))

    def configure(raksha: str, answer: str) -> None:
        told = scanners.words().count(answer)
        scanners.configure(raksha)
        scanners.process.send_signal(signal.SIGHUP)
        wait_for(lambda: scanners.words().count(answer) > told, 60)

    def everywhere() -> set[int]:
        with scanners.both() as lines:
            return {line.ask("GET", "/v1/jobs")[0] for line in lines}

    pids = scanners.workers()
    asking = [threading.Thread(target=ask) for _ in range(2)]
    try:
        for one in asking:
            one.start()
        configure("git_hosts: [git.test], api_key_env: RAKSHA_KEY", "reloaded_all")
        assert everywhere() == {401}
        for bad in ("api_key_env: 7", "api_key_env: NOT_SET", "baseline: nowhere.json"):
            configure(bad, "reload_refused")
        assert everywhere() == {401}
        configure("git_hosts: [git.test]", "reloaded_all")
        assert everywhere() == {200}
    finally:
        done.set()
        for one in asking:
            one.join()
    assert set(seen) == {200}
    assert scanners.workers() == pids


def test_the_end_leaves_nobody_and_no_job_behind(tmp_path: Path) -> None:
    scanners = Scanners(tmp_path / "scanners")
    scanners.up()
    try:
        with scanners.both() as (leader, other):
            identity = submit(other)
            wait_for(lambda: scanners.clones() == 1)
            streams = leader.stream("/v1/events"), other.stream(f"/v1/jobs/{identity}/events")
            scanners.process.send_signal(signal.SIGTERM)
            scanners.gate.touch()
            texts = [stream.read().decode() for stream in streams]
            assert texts[0].startswith("retry:")
            assert "event: job" in texts[1]
        assert scanners.process.wait(60) == 0
        ((how, runs),) = scanners.jobs()
        assert (how, runs) in {("queued", 1), ("queued", 0), ("done", 1)}  # done, where the clone was quicker
        assert not scanners.answers()
    finally:
        scanners.kill()


def test_a_worker_that_did_not_index_sees_the_index_and_mcp_meets_any(tmp_path: Path) -> None:
    runbooks = tmp_path / "ops"
    runbooks.mkdir()
    (runbooks / "kafka.md").write_text("# Kafka\n\nRestart the broker.\n")
    config = tmp_path / "config.yaml"
    config.write_text("rag: {embedder: {name: hashing}, poll_interval: 0}\nmarga: {discover: false}\n")
    options = ("--config", str(config))
    environment = {**os.environ, "AVYAY_HOME": str(tmp_path / "avyay"), "HOME": str(tmp_path)}
    index = [sys.executable, "-m", "avyay", "rag", "index", str(runbooks), "-q", *options]
    subprocess.run(index, env=environment, check=True, stdout=subprocess.DEVNULL)
    family = Family("rag", tmp_path, *options)
    try:
        family.up()
        with family.both() as (leader, other):
            for line in (leader, other):
                assert line.ask("POST", "/v1/search", {"query": "zebra"})[1]["passages"][0]["path"] == "kafka.md"
            (runbooks / "new.md").write_text("# Zebra\n\nzebra zebra\n")
            status, job = other.ask("POST", "/v1/sync", {})
            assert status == 202
            wait_for(lambda: state(other, job["id"]) == "done", 60)
            for line in (leader, other):
                assert line.ask("POST", "/v1/search", {"query": "zebra"})[1]["passages"][0]["path"] == "new.md"
                assert line.get("/health")["last_sync"] is None
            accept = "application/json, text/event-stream"
            started = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
            call = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": started}
            assert leader.ask("POST", "/mcp", call, accept=accept)[0] == 200
            listed = other.ask("POST", "/mcp", {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, accept=accept)
            assert "ask_devops" in str(listed[1])
        assert family.end() == 0
    finally:
        family.kill()


def test_the_collector_has_one_worker_and_keeps_its_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        public = free.getsockname()[1]
    family = Family(
        "siddhi", tmp_path, "--collector-port", str(public), AVYAY_RAG_EMBEDDER_NAME="hashing", AVYAY_MARGA_DISCOVER="0"
    )

    def collects() -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{public}/nothing", timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    try:
        family.up()
        assert collects() == 404
        for pid in family.workers():  # whichever of them collects, nobody is refused meanwhile
            os.kill(pid, signal.SIGKILL)
            assert collects() == 404
        assert family.end() == 0
    finally:
        family.kill()


@pytest.mark.needs("git")
def test_one_worker_gives_tasks_to_agents_and_the_next_takes_over(tmp_path: Path) -> None:
    root = tmp_path / "code"
    root.mkdir()
    (root / "README.md").write_text("# Code\n")
    for words in ("init --quiet --initial-branch=main", "add --all", "commit --quiet -m first"):
        subprocess.run(["git", *words.split()], cwd=root, check=True)
    config = tmp_path / "config.yaml"
    agent = "{name: writer, kind: command, command: [sh, -c, 'date >> x.txt; date >> y.txt']}"
    config.write_text(f"engine:\n  repository: {root}\n  agents: [{agent}]\n  tick: 0.2\nmarga: {{discover: false}}\n")
    family = Family("engine", tmp_path, "--run", "--config", str(config))

    def finish(line: Line, file: str) -> None:
        task = {"title": f"Make {file}", "accept": f"test -e {file}", "files": [file]}
        status, found = line.ask("POST", "/v1/engine/tasks", {"tasks": [task]})
        assert status == 201, found
        (identity,) = found["added"]
        wait_for(lambda: line.get(f"/v1/engine/tasks/{identity}")["state"] in ("done", "failed", "dead"), 90)
        assert line.get(f"/v1/engine/tasks/{identity}")["state"] == "done"

    try:
        family.up()
        with family.both() as (_, other):
            finish(other, "x.txt")
            victim = family.leader()
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: other.get("/health")["duties"] == "here", 60)
            finish(other, "y.txt")
        assert family.end() == 0
    finally:
        family.kill()


def test_the_parent_publishes_on_the_tailnet(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    status = {"BackendState": "Running", "Self": {"DNSName": "laptop.tail1.ts.net.", "TailscaleIPs": ["100.64.0.1"]}}
    (folder / "status.json").write_text(json.dumps(status))
    program = folder / "tailscale"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n[ "$1" != status ] || cat {folder}/status.json\n')
    program.chmod(stat.S_IRWXU)
    config = tmp_path / "config.yaml"
    config.write_text("raksha: {api_key_env: RAKSHA_KEY}\n")
    options = ("--tailscale-serve", "--reload-config", "--config", str(config))
    family = Family("raksha", tmp_path, *options, path=folder, RAKSHA_KEY="k3y")
    try:
        family.up()
        with family.both() as lines:  # a published daemon wants the key, and takes any host's name
            for line in lines:
                assert line.ask("GET", "/v1/jobs")[0] == 401
                assert line.ask("GET", "/v1/jobs", host="laptop.tail1.ts.net", authorization="Bearer k3y")[0] == 200
        assert family.end() == 0
        assert f"listens on https://laptop.tail1.ts.net:{family.port} " in family.words()
        calls = [line for line in (folder / "calls").read_text().splitlines() if line.startswith("serve")]
        assert calls == [
            f"serve --bg --https={family.port} http://127.0.0.1:{family.port}",
            f"serve --https={family.port} off",
        ]
    finally:
        family.kill()


# ---------------------------------------------------------------- the lead, and what workers tell one another


def test_one_leads_and_the_next_follows(tmp_path: Path) -> None:
    told: list[str] = []

    def duty(name: str) -> Any:
        @asynccontextmanager
        async def work() -> AsyncIterator[None]:
            told.append(f"{name} begins")
            try:
                yield
            finally:
                await asyncio.sleep(0)
                told.append(f"{name} ends")

        return work

    async def main() -> None:
        leads = [Lead(tmp_path / "lead.lock", [duty(name)], "test") for name in ("first", "second")]
        for lead in leads:
            await lead.start()
        assert [lead.leads for lead in leads] == [True, False]
        leads[0].resign()
        async with asyncio.timeout(60):
            while not leads[1].leads:
                await asyncio.sleep(0.005)
        for lead in leads:
            await lead.stop()

    asyncio.run(main())
    assert told == ["first begins", "first ends", "second begins", "second ends"]


def test_a_duty_that_cannot_begin_is_told_at_the_start(tmp_path: Path) -> None:
    @asynccontextmanager
    async def bad() -> AsyncIterator[None]:
        raise UsageError("There is no repository.")
        yield

    async def main() -> None:
        lead = Lead(tmp_path / "lead.lock", [bad], "test")
        with pytest.raises(UsageError):
            await lead.start()
        await lead.stop()
        other = Lead(tmp_path / "lead.lock", [], "test")
        await other.start()
        assert other.leads  # the lock was let go
        await other.stop()

    asyncio.run(main())


class Counting:
    """An application that counts."""

    def __init__(self, count: float, facts: dict[str, Any] | None = None) -> None:
        self.count, self.known, self.heard = count, facts, 0

    def counts(self) -> list[Metric]:
        rows = [({"kind": "a"}, self.count)]
        return [("done_total", "counter", "Done.", rows), ("busy", "gauge", "Busy.", [({}, 1.0)])]

    def facts(self) -> dict[str, Any] | None:
        return self.known

    def news(self) -> None:
        self.heard += 1


def test_workers_add_up(tmp_path: Path) -> None:
    def sums(metrics: list[Metric]) -> dict[str, float]:
        return {name: sum(value for _, value in rows) for name, _, _, rows in metrics}

    async def main() -> None:
        hub = Hub()
        await hub.serve(tmp_path / "hub")
        lost: list[int] = []
        apps = [Counting(1), Counting(2, {"last": 7}), Counting(4)]
        workers = [Siblings(lost=lambda: lost.append(1)) for _ in apps]
        for worker, app in zip(workers, apps, strict=True):
            worker.add(app)
            await worker.join(tmp_path / "hub")
        async with asyncio.timeout(60):
            for worker in workers:
                while True:
                    metrics, facts = await worker.ask()
                    if sums(metrics) == {"done_total": 7, "busy": 3}:
                        break
                assert facts == {"last": 7}
            workers[0].news()
            while [app.heard for app in apps] != [1, 1, 1]:
                await asyncio.sleep(0.005)
            apps[0].count = 9
            assert sums((await workers[1].ask())[0]) == {"done_total": 15, "busy": 3}
            # A configuration that is left, and a worker that has ended: what they counted stays, what they do not.
            workers[0].remove(apps[0])
            workers[0].add(Counting(1))
            assert sums((await workers[1].ask())[0]) == {"done_total": 16, "busy": 3}
            await workers[0].leave()
            while sums((await workers[1].ask())[0]) != {"done_total": 16, "busy": 2}:
                await asyncio.sleep(0.005)
            assert not lost
            await hub.close()
            while len(lost) < 2:
                await asyncio.sleep(0.005)
        alone, _ = await workers[1].ask()
        assert sums(alone) == {"done_total": 2, "busy": 1}
        for worker in workers[1:]:
            await worker.leave()

    asyncio.run(main())


def test_nobody_waits_for_the_word_of_a_worker_that_is_silent(tmp_path: Path) -> None:
    async def main() -> None:
        now = 0.0
        hub = Hub(clock=lambda: now)
        await hub.serve(tmp_path / "hub")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "hub")
        counts = {'["done_total","counter","Done.",{"kind":"a"}]': 2.0}
        for message in (["j", 1], ["m", counts], ["m", counts]):
            writer.write(json.dumps(message).encode() + b"\n")
        while b'["m"' not in await reader.readline():
            pass
        worker = Siblings(lost=lambda: None)
        worker.add(Counting(1))
        await worker.join(tmp_path / "hub")
        now = 60.0
        metrics, _ = await worker.ask()
        (done,) = [sum(value for _, value in rows) for name, _, _, rows in metrics if name == "done_total"]
        assert done == 3  # its last word counts
        await worker.leave()
        await hub.close()
        assert b'"?"' not in await reader.read()
        writer.close()
        await writer.wait_closed()

    asyncio.run(main())


def test_the_first_to_refuse_a_configuration_stops_it(tmp_path: Path) -> None:
    async def main() -> None:
        hub = Hub()
        await hub.serve(tmp_path / "hub")
        asked: list[int] = []
        answers = [True, True]

        def reloading(number: int) -> Any:
            async def reload() -> bool:
                asked.append(number)
                return answers[number]

            return reload

        workers = [Siblings(lost=lambda: None) for _ in range(2)]
        for number, worker in enumerate(workers):
            worker.reload = reloading(number)
            await worker.join(tmp_path / "hub")
            worker.up()
        async with asyncio.timeout(60):
            while hub.serving < 2:
                await asyncio.sleep(0.005)
            assert await hub.reload()
            assert sorted(asked) == [0, 1]
            asked.clear()
            answers[:] = [False, False]
            assert not await hub.reload()
            assert len(asked) == 1  # the other was not asked
        for worker in workers:
            await worker.leave()
        await hub.close()

    asyncio.run(main())
