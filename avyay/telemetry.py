"""Traces: a facade over OpenTelemetry that does nothing, and imports nothing, until it is switched on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = [
    "OpenSpan",
    "Span",
    "enable_tracing",
    "flush_tracing",
    "open_span",
    "record_span",
    "span",
    "tracing_enabled",
]

Attribute = str | int | float | bool


class Span(Protocol):
    """The part of an OpenTelemetry span that components use."""

    def set_attribute(self, key: str, value: Attribute) -> None: ...


class _NoSpan:
    def set_attribute(self, key: str, value: Attribute) -> None:
        return None


_NO_SPAN = _NoSpan()
_tracer: Any = None
_provider: Any = None


def tracing_enabled() -> bool:
    """Whether `enable_tracing` has been called."""
    return _tracer is not None


def enable_tracing(endpoint: str, *, service: str, timeout: float = 5.0) -> None:
    """Export spans over OTLP/HTTP to `endpoint` (a collector or the Datadog Agent), in batches off the hot path."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _tracer, _provider
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    url = endpoint.rstrip("/")
    url = url if url.endswith("/v1/traces") else f"{url}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=timeout)))
    _provider = provider
    _tracer = provider.get_tracer("avyay")


@contextmanager
def span(name: str, attributes: Mapping[str, Attribute] | None = None) -> Iterator[Span]:
    """Time a block as a span; free when tracing is off."""
    if _tracer is None:
        yield _NO_SPAN
        return
    with _tracer.start_as_current_span(name, attributes=dict(attributes or {})) as current:
        yield current


def record_span(
    name: str,
    *,
    started: float,
    ended: float,
    attributes: Mapping[str, Attribute],
    error: str | None = None,
    parent: str | None = None,
) -> None:
    """Add a span for something that is over; nothing when tracing is off.

    Args:
        started, ended: Seconds since the epoch.
        parent: The caller's `traceparent` header, so that the span joins its trace.
    """
    if _tracer is None:
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    made = _tracer.start_span(
        name, context=context, kind=SpanKind.CLIENT, start_time=int(started * 1e9), attributes=dict(attributes)
    )
    if error is not None:
        made.set_status(StatusCode.ERROR, error)
    made.end(end_time=int(ended * 1e9))


class OpenSpan:
    """A span that is not over yet; what it calls joins its trace by `traceparent`."""

    def __init__(self, made: Any, traceparent: str) -> None:
        self._made = made
        self.traceparent = traceparent

    def end(self, *, ended: float, attributes: Mapping[str, Attribute], error: str | None = None) -> None:
        """It is over; `ended` is in seconds since the epoch."""
        from opentelemetry.trace import StatusCode

        self._made.set_attributes(dict(attributes))
        if error is not None:
            self._made.set_status(StatusCode.ERROR, error)
        self._made.end(end_time=int(ended * 1e9))


def open_span(name: str, *, started: float, parent: str | None = None) -> OpenSpan | None:
    """Begin a span for a request that is passed on; None when tracing is off.

    Args:
        started: Seconds since the epoch.
        parent: The caller's `traceparent` header.
    """
    if _tracer is None:
        return None
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    context = propagator.extract({"traceparent": parent}) if parent else None
    made = _tracer.start_span(name, context=context, kind=SpanKind.SERVER, start_time=int(started * 1e9))
    carrier: dict[str, str] = {}
    propagator.inject(carrier, set_span_in_context(made))
    return OpenSpan(made, carrier["traceparent"])


def flush_tracing(timeout: float = 5.0) -> None:
    """Send what is waiting to be sent; blocks up to `timeout` seconds."""
    if _provider is not None:
        _provider.force_flush(int(timeout * 1000))
