"""The plain data of SIDDHI: what was complained about, and what is made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avyay.siddhi.machine import State

__all__ = ["EXCERPT", "Complaint", "Event", "Hypothesis", "content_hash", "excerpt"]

EXCERPT = 500
"""Characters of a text that are kept: enough to quote, little enough to respect its author."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something somebody wrote in public. The full text is not kept: permalink, excerpt and hash are.

    Args:
        source: The miner that found it, such as "hn".
        id: The source's own id.
        permalink: Where anybody can read it.
        title: Its title, or "".
        text: An excerpt, at most `EXCERPT` characters.
        hash: Of the whole text, to notice edits and copies without storing it.
        created_at: Seconds since the epoch, as the source states it.
        segment: What it is about, as the source files it: a subreddit, a topic, a tag.
        points: Votes, as the source counts them.
        replies: Answers.
    """

    source: str
    id: str
    permalink: str
    title: str
    text: str
    hash: str
    created_at: float
    segment: str = ""
    points: int = 0
    replies: int = 0


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A guess that enough people would sign up for a cure of one pain.

    Args:
        id: Stable and short, such as "h12".
        round: 1, and one more each time a PROMISING hypothesis is tried again.
        score: 0..1, None until scored. `scored_by` names the rule or the model, `reasons` says why.
    """

    id: str
    title: str
    segment: str
    state: State
    round: int = 1
    score: float | None = None
    scored_by: str = ""
    reasons: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    changed_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """A line in the history of a hypothesis: a change of state, or something that happened on the way."""

    number: int
    hypothesis: str
    at: float
    kind: str
    before: State | None
    after: State | None
    reason: str
    manual: bool
    data: Mapping[str, Any]


def excerpt(text: str) -> str:
    """The first `EXCERPT` characters on one line, cut at a word."""
    line = " ".join(text.split())
    if len(line) <= EXCERPT:
        return line
    return line[: EXCERPT - 1].rsplit(" ", 1)[0] + "…"


def content_hash(text: str) -> str:
    """SHA-256 of the text with its white space normalised, in hexadecimal."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
