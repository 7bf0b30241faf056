"""Whether two questions ask the same: close in meaning by the embedder, and alike in all that changes an answer.

An embedder puts "raise the limit" beside "lower the limit" and "2 + 2" beside "2 + 3". So what it cannot tell apart
has to be equal letter by letter: numbers, negations, opposites, names, quoted and technical words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from avyay.marga.cache_store import Neighbour

if TYPE_CHECKING:
    from avyay.ports import Embedder

__all__ = ["SemanticIndex", "marks_of"]

_MOST_CHARS = 2000
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_TECHNICAL = re.compile(r"\S*(?:[_/\\@#{}<>=$%^*~|`+]|\w\.\w|\w-\w|[a-z][A-Z]|\d)\S*")
_QUOTED = re.compile(r"\"([^\"\n]{1,200})\"|“([^”\n]{1,200})”|`([^`\n]{1,200})`|(?<!\w)'([^'\n]{1,200})'(?!\w)")
_FIRST = re.compile(r"(?:^|[.!?:]\s+|\n\s*)[\"'(]*([^\W\d_]+)")
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand "
    "million half third quarter double twice once first second"
)
_OPPOSITES = (
    "not no never none without cannot neither nor except unless only more less most least fewer greater smaller larger "
    "increase decrease increasing decreasing raise lower rise fall up down in out on off before after above below over "
    "under left right start stop begin end open close enable disable allow deny accept reject add remove insert delete "
    "create destroy install uninstall buy sell lend borrow import export encode decode encrypt decrypt true false "
    "yes male female high low highest lowest hot cold long short old new oldest newest latest earliest last next "
    "previous best worst good bad pro pros con cons advantage advantages disadvantage disadvantages benefit benefits "
    "drawback drawbacks risk risks cause causes effect effects why how when where who which what he she him her his "
    "hers monday tuesday wednesday thursday friday saturday sunday january february march april may june july august "
    "september october november december today tomorrow yesterday ascending descending internal external input output "
    "to from minimum maximum min max positive negative win lose same different summary detail brief detailed"
)
_TELLING = frozenset((*_NUMBER_WORDS.split(), *_OPPOSITES.split()))


def marks_of(text: str) -> bytes:
    """What has to be equal for two questions to be one, as a digest."""
    first = {match.start(1) for match in _FIRST.finditer(text)}
    marks: set[str] = {f"#{number}" for number in _NUMBER.findall(text)}
    for match in _WORD.finditer(text):
        word = match[0]
        lower = word.lower()
        if lower in _TELLING or lower.endswith("n't"):
            marks.add(lower)
        elif word[0].isupper() and (match.start() not in first or word.isupper()) and lower != "i":
            marks.add(lower)  # a name
        elif not word.isascii():
            marks.add(lower)  # a language in which the lists above say nothing
    marks.update(f"={part.strip('.,;:!?()')}" for part in _TECHNICAL.findall(text))
    marks.update(f'"{next(filter(None, match.groups()))}' for match in _QUOTED.finditer(text))
    return hashlib.blake2b("\0".join(sorted(marks)).encode(), digest_size=16).digest()


class SemanticIndex:
    """Finds the nearest earlier question. Every method computes: call it off the event loop.

    Args:
        embedder: Gives the embedder, when first needed.
        threshold: Cosine from which two questions are one.
    """

    def __init__(self, embedder: Callable[[], Embedder], threshold: float) -> None:
        self._embedder = embedder
        self._threshold = threshold

    def describe(self, key: bytes, text: str) -> Neighbour | None:
        """What an entry is found by; None for a text the embedder would read a part of only."""
        if len(text) > _MOST_CHARS:
            return None
        embedder = self._embedder()
        if embedder.count_tokens(text) > embedder.max_tokens:
            return None
        return Neighbour(key, embedder.embed([text], kind="query")[0].tobytes(), marks_of(text))

    def nearest(self, asked: Neighbour, known: Sequence[Neighbour]) -> bytes | None:
        """The key of the nearest that is near enough and marked alike."""
        import numpy as np

        alike = [n for n in known if n.marks == asked.marks and len(n.vector) == len(asked.vector)]
        if not alike:
            return None
        matrix = np.frombuffer(b"".join(n.vector for n in alike), dtype=np.float32).reshape(len(alike), -1)
        scores = matrix @ np.frombuffer(asked.vector, dtype=np.float32)
        best = int(scores.argmax())
        return alike[best].key if float(scores[best]) >= self._threshold else None
