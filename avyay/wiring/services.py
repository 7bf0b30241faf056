"""Every service of a process, and the one place that closes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config import Environment, Loaded, load_settings
from avyay.errors import AvyayError
from avyay.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mcp.server.fastmcp import FastMCP

    from avyay.engine.desk import Desk
    from avyay.engine.generate.service import TaskGenerator
    from avyay.engine.knowledge.service import Knowledge
    from avyay.engine.loop import Dispatcher
    from avyay.engine.nodes.base import Node
    from avyay.engine.queue import Queue
    from avyay.engine.types import NewTask
    from avyay.events.outbox import Outboxes
    from avyay.marga.budgets import Budgets
    from avyay.marga.caching import AnswerCache
    from avyay.marga.records import Records
    from avyay.marga.router import Router
    from avyay.marga.store import CallStore, SqliteStore
    from avyay.marga.verdicts import VerdictStore
    from avyay.ports import Completer, Embedder
    from avyay.rag.service import RagService
    from avyay.raksha.scan import CodeScanner
    from avyay.siddhi.pipeline import Siddhi

__all__ = ["MCP_COMPONENTS", "Services", "open_services"]

# component -> the module that registers its tools, over the service of that name
MCP_COMPONENTS = {
    "rag": "avyay.rag.mcp",
    "raksha": "avyay.raksha.mcp",
    "marga": "avyay.marga.mcp",
    "engine": "avyay.engine.mcp",
}


class _Closed(Protocol):
    def close(self) -> object: ...


Resource = TypeVar("Resource", bound=_Closed)


class Services:
    """Every service, made on first use and closed together. Importing this module loads none of them."""

    def __init__(self, loaded: Loaded, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.loaded = loaded
        self.settings = loaded.settings
        self.paths = loaded.paths
        self.clock = clock
        self._open = ExitStack()
        self._used_queue = False

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def closing(self, resource: Resource) -> Resource:
        """Have something closed together with the services."""
        self._open.callback(resource.close)
        return resource

    def again(self) -> Services:
        """The same configuration with connections of its own, for another thread."""
        return Services(self.loaded, clock=self.clock)

    def close(self) -> None:
        """Close what was opened, last first."""
        self._open.close()
        if self._used_queue:
            self._used_queue = False
            try:
                self.tell_engine_history()
            except AvyayError as error:  # nothing is lost: the next one who looks begins where this one stopped
                get_logger("engine").warning("history_not_told", reason=error.message)

    # ------------------------------------------------------------ for all components

    @cached_property
    def events(self) -> Outboxes:
        """Where components publish what happened."""
        from avyay.events.outbox import Outboxes

        settings = self.settings.events
        return self.closing(Outboxes(self.paths.data, clock=self.clock, keep=settings.keep, keep_for=settings.keep_for))

    @cached_property
    def embedder(self) -> Embedder:
        """The configured embedder; loads its model when first used."""
        from avyay.embed.registry import configured_embedder

        made = configured_embedder(self.settings.rag.embedder, self.loaded.environment)
        if callable(close := getattr(made, "close", None)):
            self._open.callback(close)
        return made

    def mcp_server(self, names: Sequence[str] | None = None, *, host: str = "127.0.0.1", port: int = 8090) -> FastMCP:
        """An MCP server with the tools of the named components, by default of all; `host` and `port` are for HTTP.

        Raises:
            UsageError: a component has no tools.
        """
        from avyay.wiring.mcp import make_mcp_server

        return make_mcp_server(self, MCP_COMPONENTS, names, (host, port))

    # ------------------------------------------------------------ the scanner

    @cached_property
    def scanner(self) -> CodeScanner:
        """RAKSHA as configured."""
        return self.make_scanner()

    @property
    def raksha(self) -> CodeScanner:
        """The scanner, under its component's name."""
        return self.scanner

    def make_scanner(
        self, *, exclude: Sequence[str] = (), rules: Sequence[Path] = (), cache: bool = True, online: bool = False
    ) -> CodeScanner:
        """A scanner for one use.

        Args:
            exclude: Globs besides the configured ones.
            rules: Rule files or folders besides the configured ones.
            cache: Whether results are remembered (if the configuration says so too).
            online: Whether checks may ask the network.
        """
        from avyay.raksha.build import build_scanner

        return build_scanner(
            self.settings.raksha,
            self.paths,
            self.loaded.environment,
            base=self.loaded.project_file.parent if self.loaded.project_file else Path.cwd(),
            exclude=exclude,
            rules=rules,
            cache=cache,
            online=online,
            clock=self.clock,
        )

    # ------------------------------------------------------------ the router

    @cached_property
    def router(self) -> Router:
        """The router of this process; looks for a local Ollama when it is made, and calls nobody until asked."""
        return self.router_with(lambda: self.calls)

    def router_with(self, store: Callable[[], CallStore]) -> Router:
        """A router that keeps its calls elsewhere: a daemon writes them in groups."""
        from avyay.wiring.marga import make_router

        return make_router(self, store)

    def answer_cache(self) -> AnswerCache | None:
        """Where a router's answers are kept to be given again; None when that is not asked for."""
        from avyay.wiring.marga import make_answer_cache

        return make_answer_cache(self)

    @cached_property
    def budgets(self) -> Budgets | None:
        """What callers of the router may spend; None when the configuration names no cap."""
        from avyay.wiring.marga import open_budgets

        return open_budgets(self)

    @cached_property
    def calls(self) -> SqliteStore:
        """The router's ledger: every call with its decision and its cost."""
        from avyay.marga.call_journal import open_calls

        return self.closing(open_calls(self.paths.component("marga") / "marga.db", self.clock))

    @cached_property
    def marga(self) -> Records:
        """The router's records, to be read."""
        from avyay.marga.records import Records

        return Records(lambda: self.calls, self.clock)

    @cached_property
    def verdicts(self) -> VerdictStore:
        """What the router's judgement has learned of request classes."""
        from avyay.marga.verdicts import VerdictStore

        return self.closing(VerdictStore(self.paths.component("marga") / "verdicts.db", clock=self.clock))

    @cached_property
    def completer(self) -> Completer:
        """Answers completions: the router in this process, or the one at `marga.url`."""
        from avyay.wiring.marga import make_completer

        return make_completer(self)

    # ------------------------------------------------------------ runbooks, products

    @cached_property
    def rag(self) -> RagService:
        """Runbook retrieval; opens its files when first used."""
        from avyay.wiring.rag import open_rag

        return open_rag(self)

    @cached_property
    def siddhi(self) -> Siddhi:
        """The finder of products; opens its files when first used, and calls nobody."""
        from avyay.siddhi.build import build_siddhi

        return self.closing(
            build_siddhi(
                self.settings.siddhi,
                self.paths,
                self.loaded.environment,
                embedder=lambda: self.embedder,
                completer=lambda: self.completer if self.completer.available() else None,
                scanner=lambda: self.make_scanner(cache=False),
                near=self.settings.events.budget_share,
                clock=self.clock,
            )
        )

    # ------------------------------------------------------------ the build engine

    @cached_property
    def engine(self) -> Queue:
        """The build engine's queue, for the thread that asks first."""
        return self.closing(self.open_queue())

    def open_queue(self) -> Queue:
        """The build engine's queue once more, for the calling thread, which must close it."""
        from avyay.wiring.engine import open_queue

        self._used_queue = True  # what is written into it is told at the latest when this is closed
        return open_queue(self)

    def settle_tasks(self, tasks: Sequence[NewTask], *, strict: bool = True) -> list[NewTask]:
        """Tasks for the queue that say which repository they belong to; those that do not, to the one around here.

        Args:
            strict: Whether there must be one.

        Raises:
            UsageError: there is no such repository.
        """
        from avyay.engine.repositories import settle_repositories

        return settle_repositories(tasks, self.settings.engine, Path.cwd(), strict=strict)

    def engine_repository(self, path: Path) -> str:
        """What tasks call the repository around a path.

        Raises:
            UsageError: there is none that could be named.
        """
        from avyay.engine.repositories import name_at

        return name_at(path, self.settings.engine, Path.cwd())

    def tell_engine_history(self) -> int:
        """Publish here what was written into the build engine's queue since the last time, whoever wrote it.

        Raises:
            AvyayError: the queue cannot be reached.
        """
        from avyay.wiring.engine import tell_history

        return tell_history(self)

    def engine_queues_told(self) -> frozenset[str]:
        """The queues whose history this home tells of itself, and need not hear of from others.

        Raises:
            AvyayError: it cannot be read.
        """
        from avyay.engine.forward import queues_told

        return queues_told(self.paths.data / "engine" / "events.db")

    @cached_property
    def knowledge(self) -> Knowledge:
        """What the build engine knows of repositories; runbooks that are indexed are asked as well."""
        return self.closing(self.open_knowledge())

    def open_knowledge(self) -> Knowledge:
        """The knowledge graph once more, for the calling thread, which must close it."""
        from avyay.wiring.engine import open_knowledge

        return open_knowledge(self)

    @cached_property
    def engine_desk(self) -> Desk:
        """What may be asked of the build engine from any thread."""
        from avyay.wiring.engine import make_desk

        return make_desk(self)

    def make_dispatcher(self, *, directory: Path | None = None) -> Dispatcher:
        """The build engine's loop, as configured, for the repository around a folder (by default the current one).

        Raises:
            UsageError: there is no repository to work on.
        """
        from avyay.wiring.engine import make_dispatcher

        return make_dispatcher(self, directory or Path.cwd())

    def engine_nodes(self) -> list[Node]:
        """The build engine's nodes, to be looked at."""
        from avyay.engine.build import build_nodes

        return build_nodes(self.settings.engine, self.paths, self.loaded.environment)

    def make_generator(self, *, online: bool = False, sources: Sequence[str] = ()) -> TaskGenerator:
        """Finds work for the build engine.

        Args:
            online: Whether it may ask package registries and forges.
            sources: Kinds of evidence; by default the configured ones.
        """
        from avyay.wiring.engine import make_generator

        return make_generator(self, online=online, sources=sources)


def open_services(
    *, config_file: Path | None = None, directory: Path | None = None, environment: Environment | None = None
) -> Services:
    """Load the configuration and return the services made from it.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    return Services(load_settings(config_file=config_file, directory=directory, environment=environment))
