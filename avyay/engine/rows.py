"""Rows of the queue as what they mean."""

from __future__ import annotations

import json
from typing import Any

from avyay.engine.types import Entry, Task, unpack_extra

__all__ = ["read_entry", "read_task"]


def read_entry(row: tuple[Any, ...]) -> Entry:
    """A line of `history`."""
    number, task, at, kind, before, after, owner, fence, detail, data = row
    return Entry(number, task, at, kind, before, after, owner, fence, detail, json.loads(data))


def read_task(row: tuple[Any, ...], needs: tuple[str, ...]) -> Task:
    """A row of `tasks`, with what it needs."""
    (_, name, title, description, accept, files, requires, evidence, fingerprint, priority, state, reason, _, _,
     attempt, attempts, fence, owner, beats, not_before, created, updated, extra) = row  # fmt: skip
    return Task(
        id=name, title=title, description=description, accept=accept, needs=needs, files=tuple(json.loads(files)),
        requires=frozenset(json.loads(requires)), priority=priority, evidence=tuple(json.loads(evidence)),
        fingerprint=fingerprint, state=state, reason=reason, attempt=attempt, attempts=attempts, fence=fence,
        owner=owner, beats=beats, not_before=not_before, created=created, updated=updated,
        **unpack_extra(json.loads(extra)),
    )  # fmt: skip
