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

from avyay.errors import ExitCode, UsageError
from avyay.log import get_logger
from avyay.resilience.backoff import Backoff
from avyay.serve.workers import worker_command

__all__ = ["COMPONENTS", "Member", "Tree", "members"]

COMPONENTS = {"marga": 8081, "rag": 8082, "raksha": 8083, "siddhi": 8084, "engine": 8086}
_GROWN = 30.0  # seconds after which a process that dies did not die of its start
_DRAIN = 40.0
_RESTART = Backoff(base=0.5, cap=30.0, attempts=1_000_000)


@dataclass(frozen=True, slots=True)
class Member:
    """One daemon: its name, its command, what its environment has besides ours, and whether SIGHUP is for it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    reloads: bool = True


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
        made.append(Member(name, command, reloads=not agents))
    again = ("--reload-config",) if reload else ()
    front = worker_command("gateway", "--host", host, "--port", str(gateway), *again, *arguments)
    return [*made, Member("gateway", front, urls)]


class Tree:
    """Runs members until SIGTERM or SIGINT.

    Args:
        reload: SIGHUP is passed on to the members, who read their configuration anew; else it ends the tree.
        grown: Seconds after which a death counts as a first one again.
        backoff: Between a death and the next start.
    """

    def __init__(
        self,
        family: Sequence[Member],
        *,
        reload: bool = False,
        grown: float = _GROWN,
        backoff: Backoff = _RESTART,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._family, self._grown, self._backoff, self._jitter = family, grown, backoff, jitter
        self._log = get_logger("serve")
        self._ending = asyncio.Event()
        self._code = 0
        self._reload = reload
        self._alive: dict[asyncio.subprocess.Process, Member] = {}

    def run(self) -> int:
        """Watch over the members; returns the exit code."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        if self._reload:
            loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        else:
            loop.add_signal_handler(signal.SIGHUP, self._ending.set)
        # Nothing is ever written: when this process ends, however it ends, its members read the end of the pipe.
        watched, kept = os.pipe()
        try:
            front = self._family[-1]
            rest = self._family[:-1]
            gone = asyncio.Event()  # the front has drained: only now may those behind it end
            tasks = [asyncio.create_task(self._keep(member, watched, gone)) for member in rest]
            tasks.append(asyncio.create_task(self._keep_front(front, watched, gone)))
            await asyncio.gather(*tasks)
        finally:
            os.close(watched)
            os.close(kept)
        return self._code

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
            ended = asyncio.create_task(process.wait())
            told = asyncio.create_task(until.wait())
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            self._alive.pop(process)
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
            self._log.error(
                "component_died", component=member.name, pid=process.pid, code=code, again_in=round(delay, 1)
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), delay)

    def _pass_on(self, number: int) -> None:
        for process, member in self._alive.items():
            if not member.reloads:
                self._log.warning("not_reloaded", component=member.name, why="its agents would be ended: restart it")
                continue
            with suppress(ProcessLookupError):
                process.send_signal(number)


async def _end(process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_DRAIN):
            await asyncio.shield(ended)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await ended
