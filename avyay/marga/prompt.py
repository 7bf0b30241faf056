"""A prompt as numbers: which kind of task it is, and what of its shape and wording the scorer weighs. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from avyay.marga.wording import Wording, any_case, word_set

__all__ = ["FEATURES", "FUNCTION_WORDS", "Family", "Prompt", "read"]

Family: TypeAlias = Literal["choice", "quantity", "formula", "code", "open"]
"""What a prompt asks for: one of given options; a number out of a story; mathematics in notation; code; anything."""

FEATURES = (
    "length",
    "words",
    "stem_length",
    "sentences",
    "sentence_length",
    "word_length",
    "long_words",
    "repetition",
    "function_words",
    "capitals",
    "numbers",
    "number_share",
    "large_numbers",
    "decimals",
    "operators",
    "notation",
    "percentages",
    "amounts",
    "options",
    "option_length",
    "negation",
    "stressed_negation",
    "statements",
    "blank",
    "questions",
    "ends_in_question",
    "ends_in_colon",
    "foreign_letters",
)

READ = 20_000  # characters that are looked at; the rest changes nothing but the length

# Those that begin with a line end are for `Wording.lines`.
_OPTION = re.compile(r"\n[ \t]{0,40}\(?[A-J][).][ \t]")
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_NOTATION = re.compile(r"\\[a-zA-Z]+|\$(?!\d)[^$\n]{1,200}\$|[∑∫√≤≥∈∀∃→]")
_SYMBOLS = "∑∫√≤≥∈∀∃→"
_NEGATION = re.compile(r"(?i)\b(?:not|except|least|false|incorrect|never)\b")
_NEGATING = frozenset(("not", "except", "least", "false", "incorrect", "never"))
_STRESSED = re.compile(r"\b(?:NOT|EXCEPT|LEAST|CANNOT)\b")
_STRESSING = frozenset(("not", "except", "least", "cannot"))
_NUMBERED_STATEMENT = re.compile(r"I(?<!\wI)(?:\.|I\b)")
_QUANTITIES = word_set(
    "one two three four five six seven eight nine ten twelve twenty thirty half twice double triple dozen third quarter"
)
_HOW_MANY = re.compile("how (?:many|much|far|long|old|fast|tall|big)")
_WHAT_IS = re.compile("what (?:is|was|are|will be|would be) (?:the|his|her|their|its) ")
_IN_UNITS = re.compile("in (?:dollars|minutes|hours)")
_ASKS_QUANTITY = ("calculate", "find", "percent", "average", "total")
_CODE_LINE = re.compile(
    r"\n[ \t]{0,40}(?:def|class|import|from|func|fn|public|private|static|const|let|var|#include|async|package|assert) "
)
# What may stand anywhere in a program, after a word or a character of every match: these are looked up for less.
_CODE_WORDS = (
    ("def", re.compile(r"\bdef \w+\(")),
    ("assert", re.compile(r"\bassert \w+\(")),
    ("select", re.compile(r"\bSELECT\b.{1,200}\bFROM\b")),
    ("return", re.compile(r"\breturn\b.{0,80}[(\[;]")),
)
_CODE_MARKS = (
    ("`", re.compile("```")),
    (">", re.compile("=>")),
    (";", re.compile(r";[ \t]{0,40}\n")),
    ("{", re.compile(r"\)\s{0,4}\{")),
)
_ASKS_CODE = re.compile(
    r"(?i)\b(?:write|implement|complete|create|debug|fix|refactor|optimi[sz]e)\b.{0,60}\b(?:function|program|code"
    r"|script|method|class|query|regex|regular expression|algorithm|module|unit tests?|python|javascript|typescript"
    r"|java|rust|golang|c\+\+|sql|bash|html|css)\b"
)
_CODING = word_set("write implement complete create debug fix refactor optimise optimize")
_CODED = word_set(
    "function program code script method class query regex regular algorithm module unit python javascript typescript"
    " java rust golang c sql bash html css"
)
_FUNCTION_WORDS = (
    "the of a an and to in is are for on with by as at from or that this it be was were which what how who when where"
    " why"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_LONG_WORD = 9 * b"a" + b" "  # as it ends in `any_case` shapes


@dataclass(frozen=True, slots=True)
class Prompt:
    """What was read of a prompt.

    `values` stand in the order of `FEATURES`; `words` are lower case, three letters or more.
    """

    family: Family
    values: tuple[float, ...]
    words: frozenset[str]

    def value(self, name: str) -> float:
        return self.values[FEATURES.index(name)]


def _is_code(wording: Wording) -> bool:
    text, words = wording.text, wording.distinct
    return (
        any(mark in text and piece.search(text) is not None for mark, piece in _CODE_MARKS)
        or _CODE_LINE.search(wording.lines) is not None
        or any(word in words and piece.search(text) is not None for word, piece in _CODE_WORDS)
        or (not words.isdisjoint(_CODING) and not words.isdisjoint(_CODED) and _ASKS_CODE.search(text) is not None)
    )


def _asks_quantity(folded: str) -> bool:
    return (
        any(word in folded for word in _ASKS_QUANTITY)
        or _HOW_MANY.search(folded) is not None
        or _WHAT_IS.search(folded) is not None
        or _IN_UNITS.search(folded) is not None
    )


def _states(text: str) -> bool:
    """Whether it numbers statements: Statement 1, I., II, (i)."""
    if "Statement" in text or ("(" in text and "(i)" in text):
        return True
    return "I" in text and _NUMBERED_STATEMENT.search(text) is not None


def _count_notation(text: str) -> int:
    if "\\" in text or "$" in text:
        return len(_NOTATION.findall(text))
    return 0 if text.isascii() else sum(map(text.count, _SYMBOLS))


def read(text: str, wording: Wording | None = None) -> Prompt:
    """Read a prompt.

    Args:
        wording: Of its first `READ` characters, where that was made already.
    """
    length = len(text)
    if wording is None:
        wording = Wording(text[:READ])
    text, folded = wording.text, wording.folded
    marks = wording.marks()
    options = _OPTION.findall(wording.lines)
    choice = len(options) >= 2
    if choice:
        first = _OPTION.search(wording.lines)
        assert first is not None
        stem = text[: first.start()]
        option_length = (len(text) - first.start()) / len(options)
        sentences = len(_SENTENCE.findall(stem))
    else:
        stem = text
        option_length = 0.0
        sentences = marks.count(b". ") + marks.endswith(b".")
    words = wording.words
    distinct = wording.distinct if words is wording.runs else set(words)
    count = len(words) or 1
    shapes = wording.word_shapes()
    blank = shapes.count(b" ")
    initials = shapes.count(b" A") - shapes.lstrip().startswith(b"A")
    digits = marks.count(b"0")
    numbers = wording.numbers() if digits else []
    notation = _count_notation(text)
    negating = not wording.distinct.isdisjoint(_NEGATING)
    stressing = not wording.distinct.isdisjoint(_STRESSING)
    tail = stem.rstrip()[-1:]
    log = math.log1p
    values = (
        log(length),
        log(len(words)),
        log(len(stem)),
        log(sentences),
        log(len(stem) / max(1, sentences)),
        (len(shapes) - blank) / count,
        any_case(shapes).count(_LONG_WORD) / count,
        1 - len(distinct) / count,
        len([word for word in words if word in FUNCTION_WORDS]) / count,
        initials / count,
        log(len(numbers)),
        len(numbers) / (count + len(numbers)),
        log(sum(len(number) >= 4 for number in numbers)),
        log(sum(b"." in number for number in numbers)),
        log(marks.count(b"=")),
        log(notation),
        log(text.count("%")),
        float("$" in text and notation == 0),
        float(len(options)),
        log(option_length),
        float(negating and (not choice or _NEGATION.search(stem) is not None)),
        float(stressing and _STRESSED.search(stem) is not None),
        float(_states(text)),
        float("_" in text and "__" in text),
        log(text.count("?")),
        float(tail == "?"),
        float(tail == ":"),
        0.0 if wording.ascii else min(1.0, 5 * (len(text) - len(text.encode("ascii", "ignore"))) / max(1, len(text))),
    )
    family: Family = "open"
    if choice:
        family = "choice"
    elif not ("[" in text and "[asy]" in text) and _is_code(wording):  # [asy]: a figure, not a program
        family = "code"
    elif notation >= 2:
        family = "formula"
    elif (digits >= 3 or digits + wording.count(wording.distinct & _QUANTITIES) >= 3) and _asks_quantity(folded):
        family = "quantity"
    return Prompt(family, values, frozenset([word for word in distinct if len(word) > 2]))
