"""From a rule's replacements to the edits of a finding: `verify=False` becomes `verify=True`, nothing else is touched.

A replacement is an expression looked for in the text of the finding, else in its lines, and what to write instead.
Whether an edit is right is proved later, by scanning what it makes (`fix.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from avyay.raksha.source import SourceFile
from avyay.raksha.types import Edit

__all__ = ["Replacement", "edits_of", "kind_of", "read_replacements", "table"]


@dataclass(frozen=True, slots=True)
class Replacement:
    r"""What to write instead of what; `text` may use groups (`\1`).

    `safe`: the program only gets safer, and nobody who uses it has to change anything.
    """

    find: re.Pattern[str]
    text: str
    safe: bool = False


def read_replacements(items: Any) -> tuple[Replacement, ...]:
    """Replacements from a rule file: a list of `{find, replace, safe}`.

    Raises:
        ValueError: the list is not of that form, or an expression is broken.
    """
    if items is None:
        return ()
    try:
        return tuple(
            Replacement(re.compile(str(item["find"])), str(item["replace"]), bool(item.get("safe", False)))
            for item in items
        )
    except (TypeError, KeyError, AttributeError, re.error) as error:
        raise ValueError(f"`edits` needs a list of find, replace and safe: {error}") from error


def kind_of(replacements: Sequence[Replacement]) -> Literal["none", "safe", "unsafe"]:
    """What `--fix` can do for a rule with these."""
    if not replacements:
        return "none"
    return "safe" if any(item.safe for item in replacements) else "unsafe"


def edits_of(
    replacements: Iterable[Replacement], file: SourceFile, place: tuple[int, int, int, int | None]
) -> tuple[Edit, ...]:
    """The edits for a finding at `place`: line, column, last line, end column (None: the line's end)."""
    line, column, last, end_column = place
    if not 1 <= line <= last <= len(file.lines):
        return ()
    end_of_lines = file.offset(last, len(file.line(last)) + 1)
    start = file.offset(line, column)
    end = file.offset(last, end_column) if end_column is not None else end_of_lines
    edits: dict[tuple[int, int], Edit] = {}
    for item in replacements:
        found = item.find.search(file.text, start, end) or item.find.search(
            file.text, file.offset(line, 1), end_of_lines
        )
        if found is None or found.span() in edits:
            continue
        edit = Edit(*file.position(found.start()), *file.position(found.end()), found.expand(item.text), safe=item.safe)
        edits[found.span()] = edit
    return tuple(edits.values())


def table(rules: Mapping[str, Sequence[tuple[str, str, bool]]]) -> dict[str, tuple[Replacement, ...]]:
    """Replacements by rule, from plain data."""
    return {
        name: tuple(Replacement(re.compile(find), text, safe) for find, text, safe in rows)
        for name, rows in rules.items()
    }
