"""From complaints to pains: copies are merged, then what means the same is gathered, across sources.

Copies are found by MinHash over word shingles, so a cross-posted text counts once. What remains is gathered by the
direction of its embedding: with the bundled embedder by meaning, with the hashing one by shared words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from avyay.ports import Embedder
from avyay.siddhi.types import Complaint

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Cluster", "cluster", "copies", "keywords", "phrases", "same_pain"]

_WORD = re.compile(r"[a-z0-9][a-z0-9'+#.-]*[a-z0-9+#]|[a-z0-9]")
_PAIR = re.compile(r"(?=\b([^\W\d_]+ [^\W\d_]+)\b)")  # neighbours, overlapping
_STOP = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "also",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "doing",
        "don't",
        "done",
        "each",
        "even",
        "ever",
        "every",
        "everyone",
        "feel",
        "for",
        "from",
        "get",
        "gets",
        "getting",
        "go",
        "goes",
        "going",
        "got",
        "had",
        "has",
        "hate",
        "have",
        "having",
        "he",
        "her",
        "here",
        "him",
        "his",
        "how",
        "i",
        "i'd",
        "i'll",
        "i'm",
        "i've",
        "if",
        "in",
        "into",
        "is",
        "isn't",
        "it",
        "it's",
        "its",
        "just",
        "keep",
        "keeps",
        "know",
        "like",
        "lot",
        "make",
        "makes",
        "me",
        "more",
        "most",
        "much",
        "my",
        "need",
        "never",
        "no",
        "not",
        "now",
        "of",
        "off",
        "on",
        "one",
        "only",
        "or",
        "other",
        "our",
        "out",
        "over",
        "people",
        "really",
        "she",
        "so",
        "some",
        "someone",
        "something",
        "still",
        "such",
        "than",
        "that",
        "that's",
        "the",
        "their",
        "them",
        "then",
        "there",
        "there's",
        "these",
        "they",
        "they're",
        "thing",
        "this",
        "those",
        "time",
        "to",
        "too",
        "up",
        "us",
        "use",
        "used",
        "using",
        "very",
        "want",
        "was",
        "way",
        "we",
        "we're",
        "were",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "why",
        "will",
        "wish",
        "with",
        "without",
        "would",
        "year",
        "years",
        "you",
        "your",
        "anyone",
        "anything",
        "does",
        "tool",
        "app",
        "there",
        "tried",
        "tired",
        "hours",
        "spend",
        "wasted",
        "waste",
        "week",
        "day",
        "month",
        "frustrating",
        "annoying",
        "painful",
        "nightmare",
        "manually",
        "hand",
        "pay",
        "please",
        "help",
        "thanks",
    ]
)
_PERMUTATIONS, _BANDS = 64, 16  # pairs with Jaccard 0.7 meet with probability 0.99, with 0.2 in 0.03
_COPY = 0.6


@dataclass(frozen=True, slots=True)
class Cluster:
    """Complaints about one pain. `complaints` has one of each set of copies; `copies` counts what was merged away."""

    title: str
    keywords: tuple[str, ...]
    complaints: tuple[Complaint, ...]
    copies: int

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that corroborate one another."""
        return tuple(sorted({one.source for one in self.complaints}))


def same_pain(embedder: Embedder) -> float:
    """The cosine from which two texts count as one pain, for this embedder."""
    return 0.42 if embedder.name.startswith("hashing") else 0.52


def cluster(
    complaints: Sequence[Complaint], embedder: Embedder, *, least: int = 2, threshold: float | None = None
) -> list[Cluster]:
    """Gather complaints about the same pain, largest cluster first.

    Args:
        least: Distinct complaints a cluster needs.
        threshold: Cosine to a cluster's centre; by default `same_pain(embedder)`.
    """
    threshold = same_pain(embedder) if threshold is None else threshold
    groups = copies(complaints)
    first = [group[0] for group in groups]
    if not first:
        return []
    # What hurts, not how it is told: words of complaint would gather by temper.
    vectors = embedder.embed([_topic(one) for one in first])
    members = _gather(vectors, threshold)
    rare = _rarity(first)
    found = []
    for places in members:
        if len(places) < least:
            continue
        chosen = [first[place] for place in places]
        words = keywords(chosen, rare)
        centre = vectors[places].mean(axis=0)
        title = _title(chosen[int((vectors[places] @ centre).argmax())])
        found.append(Cluster(title, words, tuple(chosen), sum(len(groups[place]) - 1 for place in places)))
    return sorted(found, key=lambda one: (-len(one.complaints), one.title))


def copies(complaints: Sequence[Complaint]) -> list[list[Complaint]]:
    """Groups of complaints whose texts are the same or nearly so, each group and the list in the given order."""
    signatures = [_signature(_words(_said(one))) for one in complaints]
    parent = list(range(len(complaints)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    rows = _PERMUTATIONS // _BANDS
    buckets: dict[tuple[int, bytes], int] = {}
    for place, signature in enumerate(signatures):
        for band in range(_BANDS):
            key = (band, signature[band * rows : (band + 1) * rows].tobytes())
            other = buckets.setdefault(key, place)
            alike = other != place and float(np.mean(signatures[other] == signature)) >= _COPY
            if alike and root(other) != root(place):
                parent[max(root(other), root(place))] = min(root(other), root(place))
    groups: dict[int, list[Complaint]] = defaultdict(list)
    for place, one in enumerate(complaints):
        groups[root(place)].append(one)
    return list(groups.values())


def keywords(
    complaints: Iterable[Complaint], rarity: dict[str, float] | None = None, count: int = 6
) -> tuple[str, ...]:
    """The words that set these complaints apart, most telling first."""
    seen = Counter(word for one in complaints for word in set(_words(_said(one))) if word not in _STOP)
    weight = {word: times * (rarity or {}).get(word, 1.0) for word, times in seen.items() if len(word) > 2}
    return tuple(sorted(weight, key=lambda word: (-weight[word], word))[:count])


def phrases(complaints: Iterable[Complaint], count: int = 2) -> tuple[str, ...]:
    """Pairs of words that several complaints share, most common first: what people call their trouble."""
    texts = [_said(one).lower() for one in complaints]
    words = Counter(word for text in texts for word in set(_words(text)))
    pairs = Counter(pair for text in texts for pair in {match[1] for match in _PAIR.finditer(text)})
    found: list[str] = []
    for pair, times in sorted(pairs.items(), key=lambda item: (-item[1], -words[item[0].split()[1]], item[0])):
        first, second = pair.split()
        taken = {word for one in found for word in one.split()}
        if times > 1 and not {first, second} & (taken | _STOP) and min(len(first), len(second)) > 2:
            found.append(pair)
    return tuple(found[:count])


def _said(one: Complaint) -> str:
    return one.text if not one.title or one.title in one.text else f"{one.title}. {one.text}"


def _topic(one: Complaint) -> str:
    said = _said(one)
    return " ".join(_singular(word) for word in _words(said) if word not in _STOP and not word.isdecimal()) or said


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 4 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _title(one: Complaint) -> str:
    words = " ".join((one.title or one.text).split())
    first = re.split(r"(?<=[.!?])\s", words)[0]
    return first if len(first) <= 90 else first[:89].rsplit(" ", 1)[0] + "…"


def _rarity(complaints: Sequence[Complaint]) -> dict[str, float]:
    seen = Counter(word for one in complaints for word in set(_words(_said(one))))
    return {word: float(np.log((1 + len(complaints)) / (1 + times)) + 0.1) for word, times in seen.items()}


def _gather(vectors: NDArray[np.float32], threshold: float) -> list[list[int]]:
    """Average-link by leaders, in two passes: the first finds centres, the second assigns to the nearest of them."""
    sums = np.zeros_like(vectors)
    count = 0
    for vector in vectors:
        if count:
            centres = sums[:count] / np.linalg.norm(sums[:count], axis=1, keepdims=True)
            similar = centres @ vector
            best = int(similar.argmax())
            if similar[best] >= threshold:
                sums[best] += vector
                continue
        sums[count] = vector
        count += 1
    centres = sums[:count] / np.linalg.norm(sums[:count], axis=1, keepdims=True)
    members: list[list[int]] = [[] for _ in range(count)]
    for place, vector in enumerate(vectors):
        similar = centres @ vector
        best = int(similar.argmax())
        if similar[best] >= threshold:
            members[best].append(place)
    return members


def _signature(words: list[str]) -> NDArray[np.uint64]:
    shingles = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    hashes = np.array(
        [int.from_bytes(blake2b(one.encode(), digest_size=7).digest(), "big") for one in shingles], dtype=np.uint64
    )
    # (a·h + b) in 64-bit arithmetic, high bits kept: enough for buckets, the same on every machine
    mixed = hashes[:, None] * _A[None, :] + _B[None, :]
    lowest: NDArray[np.uint64] = (mixed >> np.uint64(8)).min(axis=0)
    return lowest


_generator = np.random.default_rng(20261121)
_A = _generator.integers(1, 1 << 62, _PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_B = _generator.integers(0, 1 << 62, _PERMUTATIONS, dtype=np.uint64)
