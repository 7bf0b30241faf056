"""The headers of an answer: who gave it, what it costs, what could not be carried over."""

from __future__ import annotations

from avyay.marga.cost import estimate
from avyay.marga.dispatch import Answer
from avyay.marga.router import Router
from avyay.marga.types import Decision
from avyay.marga.wire import Exchange, forwarded_headers, notes_header
from avyay.money import usd_string

__all__ = ["answer_headers"]


def answer_headers(
    router: Router,
    decision: Decision,
    answer: Answer,
    exchange: Exchange,
    content_type: str,
    *,
    max_tokens: int | None,
) -> list[tuple[str, str]]:
    """Those of a whole answer or, with what it is expected to cost, of a stream."""
    model = answer.candidate.model
    headers = [
        ("content-type", content_type),
        ("x-avyay-decision-id", decision.id),
        ("x-avyay-provider", answer.candidate.provider.name),
        ("x-avyay-model", model.name),
        ("x-avyay-tier", model.tier),
    ]
    headers += forwarded_headers(answer.incoming.headers)
    if exchange.notes:
        headers.append(("x-avyay-notes", notes_header(exchange.notes)))
    if exchange.streaming:
        tokens = router.estimate_input(decision, answer.candidate)
        expected = estimate(model, input_tokens=tokens, max_tokens=max_tokens)
        if expected is not None:
            headers.append(("x-avyay-cost-estimated", usd_string(expected)))
    return headers
