"""Runbook answers as a daemon: HTTP API, MCP at /mcp, push webhooks, and an index that keeps itself fresh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import anyio.to_thread
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.routing import Route

from avyay.errors import AvyayError, PolicyError, UsageError
from avyay.ports import Progress, Tier
from avyay.rag.keeper import Keeper
from avyay.rag.mcp import AnswerModel, Expand, SearchModel, SourcesModel, answer_model, search_model, source_model
from avyay.rag.service import AskOptions
from avyay.rag.webhooks import read_push, sources_of
from avyay.serve.app import IdempotencyKey, Kit, Report, accepted, daemon_key
from avyay.serve.house import Metric
from avyay.serve.jobs import Job, JobKind
from avyay.serve.launch import Daemon, Launch, Site, launch
from avyay.serve.run import App, Stopping
from avyay.serve.siblings import Siblings

if TYPE_CHECKING:
    from avyay.rag.answer import Answer
    from avyay.rag.plan import SyncReport
    from avyay.rag.service import Prepared, RagService
    from avyay.wiring import Services

__all__ = ["DEFAULT_PORT", "build_app", "rag_daemon", "serve_rag"]

DEFAULT_PORT = 8082


class AskBody(BaseModel):
    """A question."""

    question: str = Field(max_length=4_000)
    session: str | None = Field(None, max_length=200)
    sources: list[str] = []
    paths: list[str] = []
    limit: int | None = Field(None, ge=1, le=50)
    model: str = "auto"
    tier: Tier | None = None
    extractive: bool = False
    expand: Expand = "none"
    stream: bool = Field(False, description="Server-sent events: `token` with pieces of text, then one `answer`.")


class SearchBody(BaseModel):
    """A query."""

    query: str = Field(max_length=4_000)
    limit: int = Field(10, ge=1, le=100)
    mode: Literal["hybrid", "keywords", "vectors"] | None = Field(None, description="By default the configured one.")
    sources: list[str] = []
    paths: list[str] = []
    expand: Expand = "none"


class SyncBody(BaseModel):
    """What to bring up to date."""

    sources: list[str] = Field([], description="By name; empty: all.")


class FeedbackBody(BaseModel):
    """A verdict on an answer."""

    id: str
    verdict: Literal["up", "down"]
    comment: str = Field("", max_length=2_000)


def serve_rag(services: Services, how: Launch | None = None) -> int:
    """Run the daemon until it is told to end; returns the exit code.

    Raises:
        UsageError: the port is taken, or a variable that the configuration names is not set.
        PolicyError: others could reach it, and it has no key.
    """
    return launch(services, rag_daemon(), how or Launch())


def rag_daemon() -> Daemon:
    """What `avyay serve rag` runs."""

    def build(services: Services, site: Site) -> App:
        key, secret = _keys(services, site.host)
        return build_app(
            services,
            host=site.host,
            key=key,
            webhook_secret=secret,
            stopping=site.stopping,
            siblings=site.siblings,
        )

    return Daemon("rag", "RAG", "health: /health, MCP: /mcp", DEFAULT_PORT, _keys, build)


def _keys(services: Services, host: str) -> tuple[str | None, str | None]:
    """What callers send, and what webhooks are signed with."""
    settings = services.settings.rag
    key = daemon_key(services, "rag", host, settings.api_key_env, "Anyone who reaches {host} could read your runbooks.")
    variable = settings.webhook_secret_env
    secret = services.loaded.environment.value(variable) if variable else None
    if variable and secret is None:
        raise UsageError(f"rag.webhook_secret_env names {variable}, which is not set.", hint=f"export {variable}=...")
    return key, secret


def build_app(
    services: Services,
    *,
    host: str = "127.0.0.1",
    key: str | None = None,
    webhook_secret: str | None = None,
    stopping: Stopping | None = None,
    siblings: Siblings | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        host: Where it will be bound.
        key: What callers must send as a bearer token; None: no key is asked for.
        webhook_secret: What pushes are signed with; None: webhooks are refused.
        stopping: Told when the daemon drains.
        siblings: What this process shares with other workers.
    """
    rag = services.rag
    settings = services.settings.rag
    keeper = Keeper(rag, poll_interval=settings.poll_interval, reconcile_interval=settings.reconcile_interval)
    mcp = services.mcp_server(["rag"], host=host)
    mcp_app = mcp.streamable_http_app()

    @asynccontextmanager
    async def keeping() -> AsyncIterator[None]:
        task = asyncio.create_task(keeper.run())
        try:
            yield
        finally:
            keeper.stop()
            await task

    kit = Kit(
        services,
        "rag",
        Report(
            partial(_health, rag),
            lambda: _index_state(rag)["ready"],
            partial(_metrics, rag),
            counts=partial(_counts, keeper),
            facts=partial(_facts, keeper),
        ),
        key=key,
        stopping=stopping,
        siblings=siblings,
        jobs=[JobKind("sync", partial(_sync, rag), again=True), JobKind("push", partial(_pushed, keeper), again=True)],
        beside=[mcp.session_manager.run],
        duties=[keeping],
    )
    _add_questions(kit.app, rag, kit.authorised)
    _add_upkeep(kit, rag)
    _add_webhook(kit, rag, webhook_secret)

    # A route, not a mount at "/": that would answer for every path, with its own words and without the right 405.
    kit.app.router.routes.append(Route("/mcp", _Guarded(mcp_app, kit), include_in_schema=False))
    return kit.app


class _Guarded:
    """An application that only those may use who may use the daemon."""

    def __init__(self, app: App, kit: Kit) -> None:
        self._app, self._kit = app, kit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._kit.authorise(Request(scope))
        await self._app(scope, receive, send)


def _add_questions(app: FastAPI, rag: RagService, authorised: Any) -> None:
    @app.post("/v1/ask", dependencies=[authorised], response_model=AnswerModel)
    async def ask(body: AskBody) -> Any:
        """Answer a question with citations."""
        options = AskOptions(
            limit=body.limit,
            session=body.session,
            sources=tuple(body.sources),
            paths=tuple(body.paths),
            model=body.model,
            tier=body.tier,
            extractive=body.extractive,
            expand=body.expand,
        )
        prepared = await anyio.to_thread.run_sync(rag.prepare, body.question, options)
        if body.stream:
            return StreamingResponse(_events(rag, prepared), media_type="text/event-stream")
        if prepared.request is None:
            return answer_model(await asyncio.to_thread(rag.finish, prepared))
        return answer_model(await rag.complete(prepared))

    @app.post("/v1/search", dependencies=[authorised])
    async def search(body: SearchBody) -> SearchModel:
        """Find passages, best first."""
        work = partial(
            rag.find,
            body.query,
            limit=body.limit,
            mode=body.mode,
            sources=body.sources,
            paths=body.paths,
            expand=body.expand,
        )
        return search_model(await anyio.to_thread.run_sync(work))

    @app.post("/v1/feedback", dependencies=[authorised], status_code=204)
    async def feedback(body: FeedbackBody) -> None:
        """Say whether an answer helped."""
        await asyncio.to_thread(rag.feedback, body.id, body.verdict, body.comment)


async def _events(rag: RagService, prepared: Prepared) -> AsyncIterator[bytes]:
    answer: Answer | None = None
    async for piece in rag.answer_stream(prepared):
        if isinstance(piece, str):
            yield b"event: token\ndata: " + orjson.dumps({"text": piece}) + b"\n\n"
        else:
            answer = piece
    assert answer is not None
    yield b"event: answer\ndata: " + answer_model(answer).model_dump_json().encode() + b"\n\n"


def _sync(rag: RagService, arguments: Mapping[str, Any], payload: bytes | None, progress: Progress) -> Any:
    return [_changes(report) for report in rag.sync(arguments["sources"], progress=progress)]


def _pushed(keeper: Keeper, arguments: Mapping[str, Any], payload: bytes | None, progress: Progress) -> Any:
    return [_changes(report) for report in keeper.sync(arguments["sources"], progress)]


def _changes(report: SyncReport) -> dict[str, Any]:
    return {
        "source": report.source,
        "head": report.head,
        "added": len(report.added),
        "changed": len(report.changed),
        "removed": len(report.removed),
    }


def _add_upkeep(kit: Kit, rag: RagService) -> None:
    app, jobs = kit.app, kit.jobs
    assert jobs is not None

    @app.get("/v1/sources", dependencies=[kit.authorised])
    async def sources() -> SourcesModel:
        """What is indexed."""
        rows = await asyncio.to_thread(rag.sources)
        return SourcesModel(sources=[source_model(row, rag.clock.now()) for row in rows])

    @app.post("/v1/sync", dependencies=[kit.authorised], status_code=202, response_model=Job)
    async def sync(body: Annotated[SyncBody, Field(default_factory=SyncBody)], key: IdempotencyKey = None) -> Response:
        """Bring sources up to date, as a job."""
        return accepted(await jobs.start("sync", {"sources": body.sources}, key=key))


def _add_webhook(kit: Kit, rag: RagService, secret: str | None) -> None:
    jobs = kit.jobs
    assert jobs is not None

    @kit.app.post("/v1/webhooks/push", status_code=202)
    async def push(request: Request) -> dict[str, Any]:
        """A push, announced by GitHub, GitLab or Gitea and signed with the webhook's secret."""
        if secret is None:
            raise PolicyError("This daemon takes no webhooks.", hint="Set rag.webhook_secret_env.", code="no_secret")
        body = await request.body()
        headers = {name.lower(): value for name, value in request.headers.items()}
        found = read_push(headers, body, secret=secret, now=rag.clock.now())
        names = sources_of(found, [row.spec for row in rag.sources()]) if found is not None else []
        if names:  # one that waits already will see this push as well
            await jobs.start("push", {"sources": names}, once=True)
        return {"sources": names}


def _index_state(rag: RagService) -> dict[str, Any]:
    try:
        state = rag.state()
    except AvyayError as error:
        return {"ready": False, "problem": error.message}
    return {
        "ready": state.chunks > 0,
        "generation": state.generation,
        "documents": state.documents,
        "chunks": state.chunks,
    }


def _health(rag: RagService) -> dict[str, Any]:
    index = _index_state(rag)
    return {"status": "ok" if index["ready"] else "degraded", "index": index}


def _facts(keeper: Keeper) -> dict[str, Any]:
    status = keeper.status
    return {
        "status": "degraded" if status.problems else "ok",
        "problems": dict(status.problems),
        "last_sync": status.last_sync,
        "last_reconcile": status.last_reconcile,
    }


def _counts(keeper: Keeper) -> Iterable[Metric]:
    status = keeper.status
    yield "rag_syncs_total", "counter", "Sources looked at.", [({}, status.syncs)]
    yield "rag_sync_failures_total", "counter", "Sources that could not be read.", [({}, status.failures)]
    yield "rag_source_changes_total", "counter", "Syncs that found changes.", [({}, status.changes)]
    yield "rag_reconciles_total", "counter", "Reconciliations.", [({}, status.reconciles)]
    yield "rag_mended_total", "counter", "Faults that reconciliations mended.", [({}, status.mended)]


def _metrics(rag: RagService) -> Iterable[Metric]:
    index, verdicts, drift = _index_state(rag), rag.verdicts(), rag.drift()
    yield "rag_generation", "gauge", "Generation of the index that is visible.", [({}, index.get("generation", 0))]
    yield "rag_chunks", "gauge", "Chunks that can be found.", [({}, index.get("chunks", 0))]
    yield "rag_answers", "gauge", "Answers remembered.", [({}, verdicts.answers)]
    yield "rag_unanswered", "gauge", "Of them, not in the runbooks.", [({}, verdicts.unanswered)]
    votes: list[tuple[dict[str, str], float]] = [({"verdict": "up"}, verdicts.up), ({"verdict": "down"}, verdicts.down)]
    yield "rag_verdicts", "gauge", "What people thought of them.", votes
    changes: list[tuple[dict[str, str], float]] = [({"sign": sign.name}, sign.z) for sign in drift.signs]
    yield "rag_drift", "gauge", "Newest answers against earlier ones, in standard errors; -3 is an alarm.", changes
