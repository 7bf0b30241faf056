"""Traces: a facade over OpenTelemetry that does nothing, and imports nothing, until it is switched on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["Span", "enable_tracing", "span", "tracing_enabled"]

Attribute = str | int | float | bool


class Span(Protocol):
    """The part of an OpenTelemetry span that components use."""

    def set_attribute(self, key: str, value: Attribute) -> None: ...


class _NoSpan:
    def set_attribute(self, key: str, value: Attribute) -> None:
        return None


_NO_SPAN = _NoSpan()
_tracer: Any = None


def tracing_enabled() -> bool:
    """Whether `enable_tracing` has been called."""
    return _tracer is not None


def enable_tracing(endpoint: str, *, service: str, timeout: float = 5.0) -> None:
    """Export spans over OTLP/HTTP to `endpoint` (a collector or the Datadog Agent), in batches off the hot path."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _tracer
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    url = endpoint.rstrip("/")
    url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=timeout)))
    _tracer = provider.get_tracer("avyay")


@contextmanager
def span(name: str, attributes: Mapping[str, Attribute] | None = None) -> Iterator[Span]:
    """Time a block as a span; free when tracing is off."""
    if _tracer is None:
        yield _NO_SPAN
        return
    with _tracer.start_as_current_span(name, attributes=dict(attributes or {})) as current:
        yield current
