"""Models under the governor: a completer that reserves each answer's worst case first."""

from __future__ import annotations

from collections.abc import AsyncIterator

from avyay.errors import AuthError, PolicyError
from avyay.money import Picodollars, parse_usd
from avyay.ports import Completer, Completion, CompletionDelta, CompletionReply
from avyay.siddhi.budget import Governor

__all__ = ["GovernedCompleter"]

WORST = parse_usd("0.25")
"""Of one answer: at $75 for a million tokens, 3,000 of them."""


class GovernedCompleter:
    """Passes on to a completer what the budget allows. Costs count under the source `model` and the hypothesis."""

    def __init__(self, inner: Completer, governor: Governor, worst: Picodollars = WORST) -> None:
        self._inner = inner
        self._governor = governor
        self._worst = worst

    async def complete(self, request: Completion) -> CompletionReply:
        with self._governor.paid("model", self._worst, hypothesis=request.customer) as bill:
            try:
                reply = await self._inner.complete(request)
            except (AuthError, PolicyError):
                bill.nothing()  # refused before anybody was called
                raise
            bill.cost(reply.cost)
        return reply

    async def stream(self, request: Completion) -> AsyncIterator[CompletionDelta]:
        reply = await self.complete(request)
        yield CompletionDelta(reply.text, reply)

    def available(self) -> bool:
        return self._inner.available()
