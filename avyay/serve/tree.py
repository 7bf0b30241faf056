"""All daemons as one tree of processes: started together, watched, restarted alone, and ended together."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from avyay.errors import AvyayError, ExitCode, UsageError
from avyay.log import get_logger
from avyay.resilience.backoff import Backoff
from avyay.serve.notify import NOT_RELOADED, ServiceManager
from avyay.serve.run import bind
from avyay.serve.watchdog import Watchdog
from avyay.serve.workers import ORDERLY, worker_command, workers_of

if TYPE_CHECKING:
    from avyay.config import Loaded

__all__ = ["COMPONENTS", "Member", "Tree", "check_ports", "check_shared", "members"]

COMPONENTS = {"marga": 8081, "rag": 8082, "raksha": 8083, "siddhi": 8084, "engine": 8086}
_GROWN = 30.0  # seconds after which a process that dies did not die of its start
_DRAIN = 40.0
_PROBES = 6  # in the time that a member may be silent
_MOST_PROBE = 5.0  # seconds between two probes
_FIRST_PROBE = 0.2  # between those of a member that has not answered yet
_PROBE_PATIENCE = 30.0  # seconds an answer may take where silence is not punished
_RESTART = Backoff(base=0.5, cap=30.0, attempts=1_000_000)


@dataclass(frozen=True, slots=True)
class Member:
    """One daemon.

    Args:
        environment: What it has besides ours.
        reloads: Whether SIGHUP is for it.
        address: Host and port where it answers; None: nobody asks it how it is, and it counts as one that answers.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    reloads: bool = True
    address: tuple[str, int] | None = None


def members(
    ports: Mapping[str, int],
    *,
    gateway: int,
    host: str,
    without: Sequence[str] = (),
    collector: int = 8085,
    remote: Sequence[str] = (),
    arguments: Sequence[str] = (),
    reload: bool = False,
    dispatch: bool = False,
) -> list[Member]:
    """The gateway in front, the rest on loopback.

    Args:
        ports: Of components; by default their own.
        gateway: Its port; `host` is its address.
        without: Components that are not run.
        remote: Components that the configuration finds elsewhere.
        arguments: Of every daemon.
        reload: Whether they read their configuration anew on SIGHUP.
        dispatch: Whether the engine gives tasks to agents. It keeps its configuration then: a new one would end them.

    Raises:
        UsageError: a component has no such name, or two would share a port.
    """
    for name in (*without, *ports):
        if name not in COMPONENTS:
            raise UsageError(f"There is no component {name!r}.", hint=f"Components: {', '.join(COMPONENTS)}.")
    here = {name: ports.get(name, port) for name, port in COMPONENTS.items() if name not in (*without, *remote)}
    taken = [gateway, *here.values(), *([collector] if "siddhi" in here else [])]
    if len(set(taken)) != len(taken):
        raise UsageError("Two daemons would share a port.", hint="Give each its own: --ports marga=9081,rag=9082")
    urls = {f"AVYAY_GATEWAY_UPSTREAMS_{name.upper()}_URL": f"http://127.0.0.1:{port}" for name, port in here.items()}
    made = []
    for name, port in here.items():
        own = ["--collector-port", str(collector)] if name == "siddhi" else []
        agents = dispatch and name == "engine"
        own += ["--run"] if agents else ["--reload-config"] if reload else []
        command = worker_command(name, "--host", "127.0.0.1", "--port", str(port), *own, *arguments)
        made.append(Member(name, command, reloads=not agents, address=("127.0.0.1", port)))
    again = ("--reload-config",) if reload else ()
    front = worker_command("gateway", "--host", host, "--port", str(gateway), *again, *arguments)
    here_too = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - any address is also this one
    return [*made, Member("gateway", front, urls, address=(here_too, gateway))]


def check_shared(loaded: Loaded) -> None:
    """Refuse, once, what each of the components would refuse.

    Raises:
        AvyayError: a receiver of events is configured that cannot be had.
    """
    events = loaded.settings.events
    if events.webhooks or events.redis is not None:
        from avyay.events.build import open_sinks

        open_sinks(events, loaded.environment)


def check_ports(family: Sequence[Member], host: str, collector: int) -> None:
    """Refuse to start what could not all be started, before anything is.

    Args:
        host: The gateway's address.
        collector: The port of SIDDHI's collector.

    Raises:
        UsageError: a port is taken, or the address is not one of this machine's.
    """
    places = [
        (one.name, host if one is family[-1] else one.address[0], one.address[1]) for one in family if one.address
    ]
    places += [("collector", "127.0.0.1", collector)] if any(one.name == "siddhi" for one in family) else []
    for name, address, port in places:
        try:
            bind(address, port, name=name).close()
        except UsageError as error:
            if error.code != "port_taken":
                raise
            own = {"gateway": f"--port {port + 10}", "collector": f"--collector-port {port + 10}"}
            option = own.get(name, f"--ports {name}={port + 10}")
            hint = f"Stop what listens there, or choose another for it: avyay serve all {option}"
            raise UsageError(error.message, hint=hint, code=error.code) from None


class Tree:
    """Runs members until SIGTERM or SIGINT.

    Args:
        reload: Reads the configuration on SIGHUP, before the members are told to; raises an `AvyayError` when it cannot
            be used, and they are left alone. None: SIGHUP ends the tree.
        grown: Seconds after which a death counts as a first one again.
        patience: Seconds after which a member that answers nothing is killed; 0: never.
        backoff: Between a death and the next start.
        manager: Told when the front answers, and each other member does or has died once.
        up: Called then, once.
    """

    def __init__(
        self,
        family: Sequence[Member],
        *,
        reload: Callable[[], object] | None = None,
        grown: float = _GROWN,
        patience: float = 0.0,
        backoff: Backoff = _RESTART,
        jitter: Callable[[], float] = random.random,
        manager: ServiceManager | None = None,
        up: Callable[[str], None] = lambda status: None,
    ) -> None:
        self._family, self._grown, self._backoff, self._jitter = family, grown, backoff, jitter
        self._log = get_logger("serve")
        self._ending = asyncio.Event()
        self._code = 0
        self._reload = reload
        self._patience = patience
        self._watchdog: Watchdog[asyncio.subprocess.Process] = Watchdog(patience)
        self._alive: dict[asyncio.subprocess.Process, Member] = {}
        self._manager = manager or ServiceManager()
        self._up = up
        self._is_up = False
        self._answering: set[str] = set()
        self._awaited = {member.name for member in family}  # not heard of yet

    def run(self) -> int:
        """Watch over the members; returns the exit code."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        if self._reload is not None:
            loop.add_signal_handler(signal.SIGHUP, self._pass_on, self._reload)
        else:
            loop.add_signal_handler(signal.SIGHUP, self._ending.set)
        # Nothing is ever written: when this process ends, however it ends, its members read the end of the pipe.
        watched, kept = os.pipe()
        try:
            front = self._family[-1]
            rest = self._family[:-1]
            watching = asyncio.create_task(self._watchdog.run(self._hung))
            gone = asyncio.Event()  # the front has drained: only now may those behind it end
            tasks = [asyncio.create_task(self._keep(member, watched, gone)) for member in rest]
            tasks.append(asyncio.create_task(self._keep_front(front, watched, gone)))
            signs = [watching, asyncio.create_task(self._manager.watch()), asyncio.create_task(self._tell_of_end())]
            await asyncio.gather(*tasks)
            for sign in signs:
                sign.cancel()
        finally:
            os.close(watched)
            os.close(kept)
        return self._code

    async def _tell_of_end(self) -> None:
        await self._ending.wait()
        self._manager.stopping()

    async def _keep_front(self, member: Member, watched: int, gone: asyncio.Event) -> None:
        try:
            await self._keep(member, watched, self._ending)
        finally:
            gone.set()

    async def _keep(self, member: Member, watched: int, until: asyncio.Event) -> None:
        """Keep one member running until the event comes."""
        deaths = 0
        lived = False
        while not until.is_set() and not self._ending.is_set():
            born = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *member.command,
                "--tether",
                str(watched),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(watched,),
                env={**os.environ, **member.environment},
                process_group=0,  # Ctrl-C is for this process; it ends the others in order
            )
            self._alive[process] = member
            self._watchdog.begin(process)
            probing = asyncio.create_task(self._probe(process, member))
            ended = asyncio.create_task(process.wait())
            told = asyncio.create_task(until.wait())
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            probing.cancel()
            self._watchdog.end(process)
            self._alive.pop(process)
            self._heard_of(member, answers=False)
            if not ended.done():
                await _end(process, ended)
                return
            if self._ending.is_set():
                return
            age = time.monotonic() - born
            lived = lived or age >= self._grown
            code = process.returncode
            if not lived and code in (ExitCode.USAGE, ExitCode.AUTH, ExitCode.POLICY):
                self._log.error("component_cannot_start", component=member.name, code=code)
                self._code = self._code or int(code)
                self._ending.set()  # its own words stand above; trying again would not help
                return
            deaths = 1 if age >= self._grown else deaths + 1
            delay = self._backoff.delay(deaths, self._jitter) or 0.0
            words = {"component": member.name, "pid": process.pid, "code": code, "again_in": round(delay, 1)}
            if code in ORDERLY:
                self._log.warning("component_ended", **words)
            else:
                self._log.error("component_died", **words)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), delay)

    async def _probe(self, process: asyncio.subprocess.Process, member: Member) -> None:
        """Ask a member again and again; whatever it answers is a sign of life."""
        if member.address is None:
            self._heard_of(member, answers=True)
            return
        pause = _FIRST_PROBE
        while True:
            if await _answers(*member.address, self._patience or _PROBE_PATIENCE):
                self._watchdog.heard(process)
                self._heard_of(member, answers=True)
                if not self._patience:
                    return
                pause = min(_MOST_PROBE, self._patience / _PROBES)
            await asyncio.sleep(pause)

    def _heard_of(self, member: Member, *, answers: bool) -> None:
        """A member answers, or has ended: the service manager learns what that makes of the whole."""
        if answers == (member.name in self._answering) and member.name not in self._awaited:
            return
        self._awaited.discard(member.name)
        (self._answering.add if answers else self._answering.discard)(member.name)
        missing = [one.name for one in self._family if one.name not in self._answering]
        status = f"Does not answer: {', '.join(missing)}." if missing else "All components answer."
        if self._awaited or self._family[-1].name in missing:
            self._manager.status(status)
        else:
            self._manager.ready(status)
            if not self._is_up:
                self._is_up = True
                self._up(status)

    def _hung(self, process: asyncio.subprocess.Process) -> None:
        """End a member that nothing else would."""
        if (member := self._alive.get(process)) is None:
            return
        self._log.error("component_hung", component=member.name, pid=process.pid, silent_for=self._patience)
        _kill(process)

    def _pass_on(self, reload: Callable[[], object]) -> None:
        self._manager.reloading()
        try:
            reload()
        except AvyayError as error:  # said once, not by each of them
            self._log.error("reload_refused", error=error.message, hint=error.hint)
            self._manager.ready(NOT_RELOADED)
            return
        for process, member in self._alive.items():
            if not member.reloads:
                self._log.warning("not_reloaded", component=member.name, why="its agents would be ended: restart it")
                continue
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)
        self._manager.ready("The components were told to read their configuration anew; the log has what came of it.")


async def _answers(host: str, port: int, patience: float) -> bool:
    """Whether a daemon answers anything at all.

    A request that names no host is refused by the event loop itself: that needs no thread, which may all be at long
    work, and it stands in no log and no count.
    """
    try:
        async with asyncio.timeout(patience):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /ready HTTP/1.1\r\n\r\n")
                return bool(await reader.read(1))
            finally:
                writer.transport.abort()
    except OSError:
        return False


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_DRAIN):
            await asyncio.shield(ended)
    except TimeoutError:
        _kill(process)
        await ended


def _kill(process: asyncio.subprocess.Process) -> None:
    """With its workers: one that is stopped does not see that its parent is gone, and keeps the port."""
    for pid in (process.pid, *workers_of(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
