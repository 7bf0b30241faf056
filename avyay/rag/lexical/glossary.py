"""The shipped words of operations: from what people say at night to what runbooks call it.

Two ways lead from a question to a term. A phrase of the question stands in the table ("hardware address": MAC
address). Or the question as a whole is near in meaning to an entry, which takes the embedder that the vectors beside
the table were made with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avyay.rag.lexical.tokenise import STOP_WORDS, tokenise

__all__ = ["VECTORS", "Entry", "concept_vectors", "entries", "meanings", "near", "phrases"]

TABLE = Path(__file__).with_name("operations.txt")
VECTORS = Path(__file__).with_name("operations.npy")
VECTORS_BY = "all-MiniLM-L6-v2"  # the embedder that made them
LONGEST = 5  # words in a phrase


@dataclass(frozen=True, slots=True)
class Entry:
    """`names` are what documents say; `meaning` is everything people may say instead, `others` its phrases."""

    names: tuple[str, ...]
    others: tuple[str, ...]
    meaning: str


@cache
def entries() -> tuple[Entry, ...]:
    """The table, in order."""
    found = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            names, _, meaning = line.partition(":")
            found.append(Entry(_listed(names), _listed(meaning), meaning.strip()))
    return tuple(found)


def phrases(text: str) -> list[str]:
    """What else could be said for the phrases of `text` that the table knows."""
    table = _by_phrase()
    terms = tokenise(text)
    found: dict[str, None] = {}
    for first in range(len(terms)):
        for last in range(first + 1, min(first + LONGEST, len(terms)) + 1):
            found.update(dict.fromkeys(table.get(tuple(terms[first:last]), ())))
    return list(found)


def near(vector: NDArray[np.float32], *, least: float = 0.4, most: int = 3) -> list[tuple[str, float]]:
    """Names of the entries whose meaning is nearest to a question's vector, with the cosine."""
    cosines = concept_vectors() @ vector
    best = [int(row) for row in np.argsort(-cosines, kind="stable")[:most] if cosines[row] > least]
    return [(name, float(cosines[row])) for row in best for name in entries()[row].names]


def meanings() -> list[str]:
    """The texts whose vectors are shipped."""
    return [entry.meaning for entry in entries()]


@cache
def concept_vectors() -> NDArray[np.float32]:
    """One row per entry, by the embedder `VECTORS_BY`."""
    rows: NDArray[np.float32] = np.load(VECTORS).astype(np.float32)
    if len(rows) != len(entries()):
        raise ValueError(f"{VECTORS.name} has {len(rows)} rows for {len(entries())} entries; make it again")
    return rows


@cache
def _by_phrase() -> dict[tuple[str, ...], tuple[str, ...]]:
    table: defaultdict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for entry in entries():
        for other in entry.others:
            table[tuple(tokenise(other))].update(dict.fromkeys(entry.names))
        for name in entry.names:
            rest = [word for word in (*entry.names, *entry.others) if word != name]
            table[tuple(tokenise(name))].update(dict.fromkeys(rest))
    return {key: tuple(words) for key, words in table.items() if not _empty(key)}


def _empty(key: Sequence[str]) -> bool:
    return all(term in STOP_WORDS for term in key)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
