"""Whether a long request fits a candidate's context, by the candidate's own count: asked only near the limit."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import orjson

from avyay.log import get_logger
from avyay.marga.backends.base import Outgoing
from avyay.marga.router import Router
from avyay.marga.tokens import count_tokens, encoding_name
from avyay.marga.transport import Deadline, TransportError
from avyay.marga.types import Candidate, Decision, Dialect
from avyay.marga.wire import edit_body, map_text

__all__ = ["drop_too_long", "near_limit"]

_SURELY_FITS = 0.6  # share of the context that an estimate may fill without a count
_COUNT_TIMEOUT = 2.0


def near_limit(decision: Decision, candidate: Candidate) -> bool:
    """Whether the estimate is too near the candidate's context to be trusted."""
    context = candidate.model.context
    return context is not None and decision.features["input_tokens"] > context * _SURELY_FITS


async def drop_too_long(router: Router, dialect: Dialect, body: dict[str, Any], decision: Decision) -> Decision:
    """The decision without the candidates whose context is too small for the request."""
    kept = []
    counts: dict[str, int] = {}
    for entry in decision.ranked:
        candidate = entry.candidate
        if near_limit(decision, candidate):
            name = candidate.model.known_as
            if name not in counts:
                counts[name] = await _count(router, dialect, body, decision, candidate)
            if counts[name] >= (candidate.model.context or 0):
                continue
        kept.append(entry)
    if len(kept) == len(decision.ranked):
        return decision
    tier = kept[0].candidate.model.tier if kept else decision.tier
    reason = f"{len(decision.ranked) - len(kept)} models have too small a context"
    return replace(decision, ranked=tuple(kept), tier=tier, reasons=(*decision.reasons, reason))


async def _count(
    router: Router, dialect: Dialect, body: dict[str, Any], decision: Decision, candidate: Candidate
) -> int:
    name = candidate.model.known_as
    if dialect == "anthropic_messages" and candidate.provider.kind == "anthropic":
        counted = await _ask(router, body, candidate)
        if counted is not None:
            return counted
    if encoding_name(name) is None:
        return router.estimate_input(decision, candidate)
    texts: list[str] = []

    def collect(text: str) -> str:
        texts.append(text)
        return text

    map_text(dialect, body, collect)
    if tools := body.get("tools"):
        texts.append(orjson.dumps(tools).decode())
    messages = int(decision.features["messages"])
    exact = await asyncio.to_thread(count_tokens, "\n".join(texts), name)
    return exact.tokens + 4 * messages


async def _ask(router: Router, body: dict[str, Any], candidate: Candidate) -> int | None:
    """Anthropic's own count; None when it does not say."""
    raw = orjson.dumps({k: v for k, v in body.items() if k in _COUNTED})
    raw = edit_body(raw, orjson.loads(raw), {"model": candidate.model.name})
    call = Outgoing("anthropic_messages", candidate.model.name, raw, operation="count_tokens")
    deadline = Deadline()
    deadline.start(_COUNT_TIMEOUT)
    try:
        incoming = await router.backends[candidate.provider.name].open(call, deadline)
        try:
            answer = orjson.loads(await incoming.read())
        finally:
            incoming.close()
        tokens = answer.get("input_tokens") if isinstance(answer, dict) else None
        return tokens if isinstance(tokens, int) else None
    except (TransportError, orjson.JSONDecodeError) as error:
        get_logger("marga").info("tokens_not_counted", provider=candidate.provider.name, error=str(error))
        return None
    finally:
        deadline.cancel()


_COUNTED = frozenset({"model", "messages", "system", "tools", "tool_choice", "thinking"})
