"""Runbook answers as a daemon: HTTP API, MCP at /mcp, push webhooks, and an index that keeps itself fresh."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from avyay import __version__
from avyay.errors import AuthError, AvyayError, PolicyError, UsageError
from avyay.ports import Tier
from avyay.rag.keeper import Keeper
from avyay.rag.mcp import AnswerModel, SearchModel, SourcesModel, answer_model, passage_model, source_model
from avyay.rag.service import AskOptions
from avyay.rag.webhooks import read_push, sources_of
from avyay.serve.errors import problem, status_of
from avyay.serve.events import EventFeed, add_events
from avyay.serve.house import Metric, render_metrics
from avyay.serve.jobs import JobBoard
from avyay.serve.run import Stopping, bind, is_loopback, serve

if TYPE_CHECKING:
    from avyay.rag.answer import Answer
    from avyay.rag.drift import Drift
    from avyay.rag.interactions import Verdicts
    from avyay.rag.service import Prepared, RagService
    from avyay.wiring import Services

__all__ = ["DEFAULT_PORT", "build_app", "serve_rag"]

DEFAULT_PORT = 8082
MAX_BODY = 5_000_000
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


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
    stream: bool = Field(False, description="Server-sent events: `token` with pieces of text, then one `answer`.")


class SearchBody(BaseModel):
    """A query."""

    query: str = Field(max_length=4_000)
    limit: int = Field(10, ge=1, le=100)
    mode: Literal["hybrid", "keywords", "vectors"] = "hybrid"
    sources: list[str] = []
    paths: list[str] = []


class SyncBody(BaseModel):
    """What to bring up to date."""

    sources: list[str] = Field([], description="By name; empty: all.")


class FeedbackBody(BaseModel):
    """A verdict on an answer."""

    id: str
    verdict: Literal["up", "down"]
    comment: str = Field("", max_length=2_000)


def serve_rag(services: Services, *, host: str | None = None, port: int | None = None) -> None:
    """Run the daemon until it is told to end.

    Raises:
        UsageError: the port is taken, or a variable that the configuration names is not set.
        PolicyError: others could reach it, and it has no key.
    """
    settings = services.settings
    host = host or settings.serve.host
    port = DEFAULT_PORT if (found := port if port is not None else settings.serve.port) is None else found
    key = _secret(services, settings.rag.api_key_env, "rag.api_key_env")
    if key is None and not is_loopback(host):
        raise PolicyError(
            f"Anyone who reaches {host} could read your runbooks.",
            hint="Set rag.api_key_env to a variable that holds a key, or bind to 127.0.0.1.",
            code="no_authentication",
        )
    secret = _secret(services, settings.rag.webhook_secret_env, "rag.webhook_secret_env")
    listener = bind(host, port, name="rag")
    stopping = Stopping()
    serve(
        build_app(services, host=host, key=key, webhook_secret=secret, stopping=stopping), listener, stopping=stopping
    )


def _secret(services: Services, variable: str | None, setting: str) -> str | None:
    if variable is None:
        return None
    value = services.loaded.environment.value(variable)
    if value is None:
        raise UsageError(f"{setting} names {variable}, which is not set.", hint=f"export {variable}=...")
    return value


def build_app(
    services: Services,
    *,
    host: str = "127.0.0.1",
    key: str | None = None,
    webhook_secret: str | None = None,
    stopping: Stopping | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        host: Where it will be bound.
        key: What callers must send as a bearer token; None: no key is asked for.
        webhook_secret: What pushes are signed with; None: webhooks are refused.
    """
    rag = services.rag
    settings = services.settings.rag
    jobs = JobBoard(services.clock)
    feed = EventFeed(services, stopping=stopping)
    keeper = Keeper(rag, poll_interval=settings.poll_interval, reconcile_interval=settings.reconcile_interval)
    mcp = services.mcp_server(["rag"], host=host)
    mcp_app = mcp.streamable_http_app()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await feed.start()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(mcp.session_manager.run())
            keeping = asyncio.create_task(keeper.run())
            yield
            keeper.stop()
            await jobs.drain()
            await keeping
        await feed.stop()
        services.close()

    app = FastAPI(title="avyay rag", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    if key is None:
        # A page in a browser may not reach us under a name of its own (DNS rebinding).
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
    app.add_exception_handler(AvyayError, _answer_error)

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise AuthError("The key is missing or wrong.", hint="Send the header Authorization: Bearer KEY.")

    _add_questions(app, rag, Depends(authorised))
    _add_upkeep(app, rag, jobs, Depends(authorised))
    _add_webhook(app, rag, keeper, webhook_secret)
    _add_house(app, rag, keeper, jobs)
    add_events(app, feed, Depends(authorised))

    async def guarded_mcp(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                authorised(request)
            except AuthError as error:
                await (await _answer_error(request, error))(scope, receive, send)
                return
        await mcp_app(scope, receive, send)

    app.mount("/", guarded_mcp)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AvyayError)
    return JSONResponse(problem(error), status_of(error), media_type="application/problem+json")


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
        )
        prepared = await asyncio.to_thread(rag.prepare, body.question, options)
        if body.stream:
            return StreamingResponse(_events(rag, prepared), media_type="text/event-stream")
        if prepared.request is None:
            return answer_model(await asyncio.to_thread(rag.finish, prepared))
        return answer_model(await rag.complete(prepared))

    @app.post("/v1/search", dependencies=[authorised])
    async def search(body: SearchBody) -> SearchModel:
        """Find passages, best first."""
        work = partial(
            rag.retrieve, body.query, limit=body.limit, mode=body.mode, sources=body.sources, paths=body.paths
        )
        result = await asyncio.to_thread(work)
        passages = [passage_model(number, one.passage) for number, one in enumerate(result.found, 1)]
        return SearchModel(passages=passages, notes=list(result.notes))

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


def _add_upkeep(app: FastAPI, rag: RagService, jobs: JobBoard, authorised: Any) -> None:
    @app.get("/v1/sources", dependencies=[authorised])
    async def sources() -> SourcesModel:
        """What is indexed."""
        rows = await asyncio.to_thread(rag.sources)
        return SourcesModel(sources=[source_model(row, rag.clock.now()) for row in rows])

    @app.post("/v1/sync", dependencies=[authorised], status_code=202)
    async def sync(body: Annotated[SyncBody, Field(default_factory=SyncBody)]) -> dict[str, Any]:
        """Bring sources up to date, as a job."""

        def work(progress: Any) -> Any:
            reports = rag.sync(body.sources, progress=progress)
            return [
                {
                    "source": report.source,
                    "head": report.head,
                    "added": len(report.added),
                    "changed": len(report.changed),
                    "removed": len(report.removed),
                }
                for report in reports
            ]

        return jobs.start("sync", work).data()

    @app.get("/v1/jobs/{identity}", dependencies=[authorised])
    async def job(identity: str) -> dict[str, Any]:
        """How a job stands."""
        return jobs.get(identity).data()

    @app.get("/v1/jobs/{identity}/events", dependencies=[authorised])
    async def events(identity: str) -> StreamingResponse:
        """Its progress, as server-sent events, until it ends."""
        watched = jobs.get(identity)

        async def states() -> AsyncIterator[bytes]:
            last: dict[str, Any] = {}
            while True:
                now = watched.data()
                if now != last:
                    yield b"event: job\ndata: " + orjson.dumps(now, default=str) + b"\n\n"
                    last = now
                if watched.state != "running":
                    return
                await asyncio.sleep(0.2)

        return StreamingResponse(states(), media_type="text/event-stream")

    @app.delete("/v1/jobs/{identity}", dependencies=[authorised], status_code=202)
    async def cancel(identity: str) -> dict[str, Any]:
        """Call a job off."""
        return jobs.cancel(identity).data()


def _add_webhook(app: FastAPI, rag: RagService, keeper: Keeper, secret: str | None) -> None:
    @app.post("/v1/webhooks/push", status_code=202)
    async def push(request: Request) -> dict[str, Any]:
        """A push, announced by GitHub, GitLab or Gitea and signed with the webhook's secret."""
        if secret is None:
            raise PolicyError("This daemon takes no webhooks.", hint="Set rag.webhook_secret_env.", code="no_secret")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise UsageError("The delivery is too large.")
        headers = {name.lower(): value for name, value in request.headers.items()}
        found = read_push(headers, bytes(body), secret=secret, now=rag.clock.now())
        names = sources_of(found, [row.spec for row in rag.sources()]) if found is not None else []
        keeper.announce(names)
        return {"sources": names}


def _add_house(app: FastAPI, rag: RagService, keeper: Keeper, jobs: JobBoard) -> None:
    def index_state() -> dict[str, Any]:
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

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The state of the index, its sources and its upkeep."""
        index = await asyncio.to_thread(index_state)
        status = keeper.status
        fine = index["ready"] and not status.problems
        return {
            "status": "ok" if fine else "degraded",
            "index": index,
            "problems": status.problems,
            "last_sync": status.last_sync,
            "last_reconcile": status.last_reconcile,
            "jobs": jobs.running,
        }

    @app.get("/ready")
    async def ready() -> Response:
        """Whether questions can be answered."""
        fine = (await asyncio.to_thread(index_state))["ready"]
        return JSONResponse({"ready": fine}, 200 if fine else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        index = await asyncio.to_thread(index_state)
        verdicts = await asyncio.to_thread(rag.verdicts)
        drift = await asyncio.to_thread(rag.drift)
        text = render_metrics(_metrics(index, keeper, verdicts, drift))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _metrics(index: dict[str, Any], keeper: Keeper, verdicts: Verdicts, drift: Drift) -> Iterable[Metric]:
    status = keeper.status
    yield "rag_generation", "gauge", "Generation of the index that is visible.", [({}, index.get("generation", 0))]
    yield "rag_chunks", "gauge", "Chunks that can be found.", [({}, index.get("chunks", 0))]
    yield "rag_syncs_total", "counter", "Sources looked at.", [({}, status.syncs)]
    yield "rag_sync_failures_total", "counter", "Sources that could not be read.", [({}, status.failures)]
    yield "rag_source_changes_total", "counter", "Syncs that found changes.", [({}, status.changes)]
    yield "rag_reconciles_total", "counter", "Reconciliations.", [({}, status.reconciles)]
    yield "rag_mended_total", "counter", "Faults that reconciliations mended.", [({}, status.mended)]
    yield "rag_answers", "gauge", "Answers remembered.", [({}, verdicts.answers)]
    yield "rag_unanswered", "gauge", "Of them, not in the runbooks.", [({}, verdicts.unanswered)]
    votes: list[tuple[dict[str, str], float]] = [({"verdict": "up"}, verdicts.up), ({"verdict": "down"}, verdicts.down)]
    yield "rag_verdicts", "gauge", "What people thought of them.", votes
    changes: list[tuple[dict[str, str], float]] = [({"sign": sign.name}, sign.z) for sign in drift.signs]
    yield "rag_drift", "gauge", "Newest answers against earlier ones, in standard errors; -3 is an alarm.", changes
