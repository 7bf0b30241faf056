"""The words of a text, found by whole-string operations: an expression tried at every letter costs ten times as much.

What an expression with `\\b` would look for word by word is a set intersection here; expressions are left for what has
more than one word, and are tried only where its words occur.
"""

from __future__ import annotations

import re
import string

__all__ = ["Wording", "any_case", "phrase", "word_set"]

_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_FOREIGN_SPACE = re.compile(r"[^\S\x00-\x7f]")
_FOREIGN_DIGIT = re.compile(r"[^\D\x00-\x7f]")
_FOREIGN_WORD = re.compile(r"[^\W\x00-\x7f]+")

_UPPER = string.ascii_uppercase
_LETTERS = string.ascii_letters
_DIGITS = string.digits
_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f "  # what str.isspace and \s agree on


def _table(classes: dict[str, str], other: str = " ") -> bytes:
    """A table for `bytes.translate`: characters to the character of their class, "" for themselves in lower case."""
    table = bytearray(other.encode() * 256)
    for characters, stands_for in classes.items():
        for character in characters:
            table[ord(character)] = ord(stands_for or character.lower())
    return bytes(table)


_RUNS = _table({_LETTERS + _DIGITS + "_": ""})
_WORDS = _table({_LETTERS + "'": ""})
_WORD_SHAPES = _table({_LETTERS + "'": "a", _UPPER: "A"})
_ANY_CASE = _table({"aA": "a"})
_NUMERALS = _table({_DIGITS + ".": ""})
_MARKS = _table({_SPACES: " ", ".!?": ".", "=+*/^<>": "=", _DIGITS: "0"}, "-")


def word_set(words: str) -> frozenset[str]:
    """Words that are looked for, from a list of them with blanks between."""
    return frozenset(words.split())


def phrase(first: str, rest: str = r"\b") -> re.Pattern[str]:
    """An expression for `Wording.folded` that begins with a whole word, or with the beginning of one.

    With the boundary after the letters and not before them, only places that have these letters are tried.
    """
    return re.compile(rf"{first}(?<!\w{first}){rest}")


class Wording:
    r"""A text in the forms that looking for words needs.

    Attributes:
        text: The text itself.
        lines: The text with a line end before it: an expression that begins with one finds the starts of lines.
        folded: The text in lower case.
        spaced: Its runs of `\w`, in lower case, with everything else blank; letters outside ASCII are underscores.
        runs: These runs, in order.
        distinct: The same, each once.
        words: Runs of ASCII letters and apostrophes, in lower case, in order.
    """

    __slots__ = ("_plain", "ascii", "distinct", "folded", "lines", "runs", "spaced", "text", "words")

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = f"\n{text}"
        self.folded = text.lower()
        self.ascii = text.isascii()
        self._plain = plain = (text if self.ascii else _in_ascii(text)).encode("ascii")
        self.spaced = plain.translate(_RUNS).decode("ascii")
        self.runs = self.spaced.split()
        self.distinct = set(self.runs)
        words = plain.translate(_WORDS).decode("ascii")
        self.words = self.runs if words == self.spaced else words.split()

    def numbers(self) -> list[bytes]:
        """The numbers in it, decimals in one piece."""
        return _NUMBER.findall(b" ".join(self._plain.translate(_NUMERALS).split()))

    def marks(self) -> bytes:
        """The text with `.` for each of `.!?`, `=` for each operator, 0 for a digit, a blank for white space, else `-`.

        It has fewer characters than the text where that has runs of letters outside ASCII.
        """
        return self._plain.translate(_MARKS)

    def word_shapes(self) -> bytes:
        """The words with `A` for a capital and `a` for another letter; all else is blank, before and after too."""
        return b" %b " % self._plain.translate(_WORD_SHAPES)

    def first(self, words: set[str]) -> str:
        """The one that comes first; each is one of `distinct`."""
        if len(words) == 1:
            return next(iter(words))
        return next(run for run in self.runs if run in words)

    def count(self, words: set[str]) -> int:
        """How often any of them occurs; each is one of `distinct`."""
        return sum(map(self.runs.count, words))


_NUMBER = re.compile(rb"\d+(?:\.\d+)?")


def any_case(shapes: bytes) -> bytes:
    """Shapes of words without the difference that capitals make."""
    return shapes.translate(_ANY_CASE)


def _in_ascii(text: str) -> str:
    """A text of the same words, numbers and sentences in ASCII: foreign letters become underscores."""
    foreign = set("".join(_FOREIGN.findall(text)))
    if any(map(str.isspace, foreign)):
        text = _FOREIGN_SPACE.sub(" ", text)
    if any(map(str.isdecimal, foreign)):
        text = _FOREIGN_DIGIT.sub("0", text)
    if any(map(str.isalnum, foreign)):
        text = _FOREIGN_WORD.sub("_", text)
    return _FOREIGN.sub("-", text)
