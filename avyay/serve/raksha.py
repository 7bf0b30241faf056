"""The scanner as a daemon: code in, SARIF out; large input as a job; MCP at /mcp."""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import orjson
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from avyay import __version__
from avyay.errors import AuthError, AvyayError, PolicyError, UsageError
from avyay.ports import Event, Events, Progress, Severity
from avyay.raksha.baseline import Baseline, read_baseline
from avyay.raksha.report.json import report_data
from avyay.raksha.report.sarif import sarif_document
from avyay.raksha.types import SEVERITIES, Report, verdict
from avyay.serve.errors import problem, status_of
from avyay.serve.events import EventFeed, add_events
from avyay.serve.house import Metric, render_metrics
from avyay.serve.jobs import JobBoard
from avyay.serve.run import Stopping, bind, is_loopback, serve
from avyay.serve.uploads import Limits, clone, unpack, write_files

if TYPE_CHECKING:
    from avyay.raksha.scan import CodeScanner
    from avyay.wiring import Services

__all__ = ["DEFAULT_PORT", "build_app", "serve_raksha"]

DEFAULT_PORT = 8083
MAX_BODY = 25_000_000
AT_ONCE = 200  # files scanned while the caller waits; more become a job
PARALLEL = 2
MOST_NEWS = 100  # events that one scan may cause
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]
ARCHIVES = (
    "application/gzip",
    "application/x-gzip",
    "application/x-tar",
    "application/zip",
    "application/octet-stream",
)
Format = Literal["sarif", "json"]


class FileBody(BaseModel):
    """A file's text."""

    path: str = Field(max_length=1_000)
    content: str


class GitBody(BaseModel):
    """A repository to fetch."""

    url: str = Field(max_length=2_000)
    ref: str | None = Field(None, max_length=200, description="Branch or tag; by default the repository's own.")


class ScanBody(BaseModel):
    """What to scan: files, or a repository."""

    files: list[FileBody] = Field([], max_length=2_000)
    git: GitBody | None = None


class Counts:
    """What happened since the start."""

    def __init__(self) -> None:
        self.scans: Counter[str] = Counter()
        self.findings: Counter[str] = Counter()
        self.files = 0
        self.seconds = 0.0

    def add(self, report: Report) -> None:
        self.scans[verdict(report, "high")] += 1
        self.findings.update(finding.severity for finding in report.findings)
        self.files += report.files
        self.seconds += report.seconds


class News:
    """Publishes findings that are new: not in the baseline, and not told before of the same repository.

    An upload says nothing of where it comes from; without a baseline nobody could tell what is new in it.
    """

    def __init__(self, events: Events, baseline: Baseline | None) -> None:
        self._events = events
        self._baseline = baseline

    def tell(self, report: Report, subject: str) -> None:
        if self._baseline is None and not subject:
            return
        known = self._baseline.fingerprints if self._baseline is not None else frozenset()
        for finding in [one for one in report.findings if one.fingerprint not in known][:MOST_NEWS]:
            data = {
                "repository": subject or None,
                "rule": finding.rule,
                "severity": finding.severity,
                "path": finding.path,
                "line": finding.line,
                "message": finding.message,
                "fingerprint": finding.fingerprint,
            }
            event = Event("raksha.finding.found", data, once=f"{subject}\0{finding.fingerprint}")
            self._events.publish(event)


def _baseline(services: Services) -> Baseline | None:
    path = services.settings.raksha.baseline
    return read_baseline(path) if path is not None else None


def serve_raksha(services: Services, *, host: str | None = None, port: int | None = None) -> None:
    """Run the daemon until it is told to end.

    Raises:
        UsageError: the port is taken, or the variable that the configuration names is not set.
        PolicyError: others could reach it, and it has no key.
    """
    settings = services.settings
    host = host or settings.serve.host
    port = DEFAULT_PORT if (found := port if port is not None else settings.serve.port) is None else found
    variable = settings.raksha.api_key_env
    key = services.loaded.environment.value(variable) if variable else None
    if variable and key is None:
        raise UsageError(f"raksha.api_key_env names {variable}, which is not set.", hint=f"export {variable}=...")
    if key is None and not is_loopback(host):
        raise PolicyError(
            f"Anyone who reaches {host} could use this machine to scan.",
            hint="Set raksha.api_key_env to a variable that holds a key, or bind to 127.0.0.1.",
            code="no_authentication",
        )
    listener = bind(host, port, name="raksha")
    stopping = Stopping()
    serve(build_app(services, key=key, stopping=stopping), listener, stopping=stopping)


def build_app(
    services: Services, *, key: str | None = None, limits: Limits | None = None, stopping: Stopping | None = None
) -> FastAPI:
    """The ASGI application.

    Args:
        key: What callers must send as a bearer token; None: no key is asked for.
    """
    scanner = services.scanner
    jobs = JobBoard(services.clock)
    counts = Counts()
    feed = EventFeed(services, stopping=stopping)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await feed.start()
        yield
        await jobs.drain()
        await feed.stop()
        services.close()

    app = FastAPI(title="avyay raksha", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    if key is None:
        # A page in a browser may not reach us under a name of its own (DNS rebinding).
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
    app.add_exception_handler(AvyayError, _answer_error)

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise AuthError("The key is missing or wrong.", hint="Send the header Authorization: Bearer KEY.")

    news = News(services.events, _baseline(services))
    git_hosts = services.settings.raksha.git_hosts
    _add_scan(app, scanner, jobs, counts, limits or Limits(), git_hosts, Depends(authorised), news)
    _add_rules(app, scanner, Depends(authorised))
    _add_jobs(app, jobs, Depends(authorised))
    _add_house(app, scanner, jobs, counts)
    add_events(app, feed, Depends(authorised))
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AvyayError)
    return JSONResponse(problem(error), status_of(error), media_type="application/problem+json")


def _add_scan(
    app: FastAPI,
    scanner: CodeScanner,
    jobs: JobBoard,
    counts: Counts,
    limits: Limits,
    git_hosts: Iterable[str],
    authorised: Any,
    news: News,
) -> None:
    at_once = asyncio.Semaphore(PARALLEL)

    def work(
        fill: Callable[[Path], object], subject: str, fail_on: Severity, form: Format, progress: Progress | None
    ) -> Any:
        with TemporaryDirectory(prefix="avyay-scan-") as folder:
            root = Path(folder, "code")
            root.mkdir()
            fill(root)
            report = scanner.scan([root], progress=progress)
        counts.add(report)
        news.tell(report, subject)
        document = sarif_document(report) if form == "sarif" else report_data(report, fail_on=fail_on)
        if form == "json":
            document["root"] = "."
        return document

    @app.post("/v1/scan", dependencies=[authorised], responses={202: {"description": "Accepted as a job."}})
    async def scan(
        request: Request,
        fail_on: Severity = "high",
        format: Format = "sarif",  # noqa: A002 - the query's own word
        wait: bool | None = None,
    ) -> Response:
        """Scan files (JSON), an archive (tar, tar.gz, zip), or a repository of an allowed host; answers SARIF."""
        data = await _body(request)
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        large = len(data) > 2_000_000
        subject = ""
        fill: Callable[[Path], object]
        if kind in ARCHIVES:
            fill = partial(_fill_archive, data, limits)
        else:
            body = _parse(data)
            if (body.git is None) == (not body.files):
                raise UsageError("Send either files or git.", code="bad_request")
            if body.git is not None:
                large = True
                subject = body.git.url
                fill = partial(_fill_git, body.git, tuple(git_hosts))
            else:
                large = large or len(body.files) > AT_ONCE
                fill = partial(_fill_files, body.files, limits)
        if wait is False or (large and wait is None):
            job = jobs.start("scan", lambda progress: work(fill, subject, fail_on, format, progress))
            headers = {"location": f"/v1/jobs/{job.id}"}
            return Response(orjson.dumps(job.data(), default=str), 202, headers, "application/json")
        async with at_once:
            document = await asyncio.to_thread(work, fill, subject, fail_on, format, None)
        media = "application/sarif+json" if format == "sarif" else "application/json"
        return Response(orjson.dumps(document), media_type=media)


def _fill_archive(data: bytes, limits: Limits, root: Path) -> None:
    unpack(data, root, limits)


def _fill_git(git: GitBody, hosts: tuple[str, ...], root: Path) -> None:
    root.rmdir()
    clone(git.url, git.ref, root, hosts=hosts)


def _fill_files(files: list[FileBody], limits: Limits, root: Path) -> None:
    write_files(((file.path, file.content.encode("utf-8", "replace")) for file in files), root, limits)


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_BODY:
            raise UsageError("The body is larger than 25 MB.", hint="Scan it in parts.", code="too_large")
    return bytes(data)


def _parse(data: bytes) -> ScanBody:
    try:
        return ScanBody.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"The body is not as expected: {where}: {first['msg']}.", code="bad_request") from None


def _add_rules(app: FastAPI, scanner: CodeScanner, authorised: Any) -> None:
    @app.get("/v1/rules", dependencies=[authorised])
    async def rules() -> dict[str, Any]:
        """Every rule."""
        known = await asyncio.to_thread(scanner.rules)
        return {"rules": [{"id": rule.id, "title": rule.title, "severity": rule.severity} for rule in known.values()]}

    @app.get("/v1/rules/{identity}", dependencies=[authorised])
    async def rule(identity: str) -> dict[str, Any]:
        """Why a rule exists, and how to repair what it finds."""
        from dataclasses import asdict

        known = await asyncio.to_thread(scanner.rules)
        if identity not in known:
            raise UsageError(f"There is no rule {identity!r}.", code="no_rule")
        return asdict(known[identity])


def _add_jobs(app: FastAPI, jobs: JobBoard, authorised: Any) -> None:
    @app.get("/v1/jobs/{identity}", dependencies=[authorised])
    async def job(identity: str) -> Response:
        """How a job stands; its result when it is done."""
        return Response(orjson.dumps(jobs.get(identity).data(), default=str), media_type="application/json")

    @app.get("/v1/jobs/{identity}/events", dependencies=[authorised])
    async def events(identity: str) -> StreamingResponse:
        """Its progress, as server-sent events, until it ends."""
        watched = jobs.get(identity)

        async def states() -> AsyncIterator[bytes]:
            last: dict[str, Any] = {}
            while True:
                now = {key: value for key, value in watched.data().items() if key != "result"}
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


def _add_house(app: FastAPI, scanner: CodeScanner, jobs: JobBoard, counts: Counts) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """The engines and their versions."""
        engines = await asyncio.to_thread(lambda: {engine.name: engine.version for engine in scanner.engines})
        fine = "missing" not in engines.values()
        return {"status": "ok" if fine else "degraded", "engines": engines, "jobs": jobs.running}

    @app.get("/ready")
    async def ready() -> dict[str, bool]:
        """Whether scans can be asked for."""
        return {"ready": True}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(render_metrics(_metrics(counts)), media_type="text/plain; version=0.0.4; charset=utf-8")


def _metrics(counts: Counts) -> Iterable[Metric]:
    outcomes: list[tuple[dict[str, str], float]] = [
        ({"verdict": name}, counts.scans[name]) for name in ("clean", "findings", "unchecked")
    ]
    found: list[tuple[dict[str, str], float]] = [({"severity": name}, counts.findings[name]) for name in SEVERITIES]
    yield "raksha_scans_total", "counter", "Scans.", outcomes
    yield "raksha_findings_total", "counter", "Findings.", found
    yield "raksha_files_total", "counter", "Files scanned.", [({}, counts.files)]
    yield "raksha_scan_seconds_total", "counter", "Time spent scanning.", [({}, counts.seconds)]
