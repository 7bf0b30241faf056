"""Whether two tasks touch the same files, judged by their globs: errs on the side of yes."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

__all__ = ["globs_overlap", "overlapping"]

_WILD = "*?["


def globs_overlap(one: str, two: str) -> bool:
    """Whether some path could match both globs. A folder stands for all below it."""
    one, two = one.strip("/"), two.strip("/")
    if not one or not two or one == two:
        return True
    wild_one, wild_two = any(c in one for c in _WILD), any(c in two for c in _WILD)
    if not wild_one and not wild_two:
        return one.startswith(f"{two}/") or two.startswith(f"{one}/")
    if wild_one and wild_two:
        # Exact intersection of globs is not worth its code: the parts before the first wildcard must be compatible.
        head_one, head_two = _head(one), _head(two)
        return head_one.startswith(head_two) or head_two.startswith(head_one)
    path, pattern = (two, one) if wild_one else (one, two)
    # fnmatch's * crosses slashes already; "**/" must also match no folder at all.
    return fnmatchcase(path, pattern.replace("**/", "*")) or _head(pattern).startswith(f"{path}/")


def _head(pattern: str) -> str:
    cut = min((pattern.index(c) for c in _WILD if c in pattern), default=len(pattern))
    return pattern[:cut]


def overlapping(files: Iterable[str], others: Iterable[str]) -> bool:
    """Whether any glob of `files` overlaps any of `others`."""
    others = tuple(others)
    return any(globs_overlap(one, two) for one in files for two in others)
