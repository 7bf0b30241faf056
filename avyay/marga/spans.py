"""A call as a span: OpenTelemetry's conventions for generative AI, with our own tags beside them."""

from __future__ import annotations

from avyay.marga.types import CallRecord
from avyay.money import usd_string
from avyay.telemetry import record_span

__all__ = ["record_call_span"]


def record_call_span(call: CallRecord, *, ended: float, parent: str | None) -> None:
    """One span for a call.

    Args:
        ended: Wall-clock time at which it ended.
        parent: The caller's `traceparent`.
    """
    decision = call.decision
    attributes: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": call.provider,
        "gen_ai.request.model": decision.hints.model,
        "gen_ai.response.model": call.model,
        "gen_ai.usage.input_tokens": call.input,
        "gen_ai.usage.output_tokens": call.output,
        "marga.decision_id": decision.id,
        "marga.provider": call.provider,
        "marga.model": call.model,
        "marga.routing_tier": call.tier,
        "marga.complexity": decision.complexity,
        "marga.cost_usd": usd_string(call.cost),
        "marga.tokens_in": call.input,
        "marga.tokens_out": call.output,
        "marga.routing_time_ms": round(decision.seconds * 1000, 3),
        "marga.circuit_state": call.state,
        "marga.attempts": len(call.attempts),
        "marga.status": call.status,
        "marga.stream": call.stream,
    }
    if call.first_byte is not None:
        attributes["marga.first_byte_ms"] = round(call.first_byte * 1000, 3)
    if call.attempts and call.attempts[-1].status:
        attributes["http.response.status_code"] = call.attempts[-1].status
    record_span(
        "llm.completion",
        started=ended - call.seconds,
        ended=ended,
        attributes=attributes,
        error=call.error,
        parent=parent,
    )
