"""The scanner as a daemon: code in, SARIF out; large input as a job; MCP at /mcp."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from avyay.errors import AvyayError, UsageError
from avyay.events.reader import EventReader
from avyay.log import get_logger
from avyay.ports import Event, Events, Progress, Severity
from avyay.raksha.baseline import Baseline, read_baseline
from avyay.raksha.report.json import report_data
from avyay.raksha.report.sarif import sarif_document
from avyay.raksha.types import SEVERITIES, verdict
from avyay.raksha.types import Report as ScanReport
from avyay.serve.app import IdempotencyKey, Kit, Report, accepted, daemon_key
from avyay.serve.house import Metric
from avyay.serve.jobs import Job, JobKind
from avyay.serve.launch import Daemon, Launch, Site, launch
from avyay.serve.run import App, Stopping
from avyay.serve.siblings import Siblings
from avyay.serve.uploads import Limits, clone, unpack, write_files

if TYPE_CHECKING:
    from avyay.raksha.scan import CodeScanner
    from avyay.wiring import Services

__all__ = ["DEFAULT_PORT", "build_app", "raksha_daemon", "serve_raksha"]

DEFAULT_PORT = 8083
MAX_BODY = 25_000_000
AT_ONCE = 200  # files scanned while the caller waits; more become a job
PARALLEL = 2
MOST_NEWS = 100  # events that one scan may cause
MOST_TOLD = 2_000  # of them that are counted in a summary
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

    def add(self, report: ScanReport) -> None:
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

    def tell(self, report: ScanReport, subject: str) -> None:
        if self._baseline is None and not subject:
            return
        known = self._baseline.fingerprints if self._baseline is not None else frozenset()
        events = []
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
            events.append(Event("raksha.finding.found", data, once=f"{subject}\0{finding.fingerprint}"))
        try:
            # Before anybody learns that the scan has ended: one that is cut off here is made again, and tells the same.
            self._events.publish_now(*events)
        except AvyayError as error:  # a full disk: the findings themselves are the answer
            get_logger("raksha").error("findings_not_told", count=len(events), error=error.message)


def _baseline(services: Services) -> Baseline | None:
    path = services.settings.raksha.baseline
    return read_baseline(path) if path is not None else None


def serve_raksha(services: Services, how: Launch | None = None) -> int:
    """Run the daemon until it is told to end; returns the exit code.

    Raises:
        UsageError: the port is taken, or the variable that the configuration names is not set.
        PolicyError: others could reach it, and it has no key.
    """
    return launch(services, raksha_daemon(), how or Launch())


def raksha_daemon() -> Daemon:
    """What `avyay serve raksha` runs."""

    def build(services: Services, site: Site) -> App:
        return build_app(services, key=_key(services, site.host), stopping=site.stopping, siblings=site.siblings)

    return Daemon("raksha", "RAKSHA", "health: /health", DEFAULT_PORT, _key, build)


def _key(services: Services, host: str) -> str | None:
    risk = "Anyone who reaches {host} could use this machine to scan."
    return daemon_key(services, "raksha", host, services.settings.raksha.api_key_env, risk)


def build_app(
    services: Services,
    *,
    key: str | None = None,
    limits: Limits | None = None,
    stopping: Stopping | None = None,
    siblings: Siblings | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
        key: What callers must send as a bearer token; None: no key is asked for.
        stopping: Told when the daemon drains.
        siblings: What this process shares with other workers.
    """
    scanner, counts = services.scanner, Counts()
    bench = Bench(
        scanner,
        counts,
        News(services.events, _baseline(services)),
        limits or Limits(),
        services.settings.raksha.git_hosts,
    )
    kit = Kit(
        services,
        "raksha",
        Report(partial(_health, scanner), counts=partial(_metrics, counts)),
        key=key,
        stopping=stopping,
        siblings=siblings,
        jobs=[JobKind("scan", bench.work, again=True)],
        at_once=PARALLEL,
        max_body=MAX_BODY,
    )
    _add_scan(kit, bench)
    _add_rules(kit.app, scanner, kit.authorised)
    _add_news(kit)
    return kit.app


class Bench:
    """Scans one upload or repository in a folder of its own."""

    def __init__(
        self, scanner: CodeScanner, counts: Counts, news: News, limits: Limits, git_hosts: Iterable[str]
    ) -> None:
        self._scanner, self._counts, self._news, self._limits = scanner, counts, news, limits
        self._git_hosts = tuple(git_hosts)

    def work(self, order: Mapping[str, Any], body: bytes | None, progress: Progress | None) -> Any:
        """The document asked for.

        Args:
            order: `kind` (archive or json), `fail_on`, `format`.
            body: What was sent.
        """
        subject = ""
        with TemporaryDirectory(prefix="avyay-scan-") as folder:
            root = Path(folder, "code")
            root.mkdir()
            if order["kind"] == "archive":
                unpack(body or b"", root, self._limits)
            else:
                sent = _parse(body or b"")
                if sent.git is not None:
                    subject = sent.git.url
                    root.rmdir()
                    clone(sent.git.url, sent.git.ref, root, hosts=self._git_hosts)
                else:
                    files = ((file.path, file.content.encode("utf-8", "replace")) for file in sent.files)
                    write_files(files, root, self._limits)
            report = self._scanner.scan([root], progress=progress)
        self._counts.add(report)
        self._news.tell(report, subject)
        form = order["format"]
        document = sarif_document(report) if form == "sarif" else report_data(report, fail_on=order["fail_on"])
        if form == "json":
            document["root"] = "."
        return document


_SCAN_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "maxItems": 2000,
                            "items": {
                                "type": "object",
                                "required": ["path", "content"],
                                "properties": {
                                    "path": {"type": "string", "maxLength": 1000},
                                    "content": {"type": "string"},
                                },
                            },
                        },
                        "git": {
                            "type": "object",
                            "required": ["url"],
                            "properties": {
                                "url": {"type": "string", "maxLength": 2000},
                                "ref": {"type": ["string", "null"], "maxLength": 200},
                            },
                        },
                    },
                }
            },
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARCHIVES},
        },
    }
}


def _add_scan(kit: Kit, bench: Bench) -> None:
    at_once = asyncio.Semaphore(PARALLEL)
    jobs = kit.jobs
    assert jobs is not None

    @kit.app.post(
        "/v1/scan",
        dependencies=[kit.authorised],
        response_class=Response,
        responses={
            200: {"content": {"application/sarif+json": {}, "application/json": {}}},
            202: {"description": "Accepted as a job.", "model": Job},
        },
        openapi_extra=_SCAN_BODY,
    )
    async def scan(
        request: Request,
        fail_on: Severity = "high",
        format: Format = "sarif",  # noqa: A002 - the query's own word
        wait: bool | None = None,
        key: IdempotencyKey = None,
    ) -> Response:
        """Scan files (JSON), an archive (tar, tar.gz, zip), or a repository of an allowed host; answers SARIF."""
        data = await request.body()
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        large = len(data) > 2_000_000
        if kind not in ARCHIVES:
            body = _parse(data)
            if (body.git is None) == (not body.files):
                raise UsageError("Send either files or git.", code="bad_request")
            large = large or body.git is not None or len(body.files) > AT_ONCE
        order = {"kind": "archive" if kind in ARCHIVES else "json", "fail_on": fail_on, "format": format}
        if wait is False or key is not None or (large and wait is None):
            return accepted(await jobs.start("scan", order, payload=data, key=key))
        async with at_once:
            document = await asyncio.to_thread(bench.work, order, data, None)
        media = "application/sarif+json" if format == "sarif" else "application/json"
        return Response(orjson.dumps(document), media_type=media)


def _parse(data: bytes) -> ScanBody:
    try:
        return ScanBody.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"The body is not as expected: {where}: {first['msg']}.",
            hint='For example {"files": [{"path": "a.py", "content": "..."}]}; see /openapi.json.',
            code="bad_request",
        ) from None


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


def _add_news(kit: Kit) -> None:
    data = kit.services.paths.data

    @kit.app.get("/raksha/findings", dependencies=[kit.authorised])
    async def findings(since: Annotated[int, Query(ge=0, le=10**11)] = 0) -> dict[str, Any]:
        """New findings that were told since a time (Unix seconds): how many by severity, and the newest."""

        def look() -> dict[str, Any]:
            reader = EventReader(data)
            try:
                found = [one for one in reader.latest(MOST_TOLD, ["raksha.finding.found"]).events if one.at >= since]
            finally:
                reader.close()
            counts = Counter(str(one.data["severity"]) for one in found)
            newest = [{"at": one.at, **one.data} for one in reversed(found[-10:])]
            return {"severities": {name: counts[name] for name in SEVERITIES}, "newest": newest}

        return await asyncio.to_thread(look)


def _health(scanner: CodeScanner) -> dict[str, Any]:
    engines = {engine.name: engine.version for engine in scanner.engines}
    return {"status": "ok" if "missing" not in engines.values() else "degraded", "engines": engines}


def _metrics(counts: Counts) -> Iterable[Metric]:
    outcomes: list[tuple[dict[str, str], float]] = [
        ({"verdict": name}, counts.scans[name]) for name in ("clean", "findings", "unchecked")
    ]
    found: list[tuple[dict[str, str], float]] = [({"severity": name}, counts.findings[name]) for name in SEVERITIES]
    yield "raksha_scans_total", "counter", "Scans.", outcomes
    yield "raksha_findings_total", "counter", "Findings.", found
    yield "raksha_files_total", "counter", "Files scanned.", [({}, counts.files)]
    yield "raksha_scan_seconds_total", "counter", "Time spent scanning.", [({}, counts.seconds)]
