"""The composition root: settings become services, joined through the ports.

Used by the CLI, the daemons, MCP and Python programs alike:

    from avyay.wiring import open_services

    with open_services() as services:
        print(services.scanner.scan([Path(".")]).findings)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from avyay import __version__
from avyay.clock import SYSTEM_CLOCK, Clock
from avyay.config import Environment, Loaded, load_settings
from avyay.errors import AvyayError
from avyay.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mcp.server.fastmcp import FastMCP

    from avyay.config.rag import RankingSettings, RerankSettings
    from avyay.engine.desk import Desk
    from avyay.engine.generate.service import TaskGenerator
    from avyay.engine.knowledge.service import Knowledge
    from avyay.engine.loop import Dispatcher
    from avyay.engine.nodes.base import Node
    from avyay.engine.queue import Queue
    from avyay.engine.types import NewTask, Task
    from avyay.events.outbox import Outboxes
    from avyay.marga.budgets import Budgets
    from avyay.marga.caching import AnswerCache
    from avyay.marga.records import Records
    from avyay.marga.router import Router
    from avyay.marga.store import CallStore, SqliteStore
    from avyay.marga.verdicts import VerdictStore
    from avyay.ports import BillReader, Completer, Embedder
    from avyay.rag.rerankers.base import RerankPolicy
    from avyay.rag.retrieve import Weights
    from avyay.rag.searcher import Ranking
    from avyay.rag.service import RagService
    from avyay.rag.stores.base import VectorStore
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


class Services:
    """Every service, made on first use and closed together. Importing this module loads none of them."""

    def __init__(self, loaded: Loaded, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.loaded = loaded
        self.settings = loaded.settings
        self.paths = loaded.paths
        self.clock = clock
        self._open = ExitStack()
        self._used_queue = False

    @cached_property
    def events(self) -> Outboxes:
        """Where components publish what happened."""
        from avyay.events.outbox import Outboxes

        settings = self.settings.events
        made = Outboxes(self.paths.data, clock=self.clock, keep=settings.keep, keep_for=settings.keep_for)
        self._open.callback(made.close)
        return made

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

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def embedder(self) -> Embedder:
        """The configured embedder; loads its model when first used."""
        from avyay.embed.registry import configured_embedder

        made = configured_embedder(self.settings.rag.embedder, self.loaded.environment)
        if callable(close := getattr(made, "close", None)):
            self._open.callback(close)
        return made

    @cached_property
    def router(self) -> Router:
        """The router of this process; looks for a local Ollama when it is made, and calls nobody until asked."""
        return self.router_with(lambda: self.calls)

    def router_with(self, store: Callable[[], CallStore]) -> Router:
        """A router that keeps its calls elsewhere: a daemon writes them in groups."""
        from avyay.marga.providers import resolve_providers
        from avyay.marga.router import Router

        settings = self.settings.marga
        providers = resolve_providers(settings, self.loaded.environment)
        router = Router(providers, settings, store=store, budgets=self.budgets, clock=self.clock)
        calibration = self.paths.data / "marga" / "calibration.json"  # reading creates no folder
        if calibration.is_file():
            from avyay.marga.calibrate import load_calibration

            router.calibration = load_calibration(calibration.read_bytes())
        return router

    def answer_cache(self) -> AnswerCache | None:
        """Where a router's answers are kept to be given again; None when that is not asked for."""
        settings = self.settings.marga.cache
        if not settings.enabled:
            return None
        from avyay.marga.cache_semantic import SemanticIndex
        from avyay.marga.cache_store import CacheStore, DiskCache, MemoryCache
        from avyay.marga.caching import AnswerCache

        store: CacheStore = MemoryCache(settings.max_size)
        if settings.storage == "disk":
            store = DiskCache(self.paths.component("marga") / "cache.db", settings.max_size)
        semantic = SemanticIndex(_bundled_embedder, settings.semantic.threshold) if settings.semantic.enabled else None
        return AnswerCache(settings, store, self.clock, semantic=semantic)

    @cached_property
    def budgets(self) -> Budgets | None:
        """What callers of the router may spend; None when the configuration names no cap."""
        if not self.settings.marga.budgets:
            return None
        from avyay.marga.budgets import Budgets
        from avyay.money import DOLLAR

        folder = self.paths.component("marga")
        budgets = Budgets(
            self.settings.marga.budgets,
            folder / "budgets.db",
            self.clock,
            block=DOLLAR,
            calls=folder / "marga.db",
        )
        self._open.callback(budgets.close)
        return budgets

    @cached_property
    def calls(self) -> SqliteStore:
        """The router's ledger: every call with its decision and its cost."""
        from avyay.marga.call_journal import open_calls

        store = open_calls(self.paths.component("marga") / "marga.db", self.clock)
        self._open.callback(store.close)
        return store

    @cached_property
    def marga(self) -> Records:
        """The router's records, to be read."""
        from avyay.marga.records import Records

        return Records(lambda: self.calls, self.clock)

    @cached_property
    def verdicts(self) -> VerdictStore:
        """What the router's judgement has learned of request classes."""
        from avyay.marga.verdicts import VerdictStore

        store = VerdictStore(self.paths.component("marga") / "verdicts.db", clock=self.clock)
        self._open.callback(store.close)
        return store

    @cached_property
    def completer(self) -> Completer:
        """Answers completions: the router in this process, or the one at `marga.url`."""
        from avyay.marga.completer import LocalCompleter

        if self.settings.marga.url is not None:
            from avyay.marga.remote import RemoteCompleter

            return RemoteCompleter(self.settings.marga.url, key=self.loaded.environment.value("MARGA_API_KEY"))
        cache = self.answer_cache()
        if cache is not None:
            self._open.callback(cache.store.close)
        return LocalCompleter(self.router, cache=cache)

    def _ranking(self, settings: RankingSettings) -> Ranking:
        """A ranking as configured; ConfigError when it cannot be."""
        from avyay.rag.searcher import Ranking

        policy = self._rerank_policy(settings.rerank)
        return Ranking(settings.mode, _weights(settings.weights), settings.freshness, settings.sources, policy)

    def _rerank_policy(self, settings: RerankSettings) -> RerankPolicy | None:
        if settings.name == "none":
            return None
        from avyay.errors import ConfigError
        from avyay.rag.rerankers.base import RerankPolicy
        from avyay.rag.rerankers.registry import reranker_opener

        key = self.loaded.environment.value(settings.api_key_env) if settings.api_key_env else None
        if settings.api_key_env and key is None:
            raise ConfigError(f"The reranker's key is looked for in {settings.api_key_env}, which is not set.")
        opened = reranker_opener(
            settings.name,
            embedder=self.embedder,
            completer=lambda: self.completer,
            model=settings.model,
            url=settings.url,
            style=settings.style,
            key=key,
            tier=settings.tier,
        )
        return RerankPolicy(opened, settings.seconds, settings.top, settings.weight)

    @cached_property
    def rag(self) -> RagService:
        """Runbook retrieval; opens its files when first used."""
        from avyay.rag.places import IndexPlaces
        from avyay.rag.service import RagService
        from avyay.rag.shadow import Shadow

        settings = self.settings.rag
        places = IndexPlaces.under(self.paths.data / "rag", settings.vectors_url)

        def open_store() -> VectorStore:
            from avyay.rag.stores.lance import LanceStore

            remote = "://" in places.vectors
            environment = self.loaded.environment
            options = {name.lower(): environment[name] for name in environment if remote and name.startswith("AWS_")}
            return LanceStore(
                places.vectors,
                embedder=self.embedder.name,
                dimensions=self.embedder.dimensions,
                options=options,
            )

        service = RagService(
            places,
            self.embedder,
            open_store=open_store,
            completer=lambda: self.completer,
            passages=settings.passages,
            include=settings.include,
            exclude=settings.exclude,
            ranking=self._ranking(settings.ranking),
            shadow=Shadow(self._ranking(settings.shadow), settings.shadow.share) if settings.shadow.share else None,
            clock=self.clock,
        )
        self._open.callback(service.close)
        return service

    @cached_property
    def siddhi(self) -> Siddhi:
        """The finder of products; opens its files when first used, and calls nobody."""
        from avyay.siddhi.build import build_siddhi

        service = build_siddhi(
            self.settings.siddhi,
            self.paths,
            self.loaded.environment,
            embedder=lambda: self.embedder,
            completer=lambda: self.completer if self.completer.available() else None,
            scanner=lambda: self.make_scanner(cache=False),
            near=self.settings.events.budget_share,
            clock=self.clock,
        )
        self._open.callback(service.close)
        return service

    @cached_property
    def engine(self) -> Queue:
        """The build engine's queue, for the thread that asks first."""
        queue = self.open_queue()
        self._open.callback(queue.close)
        return queue

    def open_queue(self) -> Queue:
        """The build engine's queue once more, for the calling thread, which must close it."""
        from avyay.engine.queue import Queue

        self._used_queue = True  # what is written into it is told at the latest when this is closed
        place = self.settings.engine.queue_url or self.paths.component("engine") / "engine.db"
        return Queue(place, clock=self.clock)

    def tell_engine_history(self) -> int:
        """Publish here what was written into the build engine's queue since the last time, whoever wrote it.

        Raises:
            AvyayError: the queue cannot be reached.
        """
        folder = self.paths.component("engine")
        if self.settings.engine.queue_url is None and not (folder / "engine.db").exists():
            return 0
        from avyay.engine.forward import forward_history

        return forward_history(self.open_queue, folder / "events.db")

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
        made = self.open_knowledge()
        self._open.callback(made.close)
        return made

    def open_knowledge(self) -> Knowledge:
        """The knowledge graph once more, for the calling thread, which must close it."""
        from avyay.engine.knowledge.service import Knowledge
        from avyay.marga.tokens import estimate_tokens

        def runbooks() -> RagService | None:
            places = self.paths.data / "rag"
            return self.rag if places.is_dir() and self.rag.sources() else None

        return Knowledge(self.paths.component("engine") / "knowledge.db", estimate_tokens, runbooks)

    @cached_property
    def engine_desk(self) -> Desk:
        """What may be asked of the build engine from any thread."""
        from avyay.engine.build import repositories_of
        from avyay.engine.desk import Desk

        settings = self.settings.engine
        return Desk(
            self.open_queue,
            self.open_knowledge,
            lambda: repositories_of(settings, Path.cwd()),
            self.clock,
            approval=settings.generate.approval,
        )

    def make_dispatcher(self, *, directory: Path | None = None) -> Dispatcher:
        """The build engine's loop, as configured, for the repository around a folder (by default the current one).

        Raises:
            UsageError: there is no repository to work on.
        """
        from avyay.engine.build import Offers, build_dispatcher

        settings = self.settings
        models = settings.engine.models or settings.marga.url
        return build_dispatcher(
            settings.engine,
            self.paths,
            self.loaded.environment,
            self.open_queue,
            Offers(
                scanner=self.make_scanner,
                completer=lambda: self.completer,
                runbooks=self.rag if (self.paths.data / "rag").is_dir() else None,
                bill=self._bill(models),
                events=self.events,
                generator=_FreshGenerator(self),
                context=_FreshContext(self),
                models=models,
                models_key=self.loaded.environment.value("MARGA_API_KEY"),
                tell=self.tell_engine_history,
                near=self.settings.events.budget_share,
            ),
            directory=directory or Path.cwd(),
            clock=self.clock,
        )

    def engine_nodes(self) -> list[Node]:
        """The build engine's nodes, to be looked at."""
        from avyay.engine.build import build_nodes

        return build_nodes(self.settings.engine, self.paths, self.loaded.environment)

    def _bill(self, models: str | None) -> BillReader | None:
        """Who counts what agents spend: the router they are sent to, when there is one."""
        if models is None:
            return None
        from avyay.marga.charges import RemoteBill

        return RemoteBill(models, key=self.loaded.environment.value("MARGA_API_KEY"))

    def make_generator(self, *, online: bool = False, sources: Sequence[str] = ()) -> TaskGenerator:
        """Finds work for the build engine.

        Args:
            online: Whether it may ask package registries and forges.
            sources: Kinds of evidence; by default the configured ones.
        """
        from avyay.engine.generate.service import TaskGenerator
        from avyay.ports import Alarm

        settings = self.settings.engine
        records = self.paths.data / "marga" / "marga.db"

        class RouterAlarms:
            def alarms(this) -> Sequence[Alarm]:  # noqa: N805 - self is the composition root
                return [Alarm(a.series, a.signal, a.sentence(), a.at, a.deviations) for a in self.marga.anomalies()]

        return TaskGenerator(
            self.paths.component("engine") / "generate.db",
            self.knowledge,
            sources=tuple(sources) or settings.generate.sources,
            approval=settings.generate.approval,
            tests=settings.generate.tests,
            verify=settings.verify.accept,
            online=online,
            scanner=lambda: self.scanner,
            alarms=RouterAlarms if records.is_file() else None,
            queue=lambda: self.engine,
            search_path=self.loaded.environment.get("PATH"),
            clock=self.clock,
        )

    def mcp_server(self, names: Sequence[str] | None = None, *, host: str = "127.0.0.1", port: int = 8090) -> FastMCP:
        """An MCP server with the tools of the named components, by default of all; `host` and `port` are for HTTP.

        Raises:
            UsageError: a component has no tools.
        """
        import warnings
        from importlib import import_module

        from mcp.server.fastmcp import FastMCP

        from avyay.errors import UsageError

        chosen = list(MCP_COMPONENTS) if names is None else list(names)
        for name in chosen:
            if name not in MCP_COMPONENTS:
                raise UsageError(f"{name!r} has no tools.", hint=f"Components are: {', '.join(MCP_COMPONENTS)}.")
        modules = [import_module(MCP_COMPONENTS[name]) for name in chosen]
        with warnings.catch_warnings():
            # The SDK's own settings class holds a forward reference that pydantic-settings remarks on.
            warnings.filterwarnings("ignore", message="Field .* has an unresolved|.*model_rebuild")
            server = FastMCP(
                "avyay",
                instructions="\n".join(module.INSTRUCTIONS for module in modules),
                log_level="WARNING",
                host=host,
                port=port,
                stateless_http=True,
            )
        server._mcp_server.version = __version__  # else it says the SDK's; there is no public way
        for name, module in zip(chosen, modules, strict=True):
            module.register(server, self.engine_desk if name == "engine" else getattr(self, name))
        return server

    def close(self) -> None:
        """Close what was opened, last first."""
        self._open.close()
        if self._used_queue:
            self._used_queue = False
            try:
                self.tell_engine_history()
            except AvyayError as error:  # nothing is lost: the next one who looks begins where this one stopped
                get_logger("engine").warning("history_not_told", reason=error.message)


class _FreshContext:
    """The map for agents, with connections of its own for each call: attempts ask from many threads."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def context(self, repository: Path, task: Task, *, tokens: int) -> str:
        with Services(self._services.loaded, clock=self._services.clock) as own:
            return own.knowledge.context(repository, task, tokens=tokens)

    def guess(self, repository: Path, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
        with Services(self._services.loaded, clock=self._services.clock) as own:
            return own.knowledge.guess(repository, tasks)


class _FreshGenerator:
    """The generator, likewise."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def generate(self, repository: Path, *, limit: int) -> Sequence[NewTask]:
        with Services(self._services.loaded, clock=self._services.clock) as own:
            return own.make_generator().generate(repository, limit=limit)


@cache
def _bundled_embedder() -> Embedder:
    """The embedder in the package, whatever the configuration names: what it reads stays on this machine."""
    from avyay.embed.registry import open_embedder

    return open_embedder()


def _weights(named: Mapping[str, float]) -> Weights | None:
    """Weights of the ranking as configured.

    Raises:
        ConfigError: a weight has a name that ranking does not know.
    """
    from dataclasses import fields

    from avyay.errors import ConfigError
    from avyay.rag.retrieve import Weights

    known = [item.name for item in fields(Weights)]
    for name in named:
        if name not in known:
            raise ConfigError(f"Ranking has no weight {name!r}.", hint=f"Weights are: {', '.join(known)}.")
    return Weights(**named) if named else None


def open_services(
    *, config_file: Path | None = None, directory: Path | None = None, environment: Environment | None = None
) -> Services:
    """Load the configuration and return the services made from it.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    return Services(load_settings(config_file=config_file, directory=directory, environment=environment))
