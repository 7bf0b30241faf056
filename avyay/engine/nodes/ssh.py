"""Another machine as a node, through ssh: orders go out as git bundles, commits come back as git bundles."""

from __future__ import annotations

import ipaddress
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.engine import EngineAgentSettings, EngineNodeSettings
from avyay.engine.agents.base import PASSED_ON, Access, Transcript, WorkPlace
from avyay.engine.agents.outcome import EndedBy, Ending, GitEvidence
from avyay.engine.agents.registry import KINDS, Installed, make_agent
from avyay.engine.lease import HEARTBEAT, TIMEOUT
from avyay.engine.nodes.base import Control, Node, NodeParts, Order, Report
from avyay.engine.nodes.listen import Listener
from avyay.engine.nodes.transport import RefusedError, SshTransport, Transport, Tunnel, call_json
from avyay.engine.worktree import IDENTITY, Workshop
from avyay.errors import AvyayError, ConfigError, UnreachableError

__all__ = ["RemoteNode", "make_node", "make_remote_node"]

_PROBE_AGE = 15.0
_LONGEST_LINE = 8_000_000
_TIMEOUT = 300.0


class RemoteNode(Node):
    """A machine with the runner on it.

    A poll is a heartbeat both ways: it renews the attempt's lease on the node and tells us that the node lives. When
    the node has been silent for the lease's timeout, the attempt is given up here, and by then has ended there.

    Args:
        configured: The agents to look for; empty means every kind.
        heartbeat: Longest time between two polls, seconds.
        busy_load: Load for each core above which the machine is not idle; 0: it always is.
        lease_timeout: Silence after which both sides take the lease for lost, seconds.
        reachable: Rewrites the way to the models so that it holds on the node; may open a tunnel, which it returns.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        workshop: Callable[[Path], Workshop],
        configured: Sequence[EngineAgentSettings] = (),
        *,
        slots: int = 1,
        offers: Sequence[str] = (),
        heartbeat: float = HEARTBEAT,
        lease_timeout: float = TIMEOUT,
        pulse: float = 5.0,
        busy_load: float = 1.5,
        reachable: Callable[[Access], tuple[Access, Tunnel | None]] = lambda access: (access, None),
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self.slots = slots
        self._transport = transport
        self._workshop = workshop
        self._configured = list(configured) or [EngineAgentSettings(name=kind) for kind in KINDS if kind != "command"]
        self._offers = tuple(offers)
        self._lease_timeout = lease_timeout
        self._busy_load = busy_load
        self._pulse = min(pulse, heartbeat)
        self._reachable = reachable
        self._clock = clock
        self._sleep = sleep
        self._probed: tuple[float, Mapping[str, Any]] | None = None

    # ---------------------------------------------------------------- what it is

    def probe(self) -> Mapping[str, Any]:
        """What the machine said of itself, at most 15 seconds ago.

        Raises:
            UnreachableError: it does not answer.
        """
        now = self._clock.monotonic()
        if self._probed is None or now - self._probed[0] > _PROBE_AGE:
            programs = [self._program(item) for item in self._configured]
            try:
                self._probed = (now, call_json(self._transport, "probe", *programs))
            except AvyayError as error:
                self.away = error.message[:300]
                raise
            self.away = ""
        return self._probed[1]

    @staticmethod
    def _program(item: EngineAgentSettings) -> str:
        return item.program or (item.command[0] if item.command else make_agent(item).program)

    def _installed(self) -> dict[str, Installed]:
        found = self.probe()["programs"]
        return {
            item.name: Installed(item.name, make_agent(item), found[program], item)
            for item in self._configured
            if (program := self._program(item)) in found
        }

    def agents(self) -> tuple[str, ...]:
        try:
            return tuple(self._installed())
        except AvyayError:
            return ()

    def capabilities(self) -> frozenset[str]:
        probe = self.probe()
        own = {f"os:{probe['os']}", f"arch:{probe['arch']}", f"node:{self.name}"}
        own |= {f"agent:{name}" for name in self._installed()} | {f"model:{name}" for name in probe["models"]}
        return frozenset(own | set(self._offers))

    def ready(self) -> bool:
        """Whether it answers and is idle: its load beyond our own attempts leaves room."""
        try:
            probe = self.probe()
        except AvyayError:
            return False
        ours = len(probe["attempts"])
        idle = not self._busy_load or probe["load"] - ours < self._busy_load * probe["cores"]
        return bool(probe["git"]) and idle

    # ---------------------------------------------------------------- an attempt

    def run(self, order: Order, control: Control) -> Report:
        found = self._installed().get(order.agent)
        if found is None:
            raise UnreachableError(
                f"{self.name} has no agent {order.agent!r} now.", hint="See: avyay engine nodes list"
            )
        workshop = self._workshop(order.repository)
        access, tunnel = self._reachable(order.access)
        started = self._clock.monotonic()
        try:
            if tunnel is not None:
                tunnel.keep()
            self._start(replace(order, access=access), found, workshop)
            transcript = found.agent.transcript()
            outcome = self._follow(order, control, transcript, tunnel)
        finally:
            if tunnel is not None:
                tunnel.close()
        git, problem = self._bring_home(order, workshop, outcome)
        with suppress(AvyayError):  # what stays behind is swept up by `recover`
            call_json(self._transport, "close", order.task, str(order.fence))
        ending = _ending(outcome, control)
        if problem:
            ending = Ending(ending.code, ending.signal, ending.ended_by or "abandoned", problem)
        seconds = self._clock.monotonic() - started
        return Report(ending, transcript, git, seconds, order.folder / "output.log", int(outcome.get("killed", 0)))

    def _start(self, order: Order, found: Installed, workshop: Workshop) -> None:
        top = PurePosixPath(self.probe()["home"]) / "attempts" / order.task / str(order.fence)
        place = WorkPlace(top / "tree", top / "home", top / "home" / "prompt.md")
        invocation = found.agent.invoke(
            place, order.access, program=found.program, turns=order.caps.turns, arguments=found.settings.arguments
        )
        git = {
            f"GIT_{role}_{what.upper()}": value for role in ("AUTHOR", "COMMITTER") for what, value in IDENTITY.items()
        }
        environment = {"LANG": "C.UTF-8", "TERM": "dumb", "CI": "1", "GIT_TERMINAL_PROMPT": "0", **git}
        repository = sha256(str(order.repository.resolve()).encode()).hexdigest()[:16]
        ref = f"refs/avyay/sent/{order.base}"
        header = {
            "task": order.task, "fence": order.fence, "repository": repository, "base": order.base, "ref": ref,
            "branch": order.branch, "argv": list(invocation.argv), "prompt": order.prompt,
            "prompt_on_stdin": invocation.prompt_on_stdin, "files": dict(invocation.files),
            "environment": {**environment, **order.environment, **invocation.environment},
            "passed_on": [*PASSED_ON, *found.settings.environment], "mark": f"{repository}/{order.task}/{order.fence}",
            "wall": order.caps.wall if order.caps.wall != float("inf") else None, "stall": order.caps.stall,
            "lease_timeout": self._lease_timeout, "identity": [IDENTITY["name"], IDENTITY["email"]],
            "pulse": min(1.0, self._lease_timeout / 10),
            "ignore": list(found.agent.leaves), "errors_in_log": found.agent.complains,
            "leftover_message": f"{order.title}\n\nLeft uncommitted by {order.agent}.",
        }  # fmt: skip
        bundle = self._bundle(workshop, repository, order.base, ref)
        self._transport.call("start", stdin=json.dumps(header).encode() + b"\n" + bundle)

    def _bundle(self, workshop: Workshop, repository: str, base: str, ref: str) -> bytes:
        """What the node lacks of the history of a commit."""
        there = call_json(self._transport, "have", repository, base)
        if there["base"]:
            return b""
        copy = workshop.copy
        known = there["last"] if there["last"] and copy.git("cat-file", "-e", there["last"]).code == 0 else None
        with workshop.locked():
            copy.output("update-ref", ref, base)
            done = copy.git("bundle", "create", "-", ref, *([f"^{known}"] if known else []), timeout=_TIMEOUT)
            copy.git("update-ref", "-d", ref)
        if done.code != 0:
            raise RefusedError(
                f"git bundle failed: {done.error_text.strip()[:300]}", hint="Check the repository: git fsck"
            )
        return done.stdout

    def _follow(
        self, order: Order, control: Control, transcript: Transcript, tunnel: Tunnel | None
    ) -> Mapping[str, Any]:
        """Poll until the attempt has ended and all of its log is here.

        Raises:
            UnreachableError: silence for the lease's timeout.
        """
        offset, rest, told = 0, b"", False
        listener = Listener.of(order, transcript, control)
        heard = self._clock.monotonic()
        with (order.folder / "output.log").open("ab") as log:
            while True:
                try:
                    if control.stopped and not told:
                        call_json(self._transport, "stop", order.task, str(order.fence), control.reason[0])
                        told = True
                    timeout = max(1.0, min(30.0, self._lease_timeout / 2))
                    answer = self._transport.call("poll", order.task, str(order.fence), str(offset), timeout=timeout)
                    head, _, fresh = answer.partition(b"\n")
                    status = json.loads(head)
                except (UnreachableError, ValueError) as error:
                    silent = self._clock.monotonic() - heard
                    if silent > self._lease_timeout:
                        raise UnreachableError(
                            f"{self.name} went away: no answer for {silent:.0f} s.", hint="Its lid may be closed."
                        ) from error
                    self._sleep(min(self._pulse, self._lease_timeout / 10))
                    continue
                heard = self._clock.monotonic()
                offset += len(fresh)
                log.write(fresh)
                log.flush()
                *lines, rest = (rest + fresh).split(b"\n")
                rest = rest if len(rest) <= _LONGEST_LINE else b""
                for line in lines:
                    if (verdict := listener.line(line.decode("utf-8", "replace"))) is not None:
                        control.stop(*verdict)
                if status["state"] != "running" and offset >= status["size"]:
                    if rest:
                        listener.line(rest.decode("utf-8", "replace"))
                    return status["outcome"] or {
                        "code": None,
                        "ended_by": "abandoned",
                        "error": "its supervisor is gone",
                    }
                if tunnel is not None:
                    tunnel.keep()
                if not fresh and not (control.stopped and not told):
                    self._sleep(self._pulse)

    def _bring_home(self, order: Order, workshop: Workshop, outcome: Mapping[str, Any]) -> tuple[GitEvidence, str]:
        """Fetch the commits into the workshop, on the order's branch; the second is what went wrong."""
        head = outcome.get("head")
        if not head:
            return GitEvidence(), str(outcome.get("error", ""))
        copy = workshop.copy
        try:
            bundle = self._fetch(order)
            if bundle:
                with tempfile.NamedTemporaryFile(dir=order.folder, suffix=".bundle") as file:
                    file.write(bundle)
                    file.flush()
                    with workshop.locked():
                        # It comes from a machine where an agent could write: objects are checked, refs are ours.
                        copy.output(
                            "-c", "fetch.fsckObjects=true", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head",
                            file.name, f"+refs/avyay/results/*:refs/avyay/fetched/{order.task}/{order.fence}/*",
                            timeout=_TIMEOUT,
                        )  # fmt: skip
            copy.output("update-ref", f"refs/heads/{order.branch}", head)
            for line in copy.output("for-each-ref", "--format=%(refname)", f"refs/avyay/fetched/{order.task}/").split():
                copy.git("update-ref", "-d", line)
            return workshop.evidence(order.base, head), ""
        except UnreachableError:
            raise
        except AvyayError as error:
            return GitEvidence(), error.message

    def _fetch(self, order: Order) -> bytes:
        """The bundle; asked for again while the line is bad, as long as the lease can hold."""
        began = self._clock.monotonic()
        while True:
            try:
                return self._transport.call("fetch", order.task, str(order.fence))
            except UnreachableError:
                if self._clock.monotonic() - began > self._lease_timeout:
                    raise
                self._sleep(min(self._pulse, self._lease_timeout / 10))

    def recover(self) -> list[str]:
        try:
            said: list[str] = call_json(self._transport, "sweep")["said"]
        except AvyayError as error:
            return [f"{self.name}: could not be asked: {error.message}"]
        return [f"{self.name}: {line}" for line in said]


def _ending(outcome: Mapping[str, Any], control: Control) -> Ending:
    by, detail = outcome.get("ended_by"), str(outcome.get("detail") or outcome.get("error") or "")
    if control.stopped and by is not None:
        by, detail = control.reason
    return Ending(outcome.get("code"), outcome.get("signal"), cast("EndedBy | None", by), detail)


def loopback(url: str) -> tuple[str, int] | None:
    """Host and port of a URL that only this machine can reach."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return (host, parts.port or (443 if parts.scheme == "https" else 80)) if local else None


def through_tunnel(transport: SshTransport, access: Access) -> tuple[Access, Tunnel | None]:
    """The router on this machine's loopback, as the node reaches it: through ssh itself."""
    if access.url is None or (place := loopback(access.url)) is None:
        return access, None
    host, port = place
    # A port of its own for each router, so that it meets neither the node's own router nor another dispatcher's.
    there = 40_000 + int(sha256(f"{transport.where}:{port}:{Path.home()}".encode()).hexdigest()[:4], 16) % 20_000
    parts = urlsplit(access.url)
    url = parts._replace(netloc=f"127.0.0.1:{there}").geturl()
    return replace(access, url=url), Tunnel(transport, there, f"{host}:{port}")


def make_remote_node(settings: EngineNodeSettings, parts: NodeParts, transport: SshTransport, **more: Any) -> Node:
    """A node of the settings over a transport."""
    wanted = [item for item in parts.agents if not settings.agents or item.name in settings.agents]
    if not wanted and settings.agents:
        wanted = [EngineAgentSettings(name=name) for name in settings.agents]
    return RemoteNode(
        settings.name,
        transport,
        parts.workshop,
        wanted,
        slots=0 if settings.drain else settings.slots,
        offers=settings.offers,
        busy_load=settings.busy_load,
        **more,
    )


def make_node(settings: EngineNodeSettings, parts: NodeParts) -> Node:
    """The node that the settings describe.

    Raises:
        ConfigError: no host.
    """
    if not settings.host:
        raise ConfigError(f"The node {settings.name} has no host.", hint="Set its host, as in: ssh HOST.")
    transport = SshTransport(settings.host, settings.folder)
    return make_remote_node(settings, parts, transport, reachable=lambda access: through_tunnel(transport, access))
