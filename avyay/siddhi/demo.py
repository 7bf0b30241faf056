"""The whole loop on fakes: made-up complaints, an ad platform in memory, visitors who do not exist. No money moves."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

from avyay.clock import FakeClock
from avyay.embed.hashing import Hashing
from avyay.money import parse_usd
from avyay.siddhi.ads.fake import FakePlatform
from avyay.siddhi.budget import Caps, Governor
from avyay.siddhi.machine import FINAL, State
from avyay.siddhi.miners.file import Files
from avyay.siddhi.pipeline import Siddhi, Terms
from avyay.siddhi.store import Store
from avyay.siddhi.visitors import Visitors, load_key

__all__ = ["LABEL", "demo"]

LABEL = "DEMO: made-up complaints, made-up visitors, a fake ad platform. No network, no key, no money."
_PRICE = parse_usd("0.60")
_AGENT = "Mozilla/5.0 (demo)"

# What is done, with what, on which segment, and the rate at which made-up visitors sign up.
_PAINS = (
    ("match supplier invoices to bank payments", "the accounting export", "accounting", 0.15),
    ("reschedule music lessons when pupils cancel", "a paper diary", "teaching", 0.01),
    ("transcribe and tag research interviews", "a folder of recordings", "research", 0.12),
    ("book lorry slots at the warehouse dock", "phone calls to the gate", "logistics", 0.02),
    ("collect documents for visa extensions", "mail threads with lawyers", "hiring", 0.0),
    ("compare two versions of a supplier contract", "the redline in Word", "accounting", 0.05),
)
_VOICES = (
    ("hn", "I hate having to {do} with {tool}. It takes me hours every week."),
    ("reddit", "Every month we {do} by hand because {tool} can't. So tedious and error-prone."),
    ("reddit", "Is there really nothing to help us {do}? {tool} is a nightmare. I'd pay for something decent."),
    ("producthunt", "We hired a virtual assistant just to {do}. {tool} keeps failing us and I'm fed up."),
)
_NOISE = (
    ("hn", "Show HN: I built a tool for sorting photos because I was tired of manual work"),
    ("reddit", "I hate the new referee, that playoffs call drove me crazy"),
    ("reddit", "So frustrating that the season finale was cut"),
    ("hn", "Interesting paper on sleep and memory"),
)


def demo(home: Path, say: Callable[[str], None], *, seed: int = 7) -> Siddhi:
    """Run the loop in `home`, telling each step; returns the service, to be looked at and closed.

    Args:
        home: An empty folder of its own: nothing of the demo mixes with real data.
    """
    say(LABEL)
    clock = FakeClock(1_790_000_000.0)
    chance = random.Random(seed)  # noqa: S311 - made-up visitors
    complaints = home / "complaints.jsonl"
    complaints.write_text("".join(_lines()), encoding="utf-8")
    visitors = Visitors(home / "visitors.db", load_key(home / "key"), clock=clock)
    store = Store(home / "siddhi.db", clock=clock)
    rates: dict[str, float] = {}

    def visit(campaign: str) -> None:
        identifier = campaign.split("-")[2]
        if identifier not in rates:
            told = " ".join(one.text for one in store.complaints(identifier))
            rates[identifier] = next((rate for do, _, _, rate in _PAINS if do in told), 0.0)
        page = (identifier, "a", store.hypothesis(identifier).round)
        someone = f"{chance.getrandbits(32):08x}"
        visitors.visit(page, someone, _AGENT)
        if chance.random() < rates[identifier]:
            code = visitors.sign_up(page, f"{someone}@visitor.example")
            if code is not None:
                visitors.confirm(code)

    platform = FakePlatform(_PRICE, visit)
    caps = Caps(parse_usd("30"), parse_usd("200"), parse_usd("200"), parse_usd("200"))
    governor = Governor(home / "budget.db", caps, {"fake": platform}, clock=clock, synchronous="NORMAL")
    terms = Terms(platform="fake", contact="The demo", url="https://demo.example/{id}", confirmed_only=True)
    siddhi = Siddhi(
        home=home,
        terms=terms,
        store=store,
        governor=governor,
        visitors=visitors,
        embedder=lambda: Hashing(dimensions=512),
        clock=clock,
    )
    jobs = [(Files(), str(complaints))]
    for turn in range(40):
        report = asyncio.run(siddhi.run(jobs, pages=5, spend="live"))
        for mined in report.mined:
            if mined.new:
                say(f"mined {mined.new} complaints from {complaints.name}")
        for line in report.lines:
            if " goes on: " not in line:
                say(line)
        tested = [one for one in store.hypotheses() if one.state not in (State.DISCOVERED, State.SCORED)]
        if turn and tested and all(one.state in FINAL | {State.PROMISING} for one in tested):
            break
        platform.deliver(4)
        clock.advance(3600)
    for _ in range(3):
        clock.advance(60)
        governor.sweep()
    say(LABEL)
    return siddhi


def _lines() -> list[str]:
    rows = [
        (source, segment, voice.format(do=do, tool=tool))
        for do, tool, segment, _ in _PAINS
        for source, voice in _VOICES
    ]
    rows += [(source, "", text) for source, text in _NOISE]
    return [
        json.dumps(
            {
                "id": f"demo-{number}",
                "source": source,
                "segment": segment,
                "text": text,
                "url": f"https://demo.example/complaints/{number}",
                "created_at": 1_789_000_000 + number,
            }
        )
        + "\n"
        for number, (source, segment, text) in enumerate(rows)
    ]
