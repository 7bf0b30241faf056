"""Nodes behind ssh: orders out, commits home, lines that drop, lids that close, leases that are lost.

`ssh` is a stand-in that runs the command in another home, and fails like ssh while a file named `down` is there.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from avyay.config.engine import EngineAgentSettings
from avyay.engine import keeper
from avyay.engine.agents.base import Access
from avyay.engine.agents.outcome import classify
from avyay.engine.nodes.base import Caps, Control, Order, Report
from avyay.engine.nodes.ssh import RemoteNode, loopback, through_tunnel
from avyay.engine.nodes.tailnet import TailnetTransport, find_peer
from avyay.engine.nodes.transport import RefusedError, SshTransport, call_json, runner_archive
from avyay.engine.worktree import Workshop
from avyay.errors import AvyayError, ConfigError, UnreachableError
from avyay.tailnet import read_tailnet

pytestmark = pytest.mark.needs("git")

SSH = """#!/bin/sh
echo "$@" >> "{log}"
while [ $# -gt 0 ]; do
  case "$1" in -o|-R) shift 2;; -*) shift;; *) break;; esac
done
[ -f "{home}/down" ] && {{ echo "ssh: connect to host $1: No route to host" >&2; exit 255; }}
shift
[ $# -eq 0 ] && exec sleep 60
cd "{home}" && HOME="{home}" exec sh -c "$*"
"""


class Machine:
    """The node's side, as the test sees it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "node"
        self.home.mkdir()
        self.log = folder / "ssh.log"
        self.log.touch()

    def go_down(self) -> None:
        (self.home / "down").touch()

    def come_back(self) -> None:
        (self.home / "down").unlink()

    def attempt(self, fence: int = 1) -> Path:
        return self.home / ".avyay-engine" / "attempts" / "t-1" / str(fence)

    def processes(self, fence: int = 1) -> list[int]:
        """The supervisor, the keeper and all that carry the attempt's mark."""
        found = [pid for pid, mark in keeper.marks("").items() if mark.endswith(f"/t-1/{fence}") and self.own(pid)]
        try:
            owner = json.loads((self.attempt(fence) / "owner.json").read_text())
        except (OSError, ValueError):
            return found
        if keeper.birth(owner["pid"]) == owner["birth"]:
            found += [owner["pid"], *keeper.descendants(owner["pid"])]
        return sorted(set(found))

    def own(self, pid: int) -> bool:
        try:
            return f"HOME={self.home}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path)
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH.format(home=made.home, log=made.log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    yield made
    for pid in made.processes():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    repository = tmp_path / "repository"
    repository.mkdir()
    for command in (
        ["git", "init", "-q", "-b", "main"],
        ["git", "commit", "-q", "--allow-empty", "-m", "first"],
    ):
        subprocess.run(command, cwd=repository, check=True)
    (repository / "kept.txt").write_text("kept\n")
    subprocess.run(["git", "add", "-A"], cwd=repository, check=True)
    subprocess.run(["git", "commit", "-q", "-m", "second"], cwd=repository, check=True)
    made = Workshop(repository, tmp_path / "workshop")
    made.fetch()
    return made


def agent(script: str) -> EngineAgentSettings:
    return EngineAgentSettings(name="writer", kind="command", command=("sh", "-c", script))


def node(workshop: Workshop, script: str = "true", **options: object) -> RemoteNode:
    settings: dict[str, object] = {"lease_timeout": 30.0, "pulse": 0.1, **options}
    return RemoteNode("box", SshTransport("box", ".avyay-engine"), lambda _: workshop, [agent(script)], **settings)  # type: ignore[arg-type]


@pytest.fixture
def order(workshop: Workshop, tmp_path: Path) -> Order:
    folder = tmp_path / "attempt"
    folder.mkdir()
    return Order(
        "t-1", 1, 1, "Write it", "writer", workshop.repository.root, workshop.head(), "Please write.",
        Access(), Caps(60, 60, 50), folder,
    )  # fmt: skip


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def heard(order: Order) -> str:
    """What the dispatcher has of the agent's output: the line works, and the agent does."""
    path = order.folder / "output.log"
    return path.read_text() if path.exists() else ""


class Background:
    """`run` in a thread; `wait` gives its report or raises its error."""

    def __init__(self, node: RemoteNode, order: Order) -> None:
        self.control = Control()
        self._outcome: list[Report | AvyayError] = []

        def work() -> None:
            try:
                self._outcome.append(node.run(order, self.control))
            except AvyayError as error:
                self._outcome.append(error)

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def wait(self, seconds: float = 60) -> Report:
        self._thread.join(seconds)
        assert self._outcome, "it did not end"
        if isinstance(self._outcome[0], AvyayError):
            raise self._outcome[0]
        return self._outcome[0]


class TestAttempts:
    def test_commits_come_home_and_the_log_stays(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        script = (
            "cat kept.txt; cat >> asked.txt; git add asked.txt; git commit -qm 'the agent commits';"
            " echo left > left.txt; echo working >&2; env > seen.txt"
        )
        report = node(workshop, script).run(order, Control())
        assert (report.ending.code, report.ending.ended_by) == (0, None)
        assert report.git.files == ("asked.txt", "left.txt", "seen.txt")
        assert report.git.commits == 2
        tip = workshop.copy.output("rev-parse", order.branch).strip()
        assert workshop.copy.output("show", f"{tip}:asked.txt") == "Please write."
        seen = workshop.copy.output("show", f"{tip}:seen.txt")
        assert f"HOME={machine.attempt()}/home" in seen
        assert "AVYAY_HOME" not in seen
        assert report.log.read_text() == "kept\n"
        left = {path.name for path in machine.attempt().iterdir()}
        assert {"output.log", "errors.log", "outcome.json", "closed.json"} <= left
        assert not left & {"tree", "home", "spec.json"}
        assert machine.processes() == []
        assert workshop.copy.output("for-each-ref", "refs/avyay/fetched", "refs/avyay/sent") == ""

    def test_the_runner_and_the_history_are_sent_once(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        first = node(workshop, "echo a > a.txt")
        first.run(order, Control())
        second = replace(order, fence=2)
        assert first.run(second, Control()).git.files == ("a.txt",)
        assert machine.log.read_text().count("cat > ") == 1
        assert len(list((machine.home / ".avyay-engine").glob("runner-*.pyz"))) == 1

    def test_an_agent_that_changes_nothing(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        report = node(workshop, "exit 7").run(order, Control())
        assert report.ending.code == 7
        assert not report.git.changed

    def test_wall_stall_and_cancel_end_the_whole_tree(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        script = "setsid sleep 600 & (sleep 601 &) ; echo begun; sleep 602"
        for fence, caps, by in ((1, Caps(1.0, 60, 50), "wall"), (2, Caps(60, 1.0, 50), "stall")):
            report = node(workshop, script).run(replace(order, fence=fence, caps=caps), Control())
            assert report.ending.ended_by == by
            assert machine.processes(fence) == []
        running = Background(node(workshop, script), replace(order, fence=3))
        until(lambda: heard(order).count("begun") == 3)
        running.control.stop("cancel", "by hand")
        assert running.wait().ending.ended_by == "cancel"
        assert machine.processes(3) == []

    def test_a_file_for_outside_of_the_home_is_refused(self, machine: Machine, workshop: Workshop) -> None:
        transport = SshTransport("box", ".avyay-engine")
        call_json(transport, "probe")
        with pytest.raises(RefusedError, match="no task's name"):
            transport.call("poll", "../../etc", "1", "0")

    def test_what_an_agent_complains_of_is_heard_from_afar(
        self, machine: Machine, workshop: Workshop, order: Order, tmp_path: Path
    ) -> None:
        """Gemini CLI says only on standard error that its provider turns it away, and tries for minutes."""
        program = tmp_path / "gemini"
        refused = "Attempt 1 failed with status 429. Retrying with backoff..."
        program.write_text(f"#!/bin/sh\nfor i in 1 2 3; do echo '{refused}' >&2; sleep 0.1; done\nsleep 600\n")
        program.chmod(0o755)
        gemini = EngineAgentSettings(name="gemini", program=str(program))
        transport = SshTransport("box", ".avyay-engine")
        made = RemoteNode("box", transport, lambda _: workshop, [gemini], lease_timeout=30.0, pulse=0.1)
        report = made.run(replace(order, agent="gemini"), Control())
        outcome = classify(report.ending, report.transcript, report.git)
        assert (outcome.kind, outcome.limited) == ("provider-transient", True)


class TestDroppedLines:
    def test_work_goes_on_while_ssh_is_away(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        script = f"echo one; while [ ! -f {machine.home}/go ]; do sleep 0.05; done; echo two; echo x > x.txt"
        running = Background(node(workshop, script, lease_timeout=20.0), order)
        until(lambda: "one" in heard(order))
        machine.go_down()
        (machine.home / "go").touch()
        until(lambda: (machine.attempt() / "outcome.json").exists())
        machine.come_back()
        report = running.wait()
        assert report.git.files == ("x.txt",)
        assert report.log.read_text() == "one\ntwo\n"

    def test_when_the_line_stays_away_both_sides_give_up(
        self, machine: Machine, workshop: Workshop, order: Order
    ) -> None:
        running = Background(node(workshop, "echo one; sleep 600", lease_timeout=4.0), order)
        until(lambda: "one" in heard(order))
        machine.go_down()
        with pytest.raises(UnreachableError, match="went away"):
            running.wait()
        until(lambda: not machine.processes())
        outcome = json.loads((machine.attempt() / "outcome.json").read_text())
        assert outcome["ended_by"] == "lease"

    def test_a_machine_that_never_answers(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        machine.go_down()
        made = node(workshop)
        assert not made.ready()
        assert made.agents() == ()
        with pytest.raises(UnreachableError, match="No route to host"):
            made.capabilities()
        with pytest.raises(UnreachableError):
            made.run(order, Control())
        assert "could not be asked" in made.recover()[0]

    def test_a_login_script_that_prints_is_named(self, machine: Machine, tmp_path: Path) -> None:
        program = tmp_path / "bin" / "ssh"
        program.write_text("#!/bin/sh\necho Welcome!\n")
        with pytest.raises(UnreachableError, match="answered nonsense") as caught:
            call_json(SshTransport("box", "x"), "probe")
        assert "login script" in str(caught.value.hint)

    @pytest.mark.parametrize("host", ["-oProxyCommand=x", "", "a b"])
    def test_a_host_that_is_an_option_is_refused(self, host: str) -> None:
        with pytest.raises(ConfigError):
            SshTransport(host, "x")


def lid(machine: Machine, workshop: Workshop, order: Order, *, lease_timeout: float, closed: float) -> None:
    """Close the lid for longer than the lease lives, open it again: nothing of the old attempt goes on."""
    script = "echo begun; setsid sleep 1000 & while true; do date >> beats.txt; sleep 0.1; done"
    running = Background(node(workshop, script, lease_timeout=lease_timeout), order)
    until(lambda: "begun" in heard(order) and (machine.attempt() / "tree/beats.txt").exists())
    asleep: set[int] = set()
    while fresh := set(machine.processes()) - asleep:  # some end, and some begin, while we go through them
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        asleep |= fresh
    asleep = set(machine.processes())
    machine.go_down()
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="went away"):
        running.wait(lease_timeout + 60)
    time.sleep(max(0.0, closed - (time.monotonic() - began)))
    assert asleep <= set(machine.processes())
    machine.come_back()
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not machine.processes())
    assert json.loads((machine.attempt() / "outcome.json").read_text())["ended_by"] == "lease"
    # The task was given to somebody else meanwhile, perhaps to this very machine.
    report = node(workshop, "echo new > new.txt").run(replace(order, fence=2), Control())
    assert report.git.files == ("new.txt",)


class TestSleep:
    def test_a_lid_that_was_closed(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        lid(machine, workshop, order, lease_timeout=8.0, closed=9.0)

    @pytest.mark.soak
    def test_a_lid_that_was_closed_for_five_minutes(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        lid(machine, workshop, order, lease_timeout=60.0, closed=300.0)

    def test_a_newer_fence_ends_the_older_and_an_older_is_refused(
        self, machine: Machine, workshop: Workshop, order: Order
    ) -> None:
        old = Background(node(workshop, "echo begun; sleep 600"), order)
        until(lambda: "begun" in heard(order))
        report = node(workshop, "echo new > new.txt").run(replace(order, fence=2), Control())
        assert report.git.files == ("new.txt",)
        # Whether its own look at the fence comes first, or the sweep of the newer one.
        assert old.wait().ending.ended_by in ("lease", "abandoned")
        assert machine.processes() == []
        with pytest.raises(RefusedError, match="stale"):
            node(workshop).run(order, Control())

    def test_a_supervisor_that_is_killed_takes_the_agent_along(
        self, machine: Machine, workshop: Workshop, order: Order
    ) -> None:
        running = Background(node(workshop, "echo begun; sleep 600"), order)
        until(lambda: "begun" in heard(order))
        os.kill(json.loads((machine.attempt() / "owner.json").read_text())["pid"], signal.SIGKILL)
        assert running.wait().ending.ended_by == "abandoned"
        until(lambda: not machine.processes())

    def test_what_a_dispatcher_left_is_swept_up(self, machine: Machine, workshop: Workshop, order: Order) -> None:
        made = node(workshop, "echo begun; sleep 600", lease_timeout=3.0)
        running = Background(made, order)
        until(lambda: "begun" in heard(order))
        machine.go_down()
        with pytest.raises(UnreachableError):
            running.wait()
        until(lambda: not machine.processes())
        machine.come_back()
        until(lambda: any("t-1/1: ended" in line for line in made.recover()))
        assert not (machine.attempt() / "tree").exists()
        assert made.recover() == []


class TestCapabilities:
    def test_what_a_node_offers(self, machine: Machine, workshop: Workshop) -> None:
        made = node(workshop, offers=("gpu",), slots=3)
        assert {"os:linux", "agent:writer", "node:box", "gpu"} <= made.capabilities()
        assert made.agents() == ("writer",)
        assert made.probe()["cores"] >= 1

    def test_the_archive_is_the_same_every_time(self) -> None:
        name, content = runner_archive()
        runner_archive.cache_clear()
        assert runner_archive() == (name, content)

    def test_it_needs_nothing_but_python(self, tmp_path: Path) -> None:
        name, content = runner_archive()
        (tmp_path / name).write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(tmp_path / name), "probe", str(tmp_path / "folder"), "sh"],
            cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, capture_output=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["programs"]["sh"].endswith("/sh")


class TestReachingModels:
    def test_a_router_on_loopback_goes_through_a_tunnel(self, machine: Machine) -> None:
        transport = SshTransport("box", "x")
        access, tunnel = through_tunnel(transport, Access("http://127.0.0.1:8081"))
        assert access.url is not None
        assert loopback(access.url) is not None
        assert access.url != "http://127.0.0.1:8081"
        assert tunnel is not None
        tunnel.keep()
        until(lambda: "127.0.0.1:8081" in machine.log.read_text())
        tunnel.close()
        assert through_tunnel(transport, Access("https://models.example")) == (Access("https://models.example"), None)

    @pytest.mark.parametrize(
        "url, place",
        [("http://localhost:1/x", ("localhost", 1)), ("https://[::1]", ("::1", 443)), ("http://10.0.0.1:2", None)],
    )
    def test_what_is_loopback(self, url: str, place: tuple[str, int] | None) -> None:
        assert loopback(url) == place


STATUS = {
    "BackendState": "Running",
    "Self": {"DNSName": "desk.tail.ts.net.", "TailscaleIPs": ["100.64.0.1"], "OS": "linux", "Online": True},
    "Peer": {
        "a": {"DNSName": "Mac.tail.ts.net.", "TailscaleIPs": ["100.64.0.2"], "OS": "macOS", "Online": True},
        "b": {"DNSName": "lid.tail.ts.net.", "TailscaleIPs": ["100.64.0.3"], "OS": "macOS", "Online": False},
    },
}


class TestTailnet:
    @pytest.fixture
    def tailscale(self, machine: Machine, tmp_path: Path) -> Path:
        status = tmp_path / "status.json"
        status.write_text(json.dumps(STATUS))
        program = tmp_path / "bin" / "tailscale"
        program.write_text(f"#!/bin/sh\ncat {status}\n")
        program.chmod(0o755)
        return status

    def test_a_machine_is_found_by_name_and_reached_by_address(
        self, tailscale: Path, machine: Machine, workshop: Workshop, order: Order
    ) -> None:
        transport = TailnetTransport("ada@mac", ".avyay-engine")
        made = RemoteNode("mac", transport, lambda _: workshop, [agent("echo x > x.txt")], pulse=0.1)
        assert made.run(order, Control()).git.files == ("x.txt",)
        assert "ada@100.64.0.2" in machine.log.read_text()
        access, tunnel = transport.reachable(Access("http://127.0.0.1:8081"))
        assert (access.url, tunnel) == ("http://100.64.0.1:8081", None)

    @pytest.mark.parametrize("host, words", [("lid", "is away"), ("nobody", "no machine 'nobody'")])
    def test_a_machine_that_is_away(self, tailscale: Path, workshop: Workshop, host: str, words: str) -> None:
        with pytest.raises(UnreachableError, match=words):
            find_peer(read_tailnet(), host)
        made = RemoteNode("x", TailnetTransport(host, "x"), lambda _: workshop, [agent("true")])
        assert not made.ready()

    def test_a_tailnet_that_is_down(self, tailscale: Path) -> None:
        tailscale.write_text(json.dumps({**STATUS, "BackendState": "Stopped"}))
        with pytest.raises(UnreachableError, match="Stopped"):
            find_peer(read_tailnet(), "mac")


@pytest.mark.needs("sshd", "ssh-keygen")
class TestRealSsh:
    """OpenSSH itself on loopback: quoting, exit codes, standard input of every byte, a forwarded port."""

    @pytest.fixture
    def host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        folder = tmp_path / "sshd"
        folder.mkdir()
        for name in ("host", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "sshd.conf").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/id.pub\n"
            f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\n"
        )
        (folder / "ssh.conf").write_text(
            f"Host box\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {folder}/id\n"
            f"  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile {folder}/known\n  LogLevel ERROR\n"
        )
        real, program = shutil.which("ssh"), folder / "bin" / "ssh"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {real} -F {folder}/ssh.conf "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        with contextlib.suppress(OSError):
            Path("/run/sshd").mkdir(exist_ok=True)  # where Debian's sshd wants an empty folder
        sshd = subprocess.Popen(
            [str(shutil.which("sshd")), "-D", "-f", str(folder / "sshd.conf"), "-E", str(folder / "log")]
        )
        try:
            until(lambda: subprocess.run(["ssh", "box", "true"], capture_output=True).returncode == 0)
            yield "box"
        finally:
            sshd.terminate()
            sshd.wait()

    def test_an_attempt(self, host: str, workshop: Workshop, order: Order, tmp_path: Path) -> None:
        transport = SshTransport(host, str(tmp_path / "a folder; with 'signs'"))
        script = "printf 'a\\000b' > bytes.bin; echo said; cat > asked.txt"
        made = RemoteNode("box", transport, lambda _: workshop, [agent(script)], pulse=0.1)
        assert "agent:writer" in made.capabilities()
        report = made.run(order, Control())
        assert report.git.files == ("asked.txt", "bytes.bin")
        assert workshop.copy.git("show", f"{order.branch}:bytes.bin").stdout == b"a\0b"
        assert report.log.read_text() == "said\n"

    def test_a_tunnel(self, host: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            access, tunnel = through_tunnel(SshTransport(host, "x"), Access(f"http://127.0.0.1:{port}"))
            assert access.url is not None
            assert tunnel is not None
            tunnel.keep()
            there = loopback(access.url)
            assert there is not None

            def connected() -> bool:
                with contextlib.suppress(OSError), socket.create_connection(there, timeout=1):
                    server.settimeout(2)
                    server.accept()[0].close()
                    return True
                return False

            try:
                until(connected)
            finally:
                tunnel.close()


class TestTheWholeEngine:
    def test_a_task_is_done_on_another_machine_and_merged_here(
        self, machine: Machine, workshop: Workshop, tmp_path: Path
    ) -> None:
        config = tmp_path / "avyay.yaml"
        repository = workshop.repository.root
        config.write_text(
            f"engine:\n  repository: {repository}\n"
            "  agents: [{name: writer, kind: command, command: [sh, -c, 'pwd > where.txt']}]\n"
            "  nodes: [{name: box, kind: ssh, host: box, busy_load: 0}]\n"
        )

        def avyay(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "avyay", "engine", *arguments, "--config", str(config)]
            return subprocess.run(command, capture_output=True, text=True, timeout=120)

        listed = avyay("nodes", "--json")
        (shown,) = json.loads(listed.stdout)["nodes"]
        assert "agent:writer" in shown["offers"], listed.stderr
        assert avyay("add", "Say where", "--accept", "test -f where.txt", "--id", "t-9").returncode == 0
        done = avyay("run", "--once")
        assert done.returncode == 0, done.stderr + avyay("show", "t-9").stdout
        assert str(machine.home) in subprocess.check_output(
            ["git", "show", "main:where.txt"], cwd=repository, text=True
        )
        assert "box" in avyay("show", "t-9").stdout
