"""What the way back must know of the way there."""

from __future__ import annotations

from dataclasses import dataclass

from avyay.marga.wire.model import JsonObject, Request
from avyay.marga.wire.tools import ToolNames

__all__ = ["ReplyContext"]


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """One exchange, seen from its reply.

    Attributes:
        exchange_id: Ours; every id we must invent is derived from it.
        created: Unix seconds, for dialects that date their replies.
        model: The model name to show, or None for what the upstream reports.
        names: The tool names as sent and as the caller knows them.
        request: The neutral request.
        caller: The caller's body, for dialects that echo settings in their reply.
    """

    exchange_id: str
    created: int
    model: str | None
    names: ToolNames
    request: Request
    caller: JsonObject
