"""The bill goes by what was served, not by what was asked for."""

from __future__ import annotations

import orjson
import pytest

from avyay.config.marga import MargaSettings
from avyay.marga.bill import bill_of
from avyay.marga.catalogue import bundled_catalogue
from avyay.marga.router import Router
from avyay.marga.store import MemoryStore
from avyay.marga.types import Hints, Provider
from avyay.marga.view import RequestView
from avyay.marga.wire import begin, default_target


@pytest.mark.parametrize(("asked", "served", "dearer"), [("priority", "default", False), (None, "priority", True)])
def test_the_service_tier_that_was_served_is_billed(asked: str | None, served: str, dearer: bool) -> None:
    model = next(m for _, m in bundled_catalogue().rows() if "priority" in m.service_tiers and m.mode == "chat")
    provider = Provider("p", "fake", "fake:", models=(model,))
    router = Router([provider], MargaSettings(), store=MemoryStore)
    decision = router.decide(RequestView("hi"), Hints(model.name))
    candidate = decision.ranked[0].candidate
    body = {"model": model.name, "messages": [{"role": "user", "content": "hi"}]}
    exchange = begin(
        "openai_chat",
        orjson.dumps(body),
        body,
        default_target("openai_chat", model.name),
        exchange_id="e",
        created=0,
    )
    usage = {"prompt_tokens": 1000, "completion_tokens": 1000}
    choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    out = exchange.reply(orjson.dumps({"id": "x", "choices": [choice], "usage": usage, "service_tier": served}))
    bill = bill_of(router, decision, candidate, out.usage, service_tier=asked)
    plain = bill_of(router, decision, candidate, out.usage and type(out.usage)(input=1000, output=1000))
    assert bill.cost is not None
    assert plain.cost is not None
    assert (bill.cost > plain.cost) == dearer
