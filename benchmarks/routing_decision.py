"""How long a routing decision takes: from the parsed request to the ranked candidates, nothing sent.

    python -P benchmarks/routing_decision.py [--requests 20000]

Prompts differ from one another, so nothing is remembered but what would be: the selection for small requests of a kind.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from avyay.config.marga import MargaSettings
from avyay.marga.catalogue import bundled_catalogue
from avyay.marga.router import Router
from avyay.marga.store import MemoryStore
from avyay.marga.types import Hints, Provider
from avyay.marga.view import view_features
from avyay.marga.wire import inspect

WORDS = (
    *("the", "a", "capital", "of", "France", "explain", "prove", "why", "database", "index", "query", "table", "stack"),
    *("customer", "ticket", "summarise", "translate", "plan", "compare", "distributed", "invoice", "error", "trace"),
)
TOOL = {"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}


def router() -> Router:
    """Three providers, nine models."""
    catalogue = bundled_catalogue()
    found = {
        vendor: [m for v, m in catalogue.rows() if v == vendor and m.mode == "chat"]
        for vendor in ("openai", "anthropic")
    }
    providers = [
        Provider("openai", "openai", "https://api.openai.com/v1", "k", tuple(found["openai"][:4]), "openai"),
        Provider(
            "anthropic", "anthropic", "https://api.anthropic.com", "k", tuple(found["anthropic"][:4]), "anthropic"
        ),
        Provider("ollama", "ollama", "http://127.0.0.1:11434", None, tuple(found["openai"][:1])),
    ]
    return Router(providers, MargaSettings(), store=MemoryStore)


def body(draw: random.Random, words: int, *, tools: int = 0) -> dict[str, object]:
    text = " ".join(draw.choice(WORDS) for _ in range(words))
    made: dict[str, object] = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    if tools:
        made["tools"] = [TOOL] * tools
    return made


def measure(name: str, make: Callable[[random.Random], dict[str, object]], count: int, hints: Hints) -> None:
    draw, routes = random.Random(3), router()
    views = [view_features(inspect("openai_chat", make(draw))) for _ in range(count)]
    taken = []
    worked = time.thread_time()
    for view in views:
        began = time.perf_counter()
        routes.decide(view, hints)
        taken.append((time.perf_counter() - began) * 1000)
    worked = (time.thread_time() - worked) / count * 1000
    taken.sort()
    p50, p95 = statistics.median(taken), taken[int(len(taken) * 0.95)]
    print(f"{name:44} p50 {p50:.3f} ms, p95 {p95:.3f} ms, mean CPU {worked:.3f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="decisions of each kind")
    count = parser.parse_args().requests
    auto = Hints()
    measure("auto, 12 words", lambda draw: body(draw, 12), count, auto)
    measure("auto, 400 words", lambda draw: body(draw, 400), count, auto)
    measure("auto, 12 words, 25 tools", lambda draw: body(draw, 12, tools=25), count, auto)
    measure("auto, 20,000 words (a long context)", lambda draw: body(draw, 20_000), max(1, count // 100), auto)
    measure("a concrete model", lambda draw: body(draw, 12), count, Hints(router().candidates()[0].model.name))


if __name__ == "__main__":
    main()
