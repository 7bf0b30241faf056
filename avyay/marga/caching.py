"""The cache at work: a request answered again from an earlier answer, and answers kept when they have ended well.

A cache never fails a call: whatever goes wrong with it is counted, logged and treated as a miss.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from avyay.clock import Clock
from avyay.config.marga import CacheSettings
from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.marga.cache import Asked, Entry, asked_of, good_enough, keepable, pieces, read_directives, tenant_of, why_not
from avyay.marga.cache_semantic import SemanticIndex
from avyay.marga.cache_store import CacheStore, Neighbour
from avyay.marga.envelope import Inbound, Outbound
from avyay.marga.types import TIERS, CallRecord, Decision
from avyay.marga.wire import RequestFeatures, Usage
from avyay.money import ZERO, Picodollars, usd_string

if TYPE_CHECKING:
    from avyay.marga.call import Call

__all__ = ["PROVIDER", "AnswerCache"]

PROVIDER = "cache"  # who answered, in the ledger
_MOST_NEIGHBOURS = 2000
_WAITING = 100  # answers that may wait to be kept; beyond that they are not
_COMPLAIN_EVERY = 60.0

T = TypeVar("T")


class AnswerCache:
    """Keeps answers and gives them again.

    Args:
        semantic: Finds similar questions; None takes the very same request only.
    """

    def __init__(
        self, settings: CacheSettings, store: CacheStore, clock: Clock, *, semantic: SemanticIndex | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._semantic = semantic
        self._log = get_logger("marga")
        self._keeping: set[asyncio.Task[None]] = set()
        self._complained = float("-inf")
        self.store = store
        self.most = settings.max_entry
        self.counts = dict.fromkeys(("hit", "semantic", "miss", "bypass", "kept", "failed"), 0)

    async def through(
        self,
        call: Call,
        inbound: Inbound,
        body: dict[str, Any],
        features: RequestFeatures,
        *,
        keep: Callable[[CallRecord], None],
        began: float,
    ) -> Outbound:
        """The answer to a decided request: an earlier one, or what `call` brings.

        Args:
            keep: Puts a call that was answered from here into the ledger.
            began: When the request came, on the monotonic clock.
        """
        decision = call.decision
        directives = read_directives(inbound.cache_control)
        if (
            not (directives.read or directives.keep)
            or why_not(features, body, sampled=self._settings.sampled) is not None
        ):
            self.counts["bypass"] += 1
            return _marked(await call.open(), "bypass")
        try:
            asked = asked_of(
                tenant_of(inbound.key, inbound.customer),
                inbound.dialect,
                body,
                features,
                decision.hints,
                [sorted(inbound.forward.items()), inbound.query],
                directives,
                semantic=self._semantic is not None,
            )
        except TypeError:  # nested deeper than can be written
            self.counts["bypass"] += 1
            return _marked(await call.open(), "bypass")
        near: Neighbour | None = None
        if directives.read:
            found, near = await self._find(asked, decision)
            if found is not None:
                how = "hit" if found.key == asked.key else "semantic"
                self.counts[how] += 1
                return self._again(found, how, inbound, decision, features, keep, began)
        self.counts["miss"] += 1
        outbound = _marked(await call.open(), "miss")
        if outbound.status != 200:
            return outbound
        recording = _Recording(call, self, asked, near, dict(outbound.headers).get("content-type", ""))
        if outbound.body is not None:
            recording.ended(outbound.body)
        else:
            outbound.call = recording
        return outbound

    # ------------------------------------------------------------ reading

    async def _find(self, asked: Asked, decision: Decision) -> tuple[Entry | None, Neighbour | None]:
        now = self._clock.now()
        pinned = decision.hints.model != "auto"

        def fits(entry: Entry | None) -> Entry | None:
            if entry is None or entry.tenant != asked.tenant:
                return None
            fine = good_enough(entry, decision.tier, asked.directives, now, pinned=pinned)
            return entry if fine else None

        found = await self._try(self.store.get, asked.key, now)
        if (entry := fits(found)) is not None:
            return entry, None
        if self._semantic is None or asked.context is None:
            return None, None
        near = await self._try(self._semantic.describe, asked.key, asked.text, thread=True)
        if near is None:
            return None, None
        known = await self._try(lambda: self.store.neighbours(asked.context or b"", now, most=_MOST_NEIGHBOURS))
        if known:
            key = await self._try(self._semantic.nearest, near, known, thread=True)
            if key is not None:
                return fits(await self._try(self.store.get, key, now)), near
        return None, near

    async def _try(self, work: Callable[..., T], *arguments: Any, thread: bool = False) -> T | None:
        """What `work` returns, off the loop where it could wait; None when it fails."""
        try:
            if thread or self.store.blocking:
                return await asyncio.to_thread(work, *arguments)
            return work(*arguments)
        except AvyayError as error:
            self._failed(error)
            return None

    def _failed(self, error: AvyayError) -> None:
        self.counts["failed"] += 1
        now = self._clock.monotonic()
        if now - self._complained >= _COMPLAIN_EVERY:
            self._complained = now
            self._log.error("cache_failed", error=error.message)

    def _again(
        self,
        entry: Entry,
        how: str,
        inbound: Inbound,
        decision: Decision,
        features: RequestFeatures,
        keep: Callable[[CallRecord], None],
        began: float,
    ) -> Outbound:
        age = max(0, int(self._clock.now() - entry.created))
        saved = Picodollars(entry.cost)
        seconds = self._clock.monotonic() - began
        keep(
            CallRecord(
                decision,
                inbound.dialect,
                "ok",
                provider=PROVIDER,
                model=entry.model,
                tier=entry.tier,
                stream=entry.streaming,
                input=entry.input,
                output=entry.output,
                cost=ZERO,
                key=inbound.key,
                service=inbound.service,
                customer=inbound.customer,
                session=inbound.session or features.session,
                first_byte=seconds,
                seconds=seconds,
                notes=(f"answered again from {entry.decision}, {age} s old",),
                cache="exact" if how == "hit" else how,
                saved=saved,
            )
        )
        headers = [
            ("content-type", entry.content_type),
            ("x-avyay-decision-id", decision.id),
            ("x-avyay-provider", entry.provider),
            ("x-avyay-model", entry.model),
            ("x-avyay-tier", entry.tier),
            ("x-avyay-cost", "0"),
            ("x-avyay-cache", how),
            ("x-avyay-cost-saved", usd_string(saved)),
            ("age", str(age)),
        ]
        replay = _Replay(entry, decision)
        return Outbound(200, headers, None if entry.streaming else entry.body, replay)

    # ------------------------------------------------------------ keeping

    def keep(self, call: Call, asked: Asked, near: Neighbour | None, content_type: str, body: bytes) -> None:
        """Keep an answer that has ended, if it is one to be given again; returns at once."""
        candidate, decision = call.candidate, call.decision
        if candidate is None or call.status != "ok" or call.masked or not asked.directives.keep:
            return
        if not keepable(call.stop, tools=call.stop == "tool_use") or not 0 < len(body) <= self.most:
            return
        first = decision.chosen
        pinned = decision.hints.model != "auto"
        if pinned and first is not None and first.model.known_as != candidate.model.known_as:
            return  # a stand-in of a bad hour must not stay for longer than that
        if not pinned and TIERS.index(candidate.model.tier) < TIERS.index(decision.tier):
            return
        if len(self._keeping) >= _WAITING:
            return
        now = self._clock.now()
        usage = call.usage or Usage()
        entry = Entry(
            key=asked.key,
            tenant=asked.tenant,
            created=now,
            expires=now + self._settings.ttl,
            streaming=call.streaming,
            content_type=content_type,
            body=body,
            provider=candidate.provider.name,
            model=candidate.model.name,
            tier=candidate.model.tier,
            input=usage.input,
            output=usage.output,
            cost=int(call.cost or 0),
            decision=decision.id,
        )
        if not self.store.blocking and (near is not None or asked.context is None or self._semantic is None):
            try:
                self.store.put(entry, now, asked.context, near)
            except AvyayError as error:
                self._failed(error)
            else:
                self.counts["kept"] += 1
            return
        task = asyncio.get_running_loop().create_task(self._keep(entry, asked, near))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, entry: Entry, asked: Asked, near: Neighbour | None) -> None:
        if near is None and asked.context is not None and self._semantic is not None:
            near = await self._try(self._semantic.describe, asked.key, asked.text, thread=True)
        before = self.counts["failed"]
        await self._try(self.store.put, entry, self._clock.now(), asked.context, near)
        self.counts["kept"] += self.counts["failed"] == before

    async def settle(self) -> None:
        """Wait until everything is kept."""
        while self._keeping:
            await asyncio.gather(*self._keeping)

    async def close(self) -> None:
        """Keep what waits, and let the store go."""
        await self.settle()
        await asyncio.to_thread(self.store.close)


def _marked(outbound: Outbound, how: str) -> Outbound:
    if outbound.status == 200:
        outbound.headers.append(("x-avyay-cache", how))
    return outbound


@dataclass(slots=True)
class _Replay:
    """An answer given again: costs nothing."""

    entry: Entry
    decision: Decision
    cost: Picodollars | None = ZERO
    estimated: bool = False

    @property
    def usage(self) -> Usage | None:
        return Usage(input=self.entry.input, output=self.entry.output)

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in pieces(self.entry):
            yield piece
            await asyncio.sleep(0)  # a long answer shall not hold up the others


class _Recording:
    """A call whose stream is kept when it has ended well."""

    def __init__(self, call: Call, cache: AnswerCache, asked: Asked, near: Neighbour | None, content_type: str) -> None:
        self._call = call
        self._cache = cache
        self._asked = asked
        self._near = near
        self._content_type = content_type

    @property
    def decision(self) -> Decision:
        return self._call.decision

    @property
    def usage(self) -> Usage | None:
        return self._call.usage

    @property
    def cost(self) -> Picodollars | None:
        return self._call.cost

    @property
    def estimated(self) -> bool:
        return self._call.estimated

    def ended(self, body: bytes) -> None:
        self._cache.keep(self._call, self._asked, self._near, self._content_type, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        parts: list[bytes] = []
        size = 0
        async with aclosing(self._call.chunks()) as stream:  # type: ignore[type-var]
            async for piece in stream:
                size += len(piece)
                if size <= self._cache.most:
                    parts.append(piece)
                yield piece
        if size <= self._cache.most:
            self.ended(b"".join(parts))
