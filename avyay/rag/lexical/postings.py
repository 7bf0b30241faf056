"""An inverted index in flat arrays, to be memory-mapped: which chunks hold a term, how often, in which field.

Terms are known by a 64-bit hash, so opening an index reads nothing and looking a term up is a binary search. An index
never changes; `merged` makes the next one out of the rows that stay and the rows that are new.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from avyay.rag.kinds import SectionKind, section_kind
from avyay.rag.lexical.tokenise import tokenise

__all__ = ["FIELDS", "Fields", "Postings"]

FIELDS = ("title", "headings", "body")
MOST = 255  # a count saturates long before it stops fitting a byte

Fields = tuple[str, str, str]
Integer = TypeVar("Integer", bound=np.integer[Any])


@dataclass(frozen=True, slots=True)
class Postings:
    """Rows are chunks. `documents` gives each row's document number; `lengths` its terms per field; `kinds` what its
    section is for (`SectionKind`).

    Term t (by rank of its hash in `terms`) stands in rows `rows[starts[t]:starts[t + 1]]`, `counts` times per field.
    """

    terms: NDArray[np.uint64]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.uint8]
    lengths: NDArray[np.uint16]
    documents: NDArray[np.int32]
    kinds: NDArray[np.uint8]

    @classmethod
    def build(
        cls,
        texts: Iterable[Fields],
        documents: Sequence[int] | NDArray[np.int32],
        rules: Collection[int] = (),
    ) -> Postings:
        """Index rows of (title, headings, body); `documents` names the document of each, `rules` the alert rules."""
        hashes: dict[str, int] = {}
        terms: list[int] = []
        rows: list[int] = []
        counts: list[tuple[int, ...]] = []
        lengths: list[tuple[int, ...]] = []
        kinds: list[int] = []
        for row, texts_of_row in enumerate(texts):
            kinds.append(SectionKind.RULE if row in rules else section_kind(texts_of_row[1]))
            found = [Counter(tokenise(text)) for text in texts_of_row]
            lengths.append(tuple(min(counter.total(), 65_535) for counter in found))
            for term in dict.fromkeys(term for counter in found for term in counter):
                terms.append(hashes.setdefault(term, term_hash(term)))
                rows.append(row)
                counts.append(tuple(min(counter[term], MOST) for counter in found))
        return _arranged(
            np.array(terms, dtype=np.uint64),
            np.array(rows, dtype=np.int32),
            np.array(counts, dtype=np.uint8).reshape(-1, len(FIELDS)),
            np.array(lengths, dtype=np.uint16).reshape(-1, len(FIELDS)),
            np.asarray(documents, dtype=np.int32),
            np.array(kinds, dtype=np.uint8),
        )

    def merged(self, keep: NDArray[np.bool_], new: Postings, documents: NDArray[np.int32]) -> Postings:
        """The rows of `self` where `keep` is true, then those of `new`; `documents` numbers all of them afresh."""
        gone = np.flatnonzero(~keep[self.rows])
        starts = self.starts - np.searchsorted(gone, self.starts)
        # Both sides are in order already, and new rows come after all old ones: so the new postings of a term go to
        # the end of its slice. Sorting everything again would cost some seconds for a hundred thousand chunks.
        place = np.searchsorted(self.terms, new.terms)
        known = np.zeros(len(place), dtype=np.bool_)
        inside = place < len(self.terms)
        known[inside] = self.terms[place[inside]] == new.terms[inside]
        sizes, added = np.diff(starts), np.diff(new.starts)
        at = np.repeat(starts[place + known], added)
        renumbered = (np.cumsum(keep) - 1).astype(np.int32)
        sizes[place[known]] += added[known]
        sizes = np.insert(sizes, place[~known], added[~known])
        terms = np.insert(self.terms, place[~known], new.terms[~known])
        present = sizes > 0
        return Postings(
            terms[present],
            np.concatenate([[0], np.cumsum(sizes[present])]).astype(np.int64),
            np.insert(renumbered[_without(self.rows, gone)], at, new.rows + np.int32(keep.sum())),
            np.insert(_without(self.counts, gone), at, new.counts, axis=0),
            np.concatenate([self.lengths[keep], new.lengths]),
            np.asarray(documents, dtype=np.int32),
            np.concatenate([self.kinds[keep], new.kinds]),
        )

    def slices(self, terms: Sequence[str]) -> list[slice]:
        """Where the postings of each term are; empty for a term that does not occur."""
        if not len(self.terms):
            return [slice(0, 0)] * len(terms)
        wanted = np.array([term_hash(term) for term in terms], dtype=np.uint64)
        at = np.minimum(np.searchsorted(self.terms, wanted), len(self.terms) - 1)
        known = self.terms[at] == wanted
        return [
            slice(int(self.starts[place]), int(self.starts[place + 1])) if found else slice(0, 0)
            for place, found in zip(at, known, strict=True)
        ]

    def save(self, directory: Path) -> None:
        """Write one .npy file an array; to be renamed into place by the caller."""
        directory.mkdir(parents=True, exist_ok=True)
        for item in fields(self):
            np.save(directory / f"{item.name}.npy", getattr(self, item.name), allow_pickle=False)

    @classmethod
    def load(cls, directory: Path) -> Postings:
        """Map what `save` wrote. Raises OSError or ValueError when it is not that."""
        arrays = {item.name: np.load(directory / f"{item.name}.npy", mmap_mode="r") for item in fields(cls)}
        return cls(**arrays)


def _arranged(
    terms: NDArray[np.uint64],
    rows: NDArray[np.int32],
    counts: NDArray[np.uint8],
    lengths: NDArray[np.uint16],
    documents: NDArray[np.int32],
    kinds: NDArray[np.uint8],
) -> Postings:
    order = np.lexsort((rows, terms))
    unique, first = np.unique(terms[order], return_index=True)
    starts = np.append(first, len(terms)).astype(np.int64)
    return Postings(unique, starts, rows[order], counts[order], lengths, documents, kinds)


def _without(values: NDArray[Integer], gone: NDArray[np.intp]) -> NDArray[Integer]:
    return np.delete(values, gone, axis=0) if len(gone) else values


def term_hash(term: str) -> int:
    return int.from_bytes(hashlib.blake2b(term.encode(), digest_size=8).digest(), "little")
