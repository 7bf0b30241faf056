"""The build engine's services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from avyay.wiring.marga import make_bill

if TYPE_CHECKING:
    from avyay.engine.desk import Desk
    from avyay.engine.generate.service import TaskGenerator
    from avyay.engine.knowledge.service import Knowledge
    from avyay.engine.loop import Dispatcher
    from avyay.engine.queue import Queue
    from avyay.engine.types import NewTask, Task
    from avyay.rag.service import RagService
    from avyay.wiring.services import Services

__all__ = ["make_desk", "make_dispatcher", "make_generator", "open_knowledge", "open_queue", "tell_history"]


def open_queue(services: Services) -> Queue:
    """The queue, for the calling thread, which must close it."""
    from avyay.engine.queue import Queue

    place = services.settings.engine.queue_url or services.paths.component("engine") / "engine.db"
    return Queue(place, clock=services.clock)


def tell_history(services: Services) -> int:
    """Publish in this home what was written into the queue since the last time."""
    folder = services.paths.component("engine")
    if services.settings.engine.queue_url is None and not (folder / "engine.db").exists():
        return 0
    from avyay.engine.forward import forward_history

    return forward_history(services.open_queue, folder / "events.db")


def open_knowledge(services: Services) -> Knowledge:
    """The knowledge graph, for the calling thread, which must close it."""
    from avyay.engine.knowledge.service import Knowledge
    from avyay.marga.tokens import estimate_tokens

    def runbooks() -> RagService | None:
        places = services.paths.data / "rag"
        return services.rag if places.is_dir() and services.rag.sources() else None

    return Knowledge(services.paths.component("engine") / "knowledge.db", estimate_tokens, runbooks)


def make_desk(services: Services) -> Desk:
    """What may be asked of the engine from any thread."""
    from avyay.engine.desk import Desk
    from avyay.engine.repositories import repositories_of

    settings = services.settings.engine
    return Desk(
        services.open_queue,
        services.open_knowledge,
        lambda: repositories_of(settings, Path.cwd()),
        services.clock,
        approval=settings.generate.approval,
        settle=partial(services.settle_tasks, strict=False),
    )


def make_dispatcher(services: Services, directory: Path) -> Dispatcher:
    """The loop, for the repository around a folder."""
    from avyay.engine.build import Offers, build_dispatcher

    settings = services.settings
    models = settings.engine.models or settings.marga.url
    return build_dispatcher(
        settings.engine,
        services.paths,
        services.loaded.environment,
        services.open_queue,
        Offers(
            scanner=services.make_scanner,
            completer=lambda: services.completer,
            runbooks=services.rag if (services.paths.data / "rag").is_dir() else None,
            bill=make_bill(services, models),
            events=services.events,
            generator=_FreshGenerator(services),
            context=_FreshContext(services),
            models=models,
            models_key=services.loaded.environment.value("MARGA_API_KEY"),
            tell=services.tell_engine_history,
            near=settings.events.budget_share,
        ),
        directory=directory,
        clock=services.clock,
    )


def make_generator(services: Services, *, online: bool, sources: Sequence[str]) -> TaskGenerator:
    """Finds work for the engine."""
    from avyay.engine.generate.service import TaskGenerator
    from avyay.ports import Alarm

    settings = services.settings.engine
    records = services.paths.data / "marga" / "marga.db"

    class RouterAlarms:
        def alarms(self) -> Sequence[Alarm]:
            found = services.marga.anomalies()
            return [Alarm(a.series, a.signal, a.sentence(), a.at, a.deviations) for a in found]

    return TaskGenerator(
        services.paths.component("engine") / "generate.db",
        services.knowledge,
        sources=tuple(sources) or settings.generate.sources,
        approval=settings.generate.approval,
        tests=settings.generate.tests,
        verify=settings.verify.accept,
        online=online,
        scanner=lambda: services.scanner,
        alarms=RouterAlarms if records.is_file() else None,
        queue=lambda: services.engine,
        search_path=services.loaded.environment.get("PATH"),
        clock=services.clock,
    )


class _FreshContext:
    """The map for agents, with connections of its own for each call: attempts ask from many threads."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def context(self, repository: Path, task: Task, *, tokens: int) -> str:
        with self._services.again() as own:
            return own.knowledge.context(repository, task, tokens=tokens)

    def guess(self, repository: Path, tasks: Sequence[Task]) -> Mapping[str, Mapping[str, str]]:
        with self._services.again() as own:
            return own.knowledge.guess(repository, tasks)


class _FreshGenerator:
    """The generator, likewise."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def generate(self, repository: Path, *, limit: int) -> Sequence[NewTask]:
        with self._services.again() as own:
            name = own.engine_repository(repository)
            return [replace(task, repository=name) for task in own.make_generator().generate(repository, limit=limit)]
