"""A prompt as numbers: which kind of task it is, and what of its shape and wording the scorer weighs. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

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

_WORD = re.compile(r"[A-Za-z']+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_OPTION = re.compile(r"(?m)^[ \t]{0,40}\(?([A-J])[).][ \t].*$")
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_OPERATOR = re.compile(r"[=+*/^<>]")
_NOTATION = re.compile(r"\\[a-zA-Z]+|\$(?!\d)[^$\n]{1,200}\$|[∑∫√≤≥∈∀∃→]")
_NEGATION = re.compile(r"(?i)\b(?:not|except|least|false|incorrect|never)\b")
_STRESSED = re.compile(r"\b(?:NOT|EXCEPT|LEAST|CANNOT)\b")
_STATEMENT = re.compile(r"Statement|\bI\.|\bII\b|\(i\)")
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_QUANTITY = re.compile(
    r"(?i)\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|half|twice|double|triple|dozen"
    r"|third|quarter)\b"
)
_ASKS_QUANTITY = re.compile(
    r"(?i)how (?:many|much|far|long|old|fast|tall|big)|what (?:is|was|are|will be|would be) (?:the|his|her|their|its) "
    r"|calculate|find|percent|average|total|in (?:dollars|minutes|hours)"
)
_CODE = re.compile(
    r"```|^[ \t]{0,40}(?:def|class|import|from|func|fn|public|private|static|const|let|var|#include|async|package"
    r"|assert) "
    r"|\bdef \w+\(|\bassert \w+\(|;[ \t]{0,40}\n|=>|\bSELECT\b.{1,200}\bFROM\b|\)\s{0,4}\{|\breturn\b.{0,80}[(\[;]",
    re.MULTILINE,
)
_ASKS_CODE = re.compile(
    r"(?i)\b(?:write|implement|complete|create|debug|fix|refactor|optimi[sz]e)\b.{0,60}\b(?:function|program|code"
    r"|script|method|class|query|regex|regular expression|algorithm|module|unit tests?|python|javascript|typescript"
    r"|java|rust|golang|c\+\+|sql|bash|html|css)\b"
)
_FUNCTION_WORDS = (
    "the of a an and to in is are for on with by as at from or that this it be was were which what how who when where"
    " why"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


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


# What every match of an expression contains, in lower case: looking for that first is many times cheaper.
_NEGATING = ("not", "except", "least", "false", "incorrect", "never")
_STRESSING = ("NOT", "EXCEPT", "LEAST", "CANNOT")
_STATING = ("Statement", "I.", "II", "(i)")
_ASKING = (
    *(
        "how many",
        "how much",
        "how far",
        "how long",
        "how old",
        "how fast",
        "how tall",
        "how big",
        "what ",
        "calculate",
    ),
    *("find", "percent", "average", "total", "in dollars", "in minutes", "in hours"),
)
_CODING = ("write", "implement", "complete", "create", "debug", "fix", "refactor", "optimi")
_CODE_MARKS = ("\n", "```", "=>", "(", "[", "{", ";", "SELECT")
_DIGIT = re.compile(r"\d")


def _any(needles: tuple[str, ...], text: str) -> bool:
    return any(needle in text for needle in needles)


def _is_code(text: str, folded: str) -> bool:
    # Without any of the marks only its first line could begin like a program.
    found = _CODE.search(text) if _any(_CODE_MARKS, text) else _CODE.match(text)
    return found is not None or (_any(_CODING, folded) and _ASKS_CODE.search(text) is not None)


def _quantities(text: str) -> bool:
    """Whether there are three quantities or more; every digit counts."""
    return len(_DIGIT.findall(text)) >= 3 or len(_QUANTITY.findall(text)) >= 3


def read(text: str) -> Prompt:
    """Read a prompt."""
    length = len(text)
    text = text[:READ]
    options = _OPTION.findall(text)
    choice = len(options) >= 2
    stem = text
    option_length = 0.0
    if choice:
        first = _OPTION.search(text)
        assert first is not None
        stem = text[: first.start()]
        option_length = (len(text) - first.start()) / len(options)
    words = _WORD.findall(text)
    lower = [word.lower() for word in words]
    distinct = set(lower)
    count = len(words) or 1
    numbers = _NUMBER.findall(text)
    folded = text.lower()
    notation = len(_NOTATION.findall(text)) if "\\" in text or "$" in text or not text.isascii() else 0
    sentences = len(_SENTENCE.findall(stem))
    tail = stem.rstrip()[-1:]
    log = math.log1p
    values = (
        log(length),
        log(len(words)),
        log(len(stem)),
        log(sentences),
        log(len(stem) / max(1, sentences)),
        sum(map(len, words)) / count,
        sum(len(word) >= 9 for word in words) / count,
        1 - len(distinct) / count,
        sum(word in FUNCTION_WORDS for word in lower) / count,
        sum(word[0].isupper() for word in words[1:]) / count,
        log(len(numbers)),
        len(numbers) / (count + len(numbers)),
        log(sum(len(number) >= 4 for number in numbers)),
        log(sum("." in number for number in numbers)),
        log(len(_OPERATOR.findall(text))),
        log(notation),
        log(text.count("%")),
        float("$" in text and notation == 0),
        float(len(options)),
        log(option_length),
        float(_any(_NEGATING, folded) and _NEGATION.search(stem) is not None),
        float(_any(_STRESSING, stem) and _STRESSED.search(stem) is not None),
        float(_any(_STATING, text) and _STATEMENT.search(text) is not None),
        float("__" in text),
        log(text.count("?")),
        float(tail == "?"),
        float(tail == ":"),
        0.0 if text.isascii() else min(1.0, 5 * len(_FOREIGN.findall(text)) / max(1, len(text))),
    )
    family: Family = "open"
    if choice:
        family = "choice"
    elif "[asy]" not in text and _is_code(text, folded):  # [asy]: a figure, not a program
        family = "code"
    elif notation >= 2:
        family = "formula"
    elif _any(_ASKING, folded) and _ASKS_QUANTITY.search(text) and _quantities(text):
        family = "quantity"
    return Prompt(family, values, frozenset(word for word in distinct if len(word) >= 3))
