"""Which files and symbols matter: PageRank over who refers to whom, restarted at what was asked about. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Graph", "page_rank", "query_words", "word_match"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_DAMPING = 0.85
_ROUNDS = 60
_TOLERANCE = 1e-8
_IMPORT_WEIGHT = 2.0
_PLAIN = 0.1
_COMMON = 12  # a name that more files than this define says nothing about any of them
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_STOP = frozenset(
    {
        "the", "and", "for", "with", "from", "into", "that", "this", "when", "what", "where", "which", "should", "must",
        "not", "are", "was", "has", "have", "add", "fix", "use", "new", "make", "get", "set", "all", "its", "can",
        "will", "does", "test", "tests", "file", "files", "code", "task",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Graph:
    """Files as 0..size-1. A row of `refs` says that a file refers to a name so often, a row of `defs` that a file
    defines a name; `imports` are (from, to) pairs. `plain` are names of one common word, such as `query`: many things
    are called so."""

    size: int
    ref_file: Ints
    ref_name: Ints
    ref_count: Ints
    def_file: Ints
    def_name: Ints
    imports: Ints
    plain: Ints

    def edges(self) -> tuple[Ints, Ints, Ints, Floats]:
        """(from, to, name or -1, weight): each reference shared among the files that define the name."""
        order = np.argsort(self.def_name, kind="stable")
        names, files = self.def_name[order], self.def_file[order]
        first = np.searchsorted(names, self.ref_name, side="left")
        last = np.searchsorted(names, self.ref_name, side="right")
        many = last - first
        use = (many > 0) & (many <= _COMMON)
        first, many = first[use], many[use]
        source = np.repeat(self.ref_file[use], many)
        name = np.repeat(self.ref_name[use], many)
        weight = np.repeat(np.sqrt(self.ref_count[use]) / many, many)
        offset = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        target = files[np.repeat(first, many) + offset]
        # A name that is used where its definer is imported is surely that one; elsewhere it may be another's.
        known = np.isin(source * self.size + target, self.imports[:, 0] * self.size + self.imports[:, 1])
        weight = np.where(known, weight * 4.0, np.where(np.isin(name, self.plain), weight * _PLAIN, weight))
        keep = source != target
        imports = self.imports[self.imports[:, 0] != self.imports[:, 1]]
        return (
            np.concatenate([source[keep], imports[:, 0]]),
            np.concatenate([target[keep], imports[:, 1]]),
            np.concatenate([name[keep], np.full(len(imports), -1, dtype=np.int64)]),
            np.concatenate([weight[keep], np.full(len(imports), _IMPORT_WEIGHT)]),
        )


def page_rank(size: int, source: Ints, target: Ints, weight: Floats, restart: Floats | None = None) -> Floats:
    """The stationary distribution of a reader that follows references and now and then starts again.

    Args:
        restart: Where it starts, any non-negative weights; by default everywhere alike.
    """
    if size == 0:
        return np.zeros(0)
    start = np.full(size, 1.0 / size) if restart is None or restart.sum() <= 0 else restart / restart.sum()
    out = np.bincount(source, weights=weight, minlength=size)
    share = weight / out[source] if len(source) else weight
    stuck = out == 0
    rank: Floats = start.copy()
    for _ in range(_ROUNDS):
        flow = np.bincount(target, weights=rank[source] * share, minlength=size)
        following: Floats = _DAMPING * (flow + rank[stuck].sum() * start) + (1 - _DAMPING) * start
        if np.abs(following - rank).sum() < _TOLERANCE:
            return following
        rank = following
    return rank


def query_words(text: str) -> frozenset[str]:
    """The words of a question or an identifier, lower case: `parseHTTPUrl_fast` is parse, http, url, fast."""
    words = {word.lower() for word in _WORD.findall(text)}
    return frozenset(stem(word) for word in words if len(word) > 2 and word not in _STOP)


def stem(word: str) -> str:
    """Plural and tense, roughly: both sides of a comparison are treated alike."""
    for ending in ("ing", "ies", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def word_match(query: frozenset[str], texts: Sequence[frozenset[str]]) -> Floats:
    """How well each text matches: the sum of its words' rarity, squared so that two words beat one."""
    scores = np.zeros(len(texts))
    for word in query:
        found = np.fromiter((word in text for text in texts), dtype=bool, count=len(texts))
        if count := int(found.sum()):
            scores[found] += np.log(1 + len(texts) / count)
    squared: Floats = np.square(scores)
    return squared
