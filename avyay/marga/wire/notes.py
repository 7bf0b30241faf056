"""What a translation could not carry over: reported as notes where the meaning holds, refused where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from avyay.errors import UsageError

__all__ = ["MalformedError", "Note", "NoteAction", "Notes", "UntranslatableError", "notes_header"]

NoteAction: TypeAlias = Literal["dropped", "clamped", "mapped", "defaulted", "moved", "stripped"]


@dataclass(frozen=True, slots=True)
class Note:
    """One deviation from the caller's request: which field, what happened to it, and why in a few words."""

    field: str
    action: NoteAction
    reason: str


class Notes(list[Note]):
    """Collects deviations; the same field and action is told once, however often it occurs in a conversation."""

    def add(self, field: str, action: NoteAction, reason: str) -> None:
        note = Note(field, action, reason)
        if note not in self:
            self.append(note)


class MalformedError(UsageError):
    """The body is not what its dialect prescribes: no JSON, a missing field, a wrong type.

    `field` is the path of the offending value, for the `param` of an OpenAI error.
    """

    default_code = "malformed_request"

    def __init__(
        self, message: str, *, field: str | None = None, hint: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.field = field


class UntranslatableError(UsageError):
    """The target's dialect has no way to say this, and leaving it out would change the meaning."""

    default_code = "untranslatable"

    def __init__(
        self, message: str, *, field: str | None = None, hint: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.field = field


def notes_header(notes: Iterable[Note], limit: int = 900) -> str:
    """Notes as one header value, ASCII and bounded: `temperature=clamped; top_k=dropped`. Empty without notes."""
    parts: list[str] = []
    size = 0
    for note in notes:
        part = f"{note.field}={note.action}".encode("ascii", "replace").decode()
        size += len(part) + 2
        if size > limit:
            parts.append("...")
            break
        parts.append(part)
    return "; ".join(parts)
