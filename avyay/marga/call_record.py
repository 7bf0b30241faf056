"""What the ledger is told of a call: when it goes to a provider, and when it has ended."""

from __future__ import annotations

from collections.abc import Iterable

from avyay.marga.bill import Bill
from avyay.marga.budgets import Spending
from avyay.marga.dispatch import Answer
from avyay.marga.envelope import Inbound
from avyay.marga.types import Attempt, BegunCall, CallRecord, CallStatus, Candidate, Decision
from avyay.marga.wire import Note
from avyay.money import ZERO

__all__ = ["begun_call", "ended_call"]


def begun_call(
    decision: Decision,
    inbound: Inbound,
    dialect: str,
    candidate: Candidate,
    *,
    stream: bool = False,
    session: str | None = None,
    spending: Spending | None = None,
) -> BegunCall:
    """A call that goes to a candidate now."""
    return BegunCall(
        decision.id,
        decision.at,
        dialect,
        stream,
        candidate.provider.name,
        candidate.model.name,
        candidate.model.tier,
        decision.tier,
        decision.complexity,
        decision.hints.model,
        decision.hints.request_class,
        inbound.key,
        inbound.service,
        inbound.customer,
        inbound.session or session,
        " ".join(map(str, spending.paid_by)) if spending is not None else None,
        spending.held if spending is not None else 0,
    )


def ended_call(
    decision: Decision,
    inbound: Inbound,
    status: CallStatus,
    candidate: Candidate | None,
    bill: Bill,
    *,
    stream: bool,
    session: str | None,
    answer: Answer | None,
    attempts: tuple[Attempt, ...],
    notes: Iterable[Note],
    spending: Spending | None,
    error: str | None,
    seconds: float,
    now: float,
) -> CallRecord:
    """A call that has ended; `now` on the monotonic clock."""
    usage = bill.usage
    provider, model, tier = "", "", ""
    if candidate is not None:
        provider, model, tier = candidate.provider.name, candidate.model.name, candidate.model.tier
    return CallRecord(
        decision,
        inbound.dialect,
        status,
        provider,
        model,
        tier,
        stream,
        usage.input,
        usage.output,
        usage.cache_read,
        usage.cache_write,
        usage.reasoning,
        bill.estimated,
        bill.cost is not None or candidate is None,
        bill.cost or ZERO,
        inbound.key,
        inbound.service,
        inbound.customer,
        inbound.session or session,
        answer.first_byte if answer is not None else None,
        seconds,
        answer.health.breaker.state(now).value if answer is not None else "closed",
        attempts,
        error,
        tuple(f"{note.field} {note.action}: {note.reason}" for note in notes),
        blocks=spending.paid_by if spending is not None else (),
    )
