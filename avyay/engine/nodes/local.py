"""This machine as a node."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from avyay.config.engine import EngineNodeSettings
from avyay.engine.agents.base import PASSED_ON, WorkPlace
from avyay.engine.agents.outcome import Ending, GitEvidence
from avyay.engine.agents.registry import Installed, installed_agents
from avyay.engine.attempts import Attempts
from avyay.engine.nodes.base import Control, Node, NodeParts, Order, Report
from avyay.engine.nodes.listen import Listener
from avyay.engine.supervise import supervise
from avyay.engine.worktree import IDENTITY, Workshop
from avyay.errors import AvyayError, UsageError
from avyay.paths import ensure_directory

__all__ = ["LocalNode", "clean_environment", "make_node"]


def clean_environment(environment: Mapping[str, str], home: Path, *more: str) -> dict[str, str]:
    """What a program of an attempt may see: a few harmless variables, a HOME of its own, and what was named."""
    kept = {name: environment[name] for name in (*PASSED_ON, *more) if name in environment}
    git = {f"GIT_{role}_{what.upper()}": value for role in ("AUTHOR", "COMMITTER") for what, value in IDENTITY.items()}
    own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "TERM": "dumb", "GIT_TERMINAL_PROMPT": "0", "CI": "1"}
    return {"LANG": "C.UTF-8", **kept, **git, **own}


class LocalNode(Node):
    """This machine: attempts are processes under keepers.

    Args:
        workshop: Finds the workshop of a repository.
        environment: Of the dispatcher, to pass on the few variables that agents may see.
        offers: More capabilities, from the settings.
    """

    def __init__(
        self,
        name: str,
        installed: Mapping[str, Installed],
        attempts: Attempts,
        workshop: Callable[[Path], Workshop],
        environment: Mapping[str, str],
        *,
        slots: int = 1,
        offers: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.slots = slots
        self._installed = dict(installed)
        self._attempts = attempts
        self._workshop = workshop
        self._environment = environment
        self._offers = offers
        self._running: dict[str, Control] = {}
        self._lock = threading.Lock()

    def capabilities(self) -> frozenset[str]:
        own = {f"os:{platform.system().lower()}", f"arch:{platform.machine()}", f"node:{self.name}"}
        return frozenset(own | {f"agent:{name}" for name in self._installed} | set(self._offers))

    def agents(self) -> tuple[str, ...]:
        return tuple(self._installed)

    def run(self, order: Order, control: Control) -> Report:
        if (found := self._installed.get(order.agent)) is None:
            raise UsageError(
                f"{self.name} has no agent {order.agent!r}.", hint=f"It has: {', '.join(self._installed)}."
            )
        workshop = self._workshop(order.repository)
        folder = order.folder
        home, tree = ensure_directory(folder / "home"), folder / "tree"
        ensure_directory(home / "tmp")
        prompt = folder / "prompt.md"
        prompt.write_text(order.prompt, encoding="utf-8")
        started = time.monotonic()
        work = workshop.add(tree, order.base, order.branch)
        place = WorkPlace(PurePosixPath(tree), PurePosixPath(home), PurePosixPath(prompt))
        invocation = found.agent.invoke(
            place, order.access, program=found.program, turns=order.caps.turns, arguments=found.settings.arguments
        )
        for name, content in invocation.files.items():
            file = home / name
            ensure_directory(file.parent)
            file.write_text(content, encoding="utf-8")
            file.chmod(0o600)
        environment = {
            **clean_environment(self._environment, home, *found.settings.environment),
            **order.environment,
            **invocation.environment,
        }
        transcript = found.agent.transcript()
        listener = Listener.of(order, transcript, control)
        run = supervise(
            invocation.argv,
            cwd=tree,
            environment=environment,
            folder=folder,
            mark=self._attempts.mark(order.task, order.fence),
            control=control,
            wall=order.caps.wall,
            stall=order.caps.stall,
            stdin=prompt if invocation.prompt_on_stdin else None,
            line=listener.line,
            error_line=listener.error_line,
        )
        ending, git = run.ending, GitEvidence()
        try:
            message = f"{order.title}\n\nLeft uncommitted by {order.agent}."
            git = workshop.collect(work, order.base, order.branch, message, ignore=found.agent.leaves)
        except AvyayError as error:
            ending = Ending(ending.code, ending.signal, ending.ended_by or "abandoned", error.message)
        workshop.remove(tree)
        return Report(ending, transcript, git, time.monotonic() - started, folder / "output.log", run.killed)

    def recover(self) -> list[str]:
        return self._attempts.recover()


def make_node(settings: EngineNodeSettings, parts: NodeParts) -> Node:
    """The node that the settings describe."""
    found = installed_agents(parts.agents, path=parts.environment.get("PATH"))
    if settings.agents:
        found = {name: found[name] for name in settings.agents if name in found}
    return LocalNode(
        settings.name,
        found,
        parts.attempts,
        parts.workshop,
        parts.environment,
        slots=0 if settings.drain else settings.slots,
        offers=settings.offers,
    )
