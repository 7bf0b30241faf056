"""A made-up corpus: pains planted in noise. Nothing in it was written by a real person.

Each pain is told by four to seven voices in different words, on one to three sources; around them stand texts that use
the same words of complaint and ask for nothing one could sell, questions, launches, praise and idle talk.
"""

from __future__ import annotations

import random

from avyay.siddhi.types import Complaint, content_hash

PAINS: dict[str, tuple[str, str]] = {  # what is done, with what
    "invoices": ("match supplier invoices to bank payments", "the accounting export"),
    "shifts": ("fill nurse shifts when somebody calls in sick", "the rota spreadsheet"),
    "receipts": ("photograph and file fuel receipts for mileage claims", "the expense form"),
    "permits": ("track renewal dates of building permits", "the county portal"),
    "subtitles": ("correct subtitles of lecture recordings", "the caption editor"),
    "seeds": ("plan which vegetable seeds to sow for a market garden", "the planting calendar"),
    "tenants": ("chase tenants for meter readings", "the property manager's inbox"),
    "contracts": ("compare two versions of a supplier contract", "the redline in Word"),
    "labs": ("copy laboratory results into patient charts", "the clinic software"),
    "stock": ("keep shop stock in step between Etsy and the till", "two inventory lists"),
    "tutors": ("reschedule music lessons when pupils cancel", "a paper diary"),
    "certificates": ("notice expiring TLS certificates on old appliances", "a wiki page of dates"),
    "grants": ("report grant spending by category to the foundation", "the university ledger"),
    "pallets": ("book lorry slots at the warehouse dock", "phone calls to the gate"),
    "translations": ("keep app store translations current at each release", "string files by mail"),
    "allergens": ("update allergen sheets when a recipe changes", "the kitchen binder"),
    "interviews": ("transcribe and tag user research interviews", "a folder of recordings"),
    "volunteers": ("remind food bank volunteers of their turns", "a group chat"),
    "firmware": ("roll back firmware on remote sensors", "a serial cable and a van"),
    "catalogue": ("retype manufacturer catalogues into the web shop", "PDF price lists"),
    "visas": ("collect documents for employee visa extensions", "mail threads with lawyers"),
    "timesheets": ("split consultants' timesheets by client project", "calendar exports"),
    "boats": ("coordinate winter storage of boats at the marina", "a whiteboard"),
    "alerts": ("silence duplicate pager alerts after a failover", "four monitoring screens"),
    "playlists": ("license background music for small gyms", "three collecting societies"),
}
VOICES = (
    "I hate having to {do} with {tool}. It takes me hours every week.",
    "Every month we {do} by hand because {tool} can't. So tedious and error-prone.",
    "Is there really nothing to help us {do}? {tool} is a nightmare. I'd pay for something decent.",
    "We hired a virtual assistant just to {do}. {tool} keeps failing us and I'm fed up.",
    "I wish there was a tool to {do}. Right now it is {tool} and a lot of swearing.",
    "Wasted another evening trying to {do}. Why is there no app that replaces {tool}?",
    "Does anyone know a service to {do}? Tried everything, none fits, {tool} is overkill. Happy to pay $30 a month.",
    "Team lead here. To {do} takes us days each quarter; {tool} is painful and we struggle constantly.",
)
BAIT = (
    "I hate the new referee, that playoffs call drove me crazy. Game {n}.",
    "I wish someone would fix the weather, tired of rain every single day, week {n}.",
    "My ex is a nightmare and I'm fed up, part {n} of the story.",
    "So frustrating that the season finale was cut, I hate cliffhangers. Episode {n}.",
    "Show HN: I built a tool number {n} because I was tired of manual work",
    "I hate this politician, what a waste of time, debate {n}",
    "Need a movie for tonight, number {n}, I hate horror. Any wish list to share?",
)
PLAIN = (
    "How does garbage collection differ between runtimes? Reading chapter {n}.",
    "Our release {n} is out, changelog inside.",
    "Love how simple this editor is, works great since version {n}.",
    "What do you use to learn Spanish? Day {n} for me.",
    "Interesting paper number {n} on sleep and memory.",
    "Photos from hike {n} in the hills.",
    "Thoughts on remote work after {n} years.",
)


def corpus(seed: int = 1) -> tuple[list[Complaint], dict[str, str]]:
    """Complaints in random order, and which planted pain the id of each belongs to."""
    chance = random.Random(seed)
    texts: list[tuple[str, str, str]] = []
    for pain, (do, tool) in PAINS.items():
        sources = chance.sample(["hn", "reddit", "producthunt", "rss"], chance.choice((1, 2, 2, 3)))
        voices = chance.sample(VOICES, chance.randint(4, 7))
        texts += [(pain, chance.choice(sources), voice.format(do=do, tool=tool)) for voice in voices]
    for n in range(350):
        texts.append(("", chance.choice(("hn", "reddit", "rss")), chance.choice(BAIT).format(n=n)))
        texts.append(("", chance.choice(("hn", "reddit", "rss")), chance.choice(PLAIN).format(n=n)))
    chance.shuffle(texts)
    complaints, planted = [], {}
    for number, (pain, source, text) in enumerate(texts):
        name = f"c{number}"
        complaints.append(
            Complaint(
                source, name, f"https://{source}.example/{name}", "", text, content_hash(text), 1_790_000_000.0 + number
            )
        )
        if pain:
            planted[name] = pain
    return complaints, planted
