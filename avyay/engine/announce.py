"""What others learn of a line of history.

The history itself is the outbox: written with the change, never apart from it. Every home that works on the queue
forwards it into events of its own, from where it stopped the last time (`forward.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from avyay.engine.types import Entry
from avyay.ports import Event

__all__ = ["WAITS_FOR_APPROVAL", "events_of"]

WAITS_FOR_APPROVAL = "waits for approval"
_NAMES = {"running": "started", "lease_lost": "lost"}
_PRIVATE = frozenset({"log", "message", "transcript"})  # what an agent or a command wrote, and where
_LONGEST = 2_000


def events_of(entry: Entry, title: str, evidence: Sequence[str], origin: str) -> Iterator[Event]:
    """The events of a line: what became of the task, and what asks for a person.

    Args:
        title, evidence: The task's.
        origin: Names the queue, so that all who tell of it give the same ids.
    """
    about: dict[str, Any] = {
        **{key: value for key, value in entry.data.items() if key not in _PRIVATE},
        "queue": origin[:12],
        "task": entry.task,
        "title": title[:500],
        "state": entry.after,
        "owner": entry.owner,
        "fence": entry.fence,
        "detail": entry.detail[:_LONGEST],
    }
    once = f"history-{entry.number}"
    for name, data in _named(entry, about, list(evidence[:3])):
        yield Event(name, data, once, everywhere=f"{origin}/{name}/{once}")


def _named(entry: Entry, about: Mapping[str, Any], evidence: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if entry.kind == "failed" and entry.after == "ready":
        yield "engine.attempt.failed", about
    elif entry.kind == "done":
        # A result that waits in a branch or a pull request is done for the engine, and not in anybody's branch yet.
        yield ("engine.task.merged" if entry.data.get("merged") else "engine.task.done"), about
    elif not (entry.kind == "failed" and entry.after == "dead"):
        yield f"engine.task.{_NAMES.get(entry.kind, entry.kind)}", about
    if entry.after == "dead" and entry.before != "dead":
        yield "engine.task.dead", about
    if entry.after == "blocked" and entry.detail == WAITS_FOR_APPROVAL:
        yield "engine.approval.requested", {**about, "evidence": evidence}
