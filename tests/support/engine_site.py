"""A repository, a queue and a dispatcher of its own, with an agent that does what the task's description says.

Lines of a description that begin with `$ ` are run by the agent's shell, in order, in its worktree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config.engine import EngineSettings
from avyay.config.environment import Environment
from avyay.engine.build import Offers, build_dispatcher
from avyay.engine.loop import Dispatcher
from avyay.engine.narrate import narrate
from avyay.engine.queue import Queue
from avyay.engine.types import NewTask, Task
from avyay.paths import open_paths
from avyay.resilience.backoff import Backoff

SCRIPT = r"sed -n 's/^\$ //p' {prompt} > $HOME/script; . $HOME/script"


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout


class Site:
    """Everything a dispatcher needs, under one folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.given = settings
        self.repository = folder / "repository"
        self.paths = open_paths(str(folder / "avyay"))
        base: dict[str, Any] = {
            "repository": self.repository,
            "agents": [{"name": "script", "kind": "command", "command": ["sh", "-c", SCRIPT]}],
            "nodes": [{"name": "local", "slots": 2}],
            "verify": {"scan": "off", "accept": "sh check.sh"},
            "tick": 0.2,
            "heartbeat": 0.5,
            "lease_timeout": 2.0,
        }
        self.settings = EngineSettings.model_validate({**base, **settings})
        self.offers = Offers()
        if not self.repository.exists():
            self.repository.mkdir(parents=True)
            git(self.repository, "init", "--quiet", "--initial-branch=main")
            self.commit({"check.sh": "for t in tests/*.sh; do sh $t || exit 1; done\n", "tests/basic.sh": "true\n"})

    def commit(self, files: dict[str, str], message: str = "Set up") -> str:
        for name, content in files.items():
            file = self.repository / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        git(self.repository, "add", "--all")
        git(self.repository, "commit", "--quiet", "-m", message)
        return self.head()

    def head(self) -> str:
        return git(self.repository, "rev-parse", "main").strip()

    def merged(self) -> list[str]:
        """The tasks whose commits are on main, oldest first."""
        log = git(self.repository, "log", "--reverse", "--format=%(trailers:key=Avyay-Task,valueonly)", "main")
        return log.split()

    def open_queue(self) -> Queue:
        place = self.settings.queue_url or self.paths.component("engine") / "engine.db"
        return Queue(place, backoff=Backoff(0.01, 0.02, 1_000_000))

    def add(self, name: str, *script: str, **more: Any) -> str:
        description = "\n".join(f"$ {line}" for line in script)
        queue = self.open_queue()
        try:
            return queue.add([NewTask(f"Task {name}", description, id=name, **more)])[0]
        finally:
            queue.close()

    def dispatcher(self, clock: Clock = SYSTEM_CLOCK, **offers: Any) -> Dispatcher:
        return build_dispatcher(
            self.settings,
            self.paths,
            Environment(dict(os.environ)),
            self.open_queue,
            replace(self.offers, **offers),
            directory=self.folder,
            clock=clock,
        )

    def run(self, **offers: Any) -> None:
        """Work until nothing is left that can be worked on."""
        self.dispatcher(**offers).run(once=True)

    def task(self, name: str) -> Task:
        queue = self.open_queue()
        try:
            return queue.get(name)
        finally:
            queue.close()

    def story(self, name: str) -> list[str]:
        """The kinds of all that happened to a task."""
        queue = self.open_queue()
        try:
            return [entry.kind for entry in queue.history(name)]
        finally:
            queue.close()

    def told(self, name: str) -> str:
        """The whole story of a task, as `avyay engine show` tells it."""
        queue = self.open_queue()
        try:
            return "\n".join(narrate(queue.get(name), queue.history(name)))
        finally:
            queue.close()

    def data(self, name: str, kind: str) -> dict[str, Any]:
        """The data of the last entry of a kind."""
        queue = self.open_queue()
        try:
            return dict(next(entry.data for entry in reversed(queue.history(name)) if entry.kind == kind))
        finally:
            queue.close()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


RUN = """
import json, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])
from engine_site import Site
from avyay.engine import keeper
keeper.use_ps(sys.argv[4] == "True" or keeper.uses_ps())
dispatcher = Site(Path(sys.argv[1]), **json.loads(sys.argv[3])).dispatcher()
signal.signal(signal.SIGTERM, lambda *_: dispatcher.stop())
dispatcher.run()
"""


def start(site: Site, *, ps: bool = False) -> subprocess.Popen[bytes]:
    """A dispatcher in a process of its own, that can be killed.

    Args:
        ps: Processes are found as on macOS.
    """
    support = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(site.folder), str(support), json.dumps(site.given), str(ps)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
