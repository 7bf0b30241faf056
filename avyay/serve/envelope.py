"""Around every request of a daemon: an id, a log line, a count, a bound on its body, and an answer even to a bug."""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog

from avyay.clock import Clock
from avyay.log import get_logger
from avyay.serve.errors import problem_data
from avyay.serve.house import Metric
from avyay.serve.run import App, is_loopback
from avyay.telemetry import record_span, tracing_enabled

__all__ = ["Envelope"]

_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_QUIET = frozenset({"/health", "/ready", "/metrics"})
_SITES = (b"cross-site", b"same-site")


class _TooLargeError(Exception):
    pass


class Envelope:
    """ASGI middleware.

    Args:
        name: Of the daemon, in logs and metrics.
        max_body: Bytes of a request's body.
        private: Nobody is asked for a key: pages of other sites in this machine's browsers are kept out.
    """

    def __init__(self, app: App, *, name: str, clock: Clock, max_body: int, private: bool) -> None:
        self._app, self._name, self._clock = app, name, clock
        self._max_body, self._private = max_body, private
        self._log = get_logger(name)
        self.finished: Counter[tuple[str, int]] = Counter()
        self.seconds = 0.0
        self.active = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        identity = given if _ID.fullmatch(given) else secrets.token_hex(8).encode()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=identity.decode())
        status, began, started, read = 500, False, time.perf_counter(), 0
        wall = self._clock.now() if tracing_enabled() else 0.0
        self.active += 1

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._max_body:
                    raise _TooLargeError  # a framework may make something else of it: see below
            return message

        async def tagged(message: Any) -> None:
            nonlocal status, began
            if read > self._max_body and not began:
                status, began = 413, True
                await _answer(send, self._too_large(), identity)
            if read > self._max_body:
                return
            if message["type"] == "http.response.start":
                status, began = message["status"], True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", identity)]}
            await send(message)

        try:
            if self._private and _foreign(headers):
                await _answer(tagged, problem_data(403, "Pages of other sites may not call this daemon.", "foreign"))
            elif (length := headers.get(b"content-length", b"")).isdigit() and int(length[:20]) > self._max_body:
                raise _TooLargeError
            else:
                await self._app(scope, counted, tagged)
        except _TooLargeError:
            if not began:
                status = 413
                await _answer(send, self._too_large(), identity)
        except Exception:  # a bug of ours is told in the log, and answered where nothing was sent yet
            self._log.exception("request_failed", method=scope["method"], path=scope["path"])
            if began:
                raise
            text = f"A fault of ours; the log has it under {identity.decode()}."
            await _answer(tagged, problem_data(500, text, "internal"))
        finally:
            self.active -= 1
            seconds = time.perf_counter() - started
            self.finished[(scope["method"] if scope["method"] in _METHODS else "OTHER", status)] += 1
            self.seconds += seconds
            if scope["path"] not in _QUIET:
                self._log.info(
                    "request", method=scope["method"], path=scope["path"], status=status, ms=round(seconds * 1000, 1)
                )
                if tracing_enabled():
                    self._record(scope, headers, status, wall, seconds)

    def _too_large(self) -> dict[str, Any]:
        return problem_data(413, f"The body is larger than {self._max_body} bytes.", "too_large")

    def metrics(self) -> Iterable[Metric]:
        """For Prometheus."""
        rows: list[tuple[dict[str, str], float]] = [
            ({"method": method, "status": str(status)}, count) for (method, status), count in self.finished.items()
        ]
        name = self._name
        yield f"{name}_http_requests_total", "counter", "Requests answered.", rows
        yield f"{name}_http_seconds_total", "counter", "Time spent answering them.", [({}, self.seconds)]
        yield f"{name}_http_active", "gauge", "Requests under way.", [({}, self.active)]

    def _record(self, scope: Any, headers: dict[bytes, bytes], status: int, wall: float, seconds: float) -> None:
        record_span(
            f"{self._name} {scope['method']}",
            started=wall,
            ended=wall + seconds,
            attributes={
                "http.request.method": scope["method"],
                "url.path": scope["path"],
                "http.response.status_code": status,
            },
            error=f"HTTP {status}" if status >= 500 else None,
            parent=headers.get(b"traceparent", b"").decode("latin-1") or None,
        )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _foreign(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser says that a page of another site makes this request."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    if origin:
        try:
            host = urlsplit(origin).hostname or ""
        except ValueError:
            return True
        return not is_loopback(host)
    return headers.get(b"sec-fetch-site") in _SITES


async def _answer(send: Any, problem: dict[str, Any], identity: bytes = b"") -> None:
    body = orjson.dumps(problem)
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    headers.append((b"connection", b"close"))  # what is left of a body that nobody reads
    if identity:
        headers.append((b"x-request-id", identity))
    await send({"type": "http.response.start", "status": problem["status"], "headers": headers})
    await send({"type": "http.response.body", "body": body})
