"""Shadow evaluation at work: sampled requests are asked again off the path, compared, and the classes moved.

Both answers are new ones, whole and through the gateway itself, so that they are billed, limited and recorded like any
other call (service `shadow`), and the caller's answer is neither kept nor delayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from avyay.errors import AvyayError
from avyay.log import get_logger
from avyay.marga.compare import compare
from avyay.marga.shadow import UNCLASSED, ClassState, ShadowPlan, observe, sampled, tiers_to_ask
from avyay.marga.types import Decision, Dialect
from avyay.marga.verdicts import VerdictStore
from avyay.ports import Embedder, Event, Events, Tier

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
        events: Events | None = None,
        embedder: Callable[[], Embedder] | None = None,
        judge: bool = False,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._plan = plan
        self._events = events
        self._embedder = embedder
        self._judge = judge
        self._log = get_logger("marga")
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._running: set[asyncio.Task[None]] = set()
        clock = gateway.router.clock
        self._day = clock.now() // _DAY
        self._spent = store.spent_since(self._day * _DAY)
        self._states = store.states()
        self._publish_floors()

    def _publish_floors(self) -> None:
        self._gateway.router.floors.update({name: state.floor for name, state in self._states.items()})

    def consider(self, inbound: Inbound, body: dict[str, Any], decision: Decision, tier: Tier, cost: int) -> bool:
        """Compare this answered request, if the sample takes it; returns at once.

        Only what the router chose itself is compared, and nothing inside a tool loop.
        """
        if inbound.service == SERVICE or decision.hints.model != "auto" or decision.features.get("tool_loop"):
            return False
        now = self._gateway.router.clock.now()
        if now // _DAY != self._day:
            self._day, self._spent = now // _DAY, 0
        if len(self._running) >= _WAITING:
            return False
        if not sampled(self._plan, decision.id, tier, spent_today=self._spent, expected_cost=cost):
            return False
        task = asyncio.get_running_loop().create_task(self._run(inbound, body, decision, tier))
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

    async def _run(self, inbound: Inbound, body: dict[str, Any], decision: Decision, tier: Tier) -> None:
        name = decision.hints.request_class or UNCLASSED
        state = self._states.get(name) or ClassState(name)
        async with self._gate:
            try:
                reference, model, spent = await self._ask(inbound, body, "premium")
                if reference is None:
                    self._spent += spent
                    return
                for each in tiers_to_ask(state, tier):
                    await self._compare(inbound, body, decision, each, reference, model, spent)
                    spent = 0  # the reference is paid for once
            except AvyayError as error:
                self._log.warning("shadow_failed", decision=decision.id, error=str(error))

    async def _compare(
        self,
        inbound: Inbound,
        body: dict[str, Any],
        decision: Decision,
        tier: Tier,
        reference: str,
        model: str,
        spent: int,
    ) -> None:
        answer, cheap, cost = await self._ask(inbound, body, tier)
        spent += cost
        if answer is None:
            self._spent += spent
            return
        costs: list[int] = []
        found = await compare(
            _prompt(body),
            answer,
            reference,
            embedder=self._embedder() if self._embedder is not None else None,
            ask=(lambda prompt: self._ask_judge(prompt, inbound, costs)) if self._judge else None,
        )
        spent += sum(costs)
        self._spent += spent
        if found is None:
            return
        now = self._gateway.router.clock.now()
        name = decision.hints.request_class or UNCLASSED
        state, change = observe(self._states.get(name) or ClassState(name), tier, found.degraded, self._plan, now)
        self._states[name] = state
        features = dict(decision.features)
        self._store.keep(now, decision.id, name, tier, (cheap, model), decision.complexity, features, found, spent)
        self._store.save(state, change)
        self._publish_floors()
        if change is not None:
            verb = "promoted" if change.promoted else "demoted"
            self._log.warning(f"class_{verb}", request_class=name, evidence=change.sentence())
            if self._events is not None:
                data = {
                    "class": name,
                    "before": change.before,
                    "after": change.after,
                    "comparisons": change.comparisons,
                    "degraded": change.degraded,
                    "evidence": change.evidence,
                    "bound": change.bound,
                }
                self._events.publish(Event(f"marga.class.{verb}", data))

    async def _ask(self, inbound: Inbound, body: dict[str, Any], tier: Tier) -> tuple[str | None, str, int]:
        """(answer, model, picodollars) of a tier; no answer when another tier would have given it."""
        asked = {**body, "model": "auto", "stream": False}
        asked.pop("stream_options", None)
        return await self._send(inbound.dialect, asked, inbound, tier)

    async def _ask_judge(self, prompt: str, inbound: Inbound, costs: list[int]) -> str:
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "temperature": 0}
        answer, _, cost = await self._send("openai_chat", body, inbound, "premium")
        costs.append(cost)
        return answer or ""

    async def _send(
        self, dialect: Dialect, body: dict[str, Any], inbound: Inbound, tier: Tier
    ) -> tuple[str | None, str, int]:
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
            return None, "", 0
        served = dict(outbound.headers).get("x-avyay-tier", call.decision.tier)
        cost = int(call.cost or 0)
        chosen = call.decision.chosen
        if served != tier or chosen is None:
            return None, "", cost
        return answer_text(dialect, orjson.loads(outbound.body)), chosen.name, cost


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
