"""What every daemon answers besides its own work: /health, /ready, /metrics, and its read-only pages of state."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import orjson

from avyay.errors import AvyayError, UsageError
from avyay.serve.run import App

__all__ = ["Metric", "house_app", "render_metrics"]

Page: TypeAlias = Callable[[str, Mapping[str, str]], Any]
Metric: TypeAlias = tuple[str, str, str, Iterable[tuple[Mapping[str, str], float]]]  # name, kind, help, samples


def render_metrics(metrics: Iterable[Metric]) -> bytes:
    """Metrics in Prometheus' text format."""
    lines: list[str] = []
    for name, kind, text, samples in metrics:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            inner = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
            lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
    return ("\n".join(lines) + "\n").encode()


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def house_app(
    *,
    health: Callable[[], Mapping[str, Any]],
    ready: Callable[[], bool],
    metrics: Callable[[], Iterable[Metric]],
    pages: Mapping[str, Page],
    key: str | None = None,
    apps: Mapping[str, App] | None = None,
) -> App:
    """The application.

    Args:
        health: State and the state of each dependency; its `status` is ok or degraded.
        pages: By path prefix: what follows the prefix, and the query, to a JSON value; None is 404.
        key: What callers of `pages` and `apps` must present; the rest is open, and says nothing secret.
        apps: By path: what answers there itself.
    """
    expected = f"Bearer {key}".encode() if key is not None else None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path, method = scope["path"], scope["method"]
        if method not in ("GET", "HEAD"):
            await _answer(send, 404, _problem(404, f"There is no {method} {path} here."))
        elif path == "/health":
            await _answer(send, 200, health())
        elif path == "/ready":
            fine = ready()
            await _answer(send, 200 if fine else 503, {"ready": fine})
        elif path == "/metrics":
            await _answer(send, 200, render_metrics(metrics()), kind=b"text/plain; version=0.0.4; charset=utf-8")
        else:
            await _page(scope, receive, send, path)

    async def _page(scope: Any, receive: Any, send: Any, path: str) -> None:
        inner = apps.get(path) if apps is not None else None
        prefix = next((known for known in pages if path == known or path.startswith(f"{known}/")), None)
        if prefix is None and inner is None:
            await _answer(send, 404, _problem(404, f"There is nothing at {path}."))
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if expected is not None and not hmac.compare_digest(given, expected):
            await _answer(send, 401, _problem(401, "The key is missing or wrong: send Authorization: Bearer …"))
            return
        if inner is not None:
            await inner(scope, receive, send)
            return
        assert prefix is not None
        from urllib.parse import parse_qsl

        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        try:
            value = pages[prefix](path[len(prefix) :].strip("/"), query)
        except UsageError as error:
            await _answer(send, 404, _problem(404, error.message, error.hint))
            return
        except AvyayError as error:
            await _answer(send, 503, _problem(503, error.message, error.hint))
            return
        if value is None:
            await _answer(send, 404, _problem(404, f"There is nothing at {path}."))
        else:
            await _answer(send, 200, value)

    return app


def _problem(status: int, detail: str, hint: str | None = None) -> dict[str, Any]:
    return {"type": "about:blank", "status": status, "detail": detail, "hint": hint}


async def _answer(send: Any, status: int, data: Any, *, kind: bytes = b"application/json") -> None:
    body = data if isinstance(data, bytes) else orjson.dumps(data, default=str)
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
