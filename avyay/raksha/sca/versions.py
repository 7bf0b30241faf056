"""Which of two versions is newer, and whether one lies in an advisory's ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from packaging.version import InvalidVersion, Version

__all__ = ["is_affected", "newest", "sort_key"]

_SEMVER = re.compile(r"^v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?$")

Key = Any


def sort_key(ecosystem: str, version: str) -> Key | None:
    """Something that sorts like the version; None when it is no version of that ecosystem."""
    if ecosystem == "PyPI":
        try:
            return Version(version)
        except InvalidVersion:
            return None
    match = _SEMVER.match(version)
    if match is None:
        return None
    numbers = tuple(int(part or 0) for part in match.group(1, 2, 3))
    if match[4] is None:
        return (numbers, 1, ())
    # Numbers sort before words, and by value (SemVer 2.0.0, 11.4).
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in match[4].split("."))
    return (numbers, 0, parts)


def is_affected(
    ecosystem: str, version: str, ranges: Sequence[Sequence[Mapping[str, str]]], versions: Iterable[str] = ()
) -> bool | None:
    """Whether an advisory speaks of a version; None when the version cannot be compared.

    Args:
        ranges: For each range its events: `introduced`, `fixed`, `last_affected`.
        versions: Versions named one by one.
    """
    if version in versions:
        return True
    key = sort_key(ecosystem, version)
    if key is None:
        return None
    return any(_in_range(ecosystem, key, events) for events in ranges)


def _in_range(ecosystem: str, key: Key, events: Sequence[Mapping[str, str]]) -> bool:
    timeline: list[tuple[Key, int, str]] = []
    for event in events:
        for kind, value in event.items():
            if kind == "introduced" and value == "0":
                timeline.append((None, 0, kind))
                continue
            at = sort_key(ecosystem, value)
            if at is not None and kind in ("introduced", "fixed", "last_affected"):
                timeline.append((at, 1, kind))
    affected = False
    # The beginning of time first; the rest in order of version.
    begin = [item for item in timeline if item[0] is None]
    rest = sorted((item for item in timeline if item[0] is not None), key=lambda item: (item[0], item[2]))
    for at, _, kind in [*begin, *rest]:
        if kind == "introduced" and (at is None or key >= at):
            affected = True
        elif (kind == "fixed" and key >= at) or (kind == "last_affected" and key > at):
            affected = False
    return affected


def newest(ecosystem: str, versions: Iterable[str]) -> str | None:
    """The highest of some versions."""
    known = [(key, version) for version in versions if (key := sort_key(ecosystem, version)) is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None
