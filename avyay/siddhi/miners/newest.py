"""A cursor for sources that list the newest first: walk down to where the last walk began, then begin again on top."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

__all__ = ["Walk"]


@dataclass(frozen=True, slots=True)
class Walk:
    """Where a walk through a newest-first listing stands.

    Args:
        floor: What is older or equal was taken by earlier walks: seconds since the epoch, or an id.
        top: The newest seen in this walk; it becomes the floor when the walk is over.
        place: The source's own pointer to the next page; "" at the top.
    """

    floor: str = ""
    top: str = ""
    place: str = ""

    @classmethod
    def read(cls, cursor: str | None) -> Walk:
        return cls(**json.loads(cursor)) if cursor else cls()

    def write(self) -> str:
        return json.dumps(asdict(self))

    def seen(self, newest: str | None) -> Walk:
        """The first page of a walk sets its top."""
        return self if self.top or not newest else replace(self, top=newest)

    def onward(self, place: str) -> Walk:
        return replace(self, place=place)

    def over(self) -> Walk:
        """The next walk ends where this one began."""
        return Walk(floor=self.top or self.floor)
