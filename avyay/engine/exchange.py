"""Tasks as JSON, in and out: for files people edit, and for queues that were JSON files before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from avyay.engine.types import NewTask, Task
from avyay.errors import UsageError

__all__ = ["export_tasks", "read_tasks"]

# Names that other JSON queues give to the same fields.
_ALIASES = {
    "name": "title",
    "summary": "title",
    "prompt": "description",
    "body": "description",
    "instructions": "description",
    "dependencies": "needs",
    "depends_on": "needs",
    "deps": "needs",
    "blocked_by": "needs",
    "paths": "files",
    "capabilities": "requires",
    "acceptance": "accept",
    "verify": "accept",
    "test": "accept",
}
_LISTS = frozenset({"needs", "files", "requires", "evidence", "allow"})
_TEXTS = frozenset({"title", "description", "accept", "id", "fingerprint", "repository", "agent", "size"})
_FINISHED = frozenset({"done", "completed", "complete", "finished", "closed", "merged"})
_IGNORED = frozenset({"created", "updated", "created_at", "updated_at", "state", "status", "reason", "history"})


def read_tasks(text: str) -> list[NewTask]:
    """Tasks from a JSON list, from {"tasks": [...]}, from {id: task}, or from JSON lines.

    Finished tasks are left out, together with the needs that name them.

    Raises:
        UsageError: not JSON, or a field of the wrong type; names the task and the field.
    """
    rows = _rows(text)
    finished = {str(row["id"]) for row in rows if "id" in row and _is_finished(row)}
    tasks = []
    for number, row in enumerate(rows, 1):
        if not _is_finished(row):
            tasks.append(_task(row, f"task {row.get('id', number)}", finished))
    return tasks


def _rows(text: str) -> list[dict[str, Any]]:
    try:
        data = json.loads(text)
    except ValueError as whole:
        try:
            data = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise UsageError(f"The file is not JSON: {whole}.", hint="One JSON list, or one task a line.") from whole
    if isinstance(data, dict) and isinstance(data.get("tasks"), list | dict):
        data = data["tasks"]
    if isinstance(data, dict):
        data = [{"id": name, **row} if isinstance(row, dict) else row for name, row in data.items()]
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise UsageError("The file holds no list of tasks.", hint='Write [{"title": "..."}, ...].')
    return data


def _is_finished(row: Mapping[str, Any]) -> bool:
    return str(row.get("state", row.get("status", ""))).lower() in _FINISHED


def _task(row: Mapping[str, Any], label: str, finished: set[str]) -> NewTask:
    values: dict[str, Any] = {}
    for name, value in row.items():
        field = _ALIASES.get(name, name)
        if name in _IGNORED or value is None:
            continue
        if field in _LISTS:
            value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
                raise UsageError(f"{label}: {name} must be a list of names.", hint=f'Write "{name}": ["..."].')
            items = tuple(str(item) for item in value)
            values[field] = frozenset(items) if field in ("requires", "allow") else items
        elif field in _TEXTS:
            if not isinstance(value, str | int):
                raise UsageError(f"{label}: {name} must be text.", hint=f'Write "{name}": "...".')
            values[field] = str(value)
        elif field in ("priority", "attempts"):
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"{label}: {name} must be a whole number.", hint=f'Write "{name}": 1.')
            values[field] = value
        elif field == "approval":
            values[field] = bool(value)
        elif field == "caps":
            if not isinstance(value, dict) or not set(value) <= {"dollars", "wall", "stall", "turns"}:
                raise UsageError(f"{label}: caps may hold dollars, wall, stall and turns.", hint='Write {"turns": 50}.')
            values[field] = value
        else:
            raise UsageError(f"{label}: unknown field {name!r}.", hint=f"Known: {', '.join(sorted(_KNOWN))}.")
    if "title" not in values:
        raise UsageError(f"{label} has no title.", hint="Say in one line what is to be done.")
    values["needs"] = tuple(need for need in values.get("needs", ()) if need not in finished)
    return NewTask(**values)


_KNOWN = _LISTS | _TEXTS | {"priority", "attempts", "approval", "caps"}


def export_tasks(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Tasks as JSON values that `read_tasks` takes back."""
    return [
        {
            "id": task.id,
            "title": task.title,
            "description": task.description,
            "accept": task.accept,
            "needs": list(task.needs),
            "files": [] if task.guessed else list(task.files),
            "requires": sorted(task.requires),
            "priority": task.priority,
            "evidence": list(task.evidence),
            "fingerprint": task.fingerprint,
            "attempts": task.attempts,
            "repository": task.repository,
            "agent": task.agent,
            "allow": sorted(task.allow),
            "caps": dict(task.caps),
            "size": task.size,
            "state": task.state,
            "reason": task.reason,
        }
        for task in tasks
    ]
