"""Which files a task that names none will likely touch: those that its words and its evidence point at. Pure.

Only what is named counts: a path, a module, a symbol that few files define. Words that merely resemble a file's would
make a guess for every task, and tasks that have nothing to do with one another would wait for each other.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Names", "guess_files"]

_MOST = 12  # files: a text that names more is about none of them
_DEFINED_IN = 2  # files: what more of them define tells nothing
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*[A-Za-z0-9_]")
_QUOTED = re.compile(r"`{1,2}([^`\n]{2,80})`{1,2}")
_CALLED = re.compile(r"\b([A-Za-z_][A-Za-z0-9_.]*)\(")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_CODE_LIKE = re.compile(r"[a-z0-9]_[a-z0-9]|[a-z][A-Z]|^[A-Z][a-z0-9]+[A-Z]")


class Names:
    """The files of a commit by everything that a text may call them.

    Args:
        paths: All files.
        is_code: Whether a file is source code; others are found by their whole path alone.
        defined: A symbol's name -> the files that define it, tests left out.
    """

    def __init__(
        self, paths: Iterable[str], is_code: Callable[[str], bool], defined: Mapping[str, Sequence[str]]
    ) -> None:
        self._paths = set(paths)
        self._defined = defined
        self._ends: dict[str, set[str]] = {}
        for path in self._paths:
            parts = path.split("/")
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                if start == 0 or is_code(path):
                    self._ends.setdefault(end, set()).add(path)
                if is_code(path) and path.endswith(".py") and start < len(parts) - 1:
                    module = posixpath.splitext(end)[0].removesuffix("/__init__").replace("/", ".")
                    if "." in module:
                        self._ends.setdefault(module, set()).add(path)

    def path(self, text: str) -> str | None:
        """The one file that a text names by its path, the end of its path, or its module."""
        found = self._ends.get(text.removeprefix("./"))
        return next(iter(found)) if found is not None and len(found) == 1 else None

    def symbol(self, name: str) -> Sequence[str]:
        """The files that define a symbol; none when too many do."""
        found = self._defined.get(name, ())
        return found if len(found) <= _DEFINED_IN else ()


def guess_files(names: Names, *, title: str, description: str, evidence: Sequence[str]) -> dict[str, str]:
    """Files with the reason for each, the surest first; none when nothing is named, or too much."""
    found: dict[str, str] = {}
    for reference in evidence:
        if (path := names.path(reference.split(":", 1)[0].strip())) is not None:
            found.setdefault(path, f"evidence: {reference}")
    text = f"{title}\n{description}"
    for word in dict.fromkeys(_PATH.findall(text)):
        if (path := names.path(word)) is not None and ("/" in word or "." in word):
            found.setdefault(path, f"named: {word}")
    for word in _symbols(text):
        for path in names.symbol(word):
            found.setdefault(path, f"defines {word}")
    return found if len(found) <= _MOST else {}


def _symbols(text: str) -> list[str]:
    """What of a text looks like the name of a symbol, in order."""
    found: dict[str, None] = {}
    for quoted in _QUOTED.findall(text):
        for word in _WORD.findall(quoted):
            found.update(dict.fromkeys(reversed(word.split("."))))
    for word in _CALLED.findall(text):
        found.update(dict.fromkeys(reversed(word.split("."))))
    for word in _WORD.findall(text):
        found.update((part, None) for part in reversed(word.split(".")) if _CODE_LIKE.search(part))
    return [word for word in found if len(word) > 2 and not (word.startswith("__") and word.endswith("__"))]
