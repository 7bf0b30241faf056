"""One process of the governor's crash test: random operations until it is killed or has done enough.

Run as a program: governor_worker.py DATABASE GOOGLE_URL SEED OPERATIONS COUNTER_FILE
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from avyay.errors import AvyayError
from avyay.http import client
from avyay.money import Picodollars, parse_usd
from avyay.siddhi.ads.base import Order
from avyay.siddhi.ads.google import GoogleAds, GoogleKeys
from avyay.siddhi.budget import Caps, Governor

CAPS = Caps(
    hypothesis=parse_usd("30"),
    day=parse_usd("200"),
    month=parse_usd("400"),
    total=parse_usd("600"),
    sources={"google": parse_usd("500"), "x": parse_usd("40")},
)
LIFETIME = 1.0
SETTLE_AFTER = 0.5
HYPOTHESES = 12


def governor(path: Path, url: str) -> Governor:
    platform = GoogleAds(
        client(),
        GoogleKeys("1234567890", "dev", "id", "secret", "refresh"),
        endpoint=f"{url}/v26",
        token_endpoint=f"{url}/token",
    )
    platform.settle_after = SETTLE_AFTER
    platform._caller._sleep = lambda seconds: time.sleep(min(seconds, 0.02))
    return Governor(path, CAPS, {"google": platform}, lifetime=LIFETIME, synchronous="NORMAL", busy_timeout=60)


def wanted(name: str, amount: Picodollars, ends_at: float) -> Order:
    return Order(name, amount, ends_at, ("https://example.com",), ("a", "b", "c"), ("d", "e"), ("k",))


def operate(guard: Governor, chance: random.Random) -> None:
    hypothesis = f"h{chance.randrange(HYPOTHESES)}"
    kind = chance.choices(("order", "start", "stop", "finish", "paid", "sweep"), weights=(30, 30, 10, 15, 14, 1))[0]
    if kind == "order":
        amount = parse_usd(str(chance.choice((1, 2, 5, 9, 15))))
        ends_at = guard.clock.now() + chance.choice((2.0, 30.0, 90_000.0))
        guard.order("google", hypothesis, amount, ends_at, lambda name: wanted(name, amount, ends_at))
    elif kind == "paid":
        with guard.paid("x", parse_usd("0.5"), hypothesis=hypothesis) as bill:
            if chance.random() < 0.8:
                bill.cost(parse_usd("0.1"))
    elif kind == "sweep":
        guard.sweep()
    else:
        rows = guard.campaigns.all(hypothesis=hypothesis, unfinished=True)
        if rows:
            getattr(guard, kind)(chance.choice(rows).name)


def main() -> None:
    database, url, seed, operations, counter = sys.argv[1:]
    guard = governor(Path(database), url)
    chance = random.Random(int(seed))
    descriptor = os.open(counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for _ in range(int(operations)):
        try:
            operate(guard, chance)
        except AvyayError:
            pass  # refused, unknown, overtaken: all in a day's work
        os.write(descriptor, b".")


if __name__ == "__main__":
    main()
