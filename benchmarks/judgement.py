"""How fast the judgement judges: scoring, personal data, and what judging adds to a request. Prints one line each."""

from __future__ import annotations

import asyncio
import random
import string
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))

from avyay.clock import SYSTEM_CLOCK
from avyay.config.marga import CacheSettings, MargaSettings, PiiRuleSettings, PiiSettings
from avyay.marga.cache_store import MemoryCache
from avyay.marga.caching import AnswerCache
from avyay.marga.call_journal import JournalStore
from avyay.marga.complexity import score
from avyay.marga.envelope import Inbound
from avyay.marga.gateway import Gateway
from avyay.marga.masking import Masker, scan_body
from avyay.marga.pii import KINDS, detect
from avyay.marga.router import Router
from avyay.marga.types import TIERS, Model, Prices, Provider
from avyay.marga.view import RequestView
from avyay.money import Picodollars

PROSE = (
    "The deploy at 10:42 failed with exit code 137 on node ip-10-0-3-7; see https://ci.example.com/build/8841 for the"
    " log. Please summarise what happened, in three bullet points, and say who should look at it (v2.14.3, PR 1290).\n"
)
DATA = "Contact ada@example.com or +1 (415) 555-0123; card 4111 1111 1111 1111, IBAN DE89370400440532013000, 8.8.8.8.\n"


def per_kilobyte(text: str, work: Callable[[str], object]) -> float:
    """Milliseconds of CPU for 1,000 characters, the best of five."""
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(20):
            work(text)
        best = min(best, (time.process_time() - start) / 20)
    return best * 1e6 / len(text)


def main() -> None:
    rng = random.Random(1)
    digits = "".join(rng.choice(string.digits + "  -") for _ in range(20_000))
    body = {"messages": [{"role": "user", "content": PROSE * 40}, {"role": "tool", "content": DATA * 40}]}
    size = len(PROSE * 40) + len(DATA * 40)
    for name, text in (("prose", PROSE * 80), ("dense personal data", DATA * 80), ("digits only", digits)):
        print(f"detect, {name}: {per_kilobyte(text, detect):.3f} ms CPU a kB")
    masker = Masker(frozenset(KINDS))
    print(f"mask a body: {per_kilobyte('x' * size, lambda _: masker.mask_body(body)):.3f} ms CPU a kB")
    print(f"scan a body: {per_kilobyte('x' * size, lambda _: scan_body(body)):.3f} ms CPU a kB")
    view = RequestView(PROSE * 2)
    score(view)
    start = time.process_time()
    for _ in range(2000):
        score(view)
    print(f"complexity of {len(view.last_user)} characters: {(time.process_time() - start) / 2:.3f} ms CPU")
    asyncio.run(requests())


PRICE = Prices(Picodollars(1), Picodollars(1))
PROVIDERS = tuple(
    Provider(tier, "fake", f"https://{tier}.example", models=(Model(f"{tier}-model", tier, PRICE),)) for tier in TIERS
)
QUESTION = (
    "Explain the difference between a process and a thread to a new engineer, and say when you would use which, for an"
    " order service with 20 workers."
)


async def requests(count: int = 1500) -> None:
    """CPU of whole requests through a gateway in this process, the best of four rounds: what judging adds to them."""
    mask = MargaSettings(pii=PiiSettings(default=PiiRuleSettings(action="mask")))
    plain = MargaSettings()
    for name, settings, model, cached in (
        ("a model is named, nothing judged", plain, "local-model", False),
        ("auto: scored and routed", plain, "auto", False),
        ("auto, rules on personal data", mask, "auto", False),
        ("auto, cache, all misses", plain, "auto", True),
        ("auto, cache, all hits", plain, "auto", True),
    ):
        with tempfile.TemporaryDirectory() as folder:
            store = JournalStore(Path(folder) / "marga.db")
            router = Router(PROVIDERS, settings, store=lambda store=store: store)
            kept = MemoryCache(64_000_000)
            cache = AnswerCache(CacheSettings(enabled=True), kept, SYSTEM_CLOCK) if cached else None
            gateway = Gateway(router, cache=cache)
            same = name.endswith("hits")
            bodies = [
                orjson.dumps({"model": model, "messages": [{"role": "user", "content": f"{QUESTION} Case {number}."}]})
                for number in ([0] * count if same else range(count))
            ]
            best, decisions = float("inf"), []
            for _ in range(4):
                if not same:
                    kept.clear()
                start = time.thread_time()
                for body in bodies:
                    outbound = await gateway.open(Inbound("openai_chat", body))
                    assert outbound.call is not None
                    decisions.append(outbound.call.decision.seconds)
                best = min(best, (time.thread_time() - start) / count)
            middle = sorted(decisions)[len(decisions) // 2]
            print(f"{name}: {best * 1e6:.0f} µs CPU a request, decision p50 {middle * 1e6:.0f} µs")
            store.close()


if __name__ == "__main__":
    main()
