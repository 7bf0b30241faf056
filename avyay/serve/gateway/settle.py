"""Tokens after the fact: what the router counted takes the place of what was guessed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import orjson

from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.marga.transport import TransportError
from avyay.serve.gateway.limits import Claim, Limiter
from avyay.serve.gateway.relay import Upstream

__all__ = ["TokenSettler"]

_WAITS = (0.0, 0.25, 1.0)  # seconds before each question: the ledger writes in groups
_PATIENCE = 2.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}\Z")
_MOST = 1_000  # questions waiting; beyond it estimates stand


class TokenSettler:
    """Asks the router what a decision cost in tokens, off the caller's path."""

    def __init__(self, router: Upstream, limiter: Limiter) -> None:
        self._router = router
        self._limiter = limiter
        self._log = get_logger("gateway")
        self._tasks: set[asyncio.Task[None]] = set()
        self.unknown = 0  # decisions whose tokens could not be learned: their estimates stand

    def settle(self, claims: Sequence[Claim], taken: float, decision: str | None) -> None:
        """Put the token claims of a request right; without a decision nothing was used."""
        tokens = [claim for claim in claims if claim.unit == "tokens"]
        if not tokens:
            return
        if len(self._tasks) >= _MOST:
            self.unknown += 1
            return
        task = asyncio.ensure_future(self._settle(tokens, taken, decision))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let go of what is still asked."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _settle(self, claims: Sequence[Claim], taken: float, decision: str | None) -> None:
        used = 0 if decision is None or _ID.match(decision) is None else await self._used(decision)
        if used is None:
            self.unknown += 1
            return
        try:
            for claim in claims:
                if used != claim.amount:
                    await self._limiter.settle(claim, used - claim.amount, taken)
        except AvyayError as error:
            self._log.warning("tokens_not_settled", error=error.message)

    async def _used(self, decision: str) -> int | None:
        for wait in _WAITS:
            await asyncio.sleep(wait)
            found = await self._ask(decision)
            if found is not None:
                return found
        return None

    async def _ask(self, decision: str) -> int | None:
        try:
            status, body = await self._router.get(f"/marga/decisions/{decision}", patience=_PATIENCE)
            row: Any = orjson.loads(body) if status == 200 else None
            return int(row["input"]) + int(row["output"]) if row is not None else None
        except (TransportError, ValueError, KeyError, TypeError):
            return None
