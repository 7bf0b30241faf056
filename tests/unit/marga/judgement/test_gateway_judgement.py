"""The judgement at work in the gateway: personal data, shadow evaluation, conversations. Providers in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from outbox import told

from avyay.clock import FakeClock
from avyay.config.marga import ArmSettings, ExperimentSettings, MargaSettings, PiiRuleSettings, PiiSettings
from avyay.marga.backends.base import Outgoing
from avyay.marga.backends.fake import FakeAnswer, FakeBackend
from avyay.marga.envelope import Inbound, Outbound
from avyay.marga.experiments import report, results_of
from avyay.marga.gateway import Gateway
from avyay.marga.masking import Masker
from avyay.marga.replay import ledger_calls, replay
from avyay.marga.restore import StreamRestorer
from avyay.marga.router import Router
from avyay.marga.shadow import ShadowPlan
from avyay.marga.shadowing import Shadowing, answer_text
from avyay.marga.side_endpoints import embeddings
from avyay.marga.store import CALL_COLUMNS, MemoryStore, call_row
from avyay.marga.types import Model, Prices, Provider
from avyay.marga.verdicts import VerdictStore
from avyay.money import Picodollars

EMAIL = "ada@example.com"


class Scripted(FakeBackend):
    """Answers by a function of the request."""

    def __init__(self, provider: Provider, answer: Callable[[dict[str, Any]], str]) -> None:
        super().__init__(provider)
        self._answer = answer

    async def open(self, call: Outgoing, deadline: Any = None) -> Any:
        self.script.append(FakeAnswer(self._answer(orjson.loads(call.body))))
        return await super().open(call, deadline)


def model(name: str, tier: str, dollars: float) -> Model:
    price = Picodollars(int(dollars * 1_000_000))
    return Model(name, tier, Prices(price, price))  # type: ignore[arg-type]


PROVIDERS = (
    Provider("home", "fake", "http://home", models=(model("tiny", "local", 0),)),
    Provider("middle", "fake", "http://middle", models=(model("mid", "medium", 1),)),
    Provider("best", "fake", "http://best", models=(model("top", "premium", 10),)),
)


def gateway(settings: MargaSettings | None = None, **answers: Callable[[dict[str, Any]], str]) -> Gateway:
    router = Router(PROVIDERS, settings or MargaSettings(), store=MemoryStore, clock=FakeClock())
    for provider in PROVIDERS:
        if provider.name in answers:
            router.backends[provider.name] = Scripted(provider, answers[provider.name])
    return Gateway(router)


def chat(text: str, **more: Any) -> Inbound:
    names = {"request_class", "service", "key", "session", "tier"}
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    body |= {k: v for k, v in more.items() if k not in names}
    return Inbound("openai_chat", orjson.dumps(body), **{k: v for k, v in more.items() if k in names})


async def whole(served: Gateway, inbound: Inbound) -> tuple[Outbound, bytes]:
    outbound = await served.open(inbound)
    if outbound.body is not None:
        return outbound, outbound.body
    return outbound, b"".join([chunk async for chunk in outbound.chunks()])


def sent(served: Gateway, provider: str) -> list[dict[str, Any]]:
    return served.router.backends[provider].calls  # type: ignore[attr-defined, no-any-return]


def pii(**default: Any) -> MargaSettings:
    return MargaSettings(pii=PiiSettings(default=PiiRuleSettings(**default)))


@pytest.mark.parametrize("stream", [False, True])
def test_masked_on_the_way_out_and_put_back_on_the_way_in(stream: bool) -> None:
    served = gateway(pii(action="mask"))
    outbound, body = asyncio.run(whole(served, chat(f"Write to {EMAIL} today", stream=stream)))
    assert outbound.status == 200
    asked = sent(served, "home")[0]["messages"][0]["content"]
    assert asked == "Write to [EMAIL_1] today"
    if stream:
        events = [orjson.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
        said = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
    else:
        said = answer_text("openai_chat", orjson.loads(body))
    assert said == f"You said: Write to {EMAIL} today"


def test_blocked_everywhere_is_refused_and_recorded_without_the_data() -> None:
    served = gateway(pii(kinds={"email": "block"}))
    outbound, body = asyncio.run(whole(served, chat(f"Write to {EMAIL}")))
    assert outbound.status == 403
    assert b"pii" in body
    assert EMAIL.encode() not in body
    assert not any(sent(served, p.name) for p in PROVIDERS)
    record = served.router.store.calls[0]  # type: ignore[attr-defined]
    assert record.status == "refused"
    assert EMAIL not in record.error
    assert asyncio.run(whole(served, chat("Write to nobody")))[0].status == 200


def test_a_rule_of_one_provider_moves_the_request_to_another() -> None:
    settings = MargaSettings(pii=PiiSettings(providers={"home": PiiRuleSettings(action="block")}))
    served = gateway(settings)
    outbound, _ = asyncio.run(whole(served, chat(f"Write to {EMAIL}")))
    assert dict(outbound.headers)["x-avyay-provider"] == "middle"
    assert sent(served, "middle")[0]["messages"][0]["content"] == f"Write to {EMAIL}"
    assert not sent(served, "home")


def frames(dialect: str, pieces: list[str]) -> bytes:
    """A stream whose text comes in these pieces."""
    if dialect == "openai_chat":
        events = [{"choices": [{"index": 0, "delta": {"content": p}, "finish_reason": None}]} for p in pieces]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        return b"".join(b"data: " + orjson.dumps(e) + b"\n\n" for e in events) + b"data: [DONE]\n\n"
    if dialect == "anthropic_messages":
        typed: list[dict[str, Any]] = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}} for p in pieces
        ]
        typed.append({"type": "content_block_stop", "index": 0})
        return b"".join(b"event: " + e["type"].encode() + b"\ndata: " + orjson.dumps(e) + b"\n\n" for e in typed)
    if dialect == "openai_responses":
        typed = [
            {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": p} for p in pieces
        ]
        typed.append({"type": "response.output_text.done", "output_index": 0, "text": "".join(pieces)})
        return b"".join(b"event: " + e["type"].encode() + b"\ndata: " + orjson.dumps(e) + b"\n\n" for e in typed)
    lines: list[dict[str, Any]] = [{"message": {"content": p}, "done": False} for p in pieces]
    lines.append({"message": {"content": ""}, "done": True})
    return b"".join(orjson.dumps(e) + b"\n" for e in lines)


def text_of(dialect: str, stream: bytes) -> str:
    out = ""
    for line in stream.split(b"\n"):
        data = line.removeprefix(b"data: ")
        if not data.startswith(b"{"):
            continue
        event = orjson.loads(data)
        if dialect == "openai_chat":
            out += event["choices"][0]["delta"].get("content", "")
        elif dialect == "anthropic_messages":
            out += event.get("delta", {}).get("text", "")
        elif dialect == "openai_responses":
            out += event.get("delta", "")
        else:
            out += event["message"]["content"]
    return out


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic_messages", "openai_responses", "ollama_chat"])
def test_a_placeholder_cut_by_events_and_by_bytes_is_put_back(dialect: str) -> None:
    rng = random.Random(1)
    for _ in range(60):
        masker = Masker(frozenset({"email"}))
        masked = masker.mask(f"mail {EMAIL} or [EMA")
        cuts = sorted(rng.sample(range(1, len(masked)), 5))
        pieces = [masked[a:b] for a, b in zip([0, *cuts], [*cuts, len(masked)], strict=True)]
        data = frames(dialect, pieces)
        restorer = StreamRestorer(dialect, masker)  # type: ignore[arg-type]
        out, at = b"", 0
        while at < len(data):
            size = rng.randint(1, 60)
            out += restorer.feed(data[at : at + size])
            at += size
        out += restorer.close()
        assert text_of(dialect, out) == f"mail {EMAIL} or [EMA"
        if dialect == "openai_responses":
            assert b'"text":"mail ada@example.com or [EMA"' in out


# ---------------------------------------------------------------- shadow evaluation


def test_the_degraded_class_is_promoted_through_the_gateway(tmp_path: Path) -> None:
    """The local model is right about lookups and wrong about sums; premium is always right."""

    def right(body: dict[str, Any]) -> str:
        return f"answer {body['messages'][-1]['content']}"

    def local(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        return "answer wrong" if "sum" in text else right(body)

    async def run() -> tuple[Gateway, VerdictStore]:
        served = gateway(home=local, middle=right, best=right)
        store = VerdictStore(tmp_path / "verdicts.db")
        served.shadowing = Shadowing(served, store, ShadowPlan(share=1.0))
        for count in range(30):
            for kind in ("sum", "lookup"):
                outbound, _ = await whole(served, chat(f"{kind} {count}", request_class=kind, stream=count % 2 == 0))
                assert outbound.status == 200
            await served.shadowing.settle()
        return served, store

    served, store = asyncio.run(run())
    assert served.router.floors["sum"] == "medium"
    assert served.router.floors["lookup"] == "local"
    ((name, data),) = told(tmp_path / "verdicts.db")
    assert (name, data["class"]) == ("marga.class.promoted", "sum")
    assert data["evidence"] >= data["bound"]
    changes = store.changes()
    assert [c.request_class for c in changes] == ["sum"]
    assert changes[0].promoted
    assert changes[0].degraded == 1.0
    outbound, _ = asyncio.run(whole(served, chat("sum 1", request_class="sum")))
    assert dict(outbound.headers)["x-avyay-tier"] == "medium"
    decision = outbound.call.decision  # type: ignore[union-attr]
    assert any("by comparison of answers" in reason for reason in decision.reasons)
    assert store.states()["sum"].floor == "medium"
    rows = list(store.comparisons(request_class="sum", limit=5))
    assert any(row["cost"] > 0 for row in rows)
    assert "last_user_chars" in rows[0]["features"]
    shadows = [r for r in served.router.store.calls if r.service == "shadow"]  # type: ignore[attr-defined]
    assert shadows
    again = Gateway(served.router)
    again.router.floors.clear()
    asyncio.run(_reopen(again, store))
    assert again.router.floors["sum"] == "medium"
    store.close()


async def _reopen(served: Gateway, store: VerdictStore) -> None:
    Shadowing(served, store, ShadowPlan())


def test_a_spent_budget_ends_comparisons_and_a_failing_reference_counts_for_nothing(tmp_path: Path) -> None:
    async def run(budget: int, fault: bool) -> int:
        served = gateway()
        store = VerdictStore(tmp_path / f"{budget}-{fault}.db")
        served.shadowing = Shadowing(served, store, ShadowPlan(share=1.0, daily_budget=budget))
        if fault:
            best = served.router.backends["best"]
            best.script.extend([FakeAnswer("no", status=500)] * 200)  # type: ignore[attr-defined]
        for count in range(10):
            await whole(served, chat(f"lookup {count}"))
            await served.shadowing.settle()
        kept = len(list(store.comparisons(limit=100)))
        store.close()
        return kept

    assert asyncio.run(run(10**12, False)) == 10
    assert asyncio.run(run(1, False)) <= 1
    assert asyncio.run(run(10**12, True)) == 0


def test_a_conversation_in_a_tool_loop_keeps_its_model() -> None:
    served = gateway()
    first = chat("Begin", session="s", tier="premium")
    outbound, _ = asyncio.run(whole(served, first))
    model_before = dict(outbound.headers)["x-avyay-model"]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
    body = {"model": "auto", "messages": [*turns, {"role": "tool", "tool_call_id": "c", "content": "ok"}]}
    outbound, _ = asyncio.run(whole(served, Inbound("openai_chat", orjson.dumps(body), session="s")))
    assert dict(outbound.headers)["x-avyay-model"] == model_before
    outbound, _ = asyncio.run(whole(served, Inbound("openai_chat", orjson.dumps(body), session="other")))
    assert dict(outbound.headers)["x-avyay-model"] != model_before


def test_an_experiment_divides_a_class_by_conversation() -> None:
    arms = (ArmSettings(name="a", target="medium", share=0.5), ArmSettings(name="b", target="tiny", share=0.5))
    settings = MargaSettings(experiments=(ExperimentSettings(name="e", request_class="sum", arms=arms),))
    served = gateway(settings)
    models: dict[str, set[str]] = {}
    for session in [f"s{i % 20}" for i in range(40)]:
        outbound, _ = asyncio.run(whole(served, chat("hi", request_class="sum", session=session)))
        models.setdefault(session, set()).add(dict(outbound.headers)["x-avyay-model"])
    assert all(len(found) == 1 for found in models.values())
    assert set.union(*models.values()) == {"mid", "tiny"}
    rows = []
    for call in served.router.store.calls:  # type: ignore[attr-defined]
        row = dict(zip(CALL_COLUMNS, call_row(call), strict=True))
        rows.append({**row, "detail": orjson.loads(row["detail"])})
    experiment = served.router.experiments["sum"]
    results = results_of(experiment, rows, {rows[0]["id"]: 0.5})
    assert sum(result.assigned for result in results.values()) == 40
    assert report(experiment, results).sound
    outbound, _ = asyncio.run(whole(served, chat("hi", request_class="other")))
    assert dict(outbound.headers)["x-avyay-model"] == "tiny"
    again = replay(served.router, ledger_calls(rows))
    assert (again.same, again.decided) == (40, 40)


def test_rules_hold_for_embeddings_too() -> None:
    body = orjson.dumps({"model": "tiny", "input": [f"mail {EMAIL}"]})
    blocked = gateway(pii(action="block"))
    outbound = asyncio.run(embeddings(blocked, Inbound("openai_chat", body)))
    assert outbound.status == 403
    assert not sent(blocked, "home")
    masking = gateway(pii(action="mask"))
    asyncio.run(embeddings(masking, Inbound("openai_chat", body)))
    assert sent(masking, "home")[0]["input"] == ["mail [EMAIL_1]"]
