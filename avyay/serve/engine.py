"""The build engine's queue as a daemon: tasks over HTTP, their stories, a board, and beside them what dispatches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import orjson
from fastapi import FastAPI, Query, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, Field

from avyay.engine.graph import mermaid, tree_lines
from avyay.engine.narrate import narrate
from avyay.engine.narrate import why as explain
from avyay.engine.types import ACTIVE, NewTask, State, Task
from avyay.errors import AvyayError, UsageError
from avyay.log import get_logger
from avyay.serve.app import Kit, Report, daemon_key
from avyay.serve.board import board, clock_time, stages
from avyay.serve.house import Metric
from avyay.serve.launch import Daemon, Launch, Site, launch
from avyay.serve.run import App, Stopping
from avyay.serve.siblings import Siblings

if TYPE_CHECKING:
    from avyay.engine.queue import Queue
    from avyay.wiring import Services

__all__ = ["DEFAULT_PORT", "build_app", "engine_daemon", "serve_engine"]

DEFAULT_PORT = 8086
_SHOWN = 100
_TELL = 1.0  # seconds between two looks at the history
_T = TypeVar("_T")
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Text = Annotated[str, Field(max_length=500)]


class Desk:
    """The queue on a thread of its own: its connection belongs to the thread that opened it.

    Args:
        open_queue: Opens it; called on that thread.
    """

    def __init__(self, open_queue: Callable[[], Queue]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="queue")
        try:
            self._queue = self._thread.submit(open_queue).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def ask(self, work: Callable[[Queue], _T]) -> _T:
        """What `work` makes of the queue."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._queue)

    def wait(self, work: Callable[[Queue], _T]) -> _T:
        """`ask` for other threads."""
        return self._thread.submit(work, self._queue).result()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Lets go of the queue at the end."""
        try:
            yield
        finally:
            await self.ask(lambda queue: queue.close())
            self._thread.shutdown()


class TaskBody(BaseModel):
    """What somebody wants done; see `avyay engine add --help`."""

    title: str = Field(min_length=1, max_length=500)
    description: str = Field("", max_length=100_000)
    accept: str = Field("", max_length=2_000, description="The command that decides whether it is done.")
    needs: list[_Name] = Field([], max_length=100)
    files: list[_Text] = Field([], max_length=200)
    requires: list[_Text] = Field([], max_length=50)
    evidence: list[_Text] = Field([], max_length=200)
    priority: int = Field(0, ge=-1000, le=1000)
    attempts: int = Field(3, ge=1, le=20)
    fingerprint: str | None = Field(None, max_length=200, description="Add it only once.")
    approval: bool = False
    id: _Name | None = None


class TasksBody(BaseModel):
    """Tasks, added all or none."""

    tasks: list[TaskBody] = Field(min_length=1, max_length=500)


class ReasonBody(BaseModel):
    """Why."""

    reason: str = Field("cancelled over HTTP", min_length=1, max_length=500)


class ApproveBody(BaseModel):
    """Who lets it go on."""

    by: str = Field(min_length=1, max_length=100)


def serve_engine(services: Services, how: Launch | None = None, *, run: bool = False) -> int:
    """Run the daemon until it is told to end; returns the exit code.

    Args:
        run: Whether it also gives tasks to agents.

    Raises:
        UsageError: the port is taken, or the variable that the configuration names is not set.
        PolicyError: others could reach it, and it has no key.
    """
    return launch(services, engine_daemon(run=run), how or Launch())


def engine_daemon(*, run: bool = False) -> Daemon:
    """What `avyay serve engine` runs; see `serve_engine`."""

    def build(services: Services, site: Site) -> App:
        duties = [partial(dispatching, services)] if run else []
        key = _key(services, site.host)
        return build_app(services, key=key, stopping=site.stopping, siblings=site.siblings, duties=duties)

    about = "health: /health, board: /"
    arguments = ("--run",) if run else ()
    fixed = "--run and --reload-config exclude each other: agents at work would be ended." if run else ""
    return Daemon("engine", "ENGINE", about, DEFAULT_PORT, _key, build, arguments=arguments, fixed=fixed)


def _key(services: Services, host: str) -> str | None:
    risk = "Anyone who reaches {host} could have commands run by your agents."
    return daemon_key(services, "engine", host, services.settings.engine.api_key_env, risk)


@asynccontextmanager
async def dispatching(services: Services, *, directory: Path | None = None) -> AsyncIterator[None]:
    """The engine's loop, on a thread of its own; at the end it stops its agents and gives their tasks back.

    Args:
        directory: Of the repository worked on, where the configuration names none; by default the current one.

    Raises:
        UsageError: there is no repository, or no agent.
    """
    dispatcher = await asyncio.to_thread(services.make_dispatcher, directory=directory)
    if not any(node.agents() for node in dispatcher.nodes):
        raise UsageError(
            "No node has an agent.", hint="Install claude, codex, opencode, gemini or aider, or set engine.agents."
        )

    def work() -> None:
        try:
            dispatcher.run()
        except Exception:  # noqa: BLE001 - the thread ends, the queue stays reachable
            get_logger("engine").exception("dispatcher_failed")

    loop = asyncio.create_task(asyncio.to_thread(work))
    try:
        yield
    finally:
        dispatcher.stop()
        await loop


@asynccontextmanager
async def _telling(services: Services) -> AsyncIterator[None]:
    """Publishes what is written into the queue, whoever writes it."""

    async def tell() -> None:
        while True:
            try:
                await asyncio.to_thread(services.tell_engine_history)
            except AvyayError as error:
                get_logger("engine").warning("history_not_told", reason=error.message)
            await asyncio.sleep(_TELL)

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def build_app(
    services: Services,
    *,
    key: str | None = None,
    stopping: Stopping | None = None,
    siblings: Siblings | None = None,
    duties: Iterable[Callable[[], AbstractAsyncContextManager[Any]]] = (),
) -> FastAPI:
    """The ASGI application.

    Args:
        key: What callers must send as a bearer token; None: no key is asked for.
        stopping: Told when the daemon drains.
        siblings: What this process shares with other workers.
        duties: What runs in one process of the home only: the dispatcher's loop.
    """
    desk = Desk(services.open_queue)
    telling = [partial(_telling, services)] if services.settings.engine.queue_url is not None else []
    kit = Kit(
        services,
        "engine",
        Report(partial(desk.wait, _health), metrics=lambda: desk.wait(lambda queue: list(_metrics(queue)))),
        key=key,
        stopping=stopping,
        siblings=siblings,
        beside=(desk.open,),
        duties=(*telling, *duties),
    )
    _add_reading(kit, desk, services.clock.now)
    _add_writing(kit, desk, partial(services.settle_tasks, strict=False))
    _add_board(kit, desk, services.clock.now)
    return kit.app


def _json(data: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(data, default=_plain), status, media_type="application/json")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _add_reading(kit: Kit, desk: Desk, now: Callable[[], float]) -> None:
    app = kit.app

    @app.get("/v1/engine/tasks", dependencies=[kit.authorised])
    async def tasks(
        state: Annotated[list[State], Query(max_length=10)] = [],  # noqa: B006 - FastAPI copies it
        limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    ) -> Response:
        """Tasks, oldest first, and how many there are in each state."""

        def rows(queue: Queue) -> dict[str, Any]:
            found = [asdict(task) for task in queue.tasks(*state)]
            return {"tasks": found[:limit], "left_out": max(0, len(found) - limit), "counts": queue.counts()}

        return _json(await desk.ask(rows))

    @app.get("/v1/engine/tasks/{name}", dependencies=[kit.authorised])
    async def task(name: str) -> Response:
        """A task with its whole story, as data and as text."""

        def row(queue: Queue) -> dict[str, Any]:
            found, history = queue.get(name), queue.history(name)
            story = "\n".join(narrate(found, history))
            return {**asdict(found), "history": [asdict(entry) for entry in history], "story": story}

        return _json(await desk.ask(row))

    @app.get("/v1/engine/tasks/{name}/why", dependencies=[kit.authorised])
    async def why(name: str) -> Response:
        """Why a task is not running, down to the root."""
        reasons = await desk.ask(lambda queue: explain(queue.get(name), queue.get, now(), queue.tasks(*ACTIVE)))
        return _json({"task": name, "reasons": reasons})

    @app.get("/v1/engine/log", dependencies=[kit.authorised])
    async def log(
        after: Annotated[int, Query(ge=0, le=2**62, description="Only entries after this number.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        """What happened to all tasks, oldest first."""
        entries = await desk.ask(lambda queue: queue.history(after=after, limit=limit))
        return _json({"history": [asdict(entry) for entry in entries]})

    @app.get("/v1/engine/graph", dependencies=[kit.authorised], response_class=PlainTextResponse)
    async def graph(form: Annotated[Literal["text", "mermaid"], Query(alias="format")] = "text") -> PlainTextResponse:
        """The tasks and what waits for what."""

        def draw(queue: Queue) -> str:
            found = list(queue.tasks())
            rows = [(one.id, one.title, one.state) for one in found]
            needs = {one.id: one.needs for one in found}
            return mermaid(rows, needs) if form == "mermaid" else "\n".join(tree_lines(rows, needs))

        return PlainTextResponse(await desk.ask(draw))


def _add_writing(kit: Kit, desk: Desk, settle: Callable[[list[NewTask]], list[NewTask]]) -> None:
    app = kit.app

    @app.post("/v1/engine/tasks", dependencies=[kit.authorised], status_code=201)
    async def add(body: TasksBody) -> Response:
        """Add tasks; one whose fingerprint is known is not added, and the known one's id is answered."""
        new = [
            NewTask(
                **{
                    **one.model_dump(exclude={"needs", "files", "requires", "evidence"}),
                    "needs": tuple(one.needs),
                    "files": tuple(one.files),
                    "requires": frozenset(one.requires),
                    "evidence": tuple(one.evidence),
                }
            )
            for one in body.tasks
        ]
        return _json({"added": await desk.ask(lambda queue: queue.add(settle(new)))}, 201)

    @app.post("/v1/engine/tasks/{name}/cancel", dependencies=[kit.authorised])
    async def cancel(name: str, body: ReasonBody) -> Response:
        """End a task; an agent at work on it loses its lease."""
        return await changed(name, lambda queue: queue.cancel(name, body.reason))

    @app.post("/v1/engine/tasks/{name}/retry", dependencies=[kit.authorised])
    async def retry(name: str) -> Response:
        """Give a failed, dead or cancelled task all its attempts again."""
        return await changed(name, lambda queue: queue.retry(name))

    @app.post("/v1/engine/tasks/{name}/approve", dependencies=[kit.authorised])
    async def approve(name: str, body: ApproveBody) -> Response:
        """Let a task that asked for approval go on."""
        return await changed(name, lambda queue: queue.approve(name, body.by))

    async def changed(name: str, change: Callable[[Queue], None]) -> Response:
        def work(queue: Queue) -> Task:
            change(queue)
            return queue.get(name)

        return _json(asdict(await desk.ask(work)))


def _add_board(kit: Kit, desk: Desk, now: Callable[[], float]) -> None:
    def render(queue: Queue) -> HTMLResponse:
        counts = queue.counts()
        found = sorted(queue.tasks(), key=lambda task: (task.state not in ACTIVE, -task.updated))
        return board(
            "engine.html",
            "Build engine",
            f"{sum(counts.values())} tasks",
            now(),
            [f"{counts['dead']} dead letters: avyay engine list --state dead"] if counts.get("dead") else [],
            stages=stages(counts),
            tasks=[asdict(task) for task in found[:_SHOWN]],
            more=max(0, len(found) - _SHOWN),
            log=_newest(queue),
        )

    async def page() -> HTMLResponse:
        """The queue, its tasks and what happened last, as a page."""
        return await desk.ask(render)

    for path in ("/", "/v1/engine/board"):
        kit.app.get(path, dependencies=[kit.reader], response_class=HTMLResponse)(page)


def _newest(queue: Queue) -> list[dict[str, Any]]:
    """The last entries of the log, newest first."""
    return [
        {
            "at": clock_time(entry.at),
            "task": entry.task,
            "what": f"{entry.before or '–'} → {entry.after}" if entry.after else entry.kind,
            "detail": entry.detail,
        }
        for entry in queue.newest()
    ]


def _health(queue: Queue) -> dict[str, Any]:
    counts = queue.counts()
    return {"status": "ok" if not counts.get("dead") else "degraded", "queue": counts}


def _metrics(queue: Queue) -> Iterable[Metric]:
    rows: list[tuple[dict[str, str], float]] = [({"state": name}, count) for name, count in queue.counts().items()]
    yield "engine_tasks", "gauge", "Tasks by state.", rows
