"""Text as search terms, the same in index and query: identifiers whole and in parts, words by their stems.

`KubePodCrashLooping` gives `kubepodcrashlooping`, `kube`, `pod`, `crash`, `loop`; so do `kube_pod_crash_looping` and
`kube-pod-crash-looping`, so the three spellings find one another. `--dry-run` gives itself, `dryrun`, `dry`, `run`.
Letters count without their accents: `Zurücksetzen` gives `zurucksetzen`, and `zuruecksetzen` besides.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import snowballstemmer

__all__ = ["STOP_WORDS", "identifiers", "plain", "stem", "tokenise"]

COMPOUND = re.compile(r"(?<!\w)--?[A-Za-z][\w-]*\w|[^\W_]+(?:[_.\-:@][^\W_]+|_+[^\W_]+)*")
PLURAL_ACRONYM = re.compile(r"\b([A-Z]{2,})s\b")
# Digits stay with the letters before them: s3, ext4, k8s and IPv4 mean nothing in pieces.
PART = re.compile(r"[A-Z]{2,}v\d+|[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+(?:\d+[a-z]*)*|\d+[a-z]*")
SEPARATOR = re.compile(r"[\W_]+")
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")  # scripts that put no space between words
# The function words of English: they say how a question is put, not what it is about.
FUNCTION_WORDS = """
a about all also am an and any are as at be because been but by can could did do does doing for from
had has have he her here him his how i if in into is it its just like me my of on or our out she
should so some such than that the their them then there these they this those to too us very was we
were what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
# Of scripts whose letters people also type without them. In others (Devanagari, Thai) such signs are vowels.
ACCENTS = re.compile("[\u0300-\u036f]+")
UMLAUTS = re.compile(r"[^\W\d_]*[äöüÄÖÜ][^\W\d_]*")
SPELT_OUT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})  # without such a keyboard
PLAIN = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L"}
    | {"đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "ħ": "h", "Ħ": "H"}
)


def tokenise(text: str) -> list[str]:
    """Terms in order, duplicates kept. Stop words are kept too: a query drops them, an index needs not."""
    terms: list[str] = []
    for match in COMPOUND.finditer(PLURAL_ACRONYM.sub(r"\1", plain(text))):
        terms.extend(_terms(match.group()))
    if not text.isascii():
        for match in UMLAUTS.finditer(unicodedata.normalize("NFKC", text)):
            terms.extend(_terms(plain(match.group().translate(SPELT_OUT))))
    return terms


def plain(text: str) -> str:
    """The text in its compatible form (NFKC), its letters without accents."""
    if text.isascii():
        return text
    folded = ACCENTS.sub("", unicodedata.normalize("NFKD", text).translate(PLAIN))
    return unicodedata.normalize("NFKC", folded)


def identifiers(text: str) -> list[str]:
    """The whole forms of the compounds in `text`: what `tokenise` adds to their parts."""
    found: dict[str, None] = {}
    for match in COMPOUND.finditer(plain(text)):
        word = match.group()
        parts = _parts(word)
        if len(parts) > 1:
            found[_whole(word)] = None
    return list(found)


def _parts(word: str) -> list[str]:
    """The words in a compound: at case changes and separators; pairs of characters where a script has no spaces."""
    if word.isascii():
        return PART.findall(word)
    parts: list[str] = []
    for piece in SEPARATOR.split(word):
        position = 0
        for run in UNSPACED.finditer(piece):
            parts.append(piece[position : run.start()])
            signs = run.group()
            parts.extend(signs[at : at + 2] for at in range(max(1, len(signs) - 1)))
            position = run.end()
        parts.append(piece[position:])
    return [part for part in parts if part]


def _whole(word: str) -> str:
    return SEPARATOR.sub("", word).lower()


@lru_cache(maxsize=65_536)
def _terms(word: str) -> tuple[str, ...]:
    parts = [part.lower() for part in _parts(word)]
    if not parts:
        return ()
    if len(parts) == 1 and not word.startswith("-"):
        return (stem(parts[0]),)
    whole = (_whole(word),) if len(parts) > 1 else ()
    flag = (word.lower(),) if word.startswith("-") else ()
    return (*flag, *whole, *(stem(part) for part in parts))


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """The stem of one lower-case word (Porter 2); what is no English word is left alone."""
    stemmed: str = _stemmer().stemWord(word)
    return stemmed


@lru_cache(maxsize=1)
def _stemmer() -> snowballstemmer.stemmer:
    return snowballstemmer.stemmer("english")
