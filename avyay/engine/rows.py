"""Rows of the queue as what they mean."""

from __future__ import annotations

from typing import Any

import orjson

from avyay.engine.types import REPOSITORY, Entry, Task, unpack_extra

__all__ = ["read_entry", "read_task"]


def read_entry(row: tuple[Any, ...]) -> Entry:
    """A line of `history`."""
    number, task, at, kind, before, after, owner, fence, detail, data = row
    if kind == "claimed" and fence is None:
        fence = number  # the fence of a claim is the number of the line that tells of it
    return Entry(number, task, at, kind, before, after, owner, fence, detail, orjson.loads(data))


def read_task(row: tuple[Any, ...], needs: tuple[str, ...]) -> Task:
    """A row of `tasks`, with what it needs."""
    (_, name, title, description, accept, files, requires, evidence, fingerprint, priority, state, reason, _, _,
     attempt, attempts, fence, owner, beats, not_before, created, updated, extra, _) = row  # fmt: skip
    wants = (item for item in orjson.loads(requires) if not item.startswith(REPOSITORY))
    return Task(
        id=name, title=title, description=description, accept=accept, needs=needs, files=tuple(orjson.loads(files)),
        requires=frozenset(wants), priority=priority, evidence=tuple(orjson.loads(evidence)),
        fingerprint=fingerprint, state=state, reason=reason, attempt=attempt, attempts=attempts, fence=fence,
        owner=owner, beats=beats, not_before=not_before, created=created, updated=updated,
        **unpack_extra(orjson.loads(extra)),
    )  # fmt: skip
