"""Shadow evaluation at work: sampled requests are asked again off the path, compared, and the classes moved.

Both answers are new ones, whole and through the gateway itself, so that they are billed, limited and recorded like any
other call (service `shadow`), and the caller's answer is neither kept nor delayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.marga.compare import compare
from avyay.marga.knowledge import ClassKnowledge
from avyay.marga.shadow import UNCLASSED, ClassChange, ShadowPlan, sampled, tiers_to_ask
from avyay.marga.types import Decision, Dialect
from avyay.marga.verdicts import VerdictStore
from avyay.ports import Embedder, Tier

if TYPE_CHECKING:
    from avyay.marga.envelope import Inbound
    from avyay.marga.gateway import Gateway

__all__ = ["SERVICE", "Shadowing", "answer_text"]

SERVICE = "shadow"  # how comparisons are named in the ledger
_AT_ONCE = 2
_WAITING = 20  # comparisons that may wait; beyond that a request is not sampled
_DAY = 86_400.0


class Shadowing:
    """Watches a gateway.

    Args:
        embedder: Gives the embedder when a comparison first needs one; None never uses one.
        judge: Whether a model of the premium tier decides what cheaper comparisons cannot.
    """

    def __init__(
        self,
        gateway: Gateway,
        store: VerdictStore,
        plan: ShadowPlan,
        *,
        embedder: Callable[[], Embedder] | None = None,
        judge: bool = False,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._plan = plan
        self._embedder = embedder
        self._judge = judge
        self._log = get_logger("marga")
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._running: set[asyncio.Task[None]] = set()
        self._knowledge = ClassKnowledge(store, gateway.router)
        self._knowledge.refresh()

    def consider(self, inbound: Inbound, body: dict[str, Any], decision: Decision, tier: Tier, cost: int) -> bool:
        """Compare this answered request, if the sample takes it; returns at once.

        Only what the router chose itself is compared, and nothing inside a tool loop.
        """
        if inbound.service == SERVICE or decision.hints.model != "auto" or decision.features.get("tool_loop"):
            return False
        if len(self._running) >= _WAITING or not sampled(self._plan, decision.id, tier):
            return False
        task = asyncio.get_running_loop().create_task(self._run(inbound, body, decision, tier, cost))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return True

    async def settle(self) -> None:
        """Wait until no comparison runs."""
        while self._running:
            await asyncio.gather(*self._running)

    async def close(self) -> None:
        """Give up what still runs."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, inbound: Inbound, body: dict[str, Any], decision: Decision, tier: Tier, cost: int) -> None:
        name = decision.hints.request_class or UNCLASSED
        floor = self._gateway.router.floors.get(name, "local")
        day = int(self._gateway.router.clock.now() // _DAY)
        tiers = tiers_to_ask(floor, tier)
        expected = _expected(decision, tiers, cost, judge=self._judge)
        async with self._gate:
            try:
                if not await asyncio.to_thread(self._store.reserve, day, expected, self._plan.daily_budget):
                    return
            except AvyayError as error:
                self._log.warning("shadow_failed", decision=decision.id, error=str(error))
                return
            bill = _Bill()
            try:
                reference, model = await self._ask(inbound, body, "premium", bill)
                for each in tiers if reference is not None else ():
                    await self._compare(inbound, body, decision, each, reference or "", model, bill)
            except AvyayError as error:
                self._log.warning("shadow_failed", decision=decision.id, error=str(error))
            finally:
                with suppress(AvyayError):  # what cannot be settled counts as spent until the day is over
                    self._store.settle(day, expected, bill.total)

    async def _compare(
        self,
        inbound: Inbound,
        body: dict[str, Any],
        decision: Decision,
        tier: Tier,
        reference: str,
        model: str,
        bill: _Bill,
    ) -> None:
        answer, cheap = await self._ask(inbound, body, tier, bill)
        if answer is None:
            return
        found = await compare(
            _prompt(body),
            answer,
            reference,
            embedder=self._embedder() if self._embedder is not None else None,
            ask=(lambda prompt: self._ask_judge(prompt, inbound, bill)) if self._judge else None,
        )
        if found is None:
            return
        now = self._gateway.router.clock.now()
        name = decision.hints.request_class or UNCLASSED
        features = dict(decision.features)

        def keep() -> ClassChange | None:
            models = (cheap, model)
            self._store.keep(
                now, decision.id, name, tier, models, decision.complexity, features, found, bill.since_last()
            )
            return self._store.observe(name, tier, found.degraded, self._plan, now)[1]

        change = await asyncio.to_thread(keep)
        await asyncio.to_thread(self._knowledge.refresh)
        if change is not None:
            verb = "promoted" if change.promoted else "demoted"
            self._log.warning(f"class_{verb}", request_class=name, evidence=change.sentence())

    async def _ask(self, inbound: Inbound, body: dict[str, Any], tier: Tier, bill: _Bill) -> tuple[str | None, str]:
        """(answer, model) of a tier; no answer when another tier would have given it."""
        asked = {**body, "model": "auto", "stream": False}
        asked.pop("stream_options", None)
        return await self._send(inbound.dialect, asked, inbound, tier, bill)

    async def _ask_judge(self, prompt: str, inbound: Inbound, bill: _Bill) -> str:
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "temperature": 0}
        answer, _ = await self._send("openai_chat", body, inbound, "premium", bill)
        return answer or ""

    async def _send(
        self, dialect: Dialect, body: dict[str, Any], inbound: Inbound, tier: Tier, bill: _Bill
    ) -> tuple[str | None, str]:
        outbound = await self._gateway.open(
            replace(
                inbound,
                dialect=dialect,
                raw=orjson.dumps(body),
                tier=tier,
                request_class=SERVICE,  # a class of its own: the floors of others must not move what is measured
                quality_min=None,
                latency_budget_ms=None,
                service=SERVICE,
                session=None,
                forward={},
                query="",
                traceparent=None,
                cache_control="no-store",
            )
        )
        call = outbound.call
        if outbound.status != 200 or outbound.body is None or call is None:
            return None, ""
        served = dict(outbound.headers).get("x-avyay-tier", call.decision.tier)
        bill.total += int(call.cost or 0)
        chosen = call.decision.chosen
        if served != tier or chosen is None:
            return None, ""
        return answer_text(dialect, orjson.loads(outbound.body)), chosen.name


@dataclass(slots=True)
class _Bill:
    """What one sampled request has cost so far, in picodollars."""

    total: int = 0
    told: int = 0

    def since_last(self) -> int:
        """What came on top since it was last asked: each comparison's own part."""
        found, self.told = self.total - self.told, self.total
        return found


def _expected(decision: Decision, tiers: Sequence[Tier], cost: int, *, judge: bool) -> int:
    """Picodollars to set aside: premium's answer and each tier's, and a judge that reads both, in both orders."""
    of_tier = {
        tier: next((r.cost for r in decision.ranked if r.candidate.model.tier == tier and r.cost), cost)
        for tier in (*tiers, "premium")
    }
    judging = 3 * len(tiers) * of_tier["premium"] if judge else 0
    return sum(of_tier.values()) + judging


def answer_text(dialect: Dialect, body: dict[str, Any]) -> str:
    """What an answer says: its text, and its tool calls as JSON, in the order they stand."""
    parts: list[str] = []
    calls: list[Any] = []
    if dialect == "openai_chat":
        message = body["choices"][0]["message"]
        parts.append(message.get("content") or "")
        calls += [[c["function"]["name"], _loads(c["function"]["arguments"])] for c in message.get("tool_calls") or ()]
    elif dialect == "anthropic_messages":
        for block in body["content"]:
            if block["type"] == "text":
                parts.append(block["text"])
            elif block["type"] == "tool_use":
                calls.append([block["name"], block["input"]])
    elif dialect == "openai_responses":
        for item in body["output"]:
            if item["type"] == "message":
                parts += [c["text"] for c in item["content"] if c["type"] == "output_text"]
            elif item["type"] == "function_call":
                calls.append([item["name"], _loads(item["arguments"])])
    elif dialect == "ollama_generate":
        parts.append(body.get("response") or "")
    else:
        message = body["message"]
        parts.append(message.get("content") or "")
        calls += [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls") or ()]
    if calls:
        return orjson.dumps(calls).decode()
    return "".join(parts)


def _loads(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _prompt(body: dict[str, Any]) -> str:
    """The request as a judge is shown it."""
    shown = {k: body[k] for k in ("system", "instructions", "messages", "input", "prompt") if k in body}
    return orjson.dumps(shown).decode()
