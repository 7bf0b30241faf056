"""What every daemon is made of: its routes come on top.

`/health`, `/ready`, `/metrics`, `/openapi.json`, `/v1/events`, `/v1/jobs`, request ids, logs, problem+json, a key, and
an orderly end stand here once. A component says how it is (`Report`), what its jobs do, and adds routes to `kit.app`.
"""

from __future__ import annotations

import asyncio
import hmac
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import orjson
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from avyay import __version__
from avyay.errors import AuthError, AvyayError, PolicyError, UsageError
from avyay.principal import PRINCIPAL_HEADER
from avyay.serve.envelope import Envelope
from avyay.serve.errors import problem, problem_data, status_of
from avyay.serve.events import EventFeed
from avyay.serve.house import Metric, render_metrics, total
from avyay.serve.identity import Check, is_tailscaled, require_user
from avyay.serve.jobs import ENDED, Job, JobBoard, JobKind
from avyay.serve.lead import Lead
from avyay.serve.principals import verifier
from avyay.serve.run import Stopping, is_loopback
from avyay.serve.siblings import Siblings

if TYPE_CHECKING:
    from avyay.wiring import Services

__all__ = ["IdempotencyKey", "Kit", "Report", "accepted", "daemon_key"]

LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]
MAX_BODY = 5_000_000
_LARGEST_EVENT = 64_000  # bytes; a larger result is fetched from the job itself
_LOOK = 0.2  # seconds between two looks at a job that somebody watches
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "A problem (RFC 9457).",
        "content": {
            "application/problem+json": {
                "schema": {
                    "type": "object",
                    "required": ["type", "status", "title", "code"],
                    "properties": {
                        "type": {"type": "string"},
                        "status": {"type": "integer"},
                        "title": {"type": "string"},
                        "code": {"type": "string"},
                        "hint": {"type": ["string", "null"]},
                    },
                }
            }
        },
    }
}
IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", description="The same request with the same key is the same job.")
]


@dataclass(frozen=True, slots=True)
class Report:
    """How a component is. Called in threads, but for `counts` and `facts`, which must be quick.

    Args:
        health: Each dependency's state; its `status` is ok or degraded.
        ready: Whether requests can be served.
        metrics: For Prometheus: what all processes of the component see alike.
        counts: For Prometheus: what this process has counted by itself; it is added up over all workers.
        facts: What only the process knows that does the duties; part of every worker's health.
    """

    health: Callable[[], Mapping[str, Any]]
    ready: Callable[[], bool] = lambda: True
    metrics: Callable[[], Iterable[Metric]] = tuple
    counts: Callable[[], Iterable[Metric]] = tuple
    facts: Callable[[], Mapping[str, Any]] = dict


class Kit:
    """The daemon of one component.

    Args:
        key: What callers must send as a bearer token; None: no key is asked for.
        stopping: Told when the daemon drains.
        siblings: What this process shares with the other workers of the daemon.
        jobs: Kinds of jobs; without any there is no `/v1/jobs`.
        at_once: Jobs that run side by side, in all processes together.
        beside: What runs as long as the daemon does; entered in order, left in reverse.
        duties: What runs in one process of the home only, like the jobs: in whichever leads.
        max_body: Bytes of a request's body.
        private: Open to loopback only, so that other host names are refused; by default when there is no key and
            nothing is published.
        is_tailscaled: Tells connections of the local tailscaled from others.
    """

    def __init__(
        self,
        services: Services,
        name: str,
        report: Report,
        *,
        key: str | None = None,
        stopping: Stopping | None = None,
        siblings: Siblings | None = None,
        jobs: Sequence[JobKind] = (),
        at_once: int = 2,
        beside: Sequence[Callable[[], AbstractAsyncContextManager[Any]]] = (),
        duties: Sequence[Callable[[], AbstractAsyncContextManager[Any]]] = (),
        max_body: int = MAX_BODY,
        private: bool | None = None,
        is_tailscaled: Check = is_tailscaled,
    ) -> None:
        self.services, self.name, self.report = services, name, report
        self._key = f"Bearer {key}".encode() if key is not None else None
        self.principals = verifier(services, name)
        self._beside = beside
        self._ending = asyncio.Event()
        if stopping is not None:
            stopping.add(self._ending.set)
        self.feed = EventFeed(services, stopping=stopping)
        self.siblings = siblings or Siblings()
        self.jobs: JobBoard | None = None
        if jobs:
            path = services.paths.component(name) / "jobs.db"
            self.jobs = JobBoard(path, *jobs, clock=services.clock, at_once=at_once, news=self.siblings.news)
            duties = [self.jobs.leading, *duties]
        self.lead: Lead | None = None
        if duties:
            self.lead = Lead(services.paths.component(name) / "lead.lock", duties, name)
            if stopping is not None:
                stopping.add(self.lead.resign)
        self.authorised = Depends(self.authorise)
        self.reader = Depends(self.authorise_page)
        self.app = FastAPI(
            title=f"avyay {name}",
            version=__version__,
            lifespan=self._lifespan,
            docs_url=None,
            redoc_url=None,
            responses=_PROBLEMS,
        )
        self._is_tailscaled = is_tailscaled
        private = key is None and not services.settings.serve.tailscale_serve if private is None else private
        self._envelopes: list[Envelope] = []
        if private:
            # A page in a browser may not reach us under a name of its own (DNS rebinding).
            self.app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
        self.app.add_middleware(
            cast("Any", self._envelope), name=name, clock=services.clock, max_body=max_body, private=private
        )
        self.app.state.kit = self
        self.app.add_exception_handler(AvyayError, _known)
        self.app.add_exception_handler(HTTPException, _http)
        self.app.add_exception_handler(RequestValidationError, _invalid)
        self._add_house()
        self._add_events(self.feed)
        if self.jobs is not None:
            self._add_jobs(self.jobs)

    def _envelope(self, app: Any, **options: Any) -> Envelope:
        made = Envelope(app, **options)
        self._envelopes.append(made)
        return made

    def authorise(self, request: Request) -> None:
        """Refuse callers the gateway does not vouch for and who have not the key either.

        Raises:
            AuthError: it is missing or wrong, or the gateway's word is not the gateway's.
        """
        signed = request.headers.get(PRINCIPAL_HEADER)
        if signed is not None:
            self.principals.verify(signed.encode("latin-1"))
            return
        given = request.headers.get("authorization", "").encode("latin-1")
        if self._key is not None and hmac.compare_digest(given, self._key):
            return
        settings = self.services.settings.serve
        if settings.tailscale_serve and require_user(request.scope, settings.tailnet_users, self._is_tailscaled):
            return
        if self._key is not None and not hmac.compare_digest(given, self._key):
            raise AuthError("The key is missing or wrong.", hint="Send the header Authorization: Bearer KEY.")

    def authorise_page(self, request: Request) -> None:
        """As `authorise`, for a page that a person opens: a browser asks for the key as a password.

        Raises:
            HTTPException: it is missing or wrong.
        """
        kind, _, word = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                word = b64decode(word, validate=True).decode().partition(":")[2]
            except ValueError:
                word = ""
        settings = self.services.settings.serve
        if (signed := request.headers.get(PRINCIPAL_HEADER)) is not None:
            self.principals.verify(signed.encode("latin-1"))
            return
        if self._key is not None and hmac.compare_digest(f"Bearer {word}".encode(), self._key):
            return
        if settings.tailscale_serve and require_user(request.scope, settings.tailnet_users, self._is_tailscaled):
            return
        if self._key is not None:
            raise HTTPException(401, "The key is the password.", {"www-authenticate": 'Basic realm="avyay"'})

    # ------------------------------------------------------------ life

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        async with self.running():
            yield

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """What goes on beside requests, and the end of it; closes the services."""
        services = self.services
        async with AsyncExitStack() as stack:
            stack.callback(services.close)
            await asyncio.to_thread(services.events.prepare, self.name)
            stack.push_async_callback(self.feed.stop)
            await self.feed.start()
            self.siblings.add(self)
            stack.callback(self.siblings.remove, self)
            if self.jobs is not None:
                stack.push_async_callback(self.jobs.drain)
            for beside in self._beside:
                await stack.enter_async_context(beside())
            if self.lead is not None:
                stack.push_async_callback(self.lead.stop)
                await self.lead.start()
            yield
            self._ending.set()

    # ------------------------------------------------------------ routes

    def _add_house(self) -> None:
        app = self.app

        @app.get("/health")
        async def health() -> dict[str, Any]:
            """The state of the component and of each of its dependencies."""
            found = dict(await asyncio.to_thread(self.report.health))
            status = found.pop("status", "ok")
            counted: Iterable[Metric] = ()
            facts = self.facts()
            if (self.lead is not None and facts is None) or "active" in found:
                counted, others_facts = await self.siblings.ask()
                facts = facts if facts is not None else others_facts
            if "active" in found:
                found["active"] = total(counted, f"{self.name}_active")
            if self.lead is not None:
                told = dict(facts or {})
                theirs = told.pop("status", "ok")
                status = theirs if status == "ok" else status
                found |= told
                where = "another worker" if facts is not None else "another process"
                found["duties"] = "here" if self.lead.leads else where
            if self.jobs is not None:
                found["jobs"] = await asyncio.to_thread(self.jobs.open_jobs)
            named = {"component": self.name, "version": __version__, **self.siblings.worker}
            return {"status": status, **named, **found}

        @app.get("/ready", responses={503: {"description": "It cannot."}})
        async def ready() -> Response:
            """Whether requests can be served."""
            fine = not self._ending.is_set() and await asyncio.to_thread(self.report.ready)
            return JSONResponse({"ready": fine}, 200 if fine else 503)

        @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
        async def metrics() -> Response:
            """For Prometheus."""
            every = await asyncio.to_thread(lambda: [*self.report.metrics(), *self._open_jobs()])
            counted, _ = await self.siblings.ask()
            return Response(render_metrics([*every, *counted]), media_type="text/plain; version=0.0.4; charset=utf-8")

    def facts(self) -> Mapping[str, Any] | None:
        """What only the leader knows; None when this process does not lead."""
        return self.report.facts() if self.lead is not None and self.lead.leads else None

    def news(self) -> None:
        """Another process has accepted a job, or called one off."""
        if self.jobs is not None:
            self.jobs.look()

    def counts(self) -> Iterable[Metric]:
        """What this process has counted."""
        yield from self.report.counts()
        for envelope in self._envelopes:
            yield from envelope.metrics()
        yield f"{self.name}_event_streams", "gauge", "Callers that listen to events.", [({}, self.feed.streams)]
        dropped = self.services.events.dropped
        yield f"{self.name}_events_dropped_total", "counter", "Events that could not be kept.", [({}, dropped)]

    def _open_jobs(self) -> Iterable[Metric]:
        if self.jobs is not None:
            yield f"{self.name}_jobs_open", "gauge", "Jobs that wait or run.", [({}, self.jobs.open_jobs())]

    def _add_events(self, feed: EventFeed) -> None:
        app = self.app

        @app.get(
            "/v1/events",
            dependencies=[self.authorised],
            response_class=StreamingResponse,
            responses={200: {"content": {"text/event-stream": {}, "application/json": {}}}},
        )
        async def events(
            request: Request,
            name: Annotated[list[str], Query(max_length=20, description="Globs of event names.")] = [],  # noqa: B006
            kind: Annotated[list[str], Query(max_length=20, description="The same as `name`.")] = [],  # noqa: B006
            after: Annotated[
                str | None, Query(description="Go on behind this id; `start` for all that is kept.")
            ] = None,
            limit: Annotated[int | None, Query(ge=1, le=1000, description="A page of so many, as JSON.")] = None,
            own: Annotated[bool, Query(description="Leave out what was followed from other homes.")] = False,
        ) -> Response:
            """What happened: live as server-sent events, or with `limit` (or `Accept: application/json`) a page."""
            return await feed.answer(request)

    def _add_jobs(self, board: JobBoard) -> None:
        app = self.app

        @app.get("/v1/jobs", dependencies=[self.authorised])
        async def jobs(limit: Annotated[int, Query(ge=1, le=200)] = 50) -> dict[str, list[Job]]:
            """The newest jobs, without their results."""
            return {"jobs": await asyncio.to_thread(board.jobs, limit)}

        @app.get("/v1/jobs/{identity}", dependencies=[self.authorised], response_model=Job)
        async def job(identity: str) -> Response:
            """How a job stands; its result when it is done."""
            found = await asyncio.to_thread(board.get, identity)
            return Response(orjson.dumps(found.data(), default=str), media_type="application/json")

        @app.get(
            "/v1/jobs/{identity}/events",
            dependencies=[self.authorised],
            response_class=StreamingResponse,
            responses={200: {"content": {"text/event-stream": {}}}},
        )
        async def events(identity: str) -> StreamingResponse:
            """Its progress, as server-sent events, until it ends."""
            first = await asyncio.to_thread(board.get, identity)
            return StreamingResponse(self._watch(board, first), media_type="text/event-stream")

        @app.delete("/v1/jobs/{identity}", dependencies=[self.authorised], status_code=202)
        async def cancel(identity: str) -> Job:
            """Call a job off."""
            job = await asyncio.to_thread(board.cancel, identity)
            self.siblings.news()  # whoever runs it
            return job

    async def _watch(self, board: JobBoard, job: Job) -> AsyncIterator[bytes]:
        last: dict[str, Any] = {}
        while True:
            now = job.data(result=False)
            if now != last:
                last = now
                text = orjson.dumps(now if job.result is None else job.data(), default=str)
                if len(text) > _LARGEST_EVENT:
                    text = orjson.dumps(now, default=str)
                yield b"event: job\ndata: " + text + b"\n\n"
            if job.state in ENDED or self._ending.is_set():
                return
            await asyncio.sleep(_LOOK)
            job = await asyncio.to_thread(board.get, job.id)


def accepted(job: Job) -> Response:
    """202 with the job and where to ask for it."""
    headers = {"location": f"/v1/jobs/{job.id}"}
    return Response(orjson.dumps(job.data(), default=str), 202, headers, "application/json")


def daemon_key(
    services: Services, name: str, host: str, variable: str | None, risk: str, *, knows_users: bool = True
) -> str | None:
    """The key that a daemon's callers must send.

    Args:
        variable: What the setting `<name>.api_key_env` names.
        risk: What could happen without one, for the refusal; `{host}` stands for the address.
        knows_users: Whether every path of the daemon heeds `serve.tailnet_users`.

    Raises:
        UsageError: the variable is not set.
        PolicyError: others could reach the daemon, and there is no key.
    """
    key = services.loaded.environment.value(variable) if variable else None
    if variable and key is None:
        raise UsageError(f"{name}.api_key_env names {variable}, which is not set.", hint=f"export {variable}=...")
    settings = services.settings.serve
    if key is None and settings.tailscale_serve and not (settings.tailnet_users and knows_users):
        users = ", or serve.tailnet_users to who may" if knows_users else ": serve.tailnet_users are not known here"
        raise PolicyError(
            f"Everybody on your tailnet could use {name}.",
            hint=f"Set {name}.api_key_env to a variable that holds a key{users}.",
            code="no_authentication",
        )
    if key is None and not is_loopback(host):
        raise PolicyError(
            risk.format(host=host),
            hint=f"Set {name}.api_key_env to a variable that holds a key, or bind to 127.0.0.1.",
            code="no_authentication",
        )
    return key


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, AvyayError)
    status = status_of(error)
    headers = {"www-authenticate": "Bearer"} if status == 401 else {"retry-after": "5"} if status in (429, 503) else {}
    return JSONResponse(problem(error), status, headers, "application/problem+json")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    titles = {404: f"There is nothing at {request.url.path[:200]}.", 405: f"{request.method} is not taken here."}
    title = titles.get(error.status_code, str(error.detail))
    hint = "See /openapi.json." if error.status_code in titles else None
    data = problem_data(error.status_code, title, _CODES.get(error.status_code, "http"), hint)
    return JSONResponse(data, error.status_code, error.headers, "application/problem+json")


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    data = problem_data(422, f"The request is not as the contract says: {where}: {first['msg']}."[:500], "invalid")
    return JSONResponse(data, 422, media_type="application/problem+json")


_CODES = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}
