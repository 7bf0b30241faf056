"""Looking for words by whole-string operations finds what expressions, tried at every letter, would find."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avyay.marga import complexity
from avyay.marga.prompt import FEATURES, FUNCTION_WORDS, Prompt, read
from avyay.marga.wording import Wording, phrase

WORD = re.compile(r"[A-Za-z']+")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
OPTION = re.compile(r"(?m)^[ \t]{0,40}\(?([A-J])[).][ \t].*$")
NOTATION = re.compile(r"\\[a-zA-Z]+|\$(?!\d)[^$\n]{1,200}\$|[∑∫√≤≥∈∀∃→]")
QUANTITY = re.compile(
    r"(?i)\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|half|twice|double|triple|dozen"
    r"|third|quarter)\b"
)
ASKS_QUANTITY = re.compile(
    r"(?i)how (?:many|much|far|long|old|fast|tall|big)|what (?:is|was|are|will be|would be) (?:the|his|her|their|its) "
    r"|calculate|find|percent|average|total|in (?:dollars|minutes|hours)"
)
CODE = re.compile(
    r"```|^[ \t]{0,40}(?:def|class|import|from|func|fn|public|private|static|const|let|var|#include|async|package"
    r"|assert) "
    r"|\bdef \w+\(|\bassert \w+\(|;[ \t]{0,40}\n|=>|\bSELECT\b.{1,200}\bFROM\b|\)\s{0,4}\{|\breturn\b.{0,80}[(\[;]"
    r"|(?i:\b(?:write|implement|complete|create|debug|fix|refactor|optimi[sz]e)\b.{0,60}\b(?:function|program|code"
    r"|script|method|class|query|regex|regular expression|algorithm|module|unit tests?|python|javascript|typescript"
    r"|java|rust|golang|c\+\+|sql|bash|html|css)\b)",
    re.MULTILINE,
)
REASONING = re.compile(
    r"(?i)\b(prove|derive|design|architect\w*|trade-?offs?|analy[sz]e|compare|evaluate|diagnos\w+|debug|optimi[sz]e"
    r"|refactor|implement|algorithm|concurren\w+|distributed|race condition|root cause|step[ -]by[ -]step|strategy"
    r"|migrat\w+|theorem|explain why|threat model|formal\w*)\b"
)
SIMPLE = re.compile(
    r"(?i)\b(classify|extract|translate|rephrase|summari[sz]e in one|yes or no|true or false|format (?:this|it|as)"
    r"|convert|fix the (?:typo|spelling)|spell|define|capital of|what is the (?:name|date)|one word|list the)\b"
)
WRITING = re.compile(
    r"(?i)\b(write|draft|compose|summari[sz]e|summary|explain|describe|outline|generate|rewrite|review|recommend)\b"
)
CONSTRAINT = re.compile(
    r"(?im)\b(must|should|ensure|at least|at most|without|exactly|only|never|no more than)\b"
    r"|^[ \t]{0,40}(?:[-*]|\d{1,3}[.)])\s"
)


def read_by_expressions(text: str) -> tuple[str, dict[str, float], frozenset[str]]:
    options = OPTION.findall(text)
    choice = len(options) >= 2
    first = OPTION.search(text)
    stem = text[: first.start()] if choice and first is not None else text
    words = WORD.findall(text)
    lower = [word.lower() for word in words]
    numbers = NUMBER.findall(text)
    notation = len(NOTATION.findall(text))
    sentences = len(re.findall(r"[.!?](?:\s|$)", stem))
    count = len(words) or 1
    values = {
        "length": math.log1p(len(text)),
        "words": math.log1p(len(words)),
        "stem_length": math.log1p(len(stem)),
        "sentences": math.log1p(sentences),
        "sentence_length": math.log1p(len(stem) / max(1, sentences)),
        "word_length": sum(map(len, words)) / count,
        "long_words": sum(len(word) >= 9 for word in words) / count,
        "repetition": 1 - len(set(lower)) / count,
        "function_words": sum(word in FUNCTION_WORDS for word in lower) / count,
        "capitals": sum(word[0].isupper() for word in words[1:]) / count,
        "numbers": math.log1p(len(numbers)),
        "number_share": len(numbers) / (count + len(numbers)),
        "large_numbers": math.log1p(sum(len(number) >= 4 for number in numbers)),
        "decimals": math.log1p(sum("." in number for number in numbers)),
        "operators": math.log1p(len(re.findall(r"[=+*/^<>]", text))),
        "notation": math.log1p(notation),
        "percentages": math.log1p(text.count("%")),
        "amounts": float("$" in text and notation == 0),
        "options": float(len(options)),
        "option_length": math.log1p((len(text) - len(stem)) / len(options)) if choice else 0.0,
        "negation": float(bool(re.search(r"(?i)\b(?:not|except|least|false|incorrect|never)\b", stem))),
        "stressed_negation": float(bool(re.search(r"\b(?:NOT|EXCEPT|LEAST|CANNOT)\b", stem))),
        "statements": float(bool(re.search(r"Statement|\bI\.|\bII\b|\(i\)", text))),
        "blank": float("__" in text),
        "questions": math.log1p(text.count("?")),
        "ends_in_question": float(stem.rstrip().endswith("?")),
        "ends_in_colon": float(stem.rstrip().endswith(":")),
        "foreign_letters": min(1.0, 5 * len(re.findall(r"[^\x00-\x7f]", text)) / max(1, len(text))),
    }
    family = "open"
    if choice:
        family = "choice"
    elif "[asy]" not in text and CODE.search(text):
        family = "code"
    elif notation >= 2:
        family = "formula"
    elif ASKS_QUANTITY.search(text) and len(QUANTITY.findall(text)) >= 3:
        family = "quantity"
    return family, values, frozenset(word for word in lower if len(word) >= 3)


def weigh_by_expressions(text: str) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    if words := {match.lower() for match in REASONING.findall(text)}:
        found.append((min(0.48, 0.12 * len(words)), f"asks for reasoning ({', '.join(sorted(words)[:3])})"))
    if writing := WRITING.search(text):
        found.append((0.1, f"asks for writing ({writing[0].lower()})"))
    if (constraints := len(CONSTRAINT.findall(text))) > 2:
        found.append((min(0.15, 0.03 * constraints), f"{constraints} constraints"))
    if len(text) < 2000 and (simple := SIMPLE.search(text)):
        found.append((-0.1, f"simple task ({simple[0].lower()})"))
    return found


PIECES = (
    *(
        "a",
        "The",
        "of",
        "don't",
        "'not'",
        "not_",
        "not",
        "NOT",
        "Except",
        "I.",
        "II",
        "(i)",
        "XII",
        "Statement 1",
        "___",
    ),
    *("one", "twelve", "Half", "twice2", "how many", "how  many", "what is the ", "In Hours", "percentage", "finding"),
    *("3", "3.14", "1.2.3", "1,000", "12345", "2)", "٣٤", "$5", "$x$", r"\frac", "∑", "100 %", "=", "a+b", "[asy]"),
    *(
        "def f(",
        "def",
        "assert x(",
        ";",
        "=>",
        "```",
        "SELECT a FROM b",
        "select",
        ") {",
        "return x[",
        "#include ",
        "let ",
    ),
    *("write", "Write a", "complete", "fix", "Python", "C++x", "function", "unit tests", "regular expression", "query"),
    *("prove", "trade-off", "tradeoffs", "Trade off", "race condition", "race  condition", "step by step", "step-by"),
    *(
        "architecture",
        "informal",
        "formally",
        "diagnose",
        "diagnos",
        "migrate",
        "explain why",
        "explain",
        "threat model",
    ),
    *(
        "summarize in one",
        "summarise",
        "yes or no",
        "yes-or-no",
        "format it",
        "formats",
        "capital of",
        "what is the date",
    ),
    *("must", "Should", "at least", "at most", "at", "no more than", "exactly_", "only", "never", "never.", "without"),
    *("A) ", "B. ", "(C) ", "J.", "K. ", "1. ", "- ", "* ", "23)\t", "-", "1234. "),
    *(
        "\n",
        "\n\n",
        "\n  ",
        "\t",
        "\r\n",
        "\x1c",
        "\xa0",
        "\u2028",
        ". ",
        "! ",
        "?",
        "?\n",
        "...",
        ":",
        "“quoted”",
        "é",
    ),
    *("architecté", "ñandú", "日本語", "भारत", "—", "\ud800", "Ａ", "²", "½", "_"),
)
# Four letters outside ASCII stand for ASCII ones where case is ignored; they count as foreign letters here.
LETTERS = st.characters(blacklist_characters="\u017f\u212a\u0130\u0131", blacklist_categories=())
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(PIECES), st.sampled_from(PIECES), st.just(" "), st.just(" "), st.text(LETTERS, max_size=8)
    ),
    max_size=40,
).map("".join)


@settings(max_examples=400)
@given(TEXTS)
@example("1. must\n2. should\n-\n- at least at most one, no more than two")
@example("Which is NOT a metal?\nA. Iron\nB) It cannot\n(C) never mind\n")
@example("Statement 1 | II. is not Ⅱ; 3.5٣ > 2 trade-offs; architecté")
def test_a_prompt_is_read_as_the_expressions_say(text: str) -> None:
    family, values, words = read_by_expressions(text)
    assert read(text) == Prompt(read(text).family, tuple(values[name] for name in FEATURES), words)
    assert read(text).family == family
    weighed: list[tuple[float, str]] = []
    complexity._weigh_wording(Wording(text), lambda amount, reason: weighed.append((amount, reason)))
    assert weighed == weigh_by_expressions(text)


@pytest.mark.parametrize("piece", PIECES)
def test_each_piece_is_read_as_the_expressions_say(piece: str) -> None:
    for text in (piece, f"Say {piece} and {piece}.", f"x{piece}y", f"{piece}\n{piece}\n{piece}", f"_{piece}é"):
        test_a_prompt_is_read_as_the_expressions_say.hypothesis.inner_test(text)  # type: ignore[attr-defined]


def test_a_phrase_begins_at_the_beginning_of_a_word() -> None:
    assert phrase("formal", r"\w*").findall("formal, informal, formally, _formal, é formal") == [
        *("formal", "formally", "formal"),
    ]
